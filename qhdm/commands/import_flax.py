"""`qhdm import-flax`: convert weights of the published code to a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from qhdm.commands.arguments import above_zero, add_set

#: Relative; float32 arithmetic of another order stays a hundred times below it.
TOLERANCE = 2e-4


def add(commands: argparse._SubParsersAction) -> None:
    """Make the parser of `import-flax`."""
    parser = commands.add_parser(
        "import-flax", help="convert a checkpoint of the published JAX code to a run"
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="its checkpoint_<step> file (MessagePack), or an npz with param:<path> arrays",
    )
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        metavar="CONFIG",
        help="configuration of that network, for example released/qcunet_fqconv",
    )
    add_set(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="RUN", help="the run directory to create"
    )
    parser.add_argument(
        "--tolerance",
        type=above_zero,
        default=TOLERANCE,
        metavar="E",
        help="largest relative error, if the file contains x, t, label and output "
        "(default: %(default)g)",
    )
    parser.set_defaults(command=_import_flax)


def _import_flax(arguments: argparse.Namespace) -> None:
    from qhdm.config import load_config

    config = load_config(arguments.config, arguments.set)

    # Only now the heavy imports: bad input is refused at once.
    from qhdm.reproduction.convert import import_checkpoint

    done = import_checkpoint(
        arguments.checkpoint, config, arguments.out, tolerance=arguments.tolerance
    )
    weights = "weights and moving averages" if done.averaged else "weights"
    print(f"{done.parameters:,} parameters: {weights} of step {done.step:,}")
    if done.error is None:
        print("not checked: the file holds no x, t, label and output")
    else:
        print(
            f"checked: relative error {done.error:.2g} against the published output "
            f"(tolerance {arguments.tolerance:g})"
        )
    print(f"run directory: {done.path}")
    print(f"samples: qhdm sample {done.path}")
