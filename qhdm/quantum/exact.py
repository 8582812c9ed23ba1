"""The exact engine: analytic expectation values in torch, differentiable in inputs and weights.

A filter is simulated as its connected components (qhdm.quantum.plan), each as a tree of small
blocks (qhdm.quantum.network) or as a state vector (qhdm.quantum.statevector), whichever the cost
model finds cheaper.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from qhdm.quantum.angles import Angles
from qhdm.quantum.filter import Filter
from qhdm.quantum.network import simulate_network
from qhdm.quantum.plan import Method, Plan, make_plan
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
        (F, B, m), differentiable with respect to `x` and `w`; twice where all components are
        simulated as networks.
    """
    plan = plan_of(filter, method)
    angles = Angles(plan.program, x, w, plan.cache)
    values = []
    for group in plan.groups:
        if group.network is not None:
            value = simulate_network(group.network, group.angles, angles)
        else:
            value = simulate_statevector(group, angles)
        values.append(value.flatten(1, 2).expand(-1, -1, angles.batch))  # (F, G K, B)
    one = x.new_ones(x.shape[0], 1, x.shape[1])
    measured = torch.cat([*values, one], dim=1)
    terms = measured[:, angles.index("first factor", lambda: plan.factors[:, 0])]  # (F, terms, B)
    for k in range(1, plan.factors.shape[1]):
        terms = terms * measured[:, angles.index(("factor", k), lambda k=k: plan.factors[:, k])]
    return terms.mT @ angles.real(plan.mixing)
