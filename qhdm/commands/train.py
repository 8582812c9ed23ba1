"""`qhdm train`: a model from a configuration, in one process or, under torchrun, in several."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qhdm.commands.arguments import add_set
from qhdm.distributed import World
from qhdm.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from qhdm.config import Config
    from qhdm.runs.directory import RunDirectory


def add(commands: argparse._SubParsersAction) -> None:
    """Make the parser of `train`."""
    parser = commands.add_parser("train", help="train a model from a configuration file")
    parser.add_argument(
        "config",
        nargs="?",
        type=Path,
        metavar="CONFIG",
        help="a YAML file, or the name of a shipped one: quickstart",
    )
    parser.add_argument("--out", type=Path, metavar="RUN", help="the run directory to make")
    add_set(parser)
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration, parameter and circuit counts, estimated time",
    )
    parser.set_defaults(command=_train, processes=True)


def _train(arguments: argparse.Namespace) -> None:
    world = World.from_environment()
    with world.joined():
        with world.agreed():
            config, run, device = _prepare(arguments, world)
        if arguments.dry_run:
            with world.agreed():
                if world.first:
                    _describe(config, device)
        elif run and run.last_step() >= config.train.steps:
            if world.first:
                print(
                    f"{run.path} is trained to step {run.last_step()} already; to go further: "
                    f"qhdm train --resume {run.path} --set train.steps={2 * run.last_step()}"
                )
        else:
            _run(arguments, world, config, run, device)


def _prepare(
    arguments: argparse.Namespace, world: World
) -> tuple[Config, RunDirectory | None, torch.device]:
    """Refuse bad input before anything is written.

    Returns:
        The resolved configuration, the run that is to go on (None for a new one), and where.
    """
    from qhdm import data
    from qhdm.config import load_config
    from qhdm.runs.config import load_run_config

    if (arguments.config is None) == (arguments.resume is None):
        raise ConfigError("train: give either a configuration file or --resume RUN")
    if arguments.resume is not None and arguments.out is not None:
        raise ConfigError("--out: a resumed run stays in its directory")
    if world.restarts and arguments.resume is None and arguments.out is None:
        raise ConfigError(
            f"--out: torchrun may start this command again (--max-restarts {world.restarts}); "
            "name the run directory, so that it then goes on with its run"
        )
    resume = arguments.resume
    if world.launch is not None and arguments.out is not None:
        from qhdm.runs.directory import RunDirectory

        if RunDirectory.made_by(world.launch, arguments.out):
            resume = arguments.out
    load, source = (load_run_config, resume) if resume else (load_config, arguments.config)
    config = data.resolved(load(source, arguments.set))

    # Only now the heavy imports: bad input is refused at once.
    from qhdm.device import resolve_device
    from qhdm.models.build import build_filters
    from qhdm.runs.directory import RunDirectory
    from qhdm.training.loop import resumed
    from qhdm.training.train import default_callbacks
    from qhdm.training.trainer import check_shares

    device = resolve_device(config.train.device)
    check_shares(config, device, world)
    default_callbacks(config)  # TensorBoard may be missing
    run = resumed(RunDirectory.open(resume), config) if resume else None
    build_filters(config)  # a circuit that cannot be used is refused before a run is made of it
    return config, run, device


def _describe(config: Config, device: torch.device) -> None:
    from qhdm.config import to_yaml
    from qhdm.training.estimate import describe_counts, describe_time

    counts = describe_counts(config)  # first: it also finds out whether the circuits can run
    print(to_yaml(config))
    print(counts, flush=True)
    print(describe_time(config, device))


def _run(
    arguments: argparse.Namespace,
    world: World,
    config: Config,
    run: RunDirectory | None,
    device: torch.device,
) -> None:
    from qhdm import data
    from qhdm.runs.directory import RunDirectory
    from qhdm.training.loop import fit
    from qhdm.training.train import default_callbacks

    with world.agreed():
        training = data.load(config.data, progress=world.first).split("train")
        if world.first and config.quantum.engine == "aer":
            from qhdm.training.estimate import describe_circuits

            # Before anything is written: it also finds out whether the circuits can run.
            print(describe_circuits(config))
    with world.agreed():
        if world.first and run is None:
            run = RunDirectory.create(config, arguments.out, launch=world.launch)
    path = Path(world.broadcast(str(run.path) if run else ""))
    with world.agreed():
        run = run or RunDirectory.open(path)

    count, classes = len(training), len(training.class_names)
    if world.first:
        print(f"run directory: {run.path}")
        among = f" each, in {world.size} processes" if world.size > 1 else ""
        print(f"training on {count} images of {classes} classes ({device}{among})", flush=True)
    loss = fit(run, training, device=device, callbacks=default_callbacks(config), world=world)
    if world.first:
        print(f"done: loss {loss:.4f} over the last logged steps")
        print(f"samples: {run.picture_path(config.train.steps)}")
        print(f"more samples: qhdm sample {run.path}")
