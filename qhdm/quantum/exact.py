"""The exact engine: analytic expectation values in torch, differentiable in inputs and weights.

A filter is simulated as its connected components (qhdm.quantum.plan), each as a tree of small
blocks (qhdm.quantum.network) or as a state vector (qhdm.quantum.statevector), whichever the cost
model finds cheaper.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from qhdm.quantum.angles import Angles
from qhdm.quantum.filter import Filter
from qhdm.quantum.network import simulate_network
from qhdm.quantum.plan import Method, Plan, Term, make_plan
from qhdm.quantum.statevector import simulate_statevector

_plans: WeakKeyDictionary[Filter, dict[Method, Plan]] = WeakKeyDictionary()


def plan_of(filter: Filter, method: Method = "auto") -> Plan:
    """The simulation plan of `filter`, made once."""
    plans = _plans.setdefault(filter, {})
    if method not in plans:
        plans[method] = make_plan(filter, method)
    return plans[method]


def expectation(filter: Filter, x: Tensor, w: Tensor, *, method: Method = "auto") -> Tensor:
    """Expectation values of F filters with one circuit.

    Args:
        filter: the circuit and its observables.
        x: inputs (F, B, n), radians, float32 or float64.
        w: weights (F, P), radians, of the same type and device.
        method: how to simulate; `auto` is the cheaper way, component by component.

    Returns:
        (F, B, m), differentiable with respect to `x` and `w`, any number of times.
    """
    plan = plan_of(filter, method)
    angles = Angles(plan.program, x, w, plan.cache)
    measured: list[Tensor] = []  # (F, B) each
    for group in plan.groups:
        if group.network is not None:
            value = simulate_network(group.network, group.contraction, group.angles, angles)
        else:
            value = simulate_statevector(group, angles)
        measured += value.expand(-1, -1, -1, angles.batch).flatten(1, 2).unbind(1)
    outputs = [_output(terms, measured, x) for terms in plan.outputs]
    return torch.stack(outputs, dim=2)


def _output(terms: Sequence[Term], measured: Sequence[Tensor], x: Tensor) -> Tensor:
    """An observable, (F, B), as a sum of products of measured Pauli strings."""
    total: Tensor | None = None
    for coefficient, factors in terms:
        product = measured[factors[0]] if factors else x.new_ones(x.shape[:2])
        for factor in factors[1:]:
            product = product * measured[factor]
        if coefficient != 1:
            product = coefficient * product
        total = product if total is None else total + product
    return x.new_zeros(x.shape[:2]) if total is None else total
