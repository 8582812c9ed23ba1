"""Components of a filter on a device: transpiled, and compiled to what is measured of them."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from qiskit.circuit import ClassicalRegister, QuantumCircuit
from qiskit.transpiler import PassManager, Target, TranspilerError, generate_preset_pass_manager
from qiskit.transpiler.passes import Optimize1qGatesDecomposition

from qhdm.errors import HardwareError
from qhdm.hardware.packing import regions_of, tree_layout
from qhdm.quantum.compile.component import Candidate, InputForm, approximate, exact
from qhdm.quantum.compile.error import ErrorModel
from qhdm.quantum.compile.search import gates_needed
from qhdm.quantum.devices.calibration import left_out, working_part
from qhdm.quantum.devices.fractional import FRACTIONAL, folded, two_qubit_gates, without
from qhdm.quantum.ir.connectivity import Compact, compact, components, on_qubits
from qhdm.quantum.options import Compile

_OPTIMIZATION_LEVEL = 3
#: `approximate` starts with so many gates fewer than exact circuits take.
_FEWER = 3
#: Of circuits whose expected errors, shots included, differ by less, the most exact is taken.
_ALIKE = 1.01


@dataclass(frozen=True)
class Figures:
    """What a circuit costs on a device.

    Attributes:
        gates, depth: of two-qubit gates.
        duration: with readout, seconds; 0 if the device has no durations.
        error: root of the mean squared error of <Z> that gates and approximation are expected to
            cause, on the best qubits, over uniform inputs; None where it is not modelled.
    """

    gates: int
    depth: int
    duration: float
    error: float | None

    @classmethod
    def of_all(cls, parts: Sequence[Figures], qubits: Sequence[int]) -> Figures:
        """Of components of so many qubits, side by side."""
        squares = [math.nan if part.error is None else part.error**2 for part in parts]
        error = math.sqrt(np.average(squares, weights=qubits))
        return cls(
            gates=sum(part.gates for part in parts),
            depth=max(part.depth for part in parts),
            duration=max(part.duration for part in parts),
            error=None if math.isnan(error) else error,
        )

    @classmethod
    def largest(cls, filters: Sequence[Figures]) -> Figures:
        """Of filters: the largest of each, and the root of the mean squared error of all."""
        error = cls.of_all(filters, [1] * len(filters)).error
        gates, depth, duration = (
            max(getattr(one, name) for one in filters) for name in ("gates", "depth", "duration")
        )
        return cls(gates, depth, duration, error)


@dataclass(frozen=True, eq=False)
class LaidOut:
    """A component of a filter in the gates of a device.

    Attributes:
        circuit: what runs.
        figures: of it.
        before: of the component as it was transpiled, not compiled, without fractional gates where
            the device has others.
        cost: see `Region`, on the best qubits.
        bias: root of the mean squared error of <Z> without noise; 0 unless it is approximate.
    """

    circuit: Compact
    figures: Figures
    before: Figures
    cost: float
    bias: float = 0.0

    @property
    def expected(self) -> float:
        """What to compare circuits by: the expected error of <Z>, or its proxy."""
        return self.cost if self.figures.error is None else self.figures.error


class Compiler:
    """Transpiles filters component by component, and compiles components if that saves gates.

    On a device with both, a component takes fractional gates if it is expected to err less so.

    Args:
        target: of the device; its RZZ, if any, takes angles from 0 to pi/2.
        seed: of the transpiler.
        compilation: `exact` takes an equivalent circuit with the fewest two-qubit gates,
            `approximate` the number of gates with the least expected error, `off` neither.
        shots: of each circuit, for `approximate`.
    """

    def __init__(
        self, target: Target, *, seed: int, compilation: Compile = "off", shots: int = 1024
    ) -> None:
        self._target, self._mode, self._shots = target, compilation, shots
        self._errors = ErrorModel(target)
        working = working_part(target)
        pairs = two_qubit_gates(working)
        #: By whether circuits are of fractional gates.
        self._targets: dict[bool, Target] = {}
        if pairs != {"rzz"}:
            self._targets[False] = without(working, FRACTIONAL)
        if "rzz" in pairs:
            self._targets[True] = working
        self._manager = functools.cache(
            lambda fractional, layout: generate_preset_pass_manager(
                _OPTIMIZATION_LEVEL,
                target=self._targets[fractional],
                initial_layout=layout and list(layout),
                seed_transpiler=seed,
            )
        )
        self._rotations = PassManager([Optimize1qGatesDecomposition(target=working)])
        self._known: dict[str, list[LaidOut]] = {}

    @property
    def bases(self) -> tuple[bool, ...]:
        """Circuits that are tried: without fractional gates (False), with them (True), or both."""
        return tuple(self._targets)

    def lay_out(self, bound: QuantumCircuit) -> list[LaidOut]:
        """The components of a circuit of gates, in order, free in its inputs alone.

        Raises:
            HardwareError: the working part of the device is too small.
        """
        n = bound.num_qubits
        if n > self._target.num_qubits:
            raise HardwareError(
                f"layout: the device has {self._target.num_qubits} qubits, too few for a filter "
                f"of {n}"
            )
        key = json.dumps(gates_of(bound))
        if key not in self._known:
            try:
                self._known[key] = [
                    self._component(on_qubits(bound, qubits)) for qubits in components(bound)
                ]
            except TranspilerError as error:
                missing = left_out(self._target)
                raise HardwareError(
                    "layout: the device cannot run a circuit of the filter: "
                    f"{error.message.split('. ')[0]}{f' ({missing})' if missing else ''}; use "
                    "another backend"
                ) from None
        return self._known[key]

    def _component(self, circuit: QuantumCircuit) -> LaidOut:
        options = [self._option(circuit, fractional) for fractional in self._targets]
        best = min(options, key=lambda option: option.expected)
        return replace(best, before=options[0].before)

    def _option(self, circuit: QuantumCircuit, fractional: bool) -> LaidOut:
        """A component in fractional gates, or without."""
        form = InputForm.of(circuit)
        plain = self._laid_out(circuit, range(circuit.num_qubits), form, fractional)
        if self._mode == "off":
            return plain
        if form is None:
            return self._on_tree(circuit, plain, fractional)
        most = plain.figures.gates - 1
        if self._mode == "exact":
            candidate = exact(form, most=most, fractional=fractional)
            best = None if candidate is None else self._candidate(candidate, form, fractional)
        else:
            best = self._best(form, most, fractional)
        # Fewer gates may still err more, on qubits that matter more.
        if best is None or best.figures.gates > most or best.expected > plain.expected:
            return plain
        return replace(best, before=plain.before)

    def _on_tree(self, circuit: QuantumCircuit, plain: LaidOut, fractional: bool) -> LaidOut:
        """A component that cannot be compiled, on a `tree_layout` if that errs less."""
        layout = tree_layout(circuit, self._targets[fractional])
        if layout is None:
            return plain
        outputs = range(circuit.num_qubits)
        other = self._laid_out(circuit, outputs, None, fractional, layout)
        return replace(min(plain, other, key=lambda one: one.cost), before=plain.before)

    def _candidate(self, candidate: Candidate, form: InputForm, fractional: bool) -> LaidOut:
        laid_out = self._laid_out(candidate.circuit, candidate.outputs, form, fractional)
        return replace(laid_out, bias=candidate.bias)

    def _best(self, form: InputForm, most: int, fractional: bool) -> LaidOut | None:
        """The approximate circuit with the least expected error, which falls and rises with gates.

        The walk begins near the minimum. It may end early: exact circuits are tried, too.
        """
        needed = gates_needed(len(form.inputs), fractional=fractional)
        laid: dict[int, tuple[float, LaidOut]] = {}

        def error(gates: int) -> float:
            """Expected, with the error of shots; infinite where there is no such circuit."""
            if not 0 <= gates <= min(needed, most):
                return math.inf
            if gates not in laid:
                candidate = approximate(form, gates=gates, fractional=fractional)
                one = self._candidate(candidate, form, fractional)
                shots = np.mean(1 - form.values() ** 2) / self._shots
                laid[gates] = math.hypot(one.figures.error or one.bias, math.sqrt(shots)), one
            return laid[gates][0]

        start = max(0, min(needed - _FEWER, most))
        for step in (-1, 1):
            gates = start
            while error(gates + step) < error(gates):
                gates += step
        error(min(needed, most))
        if not laid:
            return None
        least = min(expected for expected, _ in laid.values())
        alike = [one for expected, one in laid.values() if expected <= _ALIKE * least]
        return min(alike, key=lambda one: one.bias)

    def _laid_out(
        self,
        plain: QuantumCircuit,
        outputs: Sequence[int],
        form: InputForm | None,
        fractional: bool,
        layout: tuple[int, ...] | None = None,
    ) -> LaidOut:
        """A circuit transpiled, from a layout; <Z_i> is measured on its qubit outputs[i]."""
        measured = plain.copy()
        measured.add_register(ClassicalRegister(len(outputs)))
        measured.measure(list(outputs), range(len(outputs)))
        transpiled = self._manager(fractional, layout).run(measured)
        if fractional:  # the X of folded angles are merged into the rotations next to them
            transpiled = self._rotations.run(folded(transpiled))
        circuit = compact(transpiled)
        regions = regions_of(circuit, self._target)
        if not regions:
            raise HardwareError("layout: no working qubits of the device fit a circuit")
        physical, error = regions[0].qubits, None
        if form is not None:
            error = math.sqrt(self._errors.squared_error(circuit, physical, form))
        whole = QuantumCircuit(self._target.num_qubits, len(circuit.ends))
        whole.compose(circuit.circuit, list(physical), inplace=True)
        whole.measure([physical[end] for end in circuit.ends], range(len(circuit.ends)))
        two = [entry for entry in circuit.circuit.data if len(entry.qubits) == 2]
        depth = circuit.circuit.depth(lambda entry: len(entry.qubits) == 2)
        figures = Figures(len(two), depth, duration_of(whole, self._target), error)
        return LaidOut(circuit, figures, figures, regions[0].cost)


def gates_of(bound: QuantumCircuit) -> list[tuple[str, list[int], list[str]]]:
    """The gates of a circuit, as JSON can hold them."""
    return [
        (
            entry.operation.name,
            [bound.find_bit(q).index for q in entry.qubits],
            [_fact(p) for p in entry.operation.params],
        )
        for entry in bound.data
    ]


def _fact(parameter: object) -> str:
    """A gate's parameter as unique text: numpy would abbreviate a large matrix."""
    if isinstance(parameter, np.ndarray):
        return f"{parameter.shape}{parameter.dtype}{parameter.tobytes().hex()}"
    return str(parameter)


def duration_of(circuit: QuantumCircuit, target: Target) -> float:
    """Seconds of the longest chain of gates; a gate without a time takes its kind's longest."""
    times = {
        name: {qubits: getattr(p, "duration", None) for qubits, p in target[name].items()}
        for name in {entry.operation.name for entry in circuit.data} & set(target.operation_names)
    }
    longest = {
        name: max((t or 0.0 for t in of.values()), default=0.0) for name, of in times.items()
    }
    ends = [0.0] * circuit.num_qubits
    index = {bit: i for i, bit in enumerate(circuit.qubits)}
    for entry in circuit.data:
        qubits, name = tuple(index[q] for q in entry.qubits), entry.operation.name
        time = times.get(name, {}).get(qubits)
        after = max(ends[q] for q in qubits) + (longest.get(name, 0.0) if time is None else time)
        for q in qubits:
            ends[q] = after
    return max(ends, default=0.0)
