"""Types of configuration values."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from qhdm.quantum.ansatz import ANSATZE
from qhdm.shipped import shipped_files

#: No unknown keys, no infinite or NaN values.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def is_circuit_file(ansatz: str) -> bool:
    """Whether an ansatz is a circuit file rather than a built-in family."""
    return ansatz.endswith((".qasm", ".qpy"))


def _ansatz(name: str) -> str:
    """`name`, or the path of the shipped circuit of that name."""
    if name in ANSATZE or is_circuit_file(name):
        return name
    shipped = shipped_files("circuits")
    if name in shipped:
        return str(shipped[name])
    expected = ", ".join(map(repr, dict.fromkeys([*ANSATZE, *shipped])))
    raise PydanticCustomError("literal_error", "unknown", {"expected": expected})


def _class_name(name: str) -> str:
    # Classes name folders of samples: they must not lead out of the parent folder.
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise PydanticCustomError("class_name", "must be the plain name of a folder")
    return name


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Check that no value is repeated."""
    if len(set(values)) != len(values):
        raise PydanticCustomError("distinct", "must not repeat a value")
    return values


def ascending(limits: tuple[float, float]) -> tuple[float, float]:
    """Check that limits are [low, high]."""
    if not limits[0] < limits[1]:
        raise PydanticCustomError("range", "must be [low, high], low being less than high")
    return limits


#: The bands of Sentinel-2 by wavelength, as its products list them, and as EuroSAT's files do.
BAND_ORDERS = {
    "sentinel2": (
        "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"
    ),
    "eurosat": (
        "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A"
    ),
}  # fmt: skip


#: `B4`, `b04`, `B8A, 865 nm`, `B4, central wavelength 665 nm`; not `B8-B4`.
_BAND = re.compile(
    r"B0?(\d{1,2}|8A)(?:[ ,(]+(?:central wavelength )?[\d.]+ ?[nuµ]m\)?)?", re.IGNORECASE
)


def band_name(name: str) -> str:
    """`name`, or what Sentinel-2's products call that band: `B04` for `b4`, `B4, 665 nm`."""
    known = _BAND.fullmatch(name)
    return f"B{known[1].upper():0>2}" if known else name


class _Counts(dict[str, int]):
    """Numbers by class; hashable, as configurations are."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def _file_bands(names: Any) -> Any:
    if isinstance(names, str) and names not in BAND_ORDERS:
        expected = f"{', '.join(map(repr, BAND_ORDERS))} or a list of names"
        raise PydanticCustomError("literal_error", "unknown", {"expected": expected})
    if isinstance(names, str):
        return BAND_ORDERS[names]
    return tuple(names) if isinstance(names, list) else names  # JSON has no tuples


Positive = Annotated[int, Field(ge=1)]
ClassName = Annotated[str, AfterValidator(_class_name)]
AboveZero = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Range = Annotated[tuple[float, float], AfterValidator(ascending)]
BandName = Annotated[str, Field(pattern=r"\S"), AfterValidator(band_name)]
#: Bands by name or by number in the file, from 1.
Bands = Annotated[
    tuple[Positive | BandName, ...], Field(min_length=1, max_length=64), AfterValidator(distinct)
]
FileBands = Annotated[tuple[BandName, ...], BeforeValidator(_file_bands), AfterValidator(distinct)]
Counts = Annotated[dict[ClassName, Positive], Field(min_length=1), AfterValidator(_Counts)]
Percentile = Annotated[
    tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]],
    AfterValidator(ascending),
]
Levels = Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(distinct)]
Classes = Annotated[tuple[ClassName, ...], Field(min_length=1), AfterValidator(distinct)]
#: The path of a file or folder.
FilePath = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]
#: A built-in family, or the path of a circuit file (or the name of a shipped one).
Ansatz = Annotated[FilePath, AfterValidator(_ansatz)]
#: Where a network has quantum filters.
Kind = Literal["unet", "qvunet", "fullqvunet", "qcunet"]
