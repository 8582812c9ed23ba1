"""What pages show of images: generated ones with their nearest real ones, and how they came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qhdm.config import Config, Sampling
from qhdm.data import Dataset
from qhdm.report.pages.html import tiles
from qhdm.report.pages.neighbours import nearest
from qhdm.run import Run

#: The seed of all images on pages.
SEED = 0
#: Generated images of each class on the page of a run, and held-out ones compared with them.
PER_CLASS = 6
#: Network evaluations shown of a trajectory, from first to last.
_SHOWN = 8


@dataclass(frozen=True)
class Pair:
    """A generated image (an address), the nearest training image, and their distance."""

    generated: str
    real: str | None = None
    distance: float | None = None


@dataclass(frozen=True)
class ClassRow:
    name: str
    pairs: Sequence[Pair]


@dataclass(frozen=True)
class Samples:
    """Generated images of all classes beside training images.

    Attributes:
        rows: of each class.
        distance: median distance of generated images to the nearest training image of their class,
            in grey levels, and of how many; None without training images.
        held_out: the same for held-out images.
    """

    rows: Sequence[ClassRow]
    distance: tuple[float, int] | None
    held_out: tuple[float, int] | None


@dataclass(frozen=True)
class TrajectoryRow:
    """x_t and the estimates of x_0 of one image, and what came out."""

    name: str
    noisy: Sequence[str]
    estimates: Sequence[str]
    result: str


@dataclass(frozen=True)
class TrajectoryTable:
    """Some evaluations of a sampler, by their timesteps, for an image of each class."""

    timesteps: Sequence[int]
    rows: Sequence[TrajectoryRow]


def samples_beside(run: Run, real: Dataset | None) -> Samples:
    """Sample every class, and find the training images that the samples resemble.

    Args:
        run: the trained model.
        real: the whole set, or None where it is absent.
    """
    labels, indices = run.images_of(None, PER_CLASS)
    images = run.sample(Sampling(seed=SEED), labels=labels, indices=indices, progress=True)
    turned = run.config.data.augment
    rows = []
    generated: list[float] = []
    held_out: list[float] = []
    for label, name in enumerate(run.class_names):
        own = images[np.equal(labels, label)]
        known = _of_class(real, "train", label)
        if not len(known):
            rows.append(ClassRow(name, [Pair(address) for address in tiles(own)]))
            continue
        found = nearest(own, known, turned=turned)
        generated += found.distances.tolist()
        together = zip(tiles(own), tiles(found.images), found.distances.tolist(), strict=True)
        rows.append(ClassRow(name, [Pair(*pair) for pair in together]))
        if len(others := _of_class(real, "test", label)[:PER_CLASS]):
            held_out += nearest(others, known, turned=turned).distances.tolist()
    return Samples(rows, _median(generated), _median(held_out))


def trajectories(run: Run) -> TrajectoryTable:
    """The way of the first image of every class, at some evenly spread evaluations."""
    names = run.class_names
    labels, indices = run.images_of(None, 1)
    way = run.trajectory(Sampling(seed=SEED), labels=labels, indices=indices)
    last = len(way.timesteps) - 1
    chosen = np.unique(np.linspace(0, last, min(_SHOWN, last + 1)).round().astype(int))
    rows = [
        TrajectoryRow(
            name,
            tiles(way.x_t[chosen, image]),
            tiles(way.x_0[chosen, image]),
            *tiles(way.images[image : image + 1]),
        )
        for image, name in enumerate(names)
    ]
    return TrajectoryTable([way.timesteps[i] for i in chosen], rows)


def sampling_words(config: Config) -> str:
    """How images on pages are sampled."""
    sample = config.sample
    guidance = "" if sample.guidance == 1 else f", guidance {sample.guidance:g}"
    return f"{sample.sampler}, {sample.steps} steps{guidance}, seed {SEED}"


def _of_class(real: Dataset | None, part: Literal["train", "test"], label: int) -> np.ndarray:
    """The images (M, H, W, C) of one part and class; none without a set."""
    if real is None:
        return np.empty(0)
    return real.images[(real.is_test == (part == "test")) & (real.labels == label)]


def _median(distances: list[float]) -> tuple[float, int] | None:
    return (float(np.median(distances)), len(distances)) if distances else None
