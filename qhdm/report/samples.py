"""Images on pages: generated ones beside the nearest real ones, and how they emerge from noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qhdm.config import Config, Sampling
from qhdm.config.sampling import guidance_label
from qhdm.data import Bands, Dataset, Images
from qhdm.data.batches import symmetries
from qhdm.metrics import distances
from qhdm.report.html import tiles
from qhdm.run import Run

#: The seed of all images on pages.
SEED = 0
#: Generated images of each class on the page of a run, and held-out ones compared with them.
PER_CLASS = 6
#: Network evaluations shown of a trajectory, from first to last.
_SHOWN = 8
#: Most pixels of a spectrum.
_PIXELS = 2**18
#: Real images in memory at a time.
_ROWS = 256
#: The inverse of each of the eight symmetries: the two quarter turns undo each other.
_INVERSE = np.array([0, 1, 2, 3, 4, 6, 5, 7])


@dataclass(frozen=True)
class Pair:
    """The data URIs of a generated and the nearest training image, and their distance."""

    generated: str
    real: str | None = None
    distance: float | None = None


@dataclass(frozen=True)
class Spectra:
    """Mean, 10% and 90% quantile over the pixels of a class, (3, C) in the units of the files.

    Attributes:
        name: of the class.
        generated, real: of its images; None without real ones.
    """

    name: str
    generated: np.ndarray
    real: np.ndarray | None


@dataclass(frozen=True)
class Samples:
    """Generated images of all classes beside training images.

    Attributes:
        rows: pairs of each class.
        distance: median distance of generated images to the nearest training image of their class,
            in grey levels, and their number; None without training images.
        held_out: the same for held-out images.
        spectra: of each class; none of pictures.
    """

    rows: Sequence[tuple[str, Sequence[Pair]]]
    distance: tuple[float, int] | None
    held_out: tuple[float, int] | None
    spectra: Sequence[Spectra]


@dataclass(frozen=True)
class TrajectoryRow:
    """Data URIs of noisy images and the estimates from them for one image, and of the result."""

    name: str
    noisy: Sequence[str]
    estimates: Sequence[str]
    result: str


def samples_beside(run: Run, real: Dataset | None) -> Samples:
    """Sample every class, and find the nearest training images, if there are real images."""
    labels, indices = run.images_of(None, PER_CLASS)
    images = run.sample(Sampling(seed=SEED), labels=labels, indices=indices, progress=True)
    turned, bands = run.config.data.augment, run.bands
    kinds = [f", {name}" for name in bands.composites] if bands else [""]
    rows: list[tuple[str, list[Pair]]] = []
    apart: dict[str, list[float]] = {"generated": [], "held out": []}
    spectra: list[Spectra] = []
    for label, name in enumerate(run.class_names):
        own = images[np.equal(labels, label)]
        known: Images = np.empty(0)
        if real:
            known = real.where(~real.is_test & (real.labels == label)).images
        if bands is not None:
            training = _spectrum(known, bands) if len(known) else None
            spectra.append(Spectra(name, _spectrum(own, bands), training))
        if real is None or not len(known):
            for view, kind in enumerate(kinds):
                rows.append((f"{name}{kind}", [Pair(uri) for uri in tiles(own, bands, view)]))
            continue
        near, differences = nearest(own, known, turned=turned)
        apart["generated"] += differences.tolist()
        for view, kind in enumerate(kinds):
            shown = tiles(own, bands, view), tiles(near, bands, view)
            pairs = zip(*shown, differences.tolist(), strict=True)
            rows.append((f"{name}{kind}", [Pair(*pair) for pair in pairs]))
        others = real.images[np.flatnonzero(real.is_test & (real.labels == label))[:PER_CLASS]]
        if len(others):
            apart["held out"] += nearest(others, known, turned=turned)[1].tolist()
    generated, held_out = (
        (float(np.median(values)), len(values)) if values else None for values in apart.values()
    )
    return Samples(rows, generated, held_out, spectra)


def _spectrum(levels: Images, bands: Bands) -> np.ndarray:
    """Mean, 10% and 90% quantile of each band of levels (N, H, W, C), (3, C).

    They are over all pixels, or over 262,144 random ones.
    """
    of_image = levels.shape[1] * levels.shape[2]
    chosen = np.arange(len(levels) * of_image)
    if len(chosen) > _PIXELS:
        chosen = np.random.default_rng(SEED).integers(len(chosen), size=_PIXELS)
    parts = []
    for start in range(0, len(levels), _ROWS):
        block = levels[start : start + _ROWS].reshape(-1, levels.shape[-1])
        inside = chosen - start * of_image
        parts.append(block[inside[(inside >= 0) & (inside < len(block))]])
    pixels = bands.values(np.concatenate(parts))
    return np.stack([pixels.mean(axis=0), *np.quantile(pixels, (0.1, 0.9), axis=0)])


def nearest(images: np.ndarray, real: Images, *, turned: bool) -> tuple[np.ndarray, np.ndarray]:
    """The real images with the least root mean square difference from images.

    Args:
        images, real: levels (N, H, W, C) and (M, H, W, C), at least one each.
        turned: compare with all 8 symmetries of the real images, as `data.augment` showed them.

    Returns:
        (N, H, W, C), turned or mirrored as they match best, and (N,) differences over pixels and
        channels, in grey levels of 255.
    """
    count, kinds = len(images), 8 if turned else 1
    # A symmetry of both leaves a distance unchanged: the few images are moved, not the many.
    moved = np.concatenate([symmetries(images, np.full(count, kind)) for kind in range(kinds)])
    flat = moved.reshape(len(moved), -1).astype(np.float32)
    least, rows = np.full(len(flat), np.inf, np.float32), np.zeros(len(flat), int)
    for start in range(0, len(real), _ROWS):
        block = real[start : start + _ROWS]
        own = distances.nearest(flat, block.reshape(len(block), -1).astype(np.float32))
        closer = own[0] < least
        least[closer], rows[closer] = own[0][closer], start + own[1][closer]
    apart, places = least.reshape(kinds, count), rows.reshape(kinds, count)
    kind, column = apart.argmin(axis=0), np.arange(count)
    near = symmetries(real[places[kind, column]], _INVERSE[kind])
    scale = 255 / np.iinfo(images.dtype).max / np.sqrt(images[0].size)
    return near, apart[kind, column] * scale


def trajectories(run: Run) -> tuple[Sequence[float], list[TrajectoryRow]]:
    """The first image of every class at some evenly spread evaluations of the sampler.

    Returns:
        The noise levels of these evaluations, and a row for each class.
    """
    labels, indices = run.images_of(None, 1)
    trajectory = run.trajectory(Sampling(seed=SEED), labels=labels, indices=indices)
    last = len(trajectory.sigmas) - 1
    chosen = np.unique(np.linspace(0, last, min(_SHOWN, last + 1)).round().astype(int))
    rows = [
        TrajectoryRow(
            name,
            tiles(trajectory.x_t[chosen, image], run.bands),
            tiles(trajectory.x_0[chosen, image], run.bands),
            *tiles(trajectory.images[image : image + 1], run.bands),
        )
        for image, name in enumerate(run.class_names)
    ]
    return [trajectory.sigmas[i] for i in chosen], rows


def sampling_label(config: Config) -> str:
    """How images on pages are sampled."""
    sample = config.sample
    parts = [str(sample.sampler), f"{sample.steps} steps"]
    if sample.guidance != 1:
        label = guidance_label(sample.guidance, sample.guidance_interval, sample.guide)
        parts.append(label)
    return ", ".join([*parts, f"seed {SEED}"])
