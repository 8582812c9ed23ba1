"""Bands of images: their names, and what their values are as numbers of 16 bits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar, cast

import numpy as np

from qhdm.config import DataConfig
from qhdm.config.fields import BAND_ORDERS, band_name
from qhdm.data.raster import ImageError
from qhdm.data.values import MOST_BEYOND
from qhdm.errors import DataError

S = TypeVar("S", np.ndarray, Sequence[Any])

#: Levels are numbers from 0 to this.
LEVELS = 65_535
#: Most images by which percentiles are measured, and by which a range is checked.
MEASURED, _CHECKED = 2000, 64
#: Colour composites, red first, as Sentinel-2's bands.
_TRUE, _FALSE = ("B04", "B03", "B02"), ("B08", "B04", "B03")


class BandError(ImageError):
    """Which bands a file lacks: a fault of the configuration rather than of the file."""


@dataclass(frozen=True)
class Bands:
    """The bands of images, and the range of values that each band's levels stand for.

    Attributes:
        names: `B04` or, of bands chosen by number in files without names, `band 4`.
        low, high: the values of level 0 and level 65,535, one for each band.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, config: DataConfig, ranges: Sequence[tuple[float, float]] | None = None) -> Bands:
        """The bands of a configuration that has some, with its ranges or others."""
        assert config.bands is not None
        if ranges is None:
            assert config.range is not None  # `qhdm.data.resolved` measures it
            one = [config.range] * len(config.bands)
            ranges = (
                config.range if _is_list(config.range) else cast(list[tuple[float, float]], one)
            )
        low, high = zip(*ranges, strict=True)
        return cls(_names(config), low, high)

    @property
    def range(self) -> tuple[tuple[float, float], ...]:
        """`data.range` with a range for each band."""
        return tuple(zip(self.low, self.high, strict=True))

    def levels(self, values: np.ndarray) -> np.ndarray:
        """Values (..., C) as uint16 levels; those outside the range are clipped."""
        low, high = np.array(self.low), np.array(self.high)
        return np.rint(LEVELS * np.clip((values - low) / (high - low), 0, 1)).astype(np.uint16)

    def values(self, levels: np.ndarray) -> np.ndarray:
        """Levels (..., C), uint16 or uint8, as float64 values in the units of the files."""
        low, high = np.array(self.low), np.array(self.high)
        return low + levels * ((high - low) / np.iinfo(levels.dtype).max)

    def number(self, name: str) -> int | None:
        """The index of a band, if it is among them."""
        return self.names.index(name) if name in self.names else None

    @property
    def composites(self) -> dict[str, tuple[int, ...]]:
        """Ways to see the bands, and the indices of those shown as red, green and blue.

        True and false colour, as far as the bands are there; otherwise the first three, or one.
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
        """The composites and how they show values, in words."""
        shown = sorted({i for indices in self.composites.values() for i in indices})
        ranges = {i: f"{self.low[i]:.4g} to {self.high[i]:.4g}" for i in shown}
        each = ", ".join(f"{self.names[i]} {text}" for i, text in ranges.items())
        values = ranges[shown[0]] if len({*ranges.values()}) == 1 else each
        return f"{', '.join(self.composites)}; black to white, linear: {values}"

    def composite(self, levels: np.ndarray, view: int = 0) -> np.ndarray:
        """One of the composites of levels (..., C), as uint8 (..., 3 or 1)."""
        chosen = levels[..., list(self.composites.values())[view]]
        return np.rint(255 / np.iinfo(chosen.dtype).max * chosen).astype(np.uint8)


def bands_of(config: DataConfig) -> Bands | None:
    """The bands of a configuration; None for pictures."""
    return Bands.of(config) if config.bands else None


def numbers_in(config: DataConfig, descriptions: Sequence[str | None], count: int) -> list[int]:
    """The numbers, from 1, of `data.bands` in a file.

    Args:
        config: the bands, and the names of those in files, if it has them.
        descriptions: the names in the file.
        count: of its bands.

    Raises:
        ImageError: the file has not such bands, or no names.
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
                raise BandError(f"{count} bands, no number {band}", "correct data.bands")
            numbers.append(band)
        elif band in names:
            numbers.append(names.index(band) + 1)
        elif known := [band_name(text) for text in descriptions if text]:
            several = f"{band} is the name of several" if band in known else f"no {band}"
            raise BandError(
                f"{count} bands, named {', '.join(known)}: {several}",
                "correct the names, or give numbers in data.bands",
            )
        elif any(names):
            shown = ", ".join(filter(None, names))
            raise BandError(f"bands {shown}, no {band}", "correct data.bands")
        else:
            raise BandError(
                f"{count} bands without names, of which none can be called {band}",
                "name them all in data.file_bands, or give their numbers in data.bands",
            )
    if len({*numbers}) < len(numbers):
        raise BandError(
            f"data.bands {', '.join(map(str, config.bands))}: two are the same band",
            "leave one of them out",
        )
    return numbers


def names_in(
    config: DataConfig, descriptions: Sequence[str | None], count: int
) -> tuple[str | None, ...]:
    """The names of all bands of a file; None of those that are unknown.

    Raises:
        ImageError: `data.file_bands` names another number of bands, or contradicts the file.
    """
    own, told = _own_names(descriptions), config.file_bands
    if told is None:
        return BAND_ORDERS["eurosat"] if count == 13 and not any(descriptions) else own
    if len(told) != count:
        raise BandError(f"{count} bands; data.file_bands names {len(told)}", "correct it")
    if any(name not in (None, other) for name, other in zip(own, told, strict=True)):
        raise BandError(
            f"the file calls its bands {', '.join(name or 'nothing' for name in own)}; "
            f"data.file_bands: {', '.join(told)}",
            "leave data.file_bands out",
        )
    return told


def check_order(
    config: DataConfig, place: str, images: Iterable[tuple[Sequence[str | None], np.ndarray]]
) -> None:
    """Check the order that is assumed of 13 bands without names, if `data.bands` names some.

    B10 sees cirrus alone, as the atmosphere absorbs the rest: it is the darkest by far, and lies in
    another place in either order.

    Args:
        config: the bands.
        place: of the set, for messages.
        images: the names in each file, and the mean of each of its bands, (C,).

    Raises:
        DataError: another band is the darkest.
    """
    if not any(isinstance(band, str) for band in config.bands or ()):
        return
    means: list[np.ndarray] = []
    names: tuple[str | None, ...] = ()
    for descriptions, mean in images:
        if _is_assumed(config, descriptions, len(mean)) and np.isfinite(mean).all():
            try:
                names = names_in(config, descriptions, len(mean))
            except ImageError:  # is reported where it is read
                continue
            means.append(mean)
    if not means:
        return
    mean = np.mean(means, axis=0)
    darkest = int(mean.argmin())
    if mean[darkest] < mean[names.index("B10")]:
        raise DataError(
            f"data.file_bands: {place}: 13 bands without names, of which number {darkest + 1}"
            f" is the darkest; as they are taken to be, that is {names[darkest]}, but it would be "
            "B10 (cirrus); set it to sentinel2 (B8A after B08), eurosat (B8A last), or the list of "
            "their names"
        )


def _is_assumed(config: DataConfig, descriptions: Sequence[str | None], count: int) -> bool:
    """Whether the names of 13 bands come from an order of Sentinel-2's, not from file or user."""
    if count != 13 or config.file_bands not in (None, *BAND_ORDERS.values()):
        return False
    return not any(descriptions) if config.file_bands is None else None in _own_names(descriptions)


def _names(config: DataConfig) -> tuple[str, ...]:
    """What the bands of a configuration are called."""
    assert config.bands is not None
    return tuple(
        band if isinstance(band, str)
        else config.file_bands[band - 1] if config.file_bands
        else f"band {band}"
        for band in config.bands
    )  # fmt: skip


def _own_names(descriptions: Sequence[str | None]) -> tuple[str | None, ...]:
    """The names in a file; None of bands without, and of those that share one."""
    names = [band_name(text) if text else None for text in descriptions]
    return tuple(name if names.count(name) == 1 else None for name in names)


def _is_list(
    value: tuple[float, float] | tuple[tuple[float, float], ...],
) -> TypeGuard[tuple[tuple[float, float], ...]]:
    return isinstance(value[0], tuple)


class BandImages:
    """Images (N, H, W, C) as uint16 levels, computed from stored values when they are indexed.

    It stands for an array of which the rows are indexed, so that a set need not fit in memory.
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


def evenly(rows: S, most: int) -> S:
    """At most so many of some rows, evenly spread."""
    return rows[:: -(-len(rows) // most) or 1]


def measured(
    values: np.ndarray, rows: np.ndarray, percentile: tuple[float, float]
) -> tuple[tuple[float, float], ...]:
    """The range of each band between two percentiles, on at most 2,000 evenly spread images.

    Args:
        values: (N, H, W, C).
        rows: which of them.
        percentile: low and high, of 100.
    """
    sample = values[evenly(rows, MEASURED)]
    low, high = np.percentile(sample, percentile, axis=(0, 1, 2))
    return tuple(zip(low.tolist(), high.tolist(), strict=True))


def scaled_bands(config: DataConfig, values: np.ndarray, training: np.ndarray, place: str) -> Bands:
    """The bands with their ranges: as given, as 8 bits have it, or measured on training images.

    Args:
        config: `bands`, and `range` or `percentile`.
        values: of a set, (N, H, W, C).
        training: which of its images are for training, by index.
        place: of the set, for messages.

    Raises:
        DataError: the range is neither given nor known, or a band is constant or outside it.
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
                    f"data.percentile: {place}: {name} is {ends[0]:g} from percentile {low:g} to "
                    f"{high:g}; leave the band out, widen the percentiles, or give data.range"
                )
        return bands
    if config.range is None and values.dtype == np.uint8:
        return Bands.of(config, [(0.0, 255.0)] * values.shape[3])
    if config.range is None:
        lows, highs = zip(*measured(values, training, (2, 98)), strict=True)
        raise DataError(
            f"data.range: {place}: bands of type {values.dtype}, of which 96% of the values are "
            f"from {min(lows):.6g} to {max(highs):.6g}; set it to [low, high], the values that "
            "become black and white, or set data.percentile: [2, 98] to measure it for each band"
        )
    bands = Bands.of(config)
    sample = values[evenly(training, _CHECKED)]
    outside = ((sample < bands.low) | (sample > bands.high)).mean(axis=(0, 1, 2))
    for number, name in enumerate(bands.names):
        if outside[number] > MOST_BEYOND:
            raise DataError(
                f"data.range: {place}: {outside[number]:.1%} of the values of {name}, from "
                f"{sample[..., number].min():g} to {sample[..., number].max():g}, are outside its "
                "range; set it to the values that become black and white"
            )
    return bands
