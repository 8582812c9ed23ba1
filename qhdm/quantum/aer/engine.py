"""The engine `aer`: values from Aer, gradients as the options say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qhdm.quantum.aer.estimator import AerEstimator, Prepared
from qhdm.quantum.aer.gradients import (
    extra_circuits,
    needs_values,
    shift_gradient,
    spsa_gradient,
)
from qhdm.quantum.exact import engine as exact
from qhdm.quantum.filter import Filter
from qhdm.quantum.options import Aer
from qhdm.quantum.pubs import filter_pub, parameter_sets


@dataclass(frozen=True)
class CircuitCost:
    """Circuits that one evaluation of a filter runs.

    Attributes:
        components: independent circuits that the filter falls into, of which something is read.
        forward: all, with one for each measurement setting.
        backward: those of the gradient.
    """

    components: int
    forward: int
    backward: int

    @property
    def all(self) -> int:
        """Of values and gradient."""
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

    def __call__(self, filter: Filter, x: Tensor, w: Tensor) -> Tensor:
        """Values (F, B, m) at inputs (F, B, n) and weights (F, P), radians."""
        values: Tensor = _Evaluate.apply(x, w, self, filter)
        return values

    def bind(self, filter: Filter, w: Tensor) -> Callable[[Tensor], Tensor]:
        """The filters with their weights bound."""
        return lambda x: self(filter, x, w)

    def cost(self, filter: Filter) -> CircuitCost:
        """What one evaluation of `filter` (one sample, one set of weights) runs."""
        prepared = self.prepare(filter)
        forward = backward = components = 0
        for part, executions in zip(prepared.parts.parts, prepared.executions, strict=True):
            runs = len(part.rows) * len(executions)
            extra = extra_circuits(part, self.options.gradient, self.options.spsa)
            components += len(part.rows)
            forward += runs
            backward += runs * (extra + (needs_values(prepared) and extra > 0))
        return CircuitCost(components, forward, backward)

    def prepare(self, filter: Filter) -> Prepared:
        """The circuits of `filter`, transpiled; kept for the next time.

        Raises:
            CircuitError: a gate or observable cannot be used.
            EngineError: the method cannot hold the circuit, or the device is too small.
        """
        return self.estimator.prepare(filter.circuit, filter.observables)


class _Evaluate(torch.autograd.Function):
    """Args of `apply`: x (F, B, n), w (F, P), the engine, the filter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, engine: AerEngine, filter: Filter) -> Tensor:
        # The gradient's own draws: errors of the values must not come back in it.
        seeds = engine.estimator.draw()
        sets = parameter_sets(filter, x, w)
        ctx.save_for_backward(x, w)
        ctx.engine, ctx.filter, ctx.seeds, ctx.sets = engine, filter, seeds, np.concatenate(sets)
        result = engine.estimator.run([filter_pub(filter, sets)]).result()
        return torch.as_tensor(result[0].data.evs.transpose(1, 2, 0).copy()).to(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        engine, filter = ctx.engine, ctx.filter
        options = engine.options
        if options.gradient == "exact":
            with torch.enable_grad():
                inputs, weights = x.detach().requires_grad_(), w.detach().requires_grad_()
                values = exact.expectation(filter, inputs, weights)
                by_x, by_w = torch.autograd.grad(
                    values, (inputs, weights), upstream, allow_unused=True
                )
            return by_x, by_w, None, None
        F, B, n = x.shape
        seeds, prepared = ctx.seeds, engine.prepare(filter)
        rows = upstream.detach().double().cpu().numpy().reshape(F * B, -1)
        if options.gradient == "shift":
            found = shift_gradient(engine.estimator, prepared, ctx.sets, rows, seeds, batch=B)
        else:
            found = spsa_gradient(
                engine.estimator, prepared, ctx.sets, rows, seeds, batch=B, options=options.spsa
            )
        both = np.zeros((F * B, n + len(filter.weights)))
        both[:, filter.columns] = found
        of_inputs = both[:, :n].reshape(F, B, n)
        of_weights = both[:, n:].reshape(F, B, -1).sum(axis=1)
        return torch.as_tensor(of_inputs).to(x), torch.as_tensor(of_weights).to(w), None, None
