"""A Qiskit estimator, and an engine on it, whose values come from jobs on a backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
from qhdm.hardware.batch import Batch
from qhdm.hardware.estimate import JOB_OVERHEAD, MAX_BYTES, MAX_EXECUTIONS
from qhdm.hardware.isa import IsaCache, IsaCircuit
from qhdm.hardware.ledger import Ledger
from qhdm.hardware.runtime import Device
from qhdm.hardware.submission import Submitter
from qhdm.quantum.exact import engine as exact
from qhdm.quantum.filter import Filter
from qhdm.quantum.pubs import PubRows, filter_pub, parameter_sets

#: Of a job's bytes, what its parameter values may take; circuits and JSON take the rest.
_SHARE_OF_VALUES = 0.5


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of a PUB that have the same weights: one circuit.

    Attributes:
        isa: the circuit.
        rows: (R,) which rows of the PUB.
        values: parameter values of the ISA circuit, (ceil(R / copies), parameters).
    """

    isa: IsaCircuit
    rows: np.ndarray
    values: np.ndarray


def groups_of(
    circuit: QuantumCircuit,
    sets: np.ndarray,
    weights: frozenset[Parameter],
    cache: IsaCache,
    layout: int = 0,
) -> list[Group]:
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
    kinds, which = np.unique(sets[:, bound], axis=0, return_inverse=True)
    found = []
    for number, kind in enumerate(kinds):
        rows = np.flatnonzero(which.ravel() == number)
        values = {parameters[i]: float(v) for i, v in zip(bound, kind, strict=True)}
        plain = circuit.assign_parameters(values)
        isa = cache.get(plain, [parameters[i] for i in free], rows=len(rows), layout=layout)
        found.append(Group(isa, rows, isa.values(sets[rows][:, free])))
    return sorted(found, key=lambda group: int(group.rows[0]))


def layout_at(position: tuple[int, int], relaid: Sequence[Sequence[int]]) -> int:
    """The number of the layout at a step and stage.

    Args:
        position: step and stage.
        relaid: from which positions on circuits were laid out anew, in order.
    """
    return sum(tuple(since) <= position for since in relaid)


def batches_of(
    groups: Sequence[Group], shots: int, rep_delay: float, *, readout: bool
) -> list[Batch]:
    """Jobs of as many rows as the service takes.

    Args:
        groups: of one filter place.
        shots: of each row.
        rep_delay: of the device, seconds.
        readout: also measure the readout errors of each circuit's qubits.
    """
    pieces: list[list[tuple[int, QuantumCircuit, np.ndarray, float]]] = [[]]
    rows_left, bytes_left = MAX_EXECUTIONS // shots, int(_SHARE_OF_VALUES * MAX_BYTES)
    for owner, (circuit, values, duration) in enumerate(_executed(groups, readout=readout)):
        start, width = 0, max(values.shape[1] * values.itemsize, 1)
        while start < len(values):
            count = min(len(values) - start, rows_left, bytes_left // width)
            if count < 1:
                pieces.append([])
                rows_left, bytes_left = MAX_EXECUTIONS // shots, int(_SHARE_OF_VALUES * MAX_BYTES)
                continue
            pieces[-1].append((owner, circuit, values[start : start + count], duration))
            start, rows_left = start + count, rows_left - count
            bytes_left -= count * width
    return [
        Batch(
            circuits=[(circuit, values) for _, circuit, values, _ in piece],
            owners=tuple(owner for owner, *_ in piece),
            seconds=JOB_OVERHEAD
            + sum(len(v) * shots * (rep_delay + duration) for _, _, v, duration in piece),
        )
        for piece in pieces
    ]


def _executed(
    groups: Sequence[Group], *, readout: bool
) -> list[tuple[QuantumCircuit, np.ndarray, float]]:
    """Circuit, parameter values and duration of all that is sent, the readout circuits last."""
    found = [(group.isa.circuit, group.values, group.isa.duration) for group in groups]
    if readout:
        none = np.empty((1, 0))
        found += [(group.isa.readout(), none, group.isa.duration) for group in groups]
    return found


class HardwareEstimator(BaseEstimatorV2):
    """Expectation values of sums of single-qubit Z, from counts on a backend.

    Takes PUBs as every V2 estimator does, and so serves an `EstimatorQNN`. The observables of a PUB
    come from the same shots.

    Args:
        submitter: executes circuits, each request once.
        cache: of ISA circuits.
        device: what they are made for.
        shots: of each row, as they are executed.
        resilience_level: 1 divides readout errors out: <Z> / <Z>_0, where <Z>_0 is measured with
            the same twirled readout on empty circuits (TREX, van den Berg et al. 2022, eq. 6).
        weights: parameters whose values are bound before transpiling.
        relaid: see `layout_at`.
    """

    def __init__(
        self,
        submitter: Submitter,
        cache: IsaCache,
        device: Device,
        *,
        shots: int,
        resilience_level: int = 0,
        weights: Iterable[Parameter] = (),
        relaid: Sequence[Sequence[int]] = (),
    ) -> None:
        self._submitter, self._cache, self._device = submitter, cache, device
        self._shots, self._level = shots, resilience_level
        self._weights = frozenset(weights)
        self._relaid = relaid
        self._position = (0, 0)

    def at(self, step: int) -> None:
        """Count the filter places of network evaluation `step` from now on."""
        self._position = (step, 0)

    @property
    def position(self) -> tuple[int, int]:
        """Step and stage of the next request."""
        return self._position

    def bind(self, weights: Iterable[Parameter]) -> None:
        """Bind these parameters, too, before transpiling."""
        self._weights |= frozenset(weights)

    def run(
        self, pubs: Iterable[EstimatorPubLike], *, precision: float | None = None
    ) -> PrimitiveJob[PrimitiveResult[PubResult]]:
        """Evaluate PUBs; those of one call are sent as one job where the limits allow.

        Args:
            pubs: circuits, observables and parameter sets.
            precision: not read: the shots are the estimator's, and what they cost was agreed to.
        """
        coerced = [EstimatorPub.coerce(pub, precision) for pub in pubs]
        job: PrimitiveJob[PrimitiveResult[PubResult]] = PrimitiveJob(self.evaluate, coerced, "")
        job._submit()
        return job

    def evaluate(self, pubs: Sequence[EstimatorPub], place: str) -> PrimitiveResult[PubResult]:
        """Evaluate PUBs of one filter place, in this thread."""
        step, stage = self._position
        self._position = (step, stage + 1)
        layout = layout_at((step, stage), self._relaid)
        groups = [self._groups(pub, layout) for pub in pubs]
        flat = [group for found in groups for group in found]
        readout = self._level == 1
        batches = batches_of(flat, self._shots, self._device.rep_delay, readout=readout)
        results = self._submitter.run(step, stage, place, batches)
        pieces: dict[int, list[np.ndarray]] = {}
        for batch, result in zip(batches, results, strict=True):
            for i, owner in enumerate(batch.owners):
                means = 1 - 2 * result[str(i)] / result[f"shots {i}"]
                pieces.setdefault(owner, []).append(means)
        found = [np.concatenate(pieces[owner]) for owner in sorted(pieces)]
        measured = [g.isa.rows(z, len(g.rows)) for g, z in zip(flat, found, strict=False)]
        references = [np.ones_like(z) for z in measured]
        if readout:
            errors = found[len(flat) :]
            references = [
                g.isa.rows(np.repeat(e, len(g.values), axis=0), len(g.rows))
                for g, e in zip(flat, errors, strict=True)
            ]
        values, taken = [], 0
        for pub, own in zip(pubs, groups, strict=True):
            part = slice(taken, taken + len(own))
            values.append(self._values(pub, own, measured[part], references[part]))
            taken += len(own)
        return PrimitiveResult(values, metadata={"version": 2})

    def _groups(self, pub: EstimatorPub, layout: int) -> list[Group]:
        return groups_of(pub.circuit, PubRows(pub).sets, self._weights, self._cache, layout)

    def _values(
        self,
        pub: EstimatorPub,
        groups: Sequence[Group],
        measured: Sequence[np.ndarray],
        references: Sequence[np.ndarray],
    ) -> PubResult:
        rows = PubRows(pub)
        weights = [_z_weights(terms, pub.circuit) for terms in rows.observables]
        constants = np.array([constant for constant, _ in weights])
        matrix = np.array([row for _, row in weights])  # (m, n)
        values, variances = np.empty((len(rows.sets), 2, len(matrix))).swapaxes(0, 1)
        for group, z, reference in zip(groups, measured, references, strict=True):
            if np.any(reference <= 0):
                raise HardwareError("readout: a qubit reads at random; another backend is needed")
            values[group.rows] = (z / reference) @ matrix.T + constants
            one = (1 - z**2).clip(0) / self._shots / reference**2
            variances[group.rows] = one @ (matrix**2).T
        return rows.result(values, variances, shots=self._shots)


@dataclass(frozen=True, eq=False)
class HardwareEngine:
    """Evaluates the filters of one place on a backend, and keeps the exact values beside.

    Attributes:
        estimator: whose jobs give the values.
        place: name of the filter place.
        ledger: where measured and exact values are kept for the report.
        name: of the engine.
    """

    estimator: HardwareEstimator
    place: str
    ledger: Ledger
    name: str = field(default="ibm")

    def __deepcopy__(self, memo: dict[int, Any]) -> HardwareEngine:
        return self

    def __call__(self, filter: Filter, x: Tensor, w: Tensor) -> Tensor:
        """Values (F, B, m) at inputs (F, B, n) and weights (F, P), radians."""
        pub = filter_pub(filter, parameter_sets(filter, x, w))
        self.estimator.bind(filter.weights)
        step, stage = self.estimator.position
        result = self.estimator.evaluate([pub], self.place)
        values = result[0].data.evs.transpose(1, 2, 0).copy()
        right = exact.expectation(filter, x, w).double().cpu().numpy()
        self.ledger.compare(step, stage, self.place, {"measured": values, "exact": right})
        return torch.as_tensor(values).to(x)


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
