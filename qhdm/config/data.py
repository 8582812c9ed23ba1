"""The section `data`: which images, how they are prepared, and how they are split."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from qhdm.config.fields import (
    STRICT,
    AboveZero,
    Bands,
    BelowOne,
    Classes,
    Counts,
    FileBands,
    FilePath,
    Percentile,
    Positive,
    Range,
)
from qhdm.errors import ConfigError
from qhdm.schema import one_line_errors


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Which images, and how they are prepared.

    Attributes:
        root: `bundled`, `eurosat` (as `qhdm data download eurosat` leaves it), or the path of a
            folder or zip of class folders.
        image_size: images are cropped to the centre square and resized to this side.
        bands: read these bands of GeoTIFF or JPEG 2000 files (extra `geo`), by name (`B04`) or by
            number in the file, from 1; null reads pictures, grey or RGB.
        file_bands: the names of all bands in each file: a list, `eurosat` (B8A last) or `sentinel2`
            (B8A after B08). Null takes the names in the files, or EuroSAT's for 13 unnamed bands.
        channels: 3 (RGB) or 1 (grey) for pictures; the number of `bands` otherwise. A model may be
            built with any number.
        range: the values that become black and white, [low, high], of images of more than 8 bits
            or of signed or floating-point values; values beyond are clipped. Null takes all that
            16 bits hold, if the images fill it. Images of 8 bits are taken as they are. For bands,
            one range for all or a list with one for each.
        percentile: instead of `range`, measure that of each band on the training images, between
            these percentiles. A run keeps the result as its `range`.
        classes: the class folders to use, in this order; null takes all, sorted by name.
        test_fraction: part of each class kept out of training, chosen by file name; ignored with
            `split`, and if the data set has folders `train` and `test`.
        split: a file that lists the images to train on and to hold out (docs/data.md); images that
            it does not list are left out.
        blocks: hold out whole squares of this side in metres, by the coordinates of the files.
        per_class: train on at most this many images of each class, or of the classes named; a
            smaller number takes a subset of those of a larger one.
        balance: show images of all classes equally often in training, however many there are.
        augment: apply one of the eight symmetries of the square to each training image, drawn anew
            each time (overhead imagery has no up).
        skip_broken: skip and count unreadable images instead of raising an error.

    Example:
        >>> qhdm.DataConfig(root="bundled", image_size=32).channels
        3
        >>> qhdm.DataConfig(root="eurosat_ms.zip", bands=("B04", "B08"), range=(0, 3000)).channels
        2
    """

    root: FilePath = "eurosat"
    image_size: Annotated[int, Field(ge=2, le=4096)] = 64
    bands: Bands | None = None
    file_bands: FileBands | None = None
    # The default is filled in by `_of_bands`.
    channels: Annotated[int, Field(ge=1, le=64)] = Field(default=None, validate_default=True)
    range: Range | tuple[Range, ...] | None = None
    percentile: Percentile | None = None
    classes: Classes | None = None
    test_fraction: BelowOne = 0.1
    split: FilePath | None = None
    blocks: AboveZero | None = None
    per_class: Positive | Counts | None = None
    balance: bool = False
    augment: bool = True
    skip_broken: bool = False

    @field_validator("channels", mode="before")
    @classmethod
    def _of_bands(cls, channels: Any, others: ValidationInfo) -> Any:
        bands = others.data.get("bands")
        count = 3 if bands is None else len(bands)
        if bands is not None and channels not in (None, count):
            raise ValueError(f"{channels}, but data.bands names {count}; leave channels out")
        return count if channels is None else channels

    @field_validator("file_bands", "range", "percentile", "blocks")
    @classmethod
    def _needs_bands(cls, value: Any, others: ValidationInfo) -> Any:
        """Refuse what only bands have, and ranges of another number of bands."""
        if "bands" not in others.data or value is None:
            return value
        bands = others.data["bands"]
        several = others.field_name == "range" and isinstance(value[0], tuple)
        if bands is None and (others.field_name != "range" or several):
            raise ValueError("only with data.bands")
        if several and len(value) != len(bands):
            raise ValueError(f"{len(value)} ranges for {len(bands)} data.bands; give one for each")
        if others.field_name == "percentile" and others.data.get("range") is not None:
            raise ValueError("not together with data.range; leave one of them out")
        if others.field_name == "blocks" and others.data.get("split") is not None:
            raise ValueError("not together with data.split; leave one of them out")
        return value

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image, (C, H, W)."""
        return self.channels, self.image_size, self.image_size

    @property
    def dtype(self) -> str:
        """Of images as arrays: `uint8`, or `uint16` of bands."""
        return "uint8" if self.bands is None else "uint16"

    @property
    def num_classes(self) -> int:
        """How many classes labels count: those named, or the ten of EuroSAT.

        Raises:
            ConfigError: the classes of a folder are not named; `qhdm.data.resolved` finds them.
        """
        if self.classes is not None:
            return len(self.classes)
        if self.root in ("bundled", "eurosat"):
            return 10
        raise ConfigError(
            f"data.classes: null, and {self.root} is not opened to count them; name them, or use "
            "qhdm.data.resolved(config)"
        )
