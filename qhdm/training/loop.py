"""The training loop: steps, checkpoints, interrupts, and the callbacks beside them."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType

import torch
from torch import Tensor

from qhdm.config import Config, PowerEmaConfig, to_dict
from qhdm.data import Batches, Dataset
from qhdm.distributed import ALONE, World
from qhdm.errors import ConfigError, Interrupted, PeerFailed, RunError, TrainingError
from qhdm.files import write_text
from qhdm.models import DiffusionNetwork
from qhdm.runs.checkpoints import is_released
from qhdm.runs.directory import RunDirectory
from qhdm.shipped import run_name
from qhdm.training.callbacks import Callback
from qhdm.training.log import MetricsLog
from qhdm.training.trainer import Trainer
from qhdm.training.use import circuit_use

#: Sections that may change when a run is resumed.
_RESUMABLE = {"name", "train", "sample"}


def resumed(run: RunDirectory, config: Config) -> RunDirectory:
    """`run` with a changed configuration; nothing is written.

    Raises:
        ConfigError: the change would make it another experiment.
        RunError: the run is a released one, which has averaged weights alone.
    """
    if any(map(is_released, run.checkpoints())):
        raise RunError(
            f"{run_name(run.path)}: has averaged weights alone, without the state of training, and "
            f"cannot be resumed; train a new run: qhdm train {run.config.name}"
        )
    before, after = to_dict(run.config), to_dict(config)
    before["data"].pop("root")  # the same data may lie elsewhere by now
    after["data"].pop("root")
    for section in before:
        if section not in _RESUMABLE and before[section] != after[section]:
            raise ConfigError(
                f"--set {section}: a run cannot be resumed with another {section} section; "
                "start a new run"
            )
    if _averages(run.config) != _averages(config):
        raise ConfigError(
            "--set train.ema: a run cannot be resumed with averages of other kinds, lengths or "
            "intervals; start a new run"
        )
    if run.config.train.optimizer != config.train.optimizer:
        raise ConfigError(
            "--set train.optimizer: a run cannot be resumed with another optimiser, whose state it "
            "lacks; start a new run"
        )
    return RunDirectory(run.path, config)


def _averages(config: Config) -> tuple[tuple[float, ...], int] | None:
    """Lengths and interval of the averages of the weights; None for that of the published code."""
    ema = config.train.ema
    return (ema.std, ema.update_every) if isinstance(ema, PowerEmaConfig) else None


def fit(
    run: RunDirectory,
    dataset: Dataset,
    *,
    device: torch.device,
    callbacks: Sequence[Callback] = (),
    world: World = ALONE,
) -> DiffusionNetwork:
    """Train `run` to `train.steps`, continuing from its latest checkpoint if it has one.

    The first interrupt (Ctrl-C, SIGTERM) in any process finishes the current step and saves; a
    second one stops at once. All processes of `world` call this; only the first one writes and
    calls the callbacks, in their order, after the run's own log.

    Returns:
        The network with its averaged weights.

    Raises:
        Interrupted: after saving.
        TrainingError: the loss is not finite.
        RunError: another process trains this run, no checkpoint of it is good, or one cannot be
            written.
        DistributedError: another process was lost.
    """
    config = run.config
    batches = Batches(
        dataset,
        batch_size=config.train.batch_size,
        seed=config.seed,
        augment=config.data.augment,
        balance=config.data.balance,
    )
    previews = any(type(c).on_preview is not Callback.on_preview for c in callbacks)
    called = [MetricsLog(), *callbacks] if world.first else []
    with ExitStack() as stack:
        with world.agreed():
            if world.first:
                stack.enter_context(run.locked())
                run.sweep()
        trainer = Trainer(config, batches, device, world)
        with world.agreed():
            if world.first:
                if run.checkpoints():
                    trainer.restore(run.latest_checkpoint())
                run.forget_snapshots(trainer.step)
                run.write_config()  # settings given on resuming are kept, now all are accepted
                for callback in called:
                    stack.callback(callback.on_end)
                    callback.on_start(run, trainer.step)
        step = int(world.broadcast(str(trainer.step)))
        with world.agreed():
            if step and not world.first:
                trainer.restore(run.checkpoint_path(step))
        interrupted = stack.enter_context(_interrupt_flag(repeated=world.launch is not None))
        _loop(trainer, run, called, interrupted, previews=previews)
    averaged = trainer.ema.model
    assert isinstance(averaged, DiffusionNetwork)
    return averaged


def _loop(
    trainer: Trainer,
    run: RunDirectory,
    callbacks: Sequence[Callback],
    interrupted: threading.Event,
    *,
    previews: bool,
) -> None:
    """Make the remaining steps, with everything that happens between them."""
    train, world = run.config.train, trainer.world
    losses: list[Tensor] = []
    since = time.perf_counter()
    while trainer.step < train.steps:
        losses.append(trainer.advance())
        step, last = trainer.step, trainer.step == train.steps
        for callback in callbacks:
            callback.on_step(step)
        stop = world.any(interrupted.is_set())
        save = last or stop or step % train.checkpoint_every == 0
        snapshot = train.keeps_snapshot(step)
        if step % train.log_every == 0 or save or snapshot:
            # The only place where the device is waited for: nothing is saved without a look.
            norms = {name: float(norm) for name, norm in trainer.gradient_norms.items()}
            mean = _finite_mean(torch.stack(losses).tolist(), norms, trainer, run)
            now = time.perf_counter()
            values = {"loss": mean, "steps_per_second": len(losses) / (now - since), **norms}
            if save and world.first:
                values |= circuit_use(trainer)
            for callback in callbacks:
                callback.on_loss(step, values)
            losses, since = [], time.perf_counter()
        if snapshot and world.first:
            trainer.save_snapshot(run)
        if save and world.first:
            path = trainer.save(run)
            for callback in callbacks:
                callback.on_checkpoint(step, path)
        if stop and not last:
            world.wait()  # a launcher may end the others once one exits: save first
            raise world.common(
                Interrupted(
                    f"interrupted: saved at step {step} of {train.steps}; "
                    f"continue with `qhdm train --resume {run.path}`"
                )
            )
        if previews and (last or step % train.sample_every == 0):
            images, labels = trainer.preview()
            for callback in callbacks:
                callback.on_preview(step, images, labels)
            since = time.perf_counter()


def _finite_mean(
    losses: list[float], norms: dict[str, float], trainer: Trainer, run: RunDirectory
) -> float:
    """The mean of the losses since the last look.

    Raises:
        TrainingError: a loss or the last gradient is not finite; its batch is written to the run.
    """
    values = [("loss", loss) for loss in losses]
    step = trainer.step - len(losses) + 1
    # A gradient that is not finite shows in the loss of the step after it.
    for name, value in [*values, *((name, norm) for name, norm in norms.items())]:
        if not math.isfinite(value):
            if not trainer.world.first:
                raise PeerFailed(f"step {step}: the {name} is {value}")
            file = run.path / "diverged.json"
            write_text(file, json.dumps(_batch_of(trainer, step, name, value), indent=2) + "\n")
            raise TrainingError(
                f"step {step}: the {name} is {value}; its batch is in {file}; nothing was saved "
                "since the last checkpoint; lower train.lr or set train.grad_clip"
            )
        step = min(step + 1, trainer.step)
    return sum(losses) / len(losses)


def _batch_of(trainer: Trainer, step: int, name: str, value: float) -> dict[str, object]:
    """The contents of diverged.json: a step that is not finite, and its batch."""
    assert trainer.batches is not None
    dataset, indices = trainer.batches.dataset, trainer.batches.indices(step - 1)
    return {
        "step": step,
        name: str(value),
        "seed": trainer.config.seed,
        "images": [{"index": int(i), "name": dataset.names[i]} for i in indices],
    }


@contextmanager
def _interrupt_flag(*, repeated: bool) -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second signal raises KeyboardInterrupt, unless
    a launcher repeats signals.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag  # signals belong to the main thread
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        if flag.is_set() and not repeated:
            raise KeyboardInterrupt
        flag.set()

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
