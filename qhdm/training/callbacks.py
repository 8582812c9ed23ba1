"""Callbacks of training: progress bar, summary, sample pictures, TensorBoard."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qhdm import console
from qhdm.data.bands import bands_of
from qhdm.errors import ConfigError
from qhdm.pictures import labelled_grid, save_png

if TYPE_CHECKING:
    from qhdm.runs.directory import RunDirectory


class Callback:
    """Base class of callbacks, whose methods do nothing. Only the first process calls them.

    Example:
        >>> class Losses(qhdm.Callback):
        ...     def on_loss(self, step, values):
        ...         print(step, sorted(values))
        >>> run = qhdm.train(CONFIG, out="losses", callbacks=[Losses()])
        2 ['circuit_use_prediction', 'grad_norm_classical', ..., 'loss', 'steps_per_second']
    """

    def on_start(self, run: RunDirectory, step: int) -> None:
        """Called before the first step; `step` steps are done already."""

    def on_step(self, step: int) -> None:
        """Called after each step, counted from 1. Waits for no device."""

    def on_loss(self, step: int, values: Mapping[str, float]) -> None:
        """Called every `train.log_every` steps, at checkpoints and at snapshots of averages.

        Args:
            step: steps done.
            values: `loss`, the mean since the last call; `steps_per_second`; gradient norms; at
                checkpoints, `circuit_use_prediction` (docs/training.md).
        """

    def on_checkpoint(self, step: int, path: Path) -> None:
        """Called when the checkpoint `path` has been written."""

    def on_preview(self, step: int, images: np.ndarray, labels: Sequence[int]) -> None:
        """Called every `train.sample_every` steps and at the end; previews are sampled only if
        some callback overrides this.

        Args:
            step: steps done.
            images: (N, H, W, C) uint8, by the averaged weights.
            labels: (N,).
        """

    def on_end(self) -> None:
        """Called when training ends, also by an error."""


class ProgressBar(Callback):
    """A bar on stderr with the loss and the remaining time.

    Example:
        >>> run = qhdm.train(CONFIG, out="bar", callbacks=[qhdm.ProgressBar()])
    """

    def __init__(self) -> None:
        self._bar: Any = None

    def on_start(self, run: RunDirectory, step: int) -> None:
        total = run.config.train.steps
        self._bar = console.bar(total=total, initial=step, desc="training", unit="step")

    def on_step(self, step: int) -> None:
        self._bar.update()

    def on_loss(self, step: int, values: Mapping[str, float]) -> None:
        self._bar.set_postfix(loss=f"{values['loss']:.4f}")

    def on_end(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Summary(Callback):
    """Prints the run directory, the data, and the circuits of a step on Aer.

    Args:
        processes: how many train together.

    Attributes:
        run: set when training starts.
        loss: the last logged.
    """

    run: RunDirectory

    def __init__(self, *, processes: int = 1) -> None:
        self._processes = processes
        self.loss = math.nan

    def on_start(self, run: RunDirectory, step: int) -> None:
        from qhdm.training.estimate import describe_circuits

        self.run, config = run, run.config
        print(f"run directory: {run.path}")
        if config.quantum.engine == "aer":
            print(describe_circuits(config))
        shared = f", in {self._processes} processes" if self._processes > 1 else ""
        print(f"training on {config.data.num_classes} classes of {config.data.root}{shared}")
        sys.stdout.flush()

    def on_loss(self, step: int, values: Mapping[str, float]) -> None:
        self.loss = values["loss"]


class PreviewGrid(Callback):
    """A picture of samples, one row per class, in the run's `samples/`.

    Example:
        >>> run = qhdm.train(CONFIG, out="grid", callbacks=[qhdm.PreviewGrid()])
        >>> sorted(path.name for path in (run.path / "samples").iterdir())
        ['step_0000002.png']
    """

    def on_start(self, run: RunDirectory, step: int) -> None:
        self._run = run

    def on_preview(self, step: int, images: np.ndarray, labels: Sequence[int]) -> None:
        data = self._run.config.data
        assert data.classes is not None
        grid = labelled_grid(images, labels, data.classes, bands=bands_of(data))
        save_png(grid, self._run.picture_path(step))


class TensorBoard(Callback):
    """Scalars for TensorBoard in the run's `tensorboard/` (extra `tensorboard`).

    Raises:
        ConfigError: TensorBoard is not installed.

    Example:
        >>> run = qhdm.train(CONFIG, out="board", callbacks=[qhdm.TensorBoard()])
        >>> len(list((run.path / "tensorboard").iterdir()))
        1
    """

    def __init__(self) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigError(
                "train.tensorboard: TensorBoard is not installed; "
                "pip install 'qhdm[tensorboard]', or set it to false"
            )
        self._writer: Any = None

    def on_start(self, run: RunDirectory, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1)

    def on_loss(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def on_end(self) -> None:
        if self._writer is not None:
            self._writer.close()
