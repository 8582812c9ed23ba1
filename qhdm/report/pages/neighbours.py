"""The real images that generated ones resemble most, pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qhdm.data.batches import symmetries
from qhdm.metrics import distances

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
        images: (N, H, W, C) uint8, N at least 1.
        real: (M, H, W, C) uint8, M at least 1.
        turned: also compare with the mirrored and turned real images, as training with
            `data.augment` showed them: with all 8 symmetries of the square.
    """
    count, kinds = len(images), 8 if turned else 1
    # A symmetry of both leaves a distance as it is: the few are moved in place of the many.
    moved = [symmetries(images, np.full(count, kind)) for kind in range(kinds)]
    apart, places = distances.nearest(_flat(np.concatenate(moved)), _flat(real))
    apart, places = apart.reshape(kinds, count), places.reshape(kinds, count)
    kind, column = apart.argmin(axis=0), np.arange(count)
    found = symmetries(real[places[kind, column]], _INVERSE[kind])
    return Neighbours(found, apart[kind, column] / np.sqrt(images[0].size))


def _flat(images: np.ndarray) -> np.ndarray:
    """(N, H W C) float32."""
    return images.reshape(len(images), -1).astype(np.float32)
