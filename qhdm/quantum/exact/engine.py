"""The exact engine: analytic expectation values in torch, differentiable in inputs and weights.

A filter is simulated as its connected components (plan.py), each as a tree of small blocks
(network.py) or as a state vector (statevector.py), whichever the cost model finds cheaper.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from qhdm.quantum.exact.network import BoundNetwork
from qhdm.quantum.exact.plan import Method, NetworkPlan, Plan, make_plan
from qhdm.quantum.exact.statevector import BoundStatevector
from qhdm.quantum.filter import Filter

_plans: WeakKeyDictionary[Filter, dict[Method, Plan]] = WeakKeyDictionary()


def plan_of(circuit_filter: Filter, method: Method = "auto") -> Plan:
    """The simulation plan of a filter, made once."""
    plans = _plans.setdefault(circuit_filter, {})
    if method not in plans:
        plans[method] = make_plan(circuit_filter, method)
    return plans[method]


def expectation(circuit_filter: Filter, x: Tensor, w: Tensor, *, method: Method = "auto") -> Tensor:
    """Expectation values of F filters with one circuit.

    Args:
        circuit_filter: the circuit and its observables.
        x: inputs (F, B, n), radians, float32 or float64.
        w: weights (F, P), radians, of the same type and device.
        method: how to simulate; `auto` is the cheaper way, component by component.

    Returns:
        (F, B, m), differentiable with respect to `x` and `w`, any number of times.
    """
    return BoundFilter(circuit_filter, w, method=method)(x)


class BoundFilter:
    """F filters of one circuit with their weights bound: what follows from these is computed."""

    def __init__(self, circuit_filter: Filter, w: Tensor, *, method: Method = "auto") -> None:
        plan = plan_of(circuit_filter, method)
        self._plan = plan
        self._groups = [
            BoundNetwork(group.plan, w)
            if isinstance(group.plan, NetworkPlan)
            else BoundStatevector(group.plan, w)
            for group in plan.groups
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """Values (F, B, m) at inputs (F, B, n), radians, of the weights' type and device."""
        F, B, _ = x.shape
        made = [group.values(x.mT).expand(-1, -1, -1, B).flatten(1, 2) for group in self._groups]
        measured = made[0] if len(made) == 1 else torch.cat([x.new_zeros(F, 0, B), *made], dim=1)
        values = self._plan.linear.like(x) @ measured
        for factors, column in self._plan.products:
            product = x.new_ones(F, 1, B)
            for factor in factors:
                product = product * measured[:, factor, None]
            values = values + column.like(x) * product
        return values.mT
