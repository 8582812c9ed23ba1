"""Arguments that verbs share: types, each of which refuses what is out of bounds, and --force."""

from __future__ import annotations

import argparse
from pathlib import Path

from qhdm.errors import ExportError


def add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="overwrite the file")


def check_new(option: str, path: Path, *, force: bool) -> None:
    """Raise `ExportError` where `option` would overwrite something unasked."""
    if path.is_dir():
        raise ExportError(f"{option}: {path}: is a folder; name a file")
    if path.exists() and not force:
        raise ExportError(
            f"{option}: {path}: exists already; name another file, or give --force to overwrite it"
        )


def whole(text: str, *, least: int, most: int | None = None) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < least or (most is not None and value > most):
        bounds = f"from {least} up" if most is None else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"{text} is not a number {bounds}")
    return value


def positive(text: str) -> int:
    return whole(text, least=1)


def shots(text: str) -> int:
    return whole(text, least=1, most=1_000_000)


def images(text: str) -> int:
    return whole(text, least=1, most=1_000_000)


def natural(text: str) -> int:
    return whole(text, least=0)


def pixels(text: str) -> int:
    return whole(text, least=2, most=4096)


def number(text: str, *, below: float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value < below:
        bounds = "from 0 up" if below == float("inf") else f"from 0 to below {below:g}"
        raise argparse.ArgumentTypeError(f"{text} is not a number {bounds}")
    return value


def non_negative(text: str) -> float:
    return number(text, below=float("inf"))


def fraction(text: str) -> float:
    return number(text, below=1)
