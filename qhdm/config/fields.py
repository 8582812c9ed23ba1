"""Types of configuration values."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field
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


Positive = Annotated[int, Field(ge=1)]
AboveZero = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Range = Annotated[tuple[float, float], AfterValidator(ascending)]
Levels = Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(distinct)]
ClassName = Annotated[str, AfterValidator(_class_name)]
Classes = Annotated[tuple[ClassName, ...], Field(min_length=1), AfterValidator(distinct)]
#: The path of a file or folder.
FilePath = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]
#: A built-in family, or the path of a circuit file (or the name of a shipped one).
Ansatz = Annotated[FilePath, AfterValidator(_ansatz)]
#: Where a network has quantum filters.
Kind = Literal["unet", "qvunet", "fullqvunet", "qcunet"]
