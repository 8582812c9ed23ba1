"""Distances between spectra, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from qhdm.metrics.bands import band_correlation, normalised_difference, spectral_angle


def test_spectral_angle() -> None:
    assert spectral_angle(np.array([1.0, 0.0]), np.array([3.0, 3.0])) == pytest.approx(45)
    assert spectral_angle(np.array([2.0, 1.0]), np.array([4.0, 2.0])) == pytest.approx(0, abs=1e-5)


def test_band_correlation() -> None:
    a = np.random.default_rng(0).normal(size=(2, 3, 3))
    values = np.stack([a, 2 * a + 1, -a, np.ones_like(a)], axis=-1)
    expected = [1, -1, 0, -1, 0, 0]  # pairs 01, 02, 03, 12, 13, 23; a constant band has none
    np.testing.assert_allclose(band_correlation(values), expected, atol=1e-12)


def test_normalised_difference() -> None:
    a, b = np.array([3.0, 0.0, 0.0, 5.0]), np.array([1.0, 0.0, 2.0, -4.0])
    assert normalised_difference(a, b).tolist() == [0.5, 0, -1, 1]
