"""The training loop.

Step s (1-based) draws everything it needs from (seed, s): a resumed run repeats the very steps of
an uninterrupted one, and carries no generator state. Where several processes train, each draws for
the whole batch and takes its share, so that they make the same step as one process would.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from qhdm import console
from qhdm.config import Config, to_dict
from qhdm.data import Batches, Dataset
from qhdm.diffusion import NULL_LABEL, SamplerSettings, Schedule, generate, per_sample_loss
from qhdm.diffusion.pixels import from_uint8, to_device
from qhdm.distributed import ALONE, World
from qhdm.errors import ConfigError, Interrupted, PeerFailed, RunError, TrainingError
from qhdm.files import write_text
from qhdm.models import build_model, frozen
from qhdm.models.counts import quantum_parameters
from qhdm.runs.checkpoints import checkpoint_step, load_training_state, load_weights
from qhdm.runs.directory import RunDirectory
from qhdm.seeds import Draws, Stream, derive_seed, drawing
from qhdm.training.ema import Ema
from qhdm.training.log import MetricsLog

#: Receives preview images (N, H, W, C) uint8, their labels, and where to put the picture.
Preview = Callable[[np.ndarray, list[int], Path], None]

#: Images of a preview that are sampled at once.
_PREVIEW_BATCH = 64

#: What may change when a run goes on: how long and where, never what is trained on what.
_RESUMABLE = {"name", "train", "sample"}


def check_shares(config: Config, device: torch.device, world: World) -> None:
    """Find out whether there is something to do for each process.

    Raises:
        ConfigError: the batch or the GPUs are too few.
    """
    batch = config.train.batch_size
    if batch < world.size:
        raise ConfigError(
            f"train.batch_size: {batch} is too small to be shared by {world.size} processes; "
            "raise it, or start fewer"
        )
    if device.type == "cuda" and world.local_size > torch.cuda.device_count():
        raise ConfigError(
            f"train.device: {world.local_size} processes on a machine with "
            f"{torch.cuda.device_count()} GPUs; start one for each (--nproc-per-node), or use cpu"
        )


class Trainer:
    """Model, EMA and optimiser, advanced one step at a time.

    Args:
        config: resolved (`data.classes` is not null).
        batches: of the training split, or None for a trainer that only estimates costs.
        device: where to train.
        world: the processes that share each batch; all of them have the same weights throughout.
    """

    def __init__(
        self,
        config: Config,
        batches: Batches | None,
        device: torch.device,
        world: World = ALONE,
    ) -> None:
        train = config.train
        self.config = config
        self.batches = batches
        self.device = device
        self.world = world
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
        B = self.batches.batch_size
        share = self.world.share(B)
        images, labels = self.batches.batch(self.step, share)
        x_0 = from_uint8(images, self.device)
        return self._advance(x_0, to_device(torch.as_tensor(labels), self.device), share, B)

    def advance_on(self, x_0: Tensor, labels: Tensor) -> Tensor:
        """One optimisation step on images (B, C, H, W) in [-1, 1] with labels (B,)."""
        share = self.world.share(len(labels))
        return self._advance(x_0[share], labels[share], share, len(labels))

    def _advance(self, x_0: Tensor, labels: Tensor, share: slice, B: int) -> Tensor:
        """One step on images and labels of which this process has `share` of all B."""
        train = self.config.train
        seed = derive_seed(self.config.seed, Stream.STEP, self.step, 1)
        random = torch.Generator(self.device).manual_seed(seed)
        t = torch.randint(self.schedule.timesteps, (B,), generator=random, device=self.device)
        hidden = torch.rand(B, generator=random, device=self.device) < train.label_dropout
        eps = torch.randn((B, *x_0.shape[1:]), generator=random, device=self.device)
        t, hidden, eps = t[share], hidden[share], eps[share]

        x_t = self.schedule.q_sample(x_0, t, eps)
        bf16 = train.precision == "bf16"
        # Shots of the processes must be independent of each other.
        position = (self.step,) if self.world.size == 1 else (self.step, self.world.rank)
        draws = Draws(self.config.seed, Stream.STEP_CALL, [position])
        with drawing(draws), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            output = self._network(x_t, t, labels.masked_fill(hidden, NULL_LABEL))
        # The share of the batch's mean: whatever the shares, they add up to it.
        loss = per_sample_loss(self.schedule, output, x_0, eps, t).sum() / B
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loss = self._of_all(loss.detach())
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
        return loss

    def _of_all(self, loss: Tensor) -> Tensor:
        """Add up the gradients of all processes, in place, and the loss, which is returned.

        In one message of a fixed order: the sums, and with them the weights, are bit by bit the
        same in every process, and in a run that was interrupted and resumed.
        """
        if self.world.size == 1:
            return loss
        parameters = self.model.parameters()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        message = torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in gradients)])
        self.world.add_up(message)
        total, *sums = message.split([1, *(gradient.numel() for gradient in gradients)])
        for gradient, found in zip(gradients, sums, strict=True):
            gradient.copy_(found.view_as(gradient))
        return total.reshape(())

    def _gradient_norms(self) -> dict[str, Tensor]:
        """Euclidean norms of the gradient's parts, scalars on the device."""
        return {
            f"grad_norm_{kind}": torch.nn.utils.get_total_norm(
                [parameter.grad for parameter in parameters if parameter.grad is not None]
            )
            for kind, parameters in self._parameters.items()
        }

    def preview(self) -> tuple[np.ndarray, list[int]]:
        """A few samples of every class, by the averaged weights; uint8 (N, H, W, C), labels.

        The processes share the work, and all have the result.
        """
        data, settings = self.config.data, self.config.sample
        assert data.classes is not None
        labels = [c for c in range(len(data.classes)) for _ in range(settings.num)]
        part = self.world.share(len(labels), whole=_PREVIEW_BATCH)
        with frozen(self.ema.model):
            images = generate(
                self.ema.model,
                self.schedule,
                labels=labels[part],
                indices=range(len(labels))[part],
                shape=(data.channels, data.image_size, data.image_size),
                seed=self.config.seed,
                settings=SamplerSettings(settings.sampler, settings.steps, settings.guidance),
                batch_size=_PREVIEW_BATCH,
                device=self.device,
            )
        whole = np.frombuffer(b"".join(self.world.gather(images.tobytes())), dtype=np.uint8)
        return whole.reshape(len(labels), *images.shape[1:]), labels

    def save(self, run: RunDirectory) -> Path:
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
        model = load_weights(checkpoint / "model.safetensors", self.device)
        ema = load_weights(checkpoint / "ema.safetensors", self.device)
        try:
            self.model.load_state_dict(model)
            self.ema.load_state_dict(ema)
            # The settings are those of the configuration, which may have changed.
            settings = self.optimizer.state_dict()["param_groups"]
            moments = state["optimizer"]["state"]
            _check_moments(moments, list(self.model.parameters()))
            self.optimizer.load_state_dict({"state": moments, "param_groups": settings})
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise RunError(f"{checkpoint}: does not fit this run's model ({reason})") from None
        if state["step"] != checkpoint_step(checkpoint):
            raise RunError(f"{checkpoint}: training.pt is of another step than its folder")
        self.step = checkpoint_step(checkpoint)


def _check_moments(state: dict[int, Any], parameters: list[nn.Parameter]) -> None:
    """Raise `ValueError` unless a state is Adam's averages, of the shapes of their weights."""
    for number, moments in state.items():
        if moments.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError("the optimiser's state is not that of Adam")
        for name, value in moments.items():
            expected = torch.Size() if name == "step" else parameters[number].shape
            if value.shape != expected:
                raise ValueError(f"{name} has shape {list(value.shape)}")


def resumed(run: RunDirectory, config: Config) -> RunDirectory:
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
    return RunDirectory(run.path, config)


def train(
    run: RunDirectory,
    dataset: Dataset,
    *,
    device: torch.device,
    preview: Preview | None = None,
    progress: bool = True,
    world: World = ALONE,
) -> float:
    """Train `run` to `train.steps`, going on from its latest checkpoint if it has one.

    The first interrupt (Ctrl-C, SIGTERM) ends the step at hand and saves; a second one stops at
    once. Of several processes, each of which calls this, the first alone writes, and an interrupt
    of one is one of all.

    Args:
        run: an open run directory.
        dataset: the training split.
        device: where to train.
        preview: receives sample grids every `train.sample_every` steps and at the end.
        progress: show a bar on stderr.
        world: the processes that train this run together.

    Returns:
        The mean loss of the last logged steps.

    Raises:
        Interrupted: after saving.
        TrainingError: the loss is not finite.
        RunError: another process trains this run, no checkpoint of it is good, or one cannot be
            written.
        DistributedError: another process was lost.
    """
    with ExitStack() as stack:
        with world.agreed():
            if world.first:
                stack.enter_context(run.locked())
                run.sweep()
        return _train(run, dataset, device, preview, progress, world)


def _train(
    run: RunDirectory,
    dataset: Dataset,
    device: torch.device,
    preview: Preview | None,
    progress: bool,
    world: World,
) -> float:
    config = run.config
    batches = Batches(
        dataset,
        batch_size=config.train.batch_size,
        seed=config.seed,
        augment=config.data.augment,
    )
    trainer = Trainer(config, batches, device, world)
    log: MetricsLog | None = None
    with world.agreed():
        if world.first:
            if run.checkpoints():
                trainer.restore(run.latest_checkpoint())
            run.write_config()  # settings given on resuming are kept, now that all are accepted
            log = MetricsLog(
                run.path, resume_step=trainer.step, tensorboard=config.train.tensorboard
            )
    step = int(world.broadcast(str(trainer.step)))
    with world.agreed():
        if step and not world.first:
            trainer.restore(run.checkpoint_path(step))
    bar = console.bar(
        total=config.train.steps,
        initial=trainer.step,
        desc="training",
        unit="step",
        disable=not (progress and world.first),
    )
    with (
        _interrupt_flag(repeated=world.launch is not None) as interrupted,
        log or nullcontext(),
        bar,
    ):
        return _loop(trainer, run, log, bar, interrupted, preview)


def _loop(
    trainer: Trainer,
    run: RunDirectory,
    log: MetricsLog | None,
    bar: tqdm,
    interrupted: threading.Event,
    preview: Preview | None,
) -> float:
    train, world = run.config.train, trainer.world
    losses: list[Tensor] = []
    mean, since = math.nan, time.perf_counter()
    while trainer.step < train.steps:
        losses.append(trainer.advance())
        bar.update()
        step, last = trainer.step, trainer.step == train.steps
        stop = world.any(interrupted.is_set())
        save = last or stop or step % train.checkpoint_every == 0
        if step % train.log_every == 0 or save:
            # The only place where the device is waited for: no checkpoint without a look.
            norms = {name: float(norm) for name, norm in trainer.gradient_norms.items()}
            mean = _finite_mean(torch.stack(losses).tolist(), norms, trainer, run)
            now = time.perf_counter()
            if log:
                log.write(step, loss=mean, steps_per_second=len(losses) / (now - since), **norms)
            bar.set_postfix(loss=f"{mean:.4f}")
            losses, since = [], now
        if save and world.first:
            trainer.save(run)
        if stop and not last:
            world.wait()  # for what is saved: a launcher may end the others when one leaves
            raise world.common(
                Interrupted(
                    f"interrupted: saved at step {step} of {train.steps}; "
                    f"go on with `qhdm train --resume {run.path}`"
                )
            )
        if preview and (last or step % train.sample_every == 0):
            images, labels = trainer.preview()
            if world.first:
                preview(images, labels, run.picture_path(step))
            since = time.perf_counter()
    return mean


def _finite_mean(
    losses: list[float], norms: dict[str, float], trainer: Trainer, run: RunDirectory
) -> float:
    """The mean of the losses of the last steps.

    Raises:
        TrainingError: one is not finite, or the last gradient, which made the weights what they
            are now; the step and its batch are in the run directory.
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
    """What is kept of a step that went wrong."""
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
    """An event that SIGINT and SIGTERM set; a second signal raises KeyboardInterrupt.

    Args:
        repeated: a launcher repeats signals, which then mean no more than the first.
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
