"""Filter places on a backend: their circuits, the requests that evaluate them, and the values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.primitives import (
    BaseEstimatorV2,
    EstimatorPubLike,
    PrimitiveJob,
    PrimitiveResult,
    PubResult,
)
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from torch import Tensor

from qhdm.errors import HardwareError
from qhdm.hardware.estimate import JOB_OVERHEAD, MAX_BYTES, MAX_EXECUTIONS
from qhdm.hardware.isa import IsaCache, PackedCircuit
from qhdm.hardware.mitigation import (
    Correction,
    affine,
    calibration_inputs,
    calibration_rows,
    check_spread,
    trex,
)
from qhdm.hardware.request import Request
from qhdm.hardware.submission import Submitter
from qhdm.quantum.engines import Bound
from qhdm.quantum.exact import engine as exact
from qhdm.quantum.filter import Filter, z_of_each
from qhdm.quantum.options import Mitigation
from qhdm.quantum.pubs import PubRows, filter_pub, parameter_sets

#: The share of a runtime job's bytes for parameter values; circuits and JSON take the rest.
_SHARE_OF_VALUES = 0.5


@dataclass(frozen=True, eq=False)
class StageCircuit:
    """One circuit of a filter place: the rows of a PUB that have the same weights.

    Attributes:
        isa: the circuit, its weights bound.
        plain: the same before it is laid out, and its inputs.
        rows: (R,) which rows of the PUB.
        values: parameter values of the ISA circuit, (ceil(R / copies), parameters).
    """

    isa: PackedCircuit
    plain: tuple[QuantumCircuit, Sequence[Parameter]]
    rows: np.ndarray
    values: np.ndarray

    @cached_property
    def calibration(self) -> np.ndarray:
        """Calibration inputs (K, inputs), which every copy gets."""
        return calibration_inputs(calibration_rows(len(self.values)), self.isa.inputs)

    @cached_property
    def calibration_values(self) -> np.ndarray:
        """Exact <Z> of the qubits at the calibration inputs, (K, n).

        Raises:
            HardwareError: they do not vary.
        """
        circuit, inputs = self.plain
        observables = z_of_each(circuit.num_qubits)
        known = Filter("calibration", circuit, tuple(inputs), (), observables)
        x = torch.as_tensor(self.calibration)[None]
        values: np.ndarray = exact.expectation(known, x, x.new_empty(1, 0))[0].numpy()
        check_spread(circuit.name, values)
        return values

    def executed(self, mitigation: Mitigation) -> np.ndarray:
        """Parameter values of all rows that are executed, those of calibration last."""
        if mitigation != "affine":
            return self.values
        calibration = self.isa.values(np.repeat(self.calibration, self.isa.copies, axis=0))
        return np.concatenate([self.values, calibration])


def stage_circuits(
    circuit: QuantumCircuit,
    sets: np.ndarray,
    weights: frozenset[Parameter],
    cache: IsaCache,
    layout: int = 0,
) -> list[StageCircuit]:
    """Bind the weights of a circuit.

    Args:
        circuit: the circuit.
        sets: values (R, P) of `circuit.parameters`.
        weights: parameters to bind.
        cache: makes the ISA circuits.
        layout: their number, see `IsaCache.get`.
    """
    parameters = list(circuit.parameters)
    bound = [i for i, p in enumerate(parameters) if p in weights]
    free = [i for i, p in enumerate(parameters) if p not in weights]
    distinct, which = np.unique(sets[:, bound], axis=0, return_inverse=True)
    circuits = []
    for number, weight_values in enumerate(distinct):
        rows = np.flatnonzero(which.ravel() == number)
        values = {parameters[i]: float(v) for i, v in zip(bound, weight_values, strict=True)}
        plain = circuit.assign_parameters(values)
        inputs = [parameters[i] for i in free]
        isa = cache.get(plain, inputs, rows=len(rows), layout=layout)
        circuits.append(StageCircuit(isa, (plain, inputs), rows, isa.values(sets[rows][:, free])))
    return sorted(circuits, key=lambda circuit: int(circuit.rows[0]))


def layout_at(position: tuple[int, int], relaid: Sequence[Sequence[int]]) -> int:
    """The number of the layout at a step and stage.

    Args:
        position: step and stage.
        relaid: from which positions on circuits were laid out anew, in order.
    """
    return sum(tuple(since) <= position for since in relaid)


def requests_of(
    circuits: Sequence[StageCircuit], shots: int, rep_delay: float, *, mitigation: Mitigation
) -> list[Request]:
    """As few requests as the limits of the service allow.

    Args:
        circuits: of one filter place.
        shots: executed for each row.
        rep_delay: of the device, seconds.
        mitigation: `affine` adds calibration rows to each circuit; `trex` measures readout errors
            after all circuits.
    """
    executed = [(c.isa.circuit, c.executed(mitigation), c.isa.duration) for c in circuits]
    if mitigation == "trex":
        none = np.empty((1, 0))
        executed += [(c.isa.readout(), none, c.isa.duration) for c in circuits]
    most = MAX_EXECUTIONS // shots, int(_SHARE_OF_VALUES * MAX_BYTES)
    requests: list[list[tuple[int, QuantumCircuit, np.ndarray, float]]] = [[]]
    rows_left, bytes_left = most
    for owner, (circuit, values, duration) in enumerate(executed):
        start, width = 0, max(values.shape[1] * values.itemsize, 1)
        while start < len(values):
            count = min(len(values) - start, rows_left, bytes_left // width)
            if count < 1:
                requests.append([])
                rows_left, bytes_left = most
                continue
            requests[-1].append((owner, circuit, values[start : start + count], duration))
            start, rows_left = start + count, rows_left - count
            bytes_left -= count * width
    return [
        Request(
            circuits=[(circuit, values) for _, circuit, values, _ in share],
            owners=tuple(owner for owner, *_ in share),
            shots=shots,
            seconds=JOB_OVERHEAD
            + sum(len(v) * shots * (rep_delay + duration) for _, _, v, duration in share),
        )
        for share in requests
    ]


@dataclass(frozen=True, eq=False)
class StageRunner:
    """Evaluates filter places by counts on a backend.

    Attributes:
        submitter: executes requests, each once.
        cache: of ISA circuits.
        rep_delay: of the device, seconds.
        shots: executed for each row.
        mitigation: see `qhdm.hardware.mitigation`.
        relaid: see `layout_at`.
    """

    submitter: Submitter
    cache: IsaCache
    rep_delay: float
    shots: int
    mitigation: Mitigation = "none"
    relaid: Sequence[Sequence[int]] = ()

    def run(
        self,
        pubs: Sequence[EstimatorPub],
        weights: frozenset[Parameter],
        position: tuple[int, int],
        place: str,
    ) -> list[PubResult]:
        """Evaluate PUBs, whose observables must be sums of single-qubit Z.

        Args:
            pubs: sent as one request where the limits of the service allow.
            weights: parameters whose values are bound before transpiling.
            position: network evaluation, and filter place in it: the same position is evaluated
                once, also by another process.
            place: name of the filter place.
        """
        layout = layout_at(position, self.relaid)
        rows = [PubRows(pub) for pub in pubs]
        by_pub = [
            stage_circuits(pub.circuit, own.sets, weights, self.cache, layout)
            for pub, own in zip(pubs, rows, strict=True)
        ]
        circuits = [circuit for own in by_pub for circuit in own]
        requests = requests_of(circuits, self.shots, self.rep_delay, mitigation=self.mitigation)
        if self.mitigation == "affine":  # refuses before anything is sent
            for circuit in circuits:
                _ = circuit.calibration_values
        results = self.submitter.run(position, place, requests)
        shares: dict[int, list[np.ndarray]] = {}
        for request, result in zip(requests, results, strict=True):
            for i, owner in enumerate(request.owners):
                means = 1 - 2 * result[str(i)] / result[f"shots {i}"]
                shares.setdefault(owner, []).append(means)
        means = [np.concatenate(shares[owner]) for owner in sorted(shares)]
        readout = means[len(circuits) :] or [np.empty(0)] * len(circuits)
        corrected = iter(map(self._corrected, circuits, means[: len(circuits)], readout))
        return [
            self._values(pub_rows, own, [next(corrected) for _ in own])
            for pub_rows, own in zip(rows, by_pub, strict=True)
        ]

    def _corrected(
        self, circuit: StageCircuit, measured: np.ndarray, readout: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """<Z> and its variance for each row of a circuit, (R, n), and the slopes (C, n)."""
        isa, (rows, calibration) = circuit.isa, np.split(measured, [len(circuit.values)])
        correction = Correction(np.ones(rows.shape[1]), np.zeros(rows.shape[1]))
        if self.mitigation == "trex":
            correction = trex(readout)
        elif self.mitigation == "affine":
            packed = calibration.reshape(len(calibration), isa.copies, isa.qubits)
            correction = affine(packed, circuit.calibration_values, self.shots)
        values, variances = correction.values(rows), correction.variances(rows, self.shots)
        count = len(circuit.rows)
        slopes = correction.slope.reshape(isa.copies, isa.qubits)
        return isa.rows(values, count), isa.rows(variances, count), slopes

    def _values(
        self,
        rows: PubRows,
        circuits: Sequence[StageCircuit],
        corrected: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    ) -> PubResult:
        weights = [_z_weights(terms, rows.circuit) for terms in rows.observables]
        constants = np.array([constant for constant, _ in weights])
        matrix = np.array([row for _, row in weights])  # (m, n)
        values, variances = np.empty((len(rows.sets), 2, len(matrix))).swapaxes(0, 1)
        for circuit, (z, variance, _) in zip(circuits, corrected, strict=True):
            values[circuit.rows] = z @ matrix.T + constants
            variances[circuit.rows] = variance @ (matrix**2).T
        slopes = np.concatenate([slopes.ravel() for *_, slopes in corrected])
        return rows.result(values, variances, shots=self.shots, slopes=slopes)


class HardwareEstimator(BaseEstimatorV2):
    """A Qiskit estimator, for an `EstimatorQNN` among others, by runtime jobs on a backend.

    The observables of a PUB, sums of single-qubit Z, come from the same shots. Calls are stages of
    one network evaluation, in the order of the calls.

    Args:
        runner: evaluates them.
        weights: parameters whose values are bound before transpiling.
    """

    def __init__(self, runner: StageRunner, *, weights: Iterable[Parameter] = ()) -> None:
        self._runner, self._weights = runner, frozenset(weights)
        self._stages = itertools.count()

    def run(
        self, pubs: Iterable[EstimatorPubLike], *, precision: float | None = None
    ) -> PrimitiveJob[PrimitiveResult[PubResult]]:
        """Evaluate PUBs; those of one call are sent as one request where the limits allow.

        Args:
            pubs: circuits, observables and parameter sets.
            precision: ignored: the shots are the runner's, and what they cost was agreed to.
        """
        coerced = [EstimatorPub.coerce(pub, precision) for pub in pubs]
        position = (0, next(self._stages))
        job: PrimitiveJob[PrimitiveResult[PubResult]] = PrimitiveJob(self._run, coerced, position)
        job._submit()
        return job

    def _run(
        self, pubs: Sequence[EstimatorPub], position: tuple[int, int]
    ) -> PrimitiveResult[PubResult]:
        values = self._runner.run(pubs, self._weights, position, "")
        return PrimitiveResult(values, metadata={"version": 2})


@dataclass(frozen=True, eq=False)
class HardwareEngine:
    """Evaluates the filters of one place in one network evaluation, on a backend.

    Attributes:
        runner: evaluates them.
        place: name of the filter place.
        step: the network evaluation.
        stages: the numbers of its stages to come, shared by all of its places.
        done: called with stage, place, and arrays: the `measured` and `exact` values, each
            (F, B, m), and the `slopes` of all qubits, if errors are corrected.
    """

    runner: StageRunner
    place: str
    step: int
    stages: Iterator[int]
    done: Callable[[int, str, dict[str, np.ndarray]], object]
    name: str = "hardware"
    estimator: None = None

    def __call__(self, circuit_filter: Filter, x: Tensor, w: Tensor) -> Tensor:
        """Values (F, B, m) at inputs (F, B, n) and weights (F, P), radians."""
        pub = filter_pub(circuit_filter, parameter_sets(circuit_filter, x, w))
        stage = next(self.stages)
        weights = frozenset(circuit_filter.weights)
        (result,) = self.runner.run([pub], weights, (self.step, stage), self.place)
        values = result.data.evs.transpose(1, 2, 0).copy()
        exact_values = exact.expectation(circuit_filter, x, w).double().cpu().numpy()
        arrays = {"measured": values, "exact": exact_values}
        if self.runner.mitigation != "none":
            arrays["slopes"] = result.metadata["slopes"]
        self.done(stage, self.place, arrays)
        return torch.as_tensor(values).to(x)

    def bind(self, circuit_filter: Filter, w: Tensor) -> Bound:
        return lambda x: self(circuit_filter, x, w)


def _z_weights(terms: Mapping[str, float], circuit: QuantumCircuit) -> tuple[float, np.ndarray]:
    """A sum of single-qubit Z: its constant, and the weight of each qubit."""
    constant, weights = 0.0, np.zeros(circuit.num_qubits)
    for label, coefficient in terms.items():
        letters = {q: letter for q, letter in enumerate(reversed(label)) if letter != "I"}
        if not letters:
            constant += coefficient
        elif list(letters.values()) == ["Z"]:
            weights[next(iter(letters))] += coefficient
        else:
            raise HardwareError(
                f"{circuit.name}: observable {label}: on hardware only Z of single qubits is "
                "measured; use the engine aer or exact for others"
            )
    return constant, weights
