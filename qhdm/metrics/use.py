"""How much a trained network uses its filters and its label.

A part is replaced by something that says nothing, and the held-out denoising loss is measured again
with the same noise (denoising.py). There may be a baseline in the place of filters.
"""

from __future__ import annotations

import dataclasses
from collections import ChainMap, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from qhdm.config import Config
from qhdm.data import Dataset
from qhdm.diffusion import NULL_LABEL, Preconditioning
from qhdm.metrics.denoising import NoisyBatch, NoisyImages, held_out, loss_name
from qhdm.metrics.records import Metric, MetricName, Replaced, Use
from qhdm.models import DiffusionNetwork, build_model, frozen
from qhdm.models.filters import set_engine
from qhdm.models.named_filters import FilterLayer, filter_layers
from qhdm.quantum.connector import FilterConnector
from qhdm.quantum.layer import over_patches, patch_means
from qhdm.seeds import Stream, derive_seed

#: Random angles, channels and labels over which a change is averaged.
DRAWS = 4
#: Network evaluations on which a change is measured, about.
EVALUATIONS = 512
#: The place of changes in all layers of filters.
EVERYWHERE = "all"

#: Modules of a network, by name, or others in their place.
Modules = Mapping[str, nn.Module]
#: What was replaced, and where.
Part = tuple[str, Replaced]
#: The output of a changed network.
Variation = Callable[[NoisyBatch], Tensor]


def network_use(
    network: DiffusionNetwork,
    config: Config,
    preconditioning: Preconditioning,
    test: Dataset,
    *,
    progress: bool = False,
) -> tuple[list[Metric], list[Use]]:
    """The use of filters and label on test images, and the two numbers that sum it up."""
    images = held_out(test, EVALUATIONS)
    levels = -(-EVALUATIONS // len(images))
    noisy = NoisyImages(preconditioning, images.images, images.labels, levels=levels)
    uses = measure_use(network, config, noisy, progress=progress)
    known = {(use.place, use.replaced): use for use in uses}
    control = known.get((EVERYWHERE, "channels"))
    names: tuple[tuple[MetricName, Part], ...] = (
        ("circuit use", (EVERYWHERE, "filters")),
        ("label use", ("label", "shuffled labels")),
    )
    metrics = [
        Metric(
            name=name,
            label=f"{name}[{loss_name(config)}, {levels} noise levels, N={len(images)}, test]",
            split="test",
            num=len(images),
            value=known[part].loss,
            error=known[part].error,
            baseline=control.loss if control and name == "circuit use" else None,
            better=None,
        )
        for name, part in names
        if part in known
    ]
    return metrics, uses


def measure_use(
    network: DiffusionNetwork,
    config: Config,
    noisy: NoisyImages,
    *,
    draws: int = DRAWS,
    batch_size: int = 64,
    progress: bool = False,
) -> list[Use]:
    """What changes where filters, layer by layer and all of them, or labels are replaced.

    * `filters`: the outputs of filters by their mean.
    * `angles`: the outputs by those of filters with weights drawn as at the start, and shifted to
      the mean of the trained ones.
    * `channels`: as many classical channels, drawn at random, by their mean: of the others that the
      convolution behind the filters reads (`HybridActivation`), or of the result of the one beside
      them (`HybridConv2d`); of fewer, if there are no more, and not measured without any.
    * `hidden labels`: labels by none, if training hid some.
    * `shuffled labels`: labels by those of other images.

    Means are of each channel and pixel of a 2x2 patch, over all images and levels.

    Args:
        network: on the device of the images' preconditioning.
        config: that built it.
        noisy: the images.
        draws: of angles, channels and labels; changes are means over them.
        batch_size: images of a network evaluation, which changes results by rounding alone.
        progress: show bars on stderr.
    """
    layers = filter_layers(network)
    device = noisy.preconditioning.device
    redrawn = _redrawn(network, config, layers, noisy.seed, draws, device)
    with torch.inference_mode(), frozen(network, *(m for one in redrawn for m in one.values())):
        title = "means of filters" if progress else None
        means = _means(network, layers, redrawn, noisy.batches(batch_size, progress=title))
        changes = _changes(network, layers, redrawn, means, noisy.seed, draws)
        variations: dict[Part, list[Variation]] = {
            part: [partial(_output, network, modules) for modules in drawn]
            for part, drawn in changes.items()
        }
        variations |= _of_labels(network, config, noisy, draws)
        title = "use of filters and labels" if progress else None
        batches = noisy.batches(batch_size, progress=title)
        return _uses(network, variations, batches, len(noisy.images))


def _redrawn(
    network: nn.Module,
    config: Config,
    layers: Sequence[FilterLayer],
    seed: int,
    draws: int,
    device: torch.device,
) -> list[Modules]:
    """The filters of untrained networks, of each draw; none where filters have no weights."""
    engines = [m.engine for m in network.modules() if isinstance(m, FilterConnector)]
    names = [layer.filters for layer in layers]
    names = [name for name in names if list(network.get_submodule(name).parameters())]
    every: list[Modules] = []
    for draw in range(draws if names else 0):
        own = derive_seed(seed, Stream.REDRAWN, draw)
        untrained = build_model(dataclasses.replace(config, seed=own)).to(device)
        if engines:
            set_engine(untrained, engines[0])
        every.append({name: untrained.get_submodule(name) for name in names})
    return every


def _means(
    network: DiffusionNetwork,
    layers: Iterable[FilterLayer],
    redrawn: Sequence[Modules],
    batches: Iterable[NoisyBatch],
) -> dict[str | tuple[str, int], Tensor]:
    """Mean (C, 2, 2) of what `measure_use` replaces, by module, and of redrawn filters, by draw."""
    sums: dict[str | tuple[str, int], Tensor] = {}
    evaluations = 0

    def add(key: str | tuple[str, int], values: Tensor) -> None:
        sums[key] = sums.get(key, 0) + patch_means(values.double()).sum(dim=0)

    def watch_filters(name: str, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        add(name, output)
        for draw, modules in enumerate(redrawn):
            if name in modules:
                add((name, draw), modules[name](*args))

    def watch(name: str, reads: bool, _: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        add(name, args[0] if reads else output)

    handles = []
    for layer in layers:
        filters = network.get_submodule(layer.filters)
        handles.append(filters.register_forward_hook(partial(watch_filters, layer.filters)))
        if layer.convolution is not None:
            convolution = network.get_submodule(layer.convolution)
            hook = partial(watch, layer.convolution, layer.reads)
            handles.append(convolution.register_forward_hook(hook))
    try:
        for batch in batches:
            batch.output(network)
            evaluations += len(batch.images)
    finally:
        for handle in handles:
            handle.remove()
    return {key: total / evaluations for key, total in sums.items()}


def _changes(
    network: nn.Module,
    layers: Iterable[FilterLayer],
    redrawn: Sequence[Modules],
    means: Mapping[str | tuple[str, int], Tensor],
    seed: int,
    draws: int,
) -> dict[Part, list[Modules]]:
    """The modules in the place of the network's own, of each draw."""
    changes: dict[Part, list[Modules]] = {}
    # Filters that are not evaluated (published code) have no means.
    for number, layer in enumerate(layer for layer in layers if layer.filters in means):
        mean, place = means[layer.filters], layer.place
        filters = network.get_submodule(layer.filters)
        every = np.arange(len(mean))
        changes[place, "filters"] = [{layer.filters: _AtMean(filters, mean, every)}]
        if any(layer.filters in drawn for drawn in redrawn):
            changes[place, "angles"] = [
                {layer.filters: _Shifted(drawn[layer.filters], mean - means[layer.filters, draw])}
                for draw, drawn in enumerate(redrawn)
            ]
        if layer.convolution is None:
            continue
        convolution, control = network.get_submodule(layer.convolution), means[layer.convolution]
        first = len(mean) if layer.reads else 0
        if first == len(control):
            continue
        changes[place, "channels"] = []
        for draw in range(draws):
            rng = np.random.default_rng(derive_seed(seed, Stream.SUBSET, 6, number, draw))
            channels = first + rng.permutation(len(control) - first)[: len(mean)]
            module = _AtMean(convolution, control, channels, reads=layer.reads)
            changes[place, "channels"].append({layer.convolution: module})
    together: dict[Part, list[Modules]] = {}
    for replaced in dict.fromkeys(replaced for _, replaced in changes):
        of_layers = [drawn for (_, kind), drawn in changes.items() if kind == replaced]
        together[EVERYWHERE, replaced] = [
            dict(ChainMap(*map(dict, modules))) for modules in zip(*of_layers, strict=True)
        ]
    return changes | together


class _AtMean(nn.Module):
    """A module some of whose channels, read or given, are at their mean (C, 2, 2).

    It is evaluated all the same, so that the shots of layers after it stay as they were.
    """

    def __init__(
        self, module: nn.Module, mean: Tensor, channels: np.ndarray, *, reads: bool = False
    ) -> None:
        super().__init__()
        self.module, self.reads = module, reads
        self.channels = torch.as_tensor(channels, device=mean.device)
        self.mean = mean[self.channels]

    def forward(self, x: Tensor) -> Tensor:
        return self.module(self._at_mean(x)) if self.reads else self._at_mean(self.module(x))

    def _at_mean(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, self.channels] = over_patches(self.mean.to(x.dtype), x)
        return x


class _Shifted(nn.Module):
    """A module with a constant (C, 2, 2) added to its values."""

    def __init__(self, module: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.module, self.shift = module, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) + over_patches(self.shift.to(x.dtype), x)


def _output(network: DiffusionNetwork, modules: Modules, batch: NoisyBatch) -> Tensor:
    with _replaced(network, modules):
        return batch.output(network)


@contextmanager
def _replaced(network: nn.Module, modules: Modules) -> Iterator[None]:
    """Other modules in the place of a network's own."""
    own = {name: network.get_submodule(name) for name in modules}
    try:
        _set_modules(network, modules)
        yield
    finally:
        _set_modules(network, own)


def _set_modules(network: nn.Module, modules: Modules) -> None:
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, module)


def _of_labels(
    network: DiffusionNetwork, config: Config, noisy: NoisyImages, draws: int
) -> dict[Part, list[Variation]]:
    """The variations of the label."""

    def with_labels(labels: np.ndarray, batch: NoisyBatch) -> Tensor:
        own = torch.as_tensor(labels[batch.images]).long()
        return batch.output(network, own.to(batch.label.device))

    variations: dict[Part, list[Variation]] = {}
    if config.train.label_dropout > 0:
        hidden = np.full(len(noisy.labels), NULL_LABEL)
        variations["label", "hidden labels"] = [partial(with_labels, hidden)]
    if len(np.unique(noisy.labels)) > 1:
        seeds = [derive_seed(noisy.seed, Stream.SUBSET, 7, draw) for draw in range(draws)]
        variations["label", "shuffled labels"] = [
            partial(with_labels, np.random.default_rng(seed).permutation(noisy.labels))
            for seed in seeds
        ]
    return variations


def _uses(
    network: DiffusionNetwork,
    variations: Mapping[Part, Sequence[Variation]],
    batches: Iterable[NoisyBatch],
    num: int,
) -> list[Use]:
    own = np.zeros(num)
    varied: dict[Part, np.ndarray] = defaultdict(lambda: np.zeros(num))
    squares: dict[Part, float] = defaultdict(float)
    count, total, square = 0, 0.0, 0.0
    for batch in batches:
        images, output = batch.images, batch.output(network)
        np.add.at(own, images, batch.error(output))
        count += output.numel()
        total += float(output.double().sum())
        square += float(output.double().square().sum())
        for part, drawn in variations.items():
            for variation in drawn:
                other = variation(batch)
                np.add.at(varied[part], images, batch.error(other) / len(drawn))
                squares[part] += float((other - output).double().square().sum()) / len(drawn)
    spread = (square / count - (total / count) ** 2) ** 0.5
    uses = []
    for part in variations:
        ratio = varied[part].mean() / own.mean()
        # Of a ratio of means of pairs, to first order.
        residual = (varied[part] - ratio * own) / own.mean()
        error = float(residual.std(ddof=1) / len(own) ** 0.5) if len(own) > 1 else None
        change = (squares[part] / count) ** 0.5 / spread
        uses.append(Use(*part, float(ratio - 1), error, float(change)))
    return uses
