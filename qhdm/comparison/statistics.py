"""Intervals and tests over seeds, as functions of numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

#: Of all intervals.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class MeanTest:
    """A mean with its interval, and the two-sided p of the t test of a zero mean.

    `low`, `high` and `p` are None for a single value and for values without spread.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int

    def interval(self) -> dict[str, Any]:
        """All but p, by name."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}


def t_test(values: Sequence[float]) -> MeanTest:
    """The mean of `values` with its 95 % interval, by Student's t with n - 1 degrees of freedom.

    The interval of three values extends 2.5 standard deviations to either side, that of two 9. For
    differences at equal seeds, this is the paired t test.
    """
    mean, n = float(np.mean(values)), len(values)
    if n < 2 or np.ptp(values) == 0:
        return MeanTest(mean, None, None, None, n)
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(CONFIDENCE)
    return MeanTest(mean, float(low), float(high), float(test.pvalue), n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for multiple tests (Holm 1979).

    Rejecting those below alpha keeps the chance of any false rejection below alpha.
    """
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, largest)
    return corrected.tolist()
