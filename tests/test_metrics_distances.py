"""Distances of features against independent formulas, and what they are on known distributions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from tolerances import FLOAT64

from qhdm.errors import EvaluationError
from qhdm.metrics.distances import (
    check_counts,
    frechet_distance,
    frechet_distance_error,
    kernel_distance,
    memorised,
    nearest,
    neighbourhoods,
)


def features(num: int, dim: int = 8, *, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated and skewed, as features of images are."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(dim, dim))
    return np.maximum(rng.normal(size=(num, dim)) @ mix + shift, 0)


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    return features(300, seed=0)


@pytest.fixture(scope="module")
def made() -> np.ndarray:
    return features(200, seed=1, shift=0.5)


def test_frechet_distance_is_heusels_formula(real: np.ndarray, made: np.ndarray) -> None:
    s_1, s_2 = np.cov(real, rowvar=False), np.cov(made, rowvar=False)
    root = scipy.linalg.sqrtm(s_1 @ s_2)
    expected = np.sum((real.mean(0) - made.mean(0)) ** 2) + np.trace(s_1 + s_2 - 2 * root.real)
    assert frechet_distance(real, made) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_shifted_gaussians() -> None:
    """Between N(0, I) and N(m, I) it is |m|^2: here 9, up to the bias of finite N."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20_000, 4)), rng.normal(size=(20_000, 4)) + np.array([3, 0, 0, 0])
    error = frechet_distance_error(a, b, seed=0)
    assert error is not None
    assert abs(frechet_distance(a, b) - 9) < 5 * error + 0.01


def test_features_that_never_change_are_no_obstacle(real: np.ndarray, made: np.ndarray) -> None:
    """Channels that are off for every image make the covariance singular; the distance stands."""
    off = np.zeros((len(real), 2))
    padded = [np.hstack([images, off[: len(images)]]) for images in (real, made)]
    assert frechet_distance(*padded) == pytest.approx(frechet_distance(real, made), rel=1e-5)


def test_kernel_distance_is_the_unbiased_discrepancy() -> None:
    """Over all subsets, the mean of the estimate is the U-statistic of the whole sets."""
    real, made = features(120, seed=0), features(120, seed=1, shift=0.5)
    dim = real.shape[1]

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / dim + 1) ** 3

    def off_diagonal_mean(k: np.ndarray) -> float:
        n = len(k)
        return float((k.sum() - np.trace(k)) / (n * (n - 1)))

    expected = (
        off_diagonal_mean(kernel(real, real))
        + off_diagonal_mean(kernel(made, made))
        - 2 * kernel(real, made).mean()
    )
    found = kernel_distance(real, made, seed=0)
    value, error = found
    # The mean of 100 random halves is within a tenth of the error of a half; 4 of those.
    assert abs(value - expected) < 0.4 * error
    assert found == kernel_distance(real, made, seed=0)
    assert found != kernel_distance(real, made, seed=1)


@pytest.mark.parametrize("distance", ["FID", "KID"])
def test_errors_are_the_spread_of_repetitions(distance: str) -> None:
    """The jackknife's errors against the spread of independent sets, which they stand for."""
    values, errors = [], []
    for seed in range(25):
        real, made = features(150, 4, seed=2 * seed), features(150, 4, seed=2 * seed + 1, shift=0.5)
        if distance == "KID":
            value, error = kernel_distance(real, made, seed=seed)
        else:
            value, error = frechet_distance(real, made), frechet_distance_error(real, made, seed=0)
        assert error is not None
        values.append(value)
        errors.append(error)
    assert 0.6 < np.mean(errors) / np.std(values, ddof=1) < 1.6


def brute_force(real: np.ndarray, made: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """Precision, recall, density and coverage, written out from the papers' equations."""

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(np.sum((a - b) ** 2)))

    def radius(images: np.ndarray, i: int) -> float:
        others = [distance(images[i], images[j]) for j in range(len(images)) if j != i]
        return sorted(others)[k - 1]

    radii = [radius(real, i) for i in range(len(real))]
    made_radii = [radius(made, j) for j in range(len(made))]
    apart = np.array([[distance(x, y) for y in made] for x in real])
    inside = apart < np.array(radii)[:, None]
    recalled = (apart < np.array(made_radii)[None, :]).any(axis=1)
    return (
        inside.any(axis=0).mean(),
        recalled.mean(),
        inside.sum() / (k * len(made)),
        inside.any(axis=1).mean(),
    )


def test_neighbourhoods_are_those_of_the_papers() -> None:
    real, made = features(60, 3, seed=0), features(50, 3, seed=1, shift=0.3)
    precision, recall, _, _ = brute_force(real, made, 3)
    _, _, density, coverage = brute_force(real, made, 5)
    expected = {
        "precision": precision, "recall": recall, "density": density, "coverage": coverage
    }  # fmt: skip
    assert neighbourhoods(real, made) == pytest.approx(expected, abs=FLOAT64)
    assert 0 < precision < 1  # a test at the edge would show nothing
    assert 0 < coverage < 1


def test_nothing_is_printed(
    real: np.ndarray, made: np.ndarray, capfd: pytest.CaptureFixture
) -> None:
    neighbourhoods(real, made)
    kernel_distance(real, made, seed=0)
    assert capfd.readouterr() == ("", "")


def test_nearest_neighbours() -> None:
    real, made = features(2000, 3, seed=0), features(1500, 3, seed=1)
    apart, places = nearest(made, real)
    table = np.sqrt(((made[:50, None] - real[None]) ** 2).sum(-1))
    assert np.array_equal(places[:50], table.argmin(1))
    assert apart[:50] == pytest.approx(table.min(1), abs=FLOAT64)
    own, others = nearest(real, real, same=True)
    assert (others != np.arange(len(real))).all()
    assert (own >= 0).all()


def test_copies_are_memorised_and_fresh_images_are_not() -> None:
    rng = np.random.default_rng(0)
    training, fresh = rng.normal(size=(400, 8)), rng.normal(size=(200, 8))
    copies = training[:200] + 1e-6 * rng.normal(size=(200, 8))
    assert memorised(copies, training).all()
    assert memorised(training[:5], training).all()  # exact copies, at distance 0
    # A fresh image is as far from its nearest as that one is from its own: near one in two.
    assert 0.2 < memorised(fresh, training).mean() < 0.6


@pytest.mark.parametrize("small", ["generated", "test", "training"])
@pytest.mark.parametrize(("dim", "least"), [(64, 65), (8, 50)])
def test_too_few_images_are_refused(small: str, dim: int, least: int) -> None:
    counts = dict.fromkeys(("generated", "test", "training"), least)
    check_counts(dim, **counts, more="give {}")
    with pytest.raises(EvaluationError, match=f"{least - 1} images .{small}") as caught:
        check_counts(
            dim, **{**counts, small: least - 1}, more="give {}", others=("bands", "classes")
        )
    assert (f"give {least}" in str(caught.value)) == (small == "generated")
    assert "--metrics bands classes" in str(caught.value)


def test_no_error_of_halves_that_are_too_small(real: np.ndarray) -> None:
    assert frechet_distance_error(real[:16], real[16:32], seed=0) is None
    assert frechet_distance_error(real[:20], real[20:40], seed=0) is not None
