"""The real images that generated ones resemble most, pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qhdm.data.batches import symmetries

#: Real images compared at once; bounds the memory.
_CHUNK = 2048

#: Which symmetry undoes each of the eight: the two quarter turns undo each other.
_INVERSE = np.array([0, 1, 2, 3, 4, 6, 5, 7])


@dataclass(frozen=True, eq=False)
class Neighbours:
    """For each of N images, the nearest one of a real set.

    Attributes:
        images: (N, H, W, C) uint8, turned or mirrored as they match best.
        distances: (N,), root mean square differences over pixels and channels, in grey levels.
    """

    images: np.ndarray
    distances: np.ndarray


def nearest(images: np.ndarray, real: np.ndarray, *, turned: bool) -> Neighbours:
    """The nearest neighbours of images among real ones.

    Args:
        images: (N, H, W, C) uint8.
        real: (M, H, W, C) uint8, M at least 1.
        turned: also compare with the mirrored and turned real images, as training with
            `data.augment` showed them: with all 8 symmetries of the square.
    """
    count, kinds = len(images), 8 if turned else 1
    # A symmetry of both leaves a distance as it is: the few are moved in place of the many.
    queries = _flat(
        np.concatenate([symmetries(images, np.full(count, kind)) for kind in range(kinds)])
    )
    best = np.full(len(queries), np.inf, dtype=np.float32)
    index = np.zeros(len(queries), dtype=np.int64)
    for start in range(0, len(real), _CHUNK):
        part = _flat(real[start : start + _CHUNK])
        # |q - r|^2 without |q|^2, which is the same for every r and every symmetry.
        values = np.square(part).sum(axis=1) - 2 * queries @ part.T
        places = values.argmin(axis=1)
        least = values[np.arange(len(queries)), places]
        index = np.where(least < best, start + places, index)
        best = np.minimum(least, best)
    kind = best.reshape(kinds, count).argmin(axis=0)
    index = index.reshape(kinds, count)[kind, np.arange(count)]
    found = symmetries(real[index], _INVERSE[kind])
    squares = np.square(found.astype(np.float64) - images)
    return Neighbours(found, np.sqrt(squares.mean(axis=(1, 2, 3))))


def _flat(images: np.ndarray) -> np.ndarray:
    """(N, H W C) float32, centred, so that the sums lose fewer digits."""
    return images.reshape(len(images), -1).astype(np.float32) - 127.5
