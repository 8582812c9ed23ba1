"""Distances between sets of images as pure functions of their features, (N, D) float64 arrays.

FID and KID are computed by torchmetrics, precision, recall, density and coverage by their authors'
prdc.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout

import numpy as np
import torch
from torch import nn

from qhdm.errors import EvaluationError
from qhdm.seeds import Stream, derive_seed

#: Neighbours of improved precision and recall (Kynkäänniemi et al. 2019, section 3.1).
PRECISION_NEIGHBOURS = 3
#: Neighbours of density and coverage (Naeem et al. 2020, section 3.1.3).
COVERAGE_NEIGHBOURS = 5
#: Neighbourhoods among fewer images than this say nothing: ten times the neighbours.
FEWEST_IMAGES = 10 * COVERAGE_NEIGHBOURS

_KID_SUBSETS = 100
_KID_LARGEST_SUBSET = 1000
_FID_HALVES = 20
_ROWS = 1024  # of a distance matrix at a time


def fewest_images(dim: int) -> int:
    """How many images the distances of `dim` features take, in each set."""
    return max(dim + 1, FEWEST_IMAGES)


def check_counts(
    dim: int, *, generated: int, test: int, training: int, more: str, others: Sequence[str] = ()
) -> None:
    """Refuse sets of images that are too small for distances of D = `dim` features.

    `more` tells how to have more generated images, with {} for a number; `others` are the groups of
    metrics that need not be left out.

    Raises:
        EvaluationError: N <= D, or too few for neighbourhoods.
    """
    least = fewest_images(dim)
    larger = "evaluate on a larger set"
    for num, what, remedy in (
        (generated, "generated", more.format(least)),
        (test, "test split", larger),
        (training, "training split", larger),
    ):
        if num < least:
            raise EvaluationError(
                f"distances: {num} images ({what}) are too few for {dim} features: FID takes more "
                f"images than features, as their covariance is singular otherwise, and neighbours "
                f"take {FEWEST_IMAGES}; {remedy}, or leave distances out"
                f"{': --metrics ' if others else ''}{' '.join(others)}"
            )


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """FID: the Fréchet distance of two Gaussians (Heusel et al. 2017, eq. 6).

    |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), with means and unbiased covariances of the
    features (N, D) and (M, D); N and M above D.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Given(real.shape[1])).set_dtype(torch.float64)
    metric.update(torch.as_tensor(real), real=True)
    metric.update(torch.as_tensor(generated), real=False)
    return float(metric.compute())


def frechet_distance_error(real: np.ndarray, generated: np.ndarray, *, seed: int) -> float | None:
    """The standard error of `frechet_distance`, by the delete-half jackknife.

    This is the standard deviation over random halves of both sets (Shao & Wu 1989: when half of the
    sample is deleted, the jackknife's factor is 1); None if half a set has N <= D.
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


def kernel_distance(real: np.ndarray, generated: np.ndarray, *, seed: int) -> tuple[float, float]:
    """KID: the squared maximum mean discrepancy (Binkowski et al. 2018), unbiased at any N >= 4.

    The kernel is (x.y / D + 1)^3. The value is the mean over random subsets of m images, half of
    the smaller set (at most 1000); the standard error of N images is the standard deviation over
    subsets times sqrt(m / (N - m)), the jackknife that deletes N - m (Shao & Wu 1989).

    Returns:
        The value and its standard error.
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
    return float(mean), float(deviation) * (size / (num - size)) ** 0.5


def neighbourhoods(real: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    """Precision, recall, density and coverage, by their authors' prdc.

    Precision is the share of generated images within the k-th neighbour's distance of a real one,
    recall the share of real images within that of a generated one (Kynkäänniemi et al. 2019, eq. 2;
    k = 3). Density is the number of neighbourhoods of real images that a generated one lies in,
    over k (1 on average for equal distributions), coverage the share of real images whose
    neighbourhood contains a generated one (Naeem et al. 2020, eq. 4 and 5; k = 5).
    """
    from prdc import compute_prdc

    values: dict[str, float] = {}
    with redirect_stdout(io.StringIO()):  # it prints the counts
        for k, names in (
            (PRECISION_NEIGHBOURS, ("precision", "recall")),
            (COVERAGE_NEIGHBOURS, ("density", "coverage")),
        ):
            computed = compute_prdc(real_features=real, fake_features=generated, nearest_k=k)
            values |= {name: float(computed[name]) for name in names}
    return values


def nearest(
    images: np.ndarray, others: np.ndarray, *, same: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of `others` (M, D) to each of `images` (N, D), features or pixels.

    If the sets are the `same`, no image is its own neighbour.

    Returns:
        Euclidean distances (N,) and indices into `others` (N,).
    """
    distances, indices = [], []
    columns = torch.as_tensor(others)
    for start in range(0, len(images), _ROWS):
        rows = torch.as_tensor(images[start : start + _ROWS])
        # Matrix products would lose the small distances, which are those of interest.
        table = torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")
        if same:
            own = torch.arange(len(rows))
            table[own, start + own] = torch.inf
        lowest = table.min(dim=1)
        distances.append(lowest.values)
        indices.append(lowest.indices)
    return torch.cat(distances).numpy(), torch.cat(indices).numpy()


def memorised(images: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Which images (N, D) are closer to a training image than that one is to any other; (N,) bool.

    These are not authentic in the sense of Alaa et al. (2022, section 4.3).
    """
    distances, indices = nearest(images, training)
    own, _ = nearest(training, training, same=True)
    return distances < own[indices]


class _Given(nn.Module):
    """Identity of features, for metrics that require an extractor."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features
