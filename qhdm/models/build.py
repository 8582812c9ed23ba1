"""Build the network of a configuration."""

from __future__ import annotations

import torch

from qhdm.config import Config, ModelConfig, PublishedModelConfig
from qhdm.models.filters import FilterFactory, placements
from qhdm.models.hybrid import HybridActivation
from qhdm.models.network import DiffusionNetwork
from qhdm.models.unet import UNet
from qhdm.seeds import Stream, derive_seed


def build_model(config: Config) -> DiffusionNetwork:
    """Build the network of `config`, its weights drawn from the configuration's seed.

    The global random state is left as it was.

    Returns:
        A module called as `model(x, time, label)`: x (B, C, H, W), time and label (B,).

    Raises:
        ConfigError: the number of classes is unknown (`DataConfig.num_classes`).
        CircuitError: a filter cannot be built.
        EngineError: the engine cannot be set up.

    Example:
        >>> config = load_config("configs/quickstart.yaml", ["model.kind=unet"])
        >>> model = build_model(config)
    """
    # Imported here, as the published network builds on this package.
    from qhdm.reproduction.network.build import build_published

    config.data.num_classes  # noqa: B018 - unknown classes are refused before anything is built
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, Stream.INIT))
        if isinstance(config.model, PublishedModelConfig):
            return build_published(config, config.model)
        return _build_recommended(config, config.model)


def _build_recommended(config: Config, model: ModelConfig) -> UNet:
    """Filters come last: networks of one seed have the same classical weights."""
    data = config.data
    network = UNet(model, channels=data.channels, num_classes=data.num_classes)
    make_filters = FilterFactory(config)
    for place, placed in placements(config).items():
        dim = model.vertex_channels
        if place != "vertex":
            dim = model.level_channels[int(place.removeprefix("encoder."))]
        network.attach(place, HybridActivation(dim, make_filters(placed), placed.channels))
    return network
