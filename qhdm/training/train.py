"""Training as a library call: a configuration and a data set in, a trained run out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qhdm import data
from qhdm.config import Config
from qhdm.device import resolve_device
from qhdm.distributed import ALONE, World
from qhdm.models.build import build_filters
from qhdm.run import Run
from qhdm.runs.directory import RunDirectory
from qhdm.training.callbacks import Callback, PreviewGrid, ProgressBar, TensorBoard
from qhdm.training.loop import fit, resumed
from qhdm.training.trainer import check_shares


def train(
    config: Config,
    dataset: Any = None,
    *,
    out: str | Path | None = None,
    callbacks: Sequence[Callback] | None = None,
    world: World = ALONE,
) -> Run:
    """Train a model.

    Args:
        config: what to train, and how.
        dataset: the images to train on: any torch `Dataset` of (image, label), or a
            `qhdm.data.Dataset`; by default the training split of `config.data`.
        out: the run directory to make; by default `runs/<name>-<time>`.
        callbacks: called beside training (see `Callback`); by default `default_callbacks`.
        world: the processes that train together.

    Returns:
        The trained run, its averaged weights loaded.

    Raises:
        ConfigError, DataError, CircuitError, EngineError: the configuration cannot be trained;
            nothing has been written.
        RunError: the run directory exists, or cannot be written.
        Interrupted: by Ctrl-C, after saving; `resume` continues.
        TrainingError: the loss is not finite.

    Example:
        >>> run = qhdm.train(CONFIG, out="run", callbacks=[])
        >>> run.sample(qhdm.Sampling(classes=["Forest"], num=2, steps=2)).shape
        (2, 16, 16, 3)
    """
    with world.agreed():
        if dataset is None:
            config = data.resolved(config)
            images = data.load(config.data).split("train")
        else:
            images = data.given(dataset, config.data)
            named = replace(config.data, root=data.GIVEN, classes=images.class_names)
            config = data.resolved(replace(config, data=named))
        _check(config, world)
    with world.agreed():
        made = RunDirectory.create(config, Path(out) if out else None) if world.first else None
    path = Path(world.broadcast(str(made.path) if made else ""))
    return _trained(RunDirectory.open(path), images, callbacks, world)


def resume(
    path: str | Path,
    dataset: Any = None,
    *,
    config: Config | None = None,
    callbacks: Sequence[Callback] | None = None,
    world: World = ALONE,
) -> Run:
    """Continue a run from its latest checkpoint, to the weights that no interruption would change.

    Args:
        path: the run directory.
        dataset: as it was given to `train`.
        config: the run's, with another `train` or `sample` section, for example more steps.
        callbacks, world: see `train`.

    Raises:
        ConfigError: the change would make it another experiment.
        RunError: not a run directory, or no checkpoint of it is good.

    Example:
        >>> run = qhdm.train(CONFIG, out="resumed", callbacks=[])
        >>> train = dataclasses.replace(run.config.train, steps=3)
        >>> longer = dataclasses.replace(run.config, train=train)
        >>> run = qhdm.resume("resumed", config=longer, callbacks=[])
        >>> run.config.train.steps
        3
    """
    run = RunDirectory.open(path)
    if config is not None:
        run = resumed(run, config)
    of_run = run.config.data
    images = data.load(of_run).split("train") if dataset is None else data.given(dataset, of_run)
    _check(run.config, world)
    return _trained(run, images, callbacks, world)


def default_callbacks(config: Config) -> list[Callback]:
    """A progress bar, pictures of samples, and TensorBoard where `train.tensorboard` says so."""
    logs: list[Callback] = [TensorBoard()] if config.train.tensorboard else []
    return [ProgressBar(), PreviewGrid(), *logs]


def _check(config: Config, world: World) -> None:
    """Refuse what cannot be trained, before anything is written."""
    check_shares(config, resolve_device(config.train.device), world)
    build_filters(config)


def _trained(
    run: RunDirectory, images: data.Dataset, callbacks: Sequence[Callback] | None, world: World
) -> Run:
    device = resolve_device(run.config.train.device)
    if callbacks is None:
        callbacks = default_callbacks(run.config)
    fit(run, images, device=device, callbacks=callbacks, world=world)
    return Run.open(run.path, device=device.type)
