"""Measures of a circuit over random angles: expressibility, entanglement, gradient variance.

Inputs and weights are drawn uniformly from [0, 2 pi), as the published network draws its weights.
Sources: Sim, Johnson, Aspuru-Guzik 2019 (arXiv 1905.10876) for expressibility and entangling
capability; Meyer, Wallach 2002 (quant-ph/0108104) for Q; McClean, Boixo, Smelyanskiy, Babbush,
Neven 2018 (arXiv 1803.11173) for gradients. Intervals are 95 % bootstrap intervals (Efron 1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from qhdm import console
from qhdm.errors import CircuitError
from qhdm.quantum.engines import expectation
from qhdm.quantum.exact.statevector import Register
from qhdm.quantum.filter import Filter
from qhdm.quantum.ir.components import Component
from qhdm.quantum.ir.connectivity import connected
from qhdm.quantum.ir.fusion import FusedGate, fuse
from qhdm.quantum.ir.light_cones import columns_read, light_cone
from qhdm.quantum.ir.lowering import Program, lower
from qhdm.quantum.ir.paulis import union_of
from qhdm.seeds import Stream, derive_seed

#: Bins of the fidelity histogram, as Sim et al. use them.
BINS = 75
#: Larger states take too long in the thousands.
MAX_QUBITS = 16
_RESAMPLES = 1000
#: Amplitudes simulated at once: few enough for the caches.
_CHUNK = 2**20


@dataclass(frozen=True)
class Estimate:
    """A number from random samples, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Measures:
    """Expressibility and entangling capability of a circuit of n qubits.

    Attributes:
        pairs: pairs of states.
        fidelities: (pairs,): |<psi|phi>|^2.
        expressibility: KL divergence (nats) of the fidelities' histogram from that of Haar-random
            states, in 75 bins of equal width (Sim et al.). 0 is as expressive as Haar.
        expressibility_equal: the same in 75 bins that Haar-random fidelities fill equally. Beyond
            six qubits or so nearly all fidelities lie in the first bin of equal width, whatever
            the circuit; these bins still tell circuits apart.
        haar: what Haar-random states would give for both, with as many pairs (not 0: few samples
            fill bins unequally).
        entanglement: (2 pairs,): Meyer-Wallach Q of each state, 0 for a product state, 1 at most.
        capability: mean Q.
    """

    qubits: int
    pairs: int
    fidelities: np.ndarray
    expressibility: Estimate
    expressibility_equal: Estimate
    haar: tuple[float, float]
    entanglement: np.ndarray
    capability: Estimate


@dataclass(frozen=True)
class GradientVariance:
    """Variance of d<Z_i>/dw_k over random angles, averaged over the weights k that <Z_i> sees.

    Attributes:
        output: i, the output that sees most gates.
        weights: how many weights it sees.
        variance: 1/radians^2.
    """

    qubits: int
    output: int
    weights: int
    variance: Estimate


def measure(
    circuit_filter: Filter, *, pairs: int = 2000, seed: int = 0, progress: bool = False
) -> Measures:
    """Expressibility and entangling capability.

    Args:
        circuit_filter: a circuit of at most 16 qubits in one component.
        pairs: of random states.
        seed: equal seeds give equal numbers.
        progress: show a bar on stderr.

    Raises:
        CircuitError: it is larger.
    """
    program = lower(circuit_filter)
    fidelities, entanglement = [], []
    n = program.qubits
    most = max(len(part) for part in _parts(program))
    if most > MAX_QUBITS:
        raise CircuitError(
            f"{circuit_filter.name}: {most} connected qubits; up to {MAX_QUBITS} are measured as "
            "states"
        )
    chunk = max(2, _CHUNK // 2**most // 2 * 2)
    generator = torch.Generator().manual_seed(derive_seed(seed, Stream.MEASURE, 0))
    starts = range(0, 2 * pairs, chunk)
    for start in console.bar(
        starts, desc=circuit_filter.name, unit="batch", show=progress, in_logs=False
    ):
        count = min(chunk, 2 * pairs - start)
        states = random_states(program, count, generator)
        fidelities.append(pair_fidelities(list(states.values())))
        entanglement.append(meyer_wallach(list(states.values())))
    F, Q = torch.cat(fidelities).double().numpy(), torch.cat(entanglement).double().numpy()
    rng = np.random.default_rng(derive_seed(seed, Stream.MEASURE, 1))
    # haar_quantile, inverted.
    haar = -np.expm1(np.log1p(-rng.random(pairs)) / (2**n - 1))
    return Measures(
        qubits=n,
        pairs=pairs,
        fidelities=F,
        expressibility=_divergence(F, n, rng, equal=False),
        expressibility_equal=_divergence(F, n, rng, equal=True),
        haar=(haar_divergence(haar, n), haar_divergence(haar, n, equal=True)),
        entanglement=Q,
        capability=_mean(Q, rng),
    )


def gradient_variance(
    circuit_filter: Filter, *, samples: int = 200, seed: int = 0
) -> GradientVariance:
    """The variance of gradients at random angles, of the output that sees most gates.

    Raises:
        CircuitError: the filter cannot be simulated.
    """
    program = lower(circuit_filter)
    cones = [
        light_cone(program.ops, union_of(observable)) for observable in circuit_filter.observables
    ]
    output = max(range(len(cones)), key=lambda m: len(cones[m]))
    seen = columns_read(program.ops, cones[output], program.from_weights)
    if not seen:
        return GradientVariance(program.qubits, output, 0, Estimate(0.0, 0.0, 0.0))
    generator = torch.Generator().manual_seed(derive_seed(seed, Stream.MEASURE, 2))
    P, n = len(circuit_filter.weights), len(circuit_filter.inputs)
    only = replace(circuit_filter, observables=(circuit_filter.observables[output],))
    # As many filters as samples, each with its own weights and one input: a network would be made
    # anew for each of them.
    w = 2 * math.pi * torch.rand(samples, P, generator=generator)
    x = 2 * math.pi * torch.rand(samples, 1, n, generator=generator)
    w.requires_grad_()
    (gradient,) = torch.autograd.grad(expectation(only, x, w, engine="exact:statevector").sum(), w)
    g = gradient[:, seen].double().numpy()
    rng = np.random.default_rng(derive_seed(seed, Stream.MEASURE, 3))
    counts = rng.multinomial(samples, np.full(samples, 1 / samples), size=_RESAMPLES) / samples
    resampled = (counts @ g**2 - (counts @ g) ** 2).mean(axis=1)
    value = float(g.var(axis=0).mean())
    return GradientVariance(program.qubits, output, len(seen), _interval(value, resampled))


def random_states(
    program: Program, count: int, generator: torch.Generator
) -> dict[tuple[int, ...], Tensor]:
    """States at random angles, by connected component: qubits to (count, 2^k) amplitudes.

    The first qubit of a component is the least significant.
    """
    inputs, weights = program.from_inputs, program.from_weights
    x = 2 * math.pi * torch.rand(count, inputs.shape[1], generator=generator)
    w = 2 * math.pi * torch.rand(count, weights.shape[1], generator=generator)
    angles = x @ _float(inputs).T + w @ _float(weights).T + _float(program.offsets)
    states = {}
    for part in _parts(program):
        component = Component.of(program, part)
        own = angles[:, list(component.angles)]
        units, _ = fuse(component.ops, [False] * len(component.angles))
        zero = torch.zeros(count, 1, 2**component.size, 1, dtype=torch.complex64)
        zero[:, :, 0] = 1
        register = Register(tuple(reversed(range(component.size))), zero)
        for unit in units:
            register = register.apply(unit.qubits, _matrices(unit, own)[:, None, None])
        states[part] = register.ordered(range(component.size)[::-1]).state[:, 0, :, 0]
    return states


def pair_fidelities(states: Sequence[Tensor]) -> Tensor:
    """|<psi|phi>|^2 of samples 0 and 1, 2 and 3, ...: (samples / 2,).

    Args:
        states: (samples, 2^k) of each component; the state is their product.
    """
    overlaps = [(state[0::2].conj() * state[1::2]).sum(dim=1).abs().square() for state in states]
    return torch.stack(overlaps).prod(dim=0).clamp(0, 1)


def meyer_wallach(states: Sequence[Tensor]) -> Tensor:
    """Q = 2 (1 - mean over qubits of Tr rho_k^2), (samples,); arguments as `pair_fidelities`."""
    purities = []
    for state in states:
        for k in range(state.shape[1].bit_length() - 1):
            zero, one = state.reshape(len(state), -1, 2, 2**k).unbind(2)
            p0, p1 = (half.abs().square().sum(dim=(1, 2)) for half in (zero, one))
            coherence = (zero.conj() * one).sum(dim=(1, 2)).abs().square()
            purities.append(p0.square() + p1.square() + 2 * coherence)
    return 2 * (1 - torch.stack(purities).mean(dim=0))


def haar_divergence(fidelities: np.ndarray, qubits: int, *, equal: bool = False) -> float:
    """KL divergence, in nats, of a histogram of fidelities from that of Haar-random states.

    P(F) = (N - 1) (1 - F)^(N - 2) with N = 2^n (Zyczkowski, Sommers 2005).

    Args:
        fidelities: of pairs of states of n qubits.
        qubits: n.
        equal: bins of equal probability under P, not of equal width.
    """
    counts, log_haar = _histogram(fidelities, qubits, equal=equal)
    return float(_kl(counts / counts.sum(), log_haar))


def haar_quantile(fidelities: np.ndarray, qubits: int) -> np.ndarray:
    """1 - (1 - F)^(N - 1): the part of Haar-random pairs with a smaller fidelity."""
    inside = np.minimum(fidelities, 1 - 1e-15)
    return np.asarray(-np.expm1((2.0**qubits - 1) * np.log1p(-inside)))


def _histogram(
    fidelities: np.ndarray, qubits: int, *, equal: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Counts in the bins, and the logarithm of each bin's probability for Haar-random states."""
    power = 2.0**qubits - 1
    edges = np.linspace(0, 1, BINS + 1)
    if equal:
        counts = np.histogram(haar_quantile(fidelities, qubits), edges)[0]
        return counts, np.full(BINS, -math.log(BINS))
    low, high = edges[:-1], edges[1:]
    with np.errstate(divide="ignore"):
        # (1 - a)^p - (1 - b)^p, in logarithms: it is far below the smallest float.
        ratio = np.exp(power * (np.log1p(-high) - np.log1p(-low)))
    return np.histogram(fidelities, edges)[0], power * np.log1p(-low) + np.log1p(-ratio)


def _kl(p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Sum of p log(p / q) over the last axis; empty bins add nothing."""
    return np.where(p > 0, p * (np.log(np.where(p > 0, p, 1)) - log_q), 0).sum(axis=-1)


def _divergence(
    fidelities: np.ndarray, qubits: int, rng: np.random.Generator, *, equal: bool
) -> Estimate:
    counts, log_haar = _histogram(fidelities, qubits, equal=equal)
    total = counts.sum()
    resampled = _kl(rng.multinomial(total, counts / total, size=_RESAMPLES) / total, log_haar)
    value = float(_kl(counts / total, log_haar))
    # Resampling fills bins less evenly still: its bias is not the estimate's uncertainty.
    return _interval(value, resampled - resampled.mean() + value)


def _mean(values: np.ndarray, rng: np.random.Generator) -> Estimate:
    resampled = rng.choice(values, size=(_RESAMPLES, len(values))).mean(axis=1)
    return _interval(float(values.mean()), resampled)


def _interval(value: float, resampled: np.ndarray) -> Estimate:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(value, max(0.0, float(low)), float(high))


def _matrices(unit: FusedGate, angles: Tensor) -> Tensor:
    """The matrix of a unit at each sample's angles, (samples, d, d)."""
    product: Tensor | None = None
    for op, gate in zip(unit.ops, unit.gates, strict=True):
        matrix = _complex(gate.K).expand(len(angles), -1, -1)
        if op.angle >= 0:
            phase = (gate.scale * angles[:, op.angle])[:, None, None]
            matrix = matrix + phase.cos() * _complex(gate.A) + phase.sin() * _complex(gate.B)
        product = matrix if product is None else matrix @ product
    assert product is not None
    return product


def _parts(program: Program) -> list[tuple[int, ...]]:
    return connected(program.qubits, [op.qubits for op in program.ops])


def _float(array: np.ndarray) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32)


def _complex(array: np.ndarray) -> Tensor:
    return torch.as_tensor(array, dtype=torch.complex64)
