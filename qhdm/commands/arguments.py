"""Options and argument types that several commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from qhdm.errors import ConfigError, ExportError, QhdmError

T = TypeVar("T")
N = TypeVar("N", int, float)


#: Help of the argument RUN.
RUN = "a run directory, or the name of a shipped model: eurosat"
#: What `add_sampler` adds.
SAMPLER = (
    "sampler", "steps", "guidance", "guidance_interval", "guide", "eta", "seed", "weights"
)  # fmt: skip


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """Add the options of `qhdm.config.SamplerOptions`."""
    group = parser.add_argument_group(
        "sampling options", "Defaults are those of the run's sample section."
    )
    group.add_argument("--steps", type=positive, metavar="N", help="network evaluations per image")
    group.add_argument("--sampler", choices=["ddpm", "ddim", "dpm++"], help="the sampler")
    group.add_argument(
        "--guidance", type=non_negative, metavar="S", help="scale of guidance; 1 is off"
    )
    group.add_argument(
        "--guidance-interval",
        type=lambda text: text if text == "none" else non_negative(text),
        nargs="+",
        metavar="SIGMA",
        help="lowest and highest noise level at which guidance is on (two numbers), or none: at "
        "all levels",
    )
    group.add_argument(
        "--guide",
        metavar="WEIGHTS",
        help="guide by the network with these weights (see --weights) instead of without the "
        "label; none: without the label",
    )
    group.add_argument(
        "--eta",
        type=unit,
        metavar="E",
        help="noise of DDIM: 0 is none, 1 that of DDPM (default: 0)",
    )
    group.add_argument("--seed", type=natural, metavar="N", help="seed of the images (default: 0)")
    add_weights(group)


def add_weights(parser: argparse._ActionsContainer) -> None:
    """Add `--weights`."""
    parser.add_argument(
        "--weights",
        metavar="NAME",
        help="ema: averaged; model: the last; ema:0.08: averaged over that length; step:4000: "
        "averaged at an earlier step (default: ema)",
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the options of `qhdm.config.EngineRequest`."""
    group = parser.add_argument_group("engine options")
    group.add_argument(
        "--engine",
        choices=["run", "exact", "aer"],
        help="what evaluates the filters: the run's own engine, or one that takes nothing from the "
        "run (default: run)",
    )
    group.add_argument(
        "--shots",
        type=positive,
        metavar="N",
        help="shots per circuit on aer (default: exact expectation values)",
    )
    group.add_argument(
        "--noise",
        metavar="DEVICE",
        help="noise of a device, as fake_torino, or a calibration file, on aer (default: none)",
    )
    group.add_argument(
        "--method",
        choices=["auto", "statevector", "density_matrix", "matrix_product_state"],
        help="simulation method of aer (default: auto)",
    )


def settings(cls: type[T], given: Mapping[str, Any], refusal: type[QhdmError]) -> T:
    """Build the dataclass `cls` from options; those that are None were not given.

    Raises:
        QhdmError: of type `refusal`, if a value is invalid.
    """
    from qhdm.schema import Document, validate

    known = {name: value for name, value in given.items() if value is not None}
    try:
        return validate(cls, Document("", known))
    except ConfigError as error:
        raise refusal(str(error).removeprefix(": ")) from None


def add_range(parser: argparse._ActionsContainer, description: str = "") -> None:
    """Add `--range`, the option `data.range`."""
    parser.add_argument(
        "--range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help=f"values that become black and white, of images of more than 8 bits{description}",
    )


def add_set(
    parser: argparse._ActionsContainer,
    description: str = "change a setting",
    *,
    metavar: str = "KEY=VALUE",
) -> None:
    """Add `--set`, which may be given several times."""
    parser.add_argument("--set", action="append", default=[], metavar=metavar, help=description)


def add_device(parser: argparse.ArgumentParser, default: str | None = "auto") -> None:
    """Add `--device` for torch."""
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default=default, help="auto prefers CUDA"
    )


def add_force(parser: argparse.ArgumentParser) -> None:
    """Add `--force`."""
    parser.add_argument("--force", action="store_true", help="overwrite the file")


def check_new(option: str, path: Path, *, force: bool) -> None:
    """Raise `ExportError` if `option` would overwrite something without `force`."""
    if path.is_dir():
        raise ExportError(f"{option}: {path}: is a folder; name a file")
    if path.exists() and not force:
        raise ExportError(
            f"{option}: {path}: exists already; name another file, or give --force to overwrite it"
        )


def bounded(
    convert: Callable[[str], N], name: str, fits: Callable[[N], bool], bounds: str
) -> Callable[[str], N]:
    """An argparse type for numbers within `bounds`."""

    def parse(text: str) -> N:
        try:
            value = convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {name}") from None
        if not fits(value):
            raise argparse.ArgumentTypeError(f"{text} is not a number {bounds}")
        return value

    return parse


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type for integers from `least` to `most`."""
    bounds = f"from {least} up" if most is None else f"from {least} to {most}"
    return bounded(
        int, "whole number", lambda n: least <= n and (most is None or n <= most), bounds
    )


natural, positive = integer(0), integer(1)
images, several = integer(1, 1_000_000), integer(2, 1_000_000)
pixels = integer(2, 4096)
non_negative = bounded(float, "number", lambda x: 0 <= x < math.inf, "from 0 up")
above_zero = bounded(float, "number", lambda x: 0 < x < math.inf, "above 0")
fraction = bounded(float, "number", lambda x: 0 <= x < 1, "from 0 to below 1")
unit = bounded(float, "number", lambda x: 0 <= x <= 1, "from 0 to 1")
