"""Engines that evaluate filters, and the functions that call them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import ParamSpec, Protocol, TypeVar

import torch
from qiskit.primitives import BaseEstimatorV2
from torch import Tensor

from qhdm.errors import CircuitError, EngineError
from qhdm.quantum.exact import engine as exact
from qhdm.quantum.filter import Filter
from qhdm.quantum.options import ENGINES, Aer, EngineOptions, Exact, Hardware

#: Filters whose weights are bound: inputs (F, B, n) to values (F, B, m).
Bound = Callable[[Tensor], Tensor]


class Engine(Protocol):
    """Evaluates F filters of one circuit: x (F, B, n), w (F, P) in radians to (F, B, m).

    Attributes:
        name: in configurations.
        estimator: the Qiskit estimator that it uses, if any.
    """

    @property
    def name(self) -> str: ...

    @property
    def estimator(self) -> BaseEstimatorV2 | None: ...

    def __call__(self, circuit_filter: Filter, x: Tensor, w: Tensor, /) -> Tensor: ...

    def bind(self, circuit_filter: Filter, w: Tensor, /) -> Bound:
        """The filters with their weights bound: x (F, B, n) to (F, B, m)."""
        ...


@dataclass(frozen=True)
class ExactEngine:
    """Analytic values, differentiable in torch."""

    options: Exact
    estimator: None = None

    @property
    def name(self) -> str:
        return self.options.name

    def __call__(self, circuit_filter: Filter, x: Tensor, w: Tensor) -> Tensor:
        return exact.expectation(circuit_filter, x, w, method=self.options.method)

    def bind(self, circuit_filter: Filter, w: Tensor) -> Bound:
        return exact.BoundFilter(circuit_filter, w, method=self.options.method)


def make_engine(engine: Engine | EngineOptions | str) -> Engine:
    """Make the engine of some options.

    Args:
        engine: options; the name of an engine with default options (`exact`, `exact:network`,
            `exact:statevector` or `aer`); or an engine, which is returned.

    Raises:
        CircuitError: unknown name.
        EngineError: an option is out of range, or its device or noise model is not available.
    """
    options = ENGINES.get(engine) if isinstance(engine, str) else engine
    if isinstance(options, Exact):
        return ExactEngine(options)
    if isinstance(options, Aer):
        from qhdm.quantum.aer.engine import AerEngine  # only here: it imports Aer

        return AerEngine(options)
    if isinstance(options, Hardware):
        raise EngineError(
            f"engine {options.label}: evaluates filters in jobs of whole requests; give it to "
            "Run.sample, as qhdm.Sampling(engine=...)"
        )
    if not callable(options):
        raise CircuitError(f"engine {engine!r}: unknown; known are {', '.join(ENGINES)}")
    return options


_named_engine = cache(make_engine)


def as_engine(engine: Engine | str) -> Engine:
    """An engine, or that of a name, which is made once and keeps what it has compiled.

    Raises:
        CircuitError: unknown name; or options, from which every call would make a new engine that
            repeats its draws.
    """
    if isinstance(engine, str):
        return _named_engine(engine)
    if isinstance(engine, EngineOptions):
        raise CircuitError(f"engine {engine!r}: these are options; give make_engine(options)")
    return make_engine(engine)


_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


def _uncompiled(function: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
    """Keep a function out of the graphs of `torch.compile`, which handles complex tensors badly.

    As a decorator, `torch.compiler.disable` would import the compiler also where nothing is
    compiled, which takes almost as long as importing the rest of torch.
    """

    @wraps(function)
    def call(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call


@_uncompiled
def expectation(
    circuit_filter: Filter, x: Tensor, w: Tensor, *, engine: Engine | str = "exact"
) -> Tensor:
    """Expectation values of a filter's observables.

    Args:
        circuit_filter: n inputs, P weights, m observables.
        x: inputs in radians, (B, n); or (F, B, n) for F filters of the same circuit.
        w: weights in radians, (P,); or (F, P).
        engine: from `make_engine`, or its name: `exact` is analytic and differentiable in `x` and
            `w`; `exact:network` and `exact:statevector` prescribe its method; `aer` runs Qiskit
            Aer, without shots or noise.

    Returns:
        (B, m), or (F, B, m), in the floating-point type of `x` and on its device; empty where B or
        F is 0. Half-precision inputs are computed in float32.

    Raises:
        CircuitError: unknown engine, no observables, or arguments that are not tensors of shapes,
            types and devices that fit the filter.
        EngineError: the engine cannot hold the circuit.

    Example:
        >>> fqconv = build_filter("fqconv", qubits=12, layers=1)
        >>> x, w = torch.rand(5, 12), torch.rand(24)
        >>> expectation(fqconv, x, w).shape
        torch.Size([5, 12])
    """
    evaluate = as_engine(engine)
    _check(circuit_filter, x, w)
    banked = x.dim() == 3
    dtype = torch.promote_types(torch.promote_types(x.dtype, w.dtype), torch.float32)
    xs, ws = x.to(dtype), w.to(dtype)
    if not banked:
        xs, ws = xs[None], ws[None]
    with torch.autocast(x.device.type, enabled=False):
        empty = 0 in xs.shape[:2]
        values = _empty(circuit_filter, xs, ws) if empty else evaluate(circuit_filter, xs, ws)
    return (values if banked else values[0]).to(x.dtype)


def _check(circuit_filter: Filter, x: Tensor, w: Tensor) -> None:
    """Raise `CircuitError` unless inputs and weights fit the filter."""
    name, n, P = circuit_filter.name, len(circuit_filter.inputs), len(circuit_filter.weights)
    for kind, values in (("inputs", x), ("weights", w)):
        if not isinstance(values, Tensor):
            raise CircuitError(
                f"{name}: {kind} must be a torch tensor, not {type(values).__name__}; give "
                "torch.as_tensor(...)"
            )
    if not circuit_filter.observables:
        raise CircuitError(f"{name}: has no observables, and so no values")
    fits = (x.dim(), w.dim()) in ((2, 1), (3, 2)) and x.shape[-1] == n and w.shape[-1] == P
    if not fits or (x.dim() == 3 and x.shape[0] != w.shape[0]):
        raise CircuitError(
            f"{name}: takes inputs (B, {n}) with weights ({P},), or (F, B, {n}) with (F, {P}); got "
            f"{tuple(x.shape)} and {tuple(w.shape)}"
        )
    if not (x.is_floating_point() and w.is_floating_point()) or x.device != w.device:
        raise CircuitError(
            f"{name}: inputs and weights must be real floating-point tensors on one device; got "
            f"{x.dtype} on {x.device} and {w.dtype} on {w.device}"
        )


def _empty(circuit_filter: Filter, x: Tensor, w: Tensor) -> Tensor:
    """No values, (F, B, m), through which gradients of zero reach `x` and `w`."""
    return x.new_zeros(*x.shape[:2], len(circuit_filter.observables)) + 0 * (x.sum() + w.sum())


def bound(circuit_filter: Filter, w: Tensor, *, engine: Engine) -> Bound:
    """Filters with weights w (F, P) in radians bound: what follows from these is computed once.

    Returns:
        Inputs (F, B, n) in radians, on the device of `w`, to values (F, B, m) of the inputs' type.
    """
    ws = w.to(torch.promote_types(w.dtype, torch.float32))
    evaluate = engine.bind(circuit_filter, ws) if len(ws) else None

    @_uncompiled
    def values(x: Tensor) -> Tensor:
        if evaluate is None or 0 in x.shape[:2]:
            return _empty(circuit_filter, x, ws).to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return evaluate(x.to(ws.dtype)).to(x.dtype)

    return values
