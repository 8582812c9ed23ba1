"""PUBs (primitive unified blocs), which estimators evaluate: made of filters, and as plain rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from qiskit.primitives import DataBin, PubResult
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from torch import Tensor

from qhdm.quantum.filter import Filter


def parameter_sets(circuit_filter: Filter, x: Tensor, w: Tensor) -> np.ndarray:
    """Values (F, B, C) of the circuit's parameters in its order, float64.

    Args:
        circuit_filter: the circuit.
        x: inputs (F, B, n), radians.
        w: weights (F, P), radians.
    """
    both = torch.cat([x, w[:, None].expand(-1, x.shape[1], -1)], dim=2)
    sets: np.ndarray = both.detach().double().cpu().numpy()[:, :, circuit_filter.columns]
    return sets


def filter_pub(circuit_filter: Filter, sets: np.ndarray) -> EstimatorPub:
    """All m observables at parameter sets (F, B, C); the expectation values are (m, F, B)."""
    observables = [[[observable]] for observable in circuit_filter.observables]
    parameters = tuple(circuit_filter.circuit.parameters)
    return EstimatorPub.coerce((circuit_filter.circuit, observables, {parameters: sets}))


class PubRows:
    """A PUB taken apart: every parameter set is evaluated with every observable.

    Attributes:
        circuit: of the PUB.
        sets: (R, C) values of the circuit's parameters in its order.
        observables: m sums of Pauli strings, {label: coefficient}.
    """

    def __init__(self, pub: EstimatorPub) -> None:
        shape = pub.parameter_values.shape
        self.circuit = pub.circuit
        values = pub.parameter_values.as_array(pub.circuit.parameters)
        self.sets = values.reshape(math.prod(shape), pub.circuit.num_parameters)
        self.observables: list[dict[str, float]] = list(pub.observables.ravel())
        self._row, self._observable = np.broadcast_arrays(
            np.arange(len(self.sets)).reshape(shape),
            np.arange(len(self.observables)).reshape(pub.observables.shape),
        )

    def result(self, values: np.ndarray, variances: np.ndarray, **metadata: Any) -> PubResult:
        """Values and variances (R, m) in the shape to which sets and observables broadcast."""
        at = self._row, self._observable
        data = DataBin(evs=values[at], stds=np.sqrt(variances)[at], shape=self._row.shape)
        return PubResult(data, metadata=metadata)
