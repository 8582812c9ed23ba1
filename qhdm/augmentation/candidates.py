"""Which generated images may be used: of the class asked for, no copies, and no duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qhdm.metrics.distances import nearest

#: A generated image is of its class as clearly as all but this share of the real images are ...
UNLIKE = 0.1
#: ... and not nearer to a real one than all but this share of these are to each other.
COPIES = 0.01
#: Generated images may be nearer to each other by this factor, as there are more of them.
NEARER = 0.5


@dataclass(frozen=True, eq=False)
class Judged:
    """What classifiers of real images say of N real and M generated images.

    Attributes:
        real_labels, labels: (N,) and (M,).
        real_scores: probability of the own class, by classifiers that have not seen it, (N,).
        scores: probability of the class asked for, by each of S classifiers, (S, M).
        real_features, features: of some classifiers, (N, D) and (M, D).
    """

    real_labels: np.ndarray
    labels: np.ndarray
    real_scores: np.ndarray
    scores: np.ndarray
    real_features: np.ndarray
    features: np.ndarray

    def like(self, scores: np.ndarray) -> np.ndarray:
        """In which images (M,) the class asked for is seen, by their scores (..., M).

        The least score is the lowest decile of the real images of the class, so that classifiers
        reject no more than they know.
        """
        least = np.empty(self.labels.shape)
        for label in np.unique(self.labels):
            own = self.real_scores[self.real_labels == label]
            least[self.labels == label] = np.quantile(own, UNLIKE, method="lower")
        accepted: np.ndarray = scores >= least
        return accepted

    def copies_and_duplicates(self) -> tuple[np.ndarray, np.ndarray]:
        """Images too near to a real one, and those too near to another that stays, (M,) bool.

        Too near to a real image is no farther than the real images of the class are from each other
        (all but one in a hundred; those that are in the set twice do not count), as seen by the
        classifiers; half of that is too near to another.
        """
        copies, duplicates = (np.zeros(len(self.labels), dtype=bool) for _ in range(2))
        for label in np.unique(self.labels):
            real = self.real_features[self.real_labels == label]
            members = np.flatnonzero(self.labels == label)
            apart, _ = nearest(real, real, same=True)
            least = np.quantile(apart[apart > 0], COPIES, method="lower") if apart.any() else 0.0
            copies[members] = nearest(self.features[members], real)[0] <= least
            kept: list[np.ndarray] = []
            for member in members[~copies[members]]:
                own = self.features[member]
                duplicates[member] = any(
                    np.linalg.norm(own - other) <= NEARER * least for other in kept
                )
                if not duplicates[member]:
                    kept.append(own)
        return copies, duplicates
