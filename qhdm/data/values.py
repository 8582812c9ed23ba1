"""The values of a set of images, and whether it needs `data.range`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qhdm.data.raster import Raster
from qhdm.errors import DataError

#: A set fills its type's range if more than so many of the 256 grey levels ...
_FEW_LEVELS = 32
#: ... are needed for so large a part of its values. EuroSAT, as published, takes 83 (its class
#: Forest alone 37); its reflectances in 16 bits would take 4. A part, so that clouds, gaps filled
#: with the largest number and single bright images make no difference.
_PART = 0.75


#: More values beyond `data.range` than this are those of another scale.
MOST_BEYOND = 0.9


@dataclass(frozen=True)
class Values:
    """The values of one type, of an image or of several.

    Attributes:
        type_name: as `Raster` calls it.
        low, high: the smallest and the largest.
        bounded: whether the type says which values are black and white.
        levels: (256,) how many values fall on each grey level if all that the type holds is shown;
            None for 8 bits, where it does not matter, and where the type has no such range.
        beyond: the share of values that `data.range` clips.
        count: of the values.
    """

    type_name: str
    low: float
    high: float
    bounded: bool
    levels: np.ndarray | None
    beyond: float
    count: int

    def __add__(self, other: Values) -> Values:
        """The union of two of the same type."""
        levels = None
        if self.levels is not None and other.levels is not None:
            levels = self.levels + other.levels
        count = self.count + other.count
        beyond = (self.count * self.beyond + other.count * other.beyond) / count
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Values(self.type_name, low, high, self.bounded, levels, beyond, count)

    @property
    def remedy(self) -> str:
        """The remedy: how to set which values are black and white."""
        low, high = f"{self.low:.9g}", f"{self.high:.9g}"
        known = f"[{low}, {high}] for all that the set holds"
        if self.bounded:
            known = "[0, 65535] for all that 16 bits hold"
        if self.high > 255:
            known = f"[0, 2750] for Sentinel-2 reflectance, {known}"
            low, high = "0", "2750"
        return (
            f"set it to [low, high], the values that become black and white: {known} "
            f"(--set data.range=[{low},{high}], or, without a configuration, --range {low} {high})"
        )

    def __str__(self) -> str:
        return f"{self.type_name} from {self.low:.9g} to {self.high:.9g}"


def values_of(image: Raster, value_range: tuple[float, float] | None) -> Values:
    """The values of an image, of which `data.range` shows `value_range`."""
    values, levels, beyond = image.values, None, 0.0
    if image.is_scaled and value_range is not None:
        low, high = value_range
        beyond = np.count_nonzero((values < low) | (values > high)) / values.size
    elif image.is_scaled and image.bounded:
        levels = np.bincount(image.levels(None).ravel(), minlength=256)
    low, high = values.min().item(), values.max().item()
    return Values(image.type_name, low, high, image.bounded, levels, beyond, values.size)


class SetValues:
    """The values of a set of images, by type."""

    def __init__(self) -> None:
        self._types: dict[str, Values] = {}

    def add(self, values: Values) -> None:
        """Count those of one more image."""
        known = self._types.get(values.type_name)
        self._types[values.type_name] = known + values if known else values

    def __str__(self) -> str:
        shown = []
        for _, values in sorted(self._types.items()):
            clipped = f" ({values.beyond:.1%} clipped)" if values.beyond else ""
            shown.append(f"{values}{clipped}")
        return ", ".join(shown)

    def check(self, value_range: tuple[float, float] | None, place: str) -> None:
        """Refuse a set that cannot be shown in 8 bits as it is asked for.

        Args:
            value_range: `data.range`.
            place: of the set, for messages.

        Raises:
            DataError: `value_range` is None, and a type has no range of its own or is filled to a
                small part; or hardly any value is in `value_range`.
        """
        for _, values in sorted(self._types.items()):
            where = f"data.range: {place}: {values}"
            if values.beyond > MOST_BEYOND:
                raise DataError(
                    f"{where}: {values.beyond:.1%} of the values are outside the range; set it to "
                    "the values that become black and white"
                )
            if value_range is None and not values.bounded:
                raise DataError(
                    f"{where}: a type without black and white of its own; {values.remedy}"
                )
            if values.levels is None:
                continue
            largest_first = np.sort(values.levels)[::-1]
            part = _PART * largest_first.sum()
            needed = int(np.searchsorted(np.cumsum(largest_first), part)) + 1
            if needed < _FEW_LEVELS:
                raise DataError(
                    f"{where}: a small part of what the type holds, so that {_PART:.0%} of the "
                    f"values would be {needed} of 256 grey levels; {values.remedy}"
                )
