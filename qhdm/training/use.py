"""How much the network in training uses its filters, for the log."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from qhdm.diffusion.pixels import from_levels, to_device
from qhdm.models import frozen
from qhdm.models.named_filters import filter_layers
from qhdm.quantum.layer import over_patches, patch_means
from qhdm.seeds import Draws, Stream, derive_seed, drawing
from qhdm.training.trainer import Trainer

#: Images on which it is measured.
_IMAGES = 16


@torch.no_grad()
def circuit_use(trainer: Trainer) -> dict[str, float]:
    """`circuit_use_prediction` of the averaged weights; nothing for a network without filters.

    The root mean square change of the network's output where all filters, or the baseline in their
    place, give their mean, over the standard deviation of the output; on images of the next batch.
    """
    network, config, step = trainer.ema.model, trainer.config, trainer.step
    filters = [network.get_submodule(layer.filters) for layer in filter_layers(network)]
    if not filters:
        return {}
    assert trainer.batches is not None
    images, labels = trainer.batches.batch(step, slice(_IMAGES))
    x_0 = from_levels(images, trainer.device)
    label = to_device(torch.as_tensor(labels), trainer.device)
    random = torch.Generator().manual_seed(derive_seed(config.seed, Stream.HELD_OUT, step))
    levels = trainer.preconditioning.draw(len(x_0), random).to(trainer.device)
    n = to_device(torch.randn(x_0.shape, generator=random), trainer.device)

    def output() -> Tensor:
        with drawing(Draws(config.seed, Stream.HELD_OUT_CALL, [(step,)])):
            return network(levels.noisy(x_0, n), levels.time, label)

    with frozen(network), ExitStack() as hooks:
        own = output()
        for module in filters:
            hooks.callback(module.register_forward_hook(_mean).remove)
        change, spread = float((output() - own).square().mean().sqrt()), float(own.std())
    use = change / spread if spread else math.nan  # the output is 0 at the start
    return {"circuit_use_prediction": use} if math.isfinite(use) else {}


def _mean(module: nn.Module, args: Any, values: Tensor) -> Tensor:
    """The mean of values (B, 3F, H, W) over images and 2x2 patches, in their place."""
    return over_patches(patch_means(values).mean(dim=0), values).expand_as(values)
