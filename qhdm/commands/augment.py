"""`qhdm augment`: generated images that help a classifier of few real ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from qhdm.commands.arguments import RUN, SAMPLER, add_device, add_sampler, positive, settings
from qhdm.errors import EvaluationError


def add(commands: argparse._SubParsersAction) -> None:
    """Add the `augment` subcommand."""
    augment = commands.add_parser(
        "augment", help="choose generated images that help a classifier of few real ones"
    )
    augment.add_argument(
        "data",
        metavar="DATA",
        help="the real images: a folder or zip of class folders, bundled or eurosat",
    )
    augment.add_argument("--run", required=True, type=Path, metavar="RUN", help=RUN)
    augment.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="the folder to create"
    )
    augment.add_argument(
        "--num",
        type=positive,
        metavar="N",
        help="images of each class to choose from (default: 100)",
    )
    add_sampler(augment)
    add_device(augment, default=None)
    augment.set_defaults(command=_augment)


def _augment(arguments: argparse.Namespace) -> None:
    from qhdm.augmentation.records import AugmentSettings, describe

    given = {name: getattr(arguments, name) for name in (*SAMPLER, "num", "device")}
    request = settings(AugmentSettings, given, EvaluationError)
    # Only now the heavy imports: bad input is refused at once.
    from qhdm.augmentation import augment

    out = arguments.out
    print(describe(augment(arguments.data, arguments.run, out, request, progress=True)))
    print(f"{out}: the chosen images, augment.json and augment.png")
