"""Arguments that verbs share: types, each of which refuses what is out of bounds, and options."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from qhdm.errors import ConfigError, ExportError, QhdmError

T = TypeVar("T")


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """How a trained model is sampled (`qhdm.config.SamplerOptions`)."""
    parser.add_argument("--steps", type=positive, metavar="N", help="network evaluations")
    parser.add_argument("--sampler", choices=["ddpm", "ddim", "dpm++"])
    parser.add_argument(
        "--guidance", type=non_negative, metavar="S", help="classifier-free guidance, 1 is off"
    )
    parser.add_argument(
        "--eta", type=unit, metavar="E", help="noise of DDIM: 0 none (default), 1 as DDPM"
    )
    parser.add_argument("--seed", type=natural, metavar="N", help="of the images (0)")
    parser.add_argument(
        "--weights", choices=["ema", "model"], help="averaged (default) or last weights"
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """The engine that evaluates the filters of a trained model (`qhdm.config.EngineRequest`)."""
    parser.add_argument(
        "--engine",
        choices=["run", "exact", "aer"],
        help="evaluates the filters: as the run has it (default), or a complete engine, which "
        "takes nothing from the run",
    )
    parser.add_argument(
        "--shots", type=shots, metavar="N", help="samples per circuit on aer (none: exact values)"
    )
    parser.add_argument(
        "--noise",
        metavar="DEVICE",
        help="of a device (fake_torino) or a calibration file, on aer (none)",
    )
    parser.add_argument(
        "--method",
        choices=["auto", "statevector", "density_matrix", "matrix_product_state"],
        help="of simulation on aer (auto)",
    )


def settings(cls: type[T], given: Mapping[str, Any], refusal: type[QhdmError]) -> T:
    """The dataclass `cls` of what the command line gives; None is not given.

    Raises:
        QhdmError: `refusal`, where it cannot be.
    """
    from qhdm.schema import Document, validate

    known = {name: value for name, value in given.items() if value is not None}
    try:
        return validate(cls, Document("", known, {}))
    except ConfigError as error:
        raise refusal(str(error).removeprefix(": ")) from None


def add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="overwrite the file")


class _Range(argparse.Action):
    """Takes two numbers, the first of which is less."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        low, high = values
        if not -math.inf < low < high < math.inf:
            raise argparse.ArgumentError(self, f"{low:g} {high:g}: give the lower number first")
        setattr(namespace, self.dest, (low, high))


def add_range(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Let the command line give `data.range`."""
    parser.add_argument(
        "--range",
        type=float,
        nargs=2,
        action=_Range,
        metavar=("LOW", "HIGH"),
        help=f"values that become black and white, of images of more than 8 bits{more}",
    )


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


def number(text: str, *, below: float = float("inf"), most: float = float("inf")) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value < below or value > most:
        bounds = "from 0 up"
        if below < float("inf"):
            bounds = f"from 0 to below {below:g}"
        elif most < float("inf"):
            bounds = f"from 0 to {most:g}"
        raise argparse.ArgumentTypeError(f"{text} is not a number {bounds}")
    return value


def non_negative(text: str) -> float:
    return number(text)


def unit(text: str) -> float:
    return number(text, most=1)


def fraction(text: str) -> float:
    return number(text, below=1)
