"""Training as a library call: a configuration and a data set in, a trained run out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qhdm import console, data
from qhdm.config import Config
from qhdm.device import resolve_device
from qhdm.distributed import ALONE, World
from qhdm.errors import ConfigError
from qhdm.models.filters import build_filters
from qhdm.quantum.engines import expectation, make_engine
from qhdm.run import Run
from qhdm.runs.directory import RunDirectory
from qhdm.training.callbacks import Callback, PreviewGrid, ProgressBar, TensorBoard
from qhdm.training.loop import fit, resumed
from qhdm.training.precision import precision_of
from qhdm.training.trainer import check_shares


def train(
    config: Config,
    dataset: Any = None,
    *,
    out: str | Path | None = None,
    callbacks: Sequence[Callback] | None = None,
    world: World = ALONE,
) -> Run:
    """Train a model; processes that torchrun restarts continue the run that they made.

    Args:
        config: what to train, and how.
        dataset: any torch `Dataset` of (image, label), of which `data.test_fraction` is held out,
            or a `qhdm.data.Dataset` with its own split; by default the one of `config.data`. The
            model is trained on the training split.
        out: the run directory to make; by default `runs/<name>-<time>`.
        callbacks: called during training (see `Callback`); by default `default_callbacks`.
        world: the processes that train together.

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
    if world.restarts and out is None:
        raise ConfigError(
            f"--out: torchrun may start this command again (--max-restarts {world.restarts}); name "
            "the run directory, so that it then continues its run"
        )
    path = None if out is None else Path(out)
    with world.agreed():
        restarted = path is not None and RunDirectory.made_by(world.launch, path)
        if not restarted:
            if dataset is not None:
                images = data.given(dataset, config.data).split("train")
                config = replace(config, data=data.of_given(images, config.data))
            config = data.resolved(config)
            callbacks = default_callbacks(config) if callbacks is None else callbacks
            check_trainable(config, world)
            if dataset is None:
                images = _load(config, callbacks, world)
    if path is not None and restarted:
        return resume(path, dataset, callbacks=callbacks, world=world)
    config = _with_precision(config, world)
    with world.agreed():
        if world.first:
            path = RunDirectory.create(config, path, launch=world.launch).path
    path = Path(world.broadcast(str(path)))
    with world.agreed():
        run = RunDirectory.open(path)
    return _trained(run, images, callbacks or (), world)


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
        RunError: not a run directory, or one that cannot be resumed.

    Example:
        >>> run = qhdm.train(CONFIG, out="resumed", callbacks=[])
        >>> train = dataclasses.replace(run.config.train, steps=3)
        >>> longer = dataclasses.replace(run.config, train=train)
        >>> run = qhdm.resume("resumed", config=longer, callbacks=[])
        >>> run.config.train.steps
        3
    """
    with world.agreed():
        run = RunDirectory.open(path)
        run = resumed(run, config or run.config)
        callbacks = default_callbacks(run.config) if callbacks is None else callbacks
        check_trainable(run.config, world)
        if dataset is None:
            images = _load(run.config, callbacks, world)
        else:
            images = data.given(dataset, run.config.data).split("train")
    run = RunDirectory(run.path, _with_precision(run.config, world))
    return _trained(run, images, callbacks, world)


def default_callbacks(config: Config) -> list[Callback]:
    """A progress bar, pictures of samples, and TensorBoard if `train.tensorboard` is set."""
    logs: list[Callback] = [TensorBoard()] if config.train.tensorboard else []
    return [ProgressBar(), PreviewGrid(), *logs]


def check_trainable(config: Config, world: World) -> torch.device:
    """Refuse what cannot be trained, before anything is written; returns where to train.

    Raises:
        ConfigError, CircuitError, EngineError: the key, and the remedy.
    """
    device = resolve_device(config.train.device)
    check_shares(config, device, world)
    engine = make_engine(config.quantum.engine_options)
    for circuit_filter in build_filters(config).values():
        inputs, weights = (
            torch.zeros(len(parameters))
            for parameters in (circuit_filter.inputs, circuit_filter.weights)
        )
        expectation(circuit_filter, inputs[None], weights, engine=engine)
    return device


def _with_precision(config: Config, world: World) -> Config:
    """`config` with the precision that the first process chooses, which the run then keeps."""
    device = resolve_device(config.train.device)
    precision = precision_of(config.train, device) if world.first else config.train.precision
    return replace(config, train=replace(config.train, precision=world.broadcast(precision)))


def _load(config: Config, callbacks: Sequence[Callback], world: World) -> data.Dataset:
    """The training images; loading shows a bar, and what was skipped, where training has a bar."""
    progress = world.first and any(isinstance(callback, ProgressBar) for callback in callbacks)
    images = data.load(config.data, progress=progress)
    if progress and images.skipped:
        first = ", ".join(images.skipped[:3]) + ", ..." * (len(images.skipped) > 3)
        console.message(f"unreadable images skipped: {len(images.skipped)} ({first})")
    return images.split("train")


def _trained(
    run: RunDirectory, images: data.Dataset, callbacks: Sequence[Callback], world: World
) -> Run:
    device = resolve_device(run.config.train.device)
    model = fit(run, images, device=device, callbacks=callbacks, world=world)
    return Run(model, run.config, device=device, path=run.path)
