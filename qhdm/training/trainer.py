"""The training step.

Step s (1-based) draws everything it needs from (seed, s), so that a resumed run repeats the steps
of an uninterrupted one without saved generator states. Each of several processes draws for the
whole batch and takes its share: together they make the step that one process would make.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qhdm.config import Config, PublishedModelConfig, SamplerOptions
from qhdm.data import Batches
from qhdm.diffusion import NULL_LABEL, Chain, generate, make_preconditioning
from qhdm.diffusion.pixels import from_levels, to_device
from qhdm.distributed import ALONE, World
from qhdm.errors import ConfigError, RunError
from qhdm.models import build_model, frozen
from qhdm.models.counts import quantum_parameters
from qhdm.runs.checkpoints import (
    checkpoint_step,
    half,
    load_training_state,
    load_weights,
    weight_file,
)
from qhdm.runs.directory import RunDirectory
from qhdm.runs.weights import misfit
from qhdm.seeds import Draws, Stream, derive_seed, drawing
from qhdm.training.ema import make_ema
from qhdm.training.graphs import Graphed
from qhdm.training.optimizers import (
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    set_learning_rates,
)
from qhdm.training.precision import precision_of

#: Images of a preview that are sampled at once.
_PREVIEW_BATCH = 64


def check_shares(config: Config, device: torch.device, world: World) -> None:
    """Check that every process has images of each batch, and a GPU where it trains on one.

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
        self.preconditioning = make_preconditioning(config, device)
        self.ema = make_ema(self.model, train.ema)  # in float32, as everything that samples
        bf16 = precision_of(train, device) == "bf16"
        self.model.compute_dtype = torch.bfloat16 if bf16 else torch.float32
        published = isinstance(config.model, PublishedModelConfig)
        self._autocast = bf16 and published  # that network knows no other way
        self._weights = list(self.model.parameters())
        compiled = torch.compile(self.model, dynamic=False) if train.compile else self.model
        self._network: Callable[..., Tensor] = compiled
        if device.type == "cuda" and config.quantum.engine != "aer":
            # The many small kernels of a step take less time than their launches.
            self._network = Graphed(compiled)
        angles = [p for p in quantum_parameters(self.model) if p.requires_grad]
        known = set(map(id, angles))
        trained = [p for p in self._weights if p.requires_grad and id(p) not in known]
        self._parameters = {"classical": trained, **({"quantum": angles} if angles else {})}
        self.optimizer = make_optimizer(train, trained, angles, fused=not published)
        self._norms: dict[str, Tensor] = {}
        self.step = 0

    def advance(self) -> Tensor:
        """One optimisation step on the next batch; returns the loss, a scalar on the device.

        The loss is without the network's learned weights (`log_variance`), which hide its fall.
        """
        assert self.batches is not None
        B = self.batches.batch_size
        share = self.world.share(B)
        images, labels = self.batches.batch(self.step, share)
        x_0 = from_levels(images, self.device)
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
        levels = self.preconditioning.draw(B, random)[share]
        hidden = torch.rand(B, generator=random, device=self.device) < train.label_dropout
        n = torch.randn((B, *x_0.shape[1:]), generator=random, device=self.device)
        hidden, n = hidden[share], n[share]

        # Shots of the processes must be independent of each other.
        position = (self.step,) if self.world.size == 1 else (self.step, self.world.rank)
        draws = Draws(self.config.seed, Stream.STEP_CALL, [position])
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast)
        with drawing(draws), autocast:
            label = labels.masked_fill(hidden, NULL_LABEL)
            output = self._network(levels.noisy(x_0, n), levels.time, label)
        error = self.preconditioning.error(output, x_0, n, levels)
        # Learned uncertainty: error / v + ln v is least at v = error (Karras et al. 2024, eq. 21).
        log_variance = self.model.log_variance(levels.time)
        self.optimizer.zero_grad(set_to_none=True)
        # The share of the batch's mean: whatever the shares, they add up to it.
        ((error * (-log_variance).exp() + log_variance).sum() / B).backward()
        loss = self._of_all(error.detach().sum() / B)
        if train.grad_clip is not None:
            self._norms = self._gradient_norms()
            torch.nn.utils.clip_grads_with_norm_(
                self._weights, train.grad_clip, torch.stack(list(self._norms.values())).norm()
            )
        set_learning_rates(self.optimizer, train, self.step)
        self.optimizer.step()
        self.model.normalize()
        self.step += 1
        self.ema.update(self.model, self.step)
        return loss

    def _of_all(self, loss: Tensor) -> Tensor:
        """Sum the gradients over all processes, in place, and the loss, which is returned.

        One message in a fixed order makes the sums, and the weights, equal to the bit everywhere.
        """
        if self.world.size == 1:
            return loss
        gradients = [p.grad for p in self._weights if p.grad is not None]
        message = torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in gradients)])
        self.world.add_up(message)
        total, *sums = message.split([1, *(gradient.numel() for gradient in gradients)])
        for gradient, whole in zip(gradients, sums, strict=True):
            gradient.copy_(whole.view_as(gradient))
        return total.reshape(())

    @property
    def gradient_norms(self) -> dict[str, Tensor]:
        """`grad_norm_classical`, `grad_norm_quantum` of the last step, before clipping."""
        return self._gradient_norms() if self.config.train.grad_clip is None else self._norms

    def _gradient_norms(self) -> dict[str, Tensor]:
        """Euclidean norms of the gradient's parts, scalars on the device."""
        return {
            f"grad_norm_{kind}": torch.nn.utils.get_total_norm(
                [parameter.grad for parameter in parameters if parameter.grad is not None]
            )
            for kind, parameters in self._parameters.items()
        }

    def preview(self) -> tuple[np.ndarray, list[int]]:
        """Samples of every class by the averaged weights, levels (N, H, W, C), and their labels."""
        data, sample = self.config.data, self.config.sample
        options = SamplerOptions(
            seed=self.config.seed, guidance="run" if sample.guide is None else 1.0
        )
        labels = [label for label in range(data.num_classes) for _ in range(sample.num)]
        part = self.world.share(len(labels), whole=_PREVIEW_BATCH)
        chain = Chain(
            (self.ema.model,),
            self.preconditioning,
            options.resolved(self.config),
            labels=labels[part],
            indices=range(len(labels))[part],
            shape=data.shape,
            batch_size=_PREVIEW_BATCH,
            dtype=data.dtype,
        )
        with frozen(self.ema.model):
            images = generate(chain)
        whole = np.frombuffer(b"".join(self.world.gather(images.tobytes())), dtype=images.dtype)
        return whole.reshape(len(labels), *images.shape[1:]), labels

    def save(self, run: RunDirectory) -> Path:
        """Write a checkpoint of this step."""
        weights = {"model": self.model, **self.ema.models}
        return run.save_checkpoint(
            self.step,
            {name: network.state_dict() for name, network in weights.items()},
            optimizer_state(self.optimizer, self._weights),
        )

    def save_snapshot(self, run: RunDirectory) -> None:
        """Write a snapshot of the averages of this step, in half precision."""
        averages = {
            name: network.state_dict()
            | {key: half(parameter) for key, parameter in network.named_parameters()}
            for name, network in self.ema.models.items()
        }
        run.save_snapshot(self.step, averages)

    def restore(self, checkpoint: Path) -> None:
        """Go back to a checkpoint.

        Raises:
            RunError: it is damaged or belongs to another model.
        """
        state = load_training_state(checkpoint / "training.pt", self.device)
        weights = {
            name: load_weights(checkpoint / weight_file(name), self.device)
            for name in ("model", *self.ema.models)
        }
        try:
            self.model.load_state_dict(weights["model"])
            self.ema.load_states(weights)
            moments = state["optimizer"]["state"]
            load_optimizer_state(self.optimizer, self.config.train, moments, self._weights)
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise misfit(checkpoint, error) from None
        if state["step"] != checkpoint_step(checkpoint):
            raise RunError(f"{checkpoint}: training.pt is of another step than its folder")
        self.step = checkpoint_step(checkpoint)
