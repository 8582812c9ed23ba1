"""Distances between the spectra of generated and real images with bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qhdm.data import Bands, Dataset
from qhdm.metrics.groups import drawn
from qhdm.metrics.records import Metric, MetricName, Split

#: Most images of either set.
_MOST = 1000
#: Normalised differences (a - b) / (a + b) of two bands: of vegetation (Rouse et al. 1974) and of
#: open water (McFeeters 1996).
INDICES: dict[MetricName, tuple[str, str]] = {"NDVI": ("B08", "B04"), "NDWI": ("B03", "B08")}


def band_metrics(
    generated: Dataset, real: Mapping[Split, Dataset]
) -> tuple[Sequence[Metric], Sequence[str]]:
    """Spectral angle, band correlation, NDVI and NDWI against the test split, if bands allow.

    N is the size of the smaller set, 1,000 at most. The floor puts N training images in the place
    of the generated ones; it is None if there are fewer.

    Returns:
        The metrics, and a note that names the classes left out of the spectral angle, since their
        mean spectrum is zero and has no direction.
    """
    test, training = real["test"], real["train"]
    num = min(len(generated), len(test), _MOST)
    own, made = _some(test, num, 0), _some(generated, num, 1)
    values = _compared(own, made, test.bands)
    floor = _compared(own, _some(training, num, 1), test.bands) if len(training) >= num else {}
    metrics = [
        Metric(name, f"{name}[N={num}, test]", "test", num, value, "lower", floor=floor.get(name))
        for name, value in values.items()
    ]
    dark = sorted({label for part in (own, made) for label in _without_spectrum(*part)})
    names = ", ".join(test.class_names[label] for label in dark)
    return metrics, [f"spectral angle: without {names}, zero in all bands"] if dark else []


def spectral_angle(first: np.ndarray, second: np.ndarray) -> float:
    """The angle between two spectra (C,) in degrees (Kruse et al. 1993, eq. 1)."""
    cosine = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def band_correlation(values: np.ndarray) -> np.ndarray:
    """Pearson correlation over pixels of each pair of bands of values (N, H, W, C)."""
    pixels = values.reshape(-1, values.shape[-1])
    with np.errstate(invalid="ignore", divide="ignore"):  # for a constant band
        table = np.nan_to_num(np.corrcoef(pixels, rowvar=False))
    return table[np.triu_indices(values.shape[-1], 1)]


def normalised_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(a - b) / (a + b) within [-1, 1]; 0 where both are 0."""
    total = a + b
    return np.clip(np.divide(a - b, total, out=np.zeros_like(total), where=total != 0), -1, 1)


def _compared(
    real: tuple[np.ndarray, np.ndarray], images: tuple[np.ndarray, np.ndarray], bands: Bands | None
) -> dict[MetricName, float]:
    """The distances between two sets of N images: values (N, H, W, C) and labels (N,)."""
    assert bands is not None
    (own, own_labels), (values, labels) = real, images
    distances: dict[MetricName, float] = {}
    dark = _without_spectrum(*real) | _without_spectrum(*images)
    if len(bands.names) > 1:
        angles = [
            spectral_angle(*(v[k == label].mean(axis=(0, 1, 2)) for v, k in (real, images)))
            for label in np.intersect1d(own_labels, labels)
            if label not in dark
        ]
        if angles:
            distances["spectral angle"] = float(np.mean(angles))
        difference = band_correlation(own) - band_correlation(values)
        distances["band correlation"] = float(np.abs(difference).mean())
    for name, pair in INDICES.items():
        places = [bands.number(band) for band in pair]
        if None not in places:
            # The 1-Wasserstein distance of two samples of equal size.
            sorted_ = (
                np.sort(normalised_difference(*(v[..., place] for place in places)), axis=None)
                for v in (own, values)
            )
            distances[name] = float(np.abs(np.subtract(*sorted_)).mean())
    return distances


def _without_spectrum(values: np.ndarray, labels: np.ndarray) -> set[int]:
    """The labels of classes of images (N, H, W, C) whose mean is zero in all bands."""
    return {
        int(label)
        for label in np.unique(labels)
        if not values[labels == label].mean(axis=(0, 1, 2)).any()
    }


def _some(images: Dataset, num: int, part: int) -> tuple[np.ndarray, np.ndarray]:
    """Values (N, H, W, C), in the units of the files, and labels of N random images."""
    assert images.bands is not None
    chosen = drawn(np.arange(len(images)), num, part)
    values = [images.bands.values(image).astype(np.float32) for image in images.images[chosen]]
    return np.stack(values), images.labels[chosen]
