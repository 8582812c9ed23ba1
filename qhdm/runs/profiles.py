"""Power-function profiles of averaged weights (Karras et al. 2024, EDM2, arXiv 2312.02696).

The average of length `std` at step t weighs the weights of step s in proportion to s^gamma, for s
in (0, t]; `std` is the standard deviation of that profile as a fraction of t (section 3.1). The
average of another length is a linear combination of kept ones (section 3.2, appendix C).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np


@cache
def exponent(std: float) -> float:
    """gamma of the profile of a length: std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))."""
    roots = np.roots([1, 7, 16 - std**-2, 12 - std**-2])
    return float(roots.real.max())


def decay(std: float, before: int, step: int) -> float:
    """The part of the average of step `before` in that of step `step`.

    The rest is of the weights of `step`, which stand for all steps in (before, step].
    """
    return float((before / step) ** (exponent(std) + 1))


def coefficients(kept: Sequence[tuple[int, float]], step: int, std: float) -> np.ndarray:
    """The average of length `std` at `step` as a combination of kept ones, (step, length) each.

    The coefficients minimise the integral of the squared difference of the profiles; then they are
    scaled to a sum of 1, so that a weight that never changes is its own average.
    """
    steps, gammas = np.array([(t, exponent(length)) for t, length in kept]).T
    gram = _product(steps[:, None], gammas[:, None], steps, gammas)
    solution = np.linalg.solve(gram, _product(steps, gammas, np.float64(step), exponent(std)))
    normalised: np.ndarray = solution / solution.sum()
    return normalised


def _product(
    t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray | np.float64, gamma_b: np.ndarray | float
) -> np.ndarray:
    """Inner products of profiles: integrals of p_a(s) p_b(s) over s."""
    ratio = (t_a / t_b) ** np.where(t_a < t_b, gamma_b, -gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * ratio / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))
