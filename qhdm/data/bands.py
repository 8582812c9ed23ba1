"""Bands of images: their names, and the conversion of values to 16-bit levels and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from qhdm.config import DataConfig
from qhdm.config.fields import BAND_ORDERS, band_name
from qhdm.data.raster import ImageError
from qhdm.data.values import MOST_BEYOND
from qhdm.errors import DataError

S = TypeVar("S", np.ndarray, Sequence[Any])

#: The descriptions of the bands in a file, and the mean of each, (C,).
Described = tuple[Sequence[str | None], np.ndarray]
#: How many files are read to learn the names and the order of bands.
DESCRIBED = 16

#: Levels are integers from 0 to this.
LEVELS = 65_535
#: Most images from which percentiles are measured, and on which a range is checked.
MEASURED, _CHECKED = 2000, 64
#: A range has other units if the values of all bands together fill less of it than this.
_FILLED = 1 / 256
#: Colour composites, red first, as Sentinel-2's bands.
_TRUE, _FALSE = ("B04", "B03", "B02"), ("B08", "B04", "B03")


class BandError(ImageError):
    """A file lacks the bands asked for: a fault of the configuration, not of the file."""


@dataclass(frozen=True)
class Bands:
    """The bands of images, and the range of values that the levels of each band cover.

    Attributes:
        names: `B04`, or `band 4` for a band chosen by number whose name is unknown.
        low, high: the values of level 0 and level 65,535, one per band.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, config: DataConfig, ranges: Sequence[tuple[float, float]] | None = None) -> Bands:
        """The bands of a configuration, with `ranges` or else those of `data.range`."""
        names = _names(config)
        limits = config.range if ranges is None else ranges
        assert limits is not None  # `qhdm.data.resolved` measures it
        low, high = np.broadcast_to(np.array(limits, float), (len(names), 2)).T.tolist()
        return cls(names, tuple(low), tuple(high))

    @property
    def range(self) -> tuple[tuple[float, float], ...]:
        """`data.range` with one range per band."""
        return tuple(zip(self.low, self.high, strict=True))

    def levels(self, values: np.ndarray) -> np.ndarray:
        """Convert values (..., C) to uint16 levels; values outside the range are clipped."""
        low, high = np.array(self.low), np.array(self.high)
        share = values - low
        share /= high - low
        np.clip(share, 0, 1, out=share)
        share *= LEVELS
        return np.rint(share, out=share).astype(np.uint16)

    def values(self, levels: np.ndarray) -> np.ndarray:
        """Convert levels (..., C), uint16 or uint8, to float64 values in the units of the files."""
        low, high = np.array(self.low), np.array(self.high)
        return low + levels * ((high - low) / np.iinfo(levels.dtype).max)

    def number(self, name: str) -> int | None:
        """The index of a band; None if it is not among them."""
        return self.names.index(name) if name in self.names else None

    @property
    def composites(self) -> dict[str, tuple[int, ...]]:
        """Ways to show the bands, with the indices of those shown as red, green and blue.

        True and false colour if their bands are present, or else the first three bands or the
        first.
        """
        colours = {"true colour": _TRUE, "false colour": _FALSE}
        known = {
            f"{title} ({', '.join(names)})": tuple(map(self.names.index, names))
            for title, names in colours.items()
            if {*names} <= {*self.names}
        }
        first = (0, 1, 2) if len(self.names) > 2 else (0,)
        return known or {", ".join(self.names[i] for i in first): first}

    @property
    def stretch(self) -> str:
        """A caption that names the composites and the values shown as black and white."""
        shown = sorted({i for indices in self.composites.values() for i in indices})
        ranges = {i: f"{self.low[i]:.4g} to {self.high[i]:.4g}" for i in shown}
        each = ", ".join(f"{self.names[i]} {text}" for i, text in ranges.items())
        values = ranges[shown[0]] if len({*ranges.values()}) == 1 else each
        return f"{', '.join(self.composites)}; black to white, linear: {values}"

    def composite(self, levels: np.ndarray, view: int = 0) -> np.ndarray:
        """A composite of levels (..., C), as uint8 (..., 3 or 1)."""
        chosen = levels[..., list(self.composites.values())[view]]
        return np.rint(255 / np.iinfo(chosen.dtype).max * chosen).astype(np.uint8)


def bands_of(config: DataConfig) -> Bands | None:
    """The bands of a configuration; None for pictures."""
    return Bands.of(config) if config.bands else None


def by_number(config: DataConfig) -> bool:
    """Whether any of `data.bands` is chosen by number."""
    return any(isinstance(band, int) for band in config.bands or ())


def by_name(config: DataConfig, files: Iterable[Described]) -> DataConfig:
    """`config` with the names of bands that are chosen by number, if all files agree on them.

    13 bands without names get those of EuroSAT's order if B10 is the darkest by far.
    """
    if not by_number(config) or config.file_bands is not None:
        return config
    files = list(files)
    known = {_own_names(descriptions) for descriptions, _ in files}
    if len(known) != 1:
        return config
    names = known.pop()
    if {*names} == {*_names(config)}:  # as `qhdm sample` writes them, in their order
        return config
    if len(names) == 13 and not any(names):
        means = [mean for _, mean in files if np.isfinite(mean).all()]
        mean, cirrus = np.sum(means, axis=0), BAND_ORDERS["eurosat"].index("B10")
        if means and mean[cirrus] < np.delete(mean, cirrus).min() / 2:
            names = BAND_ORDERS["eurosat"]
    bands = tuple(
        names[band - 1] or band if isinstance(band, int) and band <= len(names) else band
        for band in config.bands or ()
    )
    return replace(config, bands=bands) if len({*bands}) == len(bands) else config


def same_numbers(first: Sequence[str | None], second: Sequence[str | None]) -> bool:
    """Whether numbers mean the same bands in two files, as far as their descriptions say.

    Other names than Sentinel-2's are ignored, since they may contain dates and the like.
    """
    known = (
        [name if name in BAND_ORDERS["eurosat"] else None for name in _own_names(descriptions)]
        for descriptions in (first, second)
    )
    return len(first) == len(second) and all(
        one == other or None in (one, other) for one, other in zip(*known, strict=True)
    )


def numbers_in(config: DataConfig, descriptions: Sequence[str | None], count: int) -> list[int]:
    """The numbers, from 1, of `data.bands` in a file.

    Args:
        config: `bands`, and `file_bands` if the files do not name theirs.
        descriptions: the names in the file.
        count: the number of its bands.

    Raises:
        BandError: the file lacks one of the bands, or does not name them.
    """
    assert config.bands is not None
    wanted, own = _names(config), _own_names(descriptions)
    if len(own) == len(wanted) and {*own} == {*wanted}:  # as `qhdm sample` writes them
        return [own.index(name) + 1 for name in wanted]
    names = names_in(config, descriptions, count)
    numbers = []
    for band in config.bands:
        if isinstance(band, int):
            if band > count:
                raise BandError(f"no band {band}, only {count}", "correct data.bands")
            numbers.append(band)
        elif band in names:
            numbers.append(names.index(band) + 1)
        else:
            raise _no_band(band, [band_name(text) for text in descriptions if text], names)
    if len({*numbers}) < len(numbers):
        raise BandError(
            f"data.bands {', '.join(map(str, config.bands))} names a band twice", "remove one"
        )
    return numbers


def _no_band(band: str, own: Sequence[str], names: Sequence[str | None]) -> BandError:
    """Why a band is not in a file whose bands are called `own` in it and taken to be `names`."""
    if own:
        problem = f"several bands are called {band}" if band in own else f"no band {band}"
        return BandError(
            f"{problem}; the file names {', '.join(own)}",
            "correct data.bands or the names, or choose bands by number",
        )
    if any(names):
        return BandError(
            f"no band {band}; the bands are {', '.join(filter(None, names))}", "correct data.bands"
        )
    return BandError(
        f"no band {band}: the {len(names)} bands have no names",
        "name them all in data.file_bands, or choose bands by number in data.bands",
    )


def names_in(
    config: DataConfig, descriptions: Sequence[str | None], count: int
) -> tuple[str | None, ...]:
    """The names of all bands of a file; None where the name is unknown.

    Raises:
        BandError: `data.file_bands` has another length, or contradicts the file.
    """
    own, told = _own_names(descriptions), config.file_bands
    if told is None:
        return BAND_ORDERS["eurosat"] if count == 13 and not any(descriptions) else own
    if len(told) != count:
        raise BandError(f"{count} bands, but data.file_bands names {len(told)}", "correct it")
    if any(name not in (None, other) for name, other in zip(own, told, strict=True)):
        raise BandError(
            f"the file names its bands {', '.join(name or '(none)' for name in own)}, but "
            f"data.file_bands names {', '.join(told)}",
            "leave data.file_bands out",
        )
    return told


def check_order(config: DataConfig, place: str, files: Iterable[Described]) -> None:
    """Check the order that is assumed for 13 unnamed bands, if `data.bands` has names.

    B10 sees only cirrus, since water vapour absorbs the light from below: it is the darkest band by
    far, and the orders of Sentinel-2 and EuroSAT have it in different places.

    Args:
        config: `bands` and `file_bands`.
        place: the data set, for messages.
        files: some of its files.

    Raises:
        DataError: another band is the darkest.
    """
    if not any(isinstance(band, str) for band in config.bands or ()):
        return
    means: list[np.ndarray] = []
    names: tuple[str | None, ...] = ()
    for descriptions, mean in files:
        if _is_assumed(config, descriptions, len(mean)) and np.isfinite(mean).all():
            try:
                names = names_in(config, descriptions, len(mean))
            except ImageError:  # reported when the file is read
                continue
            means.append(mean)
    if not means:
        return
    mean = np.mean(means, axis=0)
    darkest = int(mean.argmin())
    if mean[darkest] < mean[names.index("B10")]:
        raise DataError(
            f"data.file_bands: {place}: 13 bands without names, of which number {darkest + 1} is "
            f"the darkest; that should be B10 (cirrus), but the assumed order has "
            f"{names[darkest]} there; set it to sentinel2 (B8A after B08), eurosat (B8A last) or "
            "the list of all names"
        )


def _is_assumed(config: DataConfig, descriptions: Sequence[str | None], count: int) -> bool:
    """Whether 13 bands are named by one of the known orders, not by the file or the user."""
    if count != 13 or config.file_bands not in (None, *BAND_ORDERS.values()):
        return False
    return not any(descriptions) if config.file_bands is None else None in _own_names(descriptions)


def _names(config: DataConfig) -> tuple[str, ...]:
    """The names of `data.bands`."""
    assert config.bands is not None
    return tuple(
        band if isinstance(band, str)
        else config.file_bands[band - 1] if config.file_bands
        else f"band {band}"
        for band in config.bands
    )  # fmt: skip


def _own_names(descriptions: Sequence[str | None]) -> tuple[str | None, ...]:
    """The names in a file; None for bands without one, and for those that share one."""
    names = [band_name(text) if text else None for text in descriptions]
    return tuple(name if names.count(name) == 1 else None for name in names)


class BandImages:
    """Images (N, H, W, C) as uint16 levels, computed from stored values when they are indexed.

    A read-only array, indexed along its first axis, of a data set that need not fit in memory.
    """

    def __init__(self, values: np.ndarray, rows: np.ndarray, bands: Bands) -> None:
        self._values, self._rows, self._bands = values, rows, bands
        self.dtype = np.dtype(np.uint16)
        self.shape = (len(rows), *values.shape[1:])
        self.ndim = values.ndim

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Any) -> np.ndarray:
        return self._bands.levels(self._values[self._rows[key]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def where(self, chosen: np.ndarray) -> BandImages:
        """The images that `chosen`, (N,) bool, marks."""
        return BandImages(self._values, self._rows[chosen], self._bands)


#: Images (N, H, W, C): an array, or levels of bands that are read when they are indexed.
Images = np.ndarray | BandImages


def evenly(rows: S, most: int) -> S:
    """At most `most` of some rows, evenly spread."""
    return rows[:: -(-len(rows) // most) or 1]


def measured(
    values: np.ndarray, rows: np.ndarray, percentile: tuple[float, float]
) -> tuple[tuple[float, float], ...]:
    """The range of each band between two percentiles of at most 2,000 evenly spread images.

    Args:
        values: (N, H, W, C).
        rows: the indices of the images to use.
        percentile: low and high, from 0 to 100.
    """
    sample = values[evenly(rows, MEASURED)]
    low, high = np.percentile(sample, percentile, axis=(0, 1, 2))
    return tuple(zip(low.tolist(), high.tolist(), strict=True))


def scaled_bands(config: DataConfig, values: np.ndarray, training: np.ndarray, place: str) -> Bands:
    """The bands with their ranges: `data.range`, that of 8 bits, or measured on training images.

    Args:
        config: `bands`, and `range` or `percentile`.
        values: of all images, (N, H, W, C).
        training: the indices of the training images.
        place: the data set, for messages.

    Raises:
        DataError: the range is neither given nor known, a band is constant, or the values do not
            fit the range.
    """
    if not len(training):
        raise DataError(f"{place}: no training image can be read; repair some")
    if config.percentile is not None:
        low, high = config.percentile
        ranges = measured(values, training, config.percentile)
        bands = Bands.of(config, ranges)
        for name, ends in zip(bands.names, ranges, strict=True):
            if not ends[0] < ends[1]:
                raise DataError(
                    f"data.percentile: {place}: {name} is {ends[0]:g} at percentiles {low:g} and "
                    f"{high:g}; leave the band out, widen the percentiles, or give data.range"
                )
    elif config.range is not None:
        bands = Bands.of(config)
    elif values.dtype == np.uint8:
        return Bands.of(config, [(0.0, 255.0)])
    else:
        lows, highs = zip(*measured(values, training, (2, 98)), strict=True)
        raise DataError(
            f"data.range: {place}: bands of type {values.dtype}, with 96% of the values between "
            f"{min(lows):.6g} and {max(highs):.6g}; set it to [low, high], the values that become "
            "black and white, or set data.percentile: [2, 98] to measure it for each band"
        )
    _check_range(bands, values[evenly(training, _CHECKED)], place)
    return bands


def _check_range(bands: Bands, values: np.ndarray, place: str) -> None:
    """Refuse a range that excludes nearly all values (N, H, W, C), or that they hardly fill."""
    outside = ((values < bands.low) | (values > bands.high)).mean(axis=(0, 1, 2))
    for number, name in enumerate(bands.names):
        if outside[number] > MOST_BEYOND:
            raise DataError(
                f"data.range: {place}: {outside[number]:.1%} of the values of {name}, from "
                f"{values[..., number].min():g} to {values[..., number].max():g}, are outside its "
                "range; set it to the values that become black and white"
            )
    ends = np.array([values.min(axis=(0, 1, 2)), values.max(axis=(0, 1, 2))])
    if np.ptp((ends - bands.low) / np.subtract(bands.high, bands.low)) < _FILLED:
        raise DataError(
            f"data.range: {place}: values from {ends.min():.6g} to {ends.max():.6g} fill hardly "
            "any of the range, which seems to have other units; set it to the values that become "
            "black and white, or set data.percentile instead"
        )
