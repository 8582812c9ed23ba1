"""`qhdm train`: train a model, in one process or, under torchrun, in several."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qhdm.commands.arguments import add_set
from qhdm.distributed import World
from qhdm.errors import ConfigError
from qhdm.shipped import run_path

if TYPE_CHECKING:
    from qhdm.config import Config


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parser of `train`."""
    parser = commands.add_parser("train", help="train a model from a configuration file")
    parser.add_argument(
        "config",
        nargs="?",
        type=Path,
        metavar="CONFIG",
        help="a YAML file, or the name of a shipped one, as quickstart",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="RUN",
        help="the run directory to create (default: runs/<name>-<time>)",
    )
    add_set(parser)
    parser.add_argument(
        "--resume", type=Path, metavar="RUN", help="continue a run, instead of CONFIG"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration, parameters, circuits per step and estimated time",
    )
    parser.set_defaults(command=_train, processes=True)


def _train(arguments: argparse.Namespace) -> None:
    world = World.from_environment()
    with world.joined():
        with world.agreed():
            config = _config(arguments)
        if arguments.dry_run:
            with world.agreed():
                _describe(arguments, config, world)
        else:
            _run(arguments, config, world)


def _config(arguments: argparse.Namespace) -> Config:
    """The configuration to train, resolved. Bad input is refused before torch is imported."""
    from qhdm import data
    from qhdm.config import load_config
    from qhdm.runs.config import load_run_config

    if (arguments.config is None) == (arguments.resume is None):
        raise ConfigError("train: give either a configuration file or --resume RUN")
    if arguments.resume is None:
        return data.resolved(load_config(arguments.config, arguments.set))
    if arguments.out is not None:
        raise ConfigError("--out: a resumed run stays in its directory")
    config = load_run_config(run_path(arguments.resume), arguments.set)
    known = data.resolved(config)
    # Runs of earlier versions have no names for bands by number.
    return replace(known, data=replace(known.data, bands=config.data.bands))


def _describe(arguments: argparse.Namespace, config: Config, world: World) -> None:
    from qhdm.config import to_yaml
    from qhdm.runs.directory import RunDirectory
    from qhdm.training import estimate
    from qhdm.training.loop import resumed
    from qhdm.training.train import check_trainable

    if arguments.resume is not None:
        resumed(RunDirectory.open(arguments.resume), config)
    device = check_trainable(config, world)
    if world.first:
        counts = estimate.describe_counts(config)
        print(to_yaml(config))
        print(counts, flush=True)
        print(estimate.describe_time(config, device))


def _run(arguments: argparse.Namespace, config: Config, world: World) -> None:
    from qhdm.runs.directory import RunDirectory
    from qhdm.training.callbacks import Summary
    from qhdm.training.loop import resumed
    from qhdm.training.train import default_callbacks, resume, train

    with world.agreed():
        summary = Summary(processes=world.size)
        callbacks = [summary, *default_callbacks(config)]
        last = 0
        if arguments.resume is not None:
            last = resumed(RunDirectory.open(arguments.resume), config).last_step()
    if last >= config.train.steps:
        if world.first:
            print(
                f"{arguments.resume} is trained to step {last} already; to go further: "
                f"qhdm train --resume {arguments.resume} --set train.steps={2 * last}"
            )
        return
    if arguments.resume is None:
        train(config, out=arguments.out, callbacks=callbacks, world=world)
    else:
        resume(arguments.resume, config=config, callbacks=callbacks, world=world)
    if world.first:
        print(f"done: loss {summary.loss:.4f} over the last logged steps")
        print(f"samples: {summary.run.picture_path(config.train.steps)}")
        print(f"more samples: qhdm sample {summary.run.path}")
