"""Distances between sets of images as pure functions of their features, (N, D) float64 arrays.

Lower-level work is done by torchmetrics (FID, KID) and by the authors' own prdc (precision, recall,
density, coverage); tests compare all of them with independent formulas.
"""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from qhdm.errors import EvaluationError
from qhdm.seeds import Stream, derive_seed

#: Neighbours of improved precision and recall (Kynkäänniemi et al. 2019, section 3.1).
PRECISION_NEIGHBOURS = 3
#: Neighbours of density and coverage (Naeem et al. 2020, section 3.1.3).
COVERAGE_NEIGHBOURS = 5
#: Fewer images than this have no neighbourhoods to speak of: ten times the neighbours.
FEWEST_IMAGES = 10 * COVERAGE_NEIGHBOURS

_KID_SUBSETS = 100
_KID_LARGEST_SUBSET = 1000
_FID_HALVES = 20
_ROWS = 1024  # of distance matrices at once


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error, where there is one."""

    value: float
    error: float | None


def check_counts(num: int, dim: int, *, what: str, remedy: str) -> None:
    """Refuse sets of images too small for distances of features.

    Args:
        num: N, images of the smaller set.
        dim: D, features per image.
        what: whose images these are, for the message.
        remedy: what to do about it, for the message.

    Raises:
        EvaluationError: N <= D, or too few for neighbourhoods.
    """
    if num <= dim:
        raise EvaluationError(
            f"distances: {num} images ({what}) for {dim} features: the covariance of no more "
            f"images than features is singular, so that FID would measure N; {remedy}"
        )
    if num < FEWEST_IMAGES:
        raise EvaluationError(
            f"distances: {num} images ({what}) are too few for {COVERAGE_NEIGHBOURS} nearest "
            f"neighbours, which take {FEWEST_IMAGES}; {remedy}"
        )


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """FID: the Fréchet distance of two Gaussians (Heusel et al. 2017, eq. 6).

    |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), with means and unbiased covariances of the
    features.

    Args:
        real, generated: (N, D) and (M, D); N and M above D.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Given(real.shape[1])).set_dtype(torch.float64)
    metric.update(torch.as_tensor(real), real=True)
    metric.update(torch.as_tensor(generated), real=False)
    return float(metric.compute())


def frechet_distance_error(real: np.ndarray, generated: np.ndarray, *, seed: int) -> float | None:
    """The standard error of `frechet_distance`, by the delete-half jackknife.

    That is the standard deviation over random halves of both sets (Shao & Wu 1989: deleting half of
    the sample makes the jackknife's factor 1).

    Returns:
        None where half a set has no more images than features.
    """
    if min(len(real), len(generated)) // 2 <= real.shape[1]:
        return None
    rng = np.random.default_rng(derive_seed(seed, Stream.SUBSET, 0))
    halves = [
        frechet_distance(
            real[rng.permutation(len(real))[: len(real) // 2]],
            generated[rng.permutation(len(generated))[: len(generated) // 2]],
        )
        for _ in range(_FID_HALVES)
    ]
    return float(np.std(halves, ddof=1))


def kernel_distance(real: np.ndarray, generated: np.ndarray, *, seed: int) -> Estimate:
    """KID: the squared maximum mean discrepancy (Binkowski et al. 2018), unbiased at any N.

    Its kernel is (x.y / D + 1)^3. The value is the mean over random subsets of m images, half of
    the smaller set (at most 1000); the standard error of N images is the standard deviation over
    subsets times sqrt(m / (N - m)), the jackknife that deletes N - m (Shao & Wu 1989).

    Args:
        real, generated: (N, D) and (M, D), at least 4 images each.
        seed: of the subsets.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    num = min(len(real), len(generated))
    size = min(num // 2, _KID_LARGEST_SUBSET)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance`")
        torch.manual_seed(derive_seed(seed, Stream.SUBSET, 1))
        metric = KernelInceptionDistance(
            feature=_Given(real.shape[1]), subsets=_KID_SUBSETS, subset_size=size
        )
        metric.update(torch.as_tensor(real), real=True)
        metric.update(torch.as_tensor(generated), real=False)
        mean, deviation = metric.compute()
    return Estimate(float(mean), float(deviation) * (size / (num - size)) ** 0.5)


def precision_recall(real: np.ndarray, generated: np.ndarray) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, eq. 2), k = 3.

    Precision is the share of generated images within the k-th neighbour's distance of a real one;
    recall the share of real images within that of a generated one.
    """
    found = _prdc(real, generated, PRECISION_NEIGHBOURS)
    return found["precision"], found["recall"]


def density_coverage(real: np.ndarray, generated: np.ndarray) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, eq. 4 and 5), k = 5.

    Density is how many neighbourhoods of real images a generated one lies in, over k (its mean is
    1 for equal distributions); coverage is the share of real images whose neighbourhood holds a
    generated one.
    """
    found = _prdc(real, generated, COVERAGE_NEIGHBOURS)
    return found["density"], found["coverage"]


def _prdc(real: np.ndarray, generated: np.ndarray, neighbours: int) -> dict[str, float]:
    from prdc import compute_prdc

    with redirect_stdout(io.StringIO()):  # it prints the counts
        found = compute_prdc(real_features=real, fake_features=generated, nearest_k=neighbours)
    return {name: float(value) for name, value in found.items()}


def nearest(
    images: np.ndarray, others: np.ndarray, *, same: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of `others` (M, D) to each of `images` (N, D).

    Args:
        same: the sets are one, and no image is its own neighbour.

    Returns:
        Euclidean distances (N,) and places in `others` (N,).
    """
    distances, places = [], []
    found = torch.as_tensor(others)
    for start in range(0, len(images), _ROWS):
        rows = torch.as_tensor(images[start : start + _ROWS])
        # Without matrix products: they lose the small distances, which are what is looked for.
        table = torch.cdist(rows, found, compute_mode="donot_use_mm_for_euclid_dist")
        if same:
            own = torch.arange(len(rows))
            table[own, start + own] = torch.inf
        lowest = table.min(dim=1)
        distances.append(lowest.values)
        places.append(lowest.indices)
    return torch.cat(distances).numpy(), torch.cat(places).numpy()


def memorised(images: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Which images lie closer to a training image than that one lies to any other (Alaa et al.
    2022, section 4.3: those that are not authentic).

    Args:
        images, training: features, (N, D) and (M, D), M at least 2.

    Returns:
        (N,) bool.
    """
    distances, places = nearest(images, training)
    own, _ = nearest(training, training, same=True)
    return distances < own[places]


class _Given(nn.Module):
    """Features in, features out: for metrics that insist on an extractor."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features
