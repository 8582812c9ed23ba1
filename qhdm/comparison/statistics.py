"""Intervals and tests over seeds, as functions of numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

#: Of all intervals.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean with its interval; `low` and `high` are None where values have no spread to tell."""

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class PairedTest:
    """A paired t test: the mean difference, its interval, and the two-sided p.

    `low`, `high` and `p` are None below two pairs, and where all differences are equal.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    n: int


def mean_interval(values: Sequence[float]) -> Mean:
    """The mean and its 95 % interval by Student's t with n - 1 degrees of freedom.

    Of three values it reaches 2.5 standard deviations to either side, of two, 9.
    """
    array = np.asarray(values, dtype=float)
    mean, n = float(array.mean()), len(array)
    if n < 2 or np.ptp(array) == 0:
        return Mean(mean, None, None, n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * array.std(ddof=1) / np.sqrt(n))
    return Mean(mean, mean - half, mean + half, n)


def paired_test(values: Sequence[float], baseline: Sequence[float]) -> PairedTest:
    """Whether `values` differ from those of the baseline at the same seeds, pair by pair.

    Args:
        values, baseline: equally long; at the same place, of the same seed.
    """
    differences = np.subtract(values, baseline)
    mean = mean_interval(differences.tolist())
    p = None if mean.low is None else float(stats.ttest_1samp(differences, 0.0).pvalue)
    return PairedTest(mean.value, mean.low, mean.high, p, mean.n)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for being many (Holm 1979).

    Rejecting those below alpha keeps the chance of any false rejection below alpha.
    """
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, largest)
    return corrected.tolist()
