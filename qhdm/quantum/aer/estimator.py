"""A Qiskit estimator that batches on Aer."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from qiskit.circuit import QuantumCircuit
from qiskit.primitives import (
    BaseEstimatorV2,
    EstimatorPubLike,
    PrimitiveJob,
    PrimitiveResult,
    PubResult,
)
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from qiskit.quantum_info import SparsePauliOp

from qhdm.errors import CircuitError
from qhdm.quantum.aer.run import Execution, Runner
from qhdm.quantum.aer.subcircuits import Subcircuits, subcircuits_of
from qhdm.quantum.filter import Filter
from qhdm.quantum.options import MAX_SHOTS, Aer
from qhdm.quantum.pubs import PubRows
from qhdm.seeds import Stream, current_draws, derive_seed

#: Circuits that are kept prepared.
_KEPT = 32


@dataclass(frozen=True, eq=False)
class Prepared:
    """A circuit and its observables, ready to run.

    Attributes:
        circuit: as it was given.
        parts: its components; the program's weights are `circuit.parameters`.
        executions: of each part.
    """

    circuit: QuantumCircuit
    parts: Subcircuits
    executions: tuple[tuple[Execution, ...], ...]


class AerEstimator(BaseEstimatorV2):
    """Expectation values on Aer, one run per circuit for all parameter sets and observables.

    A V2 estimator, which an `EstimatorQNN` can use. Circuits are sent as
    their independent components, in gates that Aer binds correctly; observables that commute
    qubit by qubit come from the same outcomes.

    Standard errors are those of independent shots, (1 - <P>^2) / shots for a Pauli string, without
    the covariances of strings measured together.

    Args:
        options: method, shots, noise, device.
        seed: of the sampling, unless draws are prescribed (`qhdm.seeds.drawing`): call k draws
            from (seed, k).

    Raises:
        EngineError: an option is out of range, the device is absent, or the noise unknown.

    Example:
        >>> network = FilterQNN(build_filter("fqconv"), estimator=AerEstimator())
        >>> network.forward(x, w).shape
        (5, 12)
    """

    def __init__(self, options: Aer | None = None, *, seed: int = 0) -> None:
        self.options = options or Aer()
        self.seed = seed
        self.runner = Runner(self.options)
        self._calls = 0
        self._prepared: OrderedDict[object, Prepared] = OrderedDict()

    def run(
        self, pubs: Iterable[EstimatorPubLike], *, precision: float | None = None
    ) -> PrimitiveJob[PrimitiveResult[PubResult]]:
        """Evaluate PUBs.

        Args:
            pubs: circuits, observables and parameter sets. The last axis of the parameter sets is
                the batch: prescribed draws belong to its entries.
            precision: above 0, `ceil(1 / precision^2)` shots instead of those of the options.
        """
        coerced = [EstimatorPub.coerce(pub, precision) for pub in pubs]
        seeds = [self.draw() for _ in coerced]
        # The job runs in another thread, where `current_draws` does not see these.
        job: PrimitiveJob[PrimitiveResult[PubResult]] = PrimitiveJob(self._run, coerced, seeds)
        job._submit()
        return job

    def draw(self) -> tuple[int, ...]:
        """The seeds of the next call."""
        draws = current_draws()
        if draws is not None:
            return draws.next()
        self._calls += 1
        return (derive_seed(self.seed, Stream.CALL, self._calls),)

    def prepare(self, circuit: QuantumCircuit, observables: Sequence[SparsePauliOp]) -> Prepared:
        """Split a circuit into components and transpile them; cached."""
        labels = tuple(tuple(o.to_list()) for o in observables)
        key = (id(circuit), len(circuit.data), labels)
        if key not in self._prepared:
            # The circuit is kept as well, so that its id is not reused.
            self._prepared[key] = self._prepare(circuit, observables)
            if len(self._prepared) > _KEPT:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return self._prepared[key]

    def _prepare(self, circuit: QuantumCircuit, observables: Sequence[SparsePauliOp]) -> Prepared:
        name = circuit.name
        whole = Filter(name, circuit, (), tuple(circuit.parameters), tuple(observables))
        parts = subcircuits_of(whole, keep_all=self.runner.device is not None)
        executions = tuple(self.runner.prepare(part, name) for part in parts.parts)
        return Prepared(circuit, parts, executions)

    def _run(
        self, pubs: Sequence[EstimatorPub], seeds: Sequence[tuple[int, ...]]
    ) -> PrimitiveResult[PubResult]:
        results = [self._evaluate(pub, own) for pub, own in zip(pubs, seeds, strict=True)]
        return PrimitiveResult(results, metadata={"version": 2})

    def _evaluate(self, pub: EstimatorPub, seeds: tuple[int, ...]) -> PubResult:
        if pub.precision:
            return self._with_precision(pub.precision)._evaluate(
                EstimatorPub(pub.circuit, pub.observables, pub.parameter_values), seeds
            )
        rows, shape = PubRows(pub), pub.parameter_values.shape
        prepared = self.prepare(pub.circuit, [_operator(terms) for terms in rows.observables])
        angles = prepared.parts.angles(rows.sets)
        measured = self.measure(prepared, angles, seeds, batch=shape[-1] if shape else 1)
        values = prepared.parts.combine(measured)
        variances = np.zeros_like(values)
        if self.options.shots is not None:
            of_strings = (1 - measured**2).clip(0) / self.options.shots
            for m, outputs in enumerate(prepared.parts.outputs):
                for coefficient, factors in outputs:
                    variances[:, m] += coefficient**2 * of_strings[:, factors].sum(axis=1)
        return rows.result(values, variances, target_precision=0.0, shots=self.options.shots)

    def measure(
        self, prepared: Prepared, angles: np.ndarray, seeds: tuple[int, ...], *, batch: int
    ) -> np.ndarray:
        """Measured values (R, V) at angles (R, A) of the program.

        Args:
            prepared: what to run.
            angles: row r is of sample r mod `batch`.
            seeds: one for the batch, or one for each equal share of it.
            batch: samples.
        """
        samples = np.arange(len(angles)) % batch
        values = [np.empty((len(angles), 0))]
        for number, part in enumerate(prepared.parts.parts):
            own = angles[:, part.rows]  # (R, G, local angles)
            of_part = self.run_part(prepared, number, own, seeds, samples=samples, batch=batch)
            values.append(of_part.reshape(len(angles), part.values))
        return np.concatenate(values, axis=1)

    def run_part(
        self,
        prepared: Prepared,
        number: int,
        angles: np.ndarray,
        seeds: tuple[int, ...],
        *,
        samples: np.ndarray,
        batch: int,
    ) -> np.ndarray:
        """Values (R, ..., K) of one part at local angles (R, ..., local), in one run per setting.

        Args:
            prepared, number: which part.
            angles: radians.
            seeds: see `measure`.
            samples: (R,), the sample of each row, below `batch`.
            batch: samples.
        """
        repeats = math.prod(angles.shape[1:-1])
        flat = angles.reshape(len(angles) * repeats, angles.shape[-1])
        groups = np.repeat(samples * len(seeds) // batch, repeats)
        own = [derive_seed(seed, Stream.CIRCUIT, number) for seed in seeds]
        values = self.runner.run(
            prepared.executions[number], flat, shots=self.options.shots, seeds=own, groups=groups
        )
        return values.reshape(*angles.shape[:-1], values.shape[-1])

    def _with_precision(self, precision: float) -> AerEstimator:
        shots = math.ceil(precision**-2)
        if shots > MAX_SHOTS:
            raise CircuitError(f"precision: {precision} takes more than {MAX_SHOTS:,} shots")
        return AerEstimator(replace(self.options, shots=shots), seed=self.seed)


def _operator(terms: Mapping[str, float]) -> SparsePauliOp:
    for label in terms:
        if set(label) - set("IXYZ"):
            raise CircuitError(f"observable {label}: only Pauli strings are measured")
    return SparsePauliOp.from_list(sorted(terms.items()))
