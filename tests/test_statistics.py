"""Intervals and tests over seeds: Student's t, permutations, and Holm's procedure as published."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qhdm.comparison.statistics import holm, t_test


def test_intervals_are_those_of_student() -> None:
    mean = t_test([1.0, 2.0, 4.0])
    # By hand: mean 7/3, standard deviation sqrt(7/3), t(0.975; 2) = 4.302653.
    half = 4.302653 * math.sqrt(7 / 3) / math.sqrt(3)
    assert mean.mean == pytest.approx(7 / 3)
    assert (mean.low, mean.high) == pytest.approx((7 / 3 - half, 7 / 3 + half), rel=1e-6)
    assert t_test([5.0]).low is None
    assert t_test([5.0, 5.0]).low is None  # no spread, no interval


def test_intervals_cover_what_they_claim() -> None:
    draws = np.random.default_rng(0).normal(3.0, 2.0, (1000, 3))
    covered = np.mean([(m := t_test(row)).low <= 3.0 <= m.high for row in draws])
    assert covered == pytest.approx(0.95, abs=0.02)


def test_paired_tests_against_permutations() -> None:
    random = np.random.default_rng(1)
    baseline = random.normal(size=12)
    values = baseline + random.normal(0.5, 1.0, 12)
    test = t_test(values - baseline)
    differences = values - baseline
    signs = np.array(list(itertools.product([-1, 1], repeat=12)))
    means = np.abs((signs * differences).mean(1))
    exact = np.mean(means >= abs(differences.mean()) - 1e-12)
    assert test.p == pytest.approx(exact, abs=0.02)
    assert test.mean == pytest.approx(differences.mean())
    assert (test.low > 0 or test.high < 0) == (test.p < 0.05)
    assert t_test([1.0, 1.0]).p is None  # no spread, no test
    assert t_test([1.0]).p is None


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_rejects_step_by_step(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for alpha in (0.01, 0.05, 0.3):
        # The procedure as published: the smallest against alpha / m, the next against
        # alpha / (m - 1), ... until one stays.
        rejected = set()
        for rank, index in enumerate(np.argsort(p_values, kind="stable")):
            if p_values[index] * (len(p_values) - rank) > alpha:
                break
            rejected.add(int(index))
        assert {i for i, p in enumerate(corrected) if p <= alpha} == rejected
