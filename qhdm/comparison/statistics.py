"""Intervals and tests over seeds, as functions of numbers alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import stats

#: Of all intervals.
CONFIDENCE = 0.95
#: Below this p, a difference is called significant.
ALPHA = 0.05
#: Seeds that are combined to designs, at most.
_MOST = 8

#: Losses by seed, or rises of them.
Losses = Mapping[int, float]


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


def significant(values: np.ndarray, alpha: float) -> np.ndarray:
    """For rows of values (tests, n), the sign of a mean with p < alpha by `t_test`, else 0."""
    n = values.shape[1]
    error = values.std(axis=1, ddof=1) / math.sqrt(n)
    mean = values.mean(axis=1)
    return np.sign(mean) * (np.abs(mean) > stats.t.isf(alpha / 2, n - 1) * error)


def t_power(effect: float, n: int, alpha: float) -> float:
    """Chance that `t_test` of n normal values finds their mean, of `effect` standard deviations.

    It does with p < alpha, two-sided, and the right sign.
    """
    critical = stats.t.isf(alpha / 2, n - 1)
    return float(stats.nct.sf(critical, n - 1, effect * math.sqrt(n)))


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


@dataclass(frozen=True)
class Designs:
    """Comparisons of n pairs of trainings without an effect.

    Attributes:
        differences: of the losses, as shares of the mean loss, (designs, n).
        seeds: where effects are added, (designs, n).
    """

    differences: np.ndarray
    seeds: np.ndarray

    def found(self, rises: Losses, alpha: float) -> float:
        """The share of designs that find these rises, at two-sided p < alpha."""
        effects = np.array([rises[seed] for seed in sorted(rises)])
        effect = effects[np.searchsorted(sorted(rises), self.seeds)]
        return float(np.mean(significant(self.differences + effect, alpha) > 0))

    def flagged(self, alpha: float) -> float:
        """The share of designs that find a difference where there is none."""
        return float(np.mean(significant(self.differences, alpha) != 0))


@dataclass(frozen=True)
class Spread:
    """How much trainings differ without an effect; losses are shares of the variant's mean loss.

    Attributes:
        losses: of the variant.
        residuals: for every two variants, the differences between them at equal seeds less their
            mean, rescaled to keep their variance.
    """

    losses: Losses
    residuals: Sequence[Losses]

    @classmethod
    def of(cls, variant: str, losses: Mapping[str, Losses]) -> Spread:
        own = dict(sorted(losses[variant].items())[:_MOST])
        mean = float(np.mean(list(own.values())))
        residuals = []
        for one, other in itertools.combinations(losses.values(), 2):
            seeds = sorted(own.keys() & one.keys() & other.keys())
            if len(seeds) > 1:
                differences = np.array([(one[s] - other[s]) / mean for s in seeds])
                left = (differences - differences.mean()) * math.sqrt(len(seeds) / (len(seeds) - 1))
                residuals.append(dict(zip(seeds, left.tolist(), strict=True)))
        return cls({seed: loss / mean for seed, loss in own.items()}, residuals)

    @cached_property
    def equal_seeds(self) -> float | None:
        """Standard deviation of differences between variants at equal seeds."""
        squares = [value**2 for residual in self.residuals for value in residual.values()]
        return math.sqrt(sum(squares) / len(squares)) if squares else None

    @cached_property
    def other_seeds(self) -> float:
        """Standard deviation of differences between trainings of the variant."""
        return math.sqrt(2) * float(np.std(list(self.losses.values()), ddof=1))

    def paired(self) -> Iterator[Designs]:
        """For n = 2, 3, ..., all choices of n seeds of a residual.

        Without an effect, a difference is as likely to be negative: it is taken with both signs.
        """
        for n in range(2, max(map(len, self.residuals), default=0) + 1):
            signs = np.array(list(itertools.product((-1, 1), repeat=n)))
            chosen = [(r, s) for r in self.residuals for s in itertools.combinations(r, n)]
            yield Designs(
                np.concatenate([signs * [r[seed] for seed in seeds] for r, seeds in chosen]),
                np.repeat([seeds for _, seeds in chosen], len(signs), axis=0),
            )

    def repaired(self) -> Iterator[Designs]:
        """For n = 2, 3, ..., all choices of n seeds of the variant, each with another one."""
        loss = np.vectorize(self.losses.__getitem__)
        for n in range(2, len(self.losses) // 2 + 1):
            chosen = [
                (seeds, others)
                for seeds in itertools.combinations(self.losses, n)
                for others in itertools.permutations(self.losses.keys() - seeds, n)
            ]
            seeds, others = np.array(chosen).swapaxes(0, 1)
            yield Designs(loss(seeds) - loss(others), seeds)
