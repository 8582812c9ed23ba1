"""The engine `aer`: values from Aer, gradients by the method of the options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qhdm.quantum.aer.estimator import AerEstimator, Prepared
from qhdm.quantum.aer.gradients import BackwardPass, extra_circuits, needs_values
from qhdm.quantum.exact import engine as exact
from qhdm.quantum.filter import Filter
from qhdm.quantum.options import Aer
from qhdm.quantum.pubs import filter_pub, parameter_sets


@dataclass(frozen=True)
class CircuitCost:
    """Number of circuits per evaluation of a filter.

    Attributes:
        components: independent circuits of the filter that are measured.
        forward: circuits for the values, one per component and measurement setting.
        backward: circuits for the gradient.
    """

    components: int
    forward: int
    backward: int

    @property
    def all(self) -> int:
        """Circuits for values and gradient."""
        return self.forward + self.backward


class AerEngine:
    """Evaluates filters through `AerEstimator`, as PUBs.

    Args:
        options: how; `options.gradient` chooses the backward pass.
        seed: of draws that are not prescribed.

    Raises:
        EngineError: an option is out of range, the device is absent, or the noise unknown.
    """

    name = "aer"

    def __init__(self, options: Aer | None = None, *, seed: int = 0) -> None:
        self.options = options or Aer()
        self.estimator = AerEstimator(self.options, seed=seed)

    def __deepcopy__(self, memo: dict[int, Any]) -> AerEngine:
        return self  # copies of a model share it, and with it the transpiled circuits

    def __call__(self, circuit_filter: Filter, x: Tensor, w: Tensor) -> Tensor:
        """Values (F, B, m) at inputs (F, B, n) and weights (F, P), radians."""
        values: Tensor = _Evaluate.apply(x, w, self, circuit_filter)
        return values

    def bind(self, circuit_filter: Filter, w: Tensor) -> Callable[[Tensor], Tensor]:
        """The filters with their weights bound."""
        return lambda x: self(circuit_filter, x, w)

    def cost(self, circuit_filter: Filter) -> CircuitCost:
        """Circuits per evaluation of a filter (one sample, one set of weights)."""
        prepared = self.prepare(circuit_filter)
        forward = backward = components = 0
        for part, executions in zip(prepared.parts.parts, prepared.executions, strict=True):
            runs = len(part.rows) * len(executions)
            extra = extra_circuits(part, self.options.gradient, self.options.spsa)
            components += len(part.rows)
            forward += runs
            backward += runs * (extra + (needs_values(prepared) and extra > 0))
        return CircuitCost(components, forward, backward)

    def prepare(self, circuit_filter: Filter) -> Prepared:
        """Transpile and cache the circuits of a filter.

        Raises:
            CircuitError: a gate or observable cannot be used.
            EngineError: the method cannot hold the circuit, or the device is too small.
        """
        return self.estimator.prepare(circuit_filter.circuit, circuit_filter.observables)


class _Evaluate(torch.autograd.Function):
    """Args of `apply`: x (F, B, n), w (F, P), the engine, the filter."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, engine: AerEngine, circuit_filter: Filter
    ) -> Tensor:
        # Separate draws: errors of the gradient must be independent of those of the values.
        seeds = engine.estimator.draw()
        sets = parameter_sets(circuit_filter, x, w)
        ctx.save_for_backward(x, w)
        ctx.engine, ctx.filter, ctx.seeds = engine, circuit_filter, seeds
        ctx.sets = np.concatenate(sets)
        result = engine.estimator.run([filter_pub(circuit_filter, sets)]).result()
        return torch.as_tensor(result[0].data.evs.transpose(1, 2, 0).copy()).to(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        engine, circuit_filter = ctx.engine, ctx.filter
        options = engine.options
        if options.gradient == "exact":
            with torch.enable_grad():
                inputs, weights = x.detach().requires_grad_(), w.detach().requires_grad_()
                values = exact.expectation(circuit_filter, inputs, weights)
                by_x, by_w = torch.autograd.grad(
                    values, (inputs, weights), upstream, allow_unused=True
                )
            return by_x, by_w, None, None
        F, B, n = x.shape
        seeds, prepared = ctx.seeds, engine.prepare(circuit_filter)
        rows = upstream.detach().double().cpu().numpy().reshape(F * B, -1)
        backward = BackwardPass(engine.estimator, prepared, ctx.sets, rows, seeds, batch=B)
        shift = options.gradient == "shift"
        gradient = backward.by_shift() if shift else backward.by_spsa(options.spsa)
        both = np.zeros((F * B, n + len(circuit_filter.weights)))
        both[:, circuit_filter.columns] = gradient
        of_inputs = both[:, :n].reshape(F, B, n)
        of_weights = both[:, n:].reshape(F, B, -1).sum(axis=1)
        return torch.as_tensor(of_inputs).to(x), torch.as_tensor(of_weights).to(w), None, None
