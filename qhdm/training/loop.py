"""The training loop.

Step s (1-based) draws everything it needs from (seed, s): a resumed run repeats the very steps of
an uninterrupted one, and carries no generator state.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from qhdm.config import Config, to_dict
from qhdm.data import Batches, Dataset
from qhdm.diffusion import NULL_LABEL, SamplerSettings, Schedule, generate, per_sample_loss
from qhdm.diffusion.pixels import from_uint8, to_device
from qhdm.errors import ConfigError, Interrupted, RunError, TrainingError
from qhdm.models import build_model, frozen
from qhdm.models.counts import quantum_parameters
from qhdm.seeds import Draws, Stream, derive_seed, drawing
from qhdm.training.ema import Ema
from qhdm.training.metrics import MetricsLog
from qhdm.training.run import Run, load_training_state, load_weights

#: Receives preview images (N, H, W, C) uint8, their labels, and where to put the picture.
Preview = Callable[[np.ndarray, list[int], Path], None]

#: What may change when a run goes on: how long and where, never what is trained on what.
_RESUMABLE = {"name", "train", "sample"}


def resolve_device(name: str, *, key: str = "train.device") -> torch.device:
    """`auto`, `cpu` or `cuda` as a device; `key` is where the user gave it.

    Raises:
        ConfigError: CUDA is asked for and absent.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{key}: cuda asked for, but torch finds no CUDA device; use auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Trainer:
    """Model, EMA and optimiser, advanced one step at a time.

    Args:
        config: resolved (`data.classes` is not null).
        batches: of the training split, or None for a trainer that only estimates costs.
        device: where to train.
    """

    def __init__(self, config: Config, batches: Batches | None, device: torch.device) -> None:
        train = config.train
        self.config = config
        self.batches = batches
        self.device = device
        self.model = build_model(config).to(device)
        self.schedule = Schedule(config.diffusion, p2_k=config.p2_k).to(device)
        self.ema = Ema(self.model, train.ema)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=train.lr, betas=train.betas, eps=train.eps
        )
        self._network: Callable[..., Tensor] = self.model
        if train.compile:
            # On CUDA, graphs: one launch for the many small kernels of a step.
            mode = "reduce-overhead" if device.type == "cuda" else None
            self._network = torch.compile(self.model, dynamic=False, mode=mode)
        quantum = quantum_parameters(self.model)
        known = {id(parameter) for parameter in quantum}
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._parameters = {"classical": [p for p in trained if id(p) not in known]}
        if angles := [p for p in quantum if p.requires_grad]:
            self._parameters["quantum"] = angles
        #: Of the last step, before clipping: `grad_norm_classical`, `grad_norm_quantum`.
        self.gradient_norms: dict[str, Tensor] = {}
        self.step = 0

    def advance(self) -> Tensor:
        """One optimisation step on the next batch; returns the loss, a scalar on the device."""
        assert self.batches is not None
        images, labels = self.batches.batch(self.step)
        return self.advance_on(
            from_uint8(images, self.device), to_device(torch.as_tensor(labels), self.device)
        )

    def advance_on(self, x_0: Tensor, labels: Tensor) -> Tensor:
        """One optimisation step on images (B, C, H, W) in [-1, 1] with labels (B,)."""
        train = self.config.train
        seed = derive_seed(self.config.seed, Stream.STEP, self.step, 1)
        random = torch.Generator(self.device).manual_seed(seed)
        B = x_0.shape[0]
        t = torch.randint(self.schedule.timesteps, (B,), generator=random, device=self.device)
        hidden = torch.rand(B, generator=random, device=self.device) < train.label_dropout
        eps = torch.randn(x_0.shape, generator=random, device=self.device)

        x_t = self.schedule.q_sample(x_0, t, eps)
        bf16 = train.precision == "bf16"
        draws = Draws(self.config.seed, Stream.STEP_CALL, [(self.step,)])
        with drawing(draws), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            output = self._network(x_t, t, labels.masked_fill(hidden, NULL_LABEL))
        loss = per_sample_loss(self.schedule, output, x_0, eps, t).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.gradient_norms = self._gradient_norms()
        if train.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(
                self.model.parameters(),
                train.grad_clip,
                torch.stack(list(self.gradient_norms.values())).norm(),
            )
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.model, self.step)
        return loss.detach()

    def _gradient_norms(self) -> dict[str, Tensor]:
        """Euclidean norms of the gradient's parts, scalars on the device."""
        return {
            f"grad_norm_{kind}": torch.nn.utils.get_total_norm(
                [parameter.grad for parameter in parameters if parameter.grad is not None]
            )
            for kind, parameters in self._parameters.items()
        }

    def preview(self) -> tuple[np.ndarray, list[int]]:
        """A few samples of every class, by the averaged weights; uint8 (N, H, W, C), labels."""
        data, settings = self.config.data, self.config.sample
        assert data.classes is not None
        labels = [c for c in range(len(data.classes)) for _ in range(settings.num)]
        with frozen(self.ema.model):
            images = generate(
                self.ema.model,
                self.schedule,
                labels=labels,
                indices=list(range(len(labels))),
                shape=(data.channels, data.image_size, data.image_size),
                seed=self.config.seed,
                settings=SamplerSettings(settings.sampler, settings.steps, settings.guidance),
                device=self.device,
            )
        return images, labels

    def save(self, run: Run) -> Path:
        """Write a checkpoint of this step."""
        return run.save_checkpoint(
            self.step,
            model=self.model.state_dict(),
            ema=self.ema.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
        )

    def restore(self, checkpoint: Path) -> None:
        """Go back to a checkpoint.

        Raises:
            RunError: it is damaged or belongs to another model.
        """
        state = load_training_state(checkpoint / "training.pt", self.device)
        try:
            self.model.load_state_dict(load_weights(checkpoint / "model.safetensors", self.device))
            self.ema.load_state_dict(load_weights(checkpoint / "ema.safetensors", self.device))
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = int(state["step"])
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(f"{checkpoint}: does not fit this run's model ({reason})") from None


def resumed(run: Run, config: Config) -> Run:
    """`run` with a changed configuration, if the change is one a run can take. Writes nothing.

    Raises:
        ConfigError: the change would make it another experiment.
    """
    before, after = to_dict(run.config), to_dict(config)
    before["data"].pop("root")  # the same data may lie elsewhere by now
    after["data"].pop("root")
    for section in before:
        if section not in _RESUMABLE and before[section] != after[section]:
            raise ConfigError(
                f"--set {section}: a run cannot be resumed with another {section} section; "
                "start a new run"
            )
    return Run(run.path, config)


def train(
    run: Run,
    dataset: Dataset,
    *,
    device: torch.device,
    preview: Preview | None = None,
    progress: bool = True,
) -> float:
    """Train `run` to `train.steps`, going on from its latest checkpoint if it has one.

    The first interrupt (Ctrl-C, SIGTERM) ends the step at hand and saves; a second one stops at
    once.

    Args:
        run: an open run directory.
        dataset: the training split.
        device: where to train.
        preview: receives sample grids every `train.sample_every` steps and at the end.
        progress: show a bar on stderr.

    Returns:
        The mean loss of the last logged steps.

    Raises:
        Interrupted: after saving.
        TrainingError: the loss is not finite.
    """
    config = run.config
    batches = Batches(
        dataset,
        batch_size=config.train.batch_size,
        seed=config.seed,
        augment=config.data.augment,
    )
    trainer = Trainer(config, batches, device)
    if run.checkpoints():
        trainer.restore(run.latest_checkpoint())
    log = MetricsLog(run.path, resume_step=trainer.step, tensorboard=config.train.tensorboard)
    bar = tqdm(
        total=config.train.steps,
        initial=trainer.step,
        desc="training",
        unit="step",
        disable=not progress,
        mininterval=0.2 if sys.stderr.isatty() else 30,
    )
    with _interrupt_flag() as interrupted, log, bar:
        return _loop(trainer, run, log, bar, interrupted, preview)


def _loop(
    trainer: Trainer,
    run: Run,
    log: MetricsLog,
    bar: tqdm,
    interrupted: threading.Event,
    preview: Preview | None,
) -> float:
    train = run.config.train
    total = torch.zeros((), device=trainer.device)
    count, mean, since = 0, math.nan, time.perf_counter()
    while trainer.step < train.steps:
        total += trainer.advance()
        count += 1
        bar.update()
        step, last = trainer.step, trainer.step == train.steps
        stop = interrupted.is_set()
        save = last or stop or step % train.checkpoint_every == 0
        if step % train.log_every == 0 or save:
            # The only place where the device is waited for: no checkpoint without a look.
            mean = _finite_mean(total, count, step)
            now = time.perf_counter()
            norms = {name: float(norm) for name, norm in trainer.gradient_norms.items()}
            log.write(step, loss=mean, steps_per_second=count / (now - since), **norms)
            bar.set_postfix(loss=f"{mean:.4f}")
            total.zero_()
            count, since = 0, now
        if save:
            trainer.save(run)
        if stop and not last:
            raise Interrupted(
                f"interrupted: saved at step {step} of {train.steps}; "
                f"go on with `qhdm train --resume {run.path}`"
            )
        if preview and (last or step % train.sample_every == 0):
            preview(*trainer.preview(), run.picture_path(step))
            since = time.perf_counter()
    return mean


def _finite_mean(total: Tensor, count: int, step: int) -> float:
    mean = float(total) / count
    if not math.isfinite(mean):
        raise TrainingError(
            f"the loss is {mean} within the {count} steps up to {step}; nothing was saved since "
            "the last checkpoint; lower train.lr or set train.grad_clip"
        )
    return mean


@contextmanager
def _interrupt_flag() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second signal raises KeyboardInterrupt."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag  # signals belong to the main thread
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
