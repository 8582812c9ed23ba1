"""From a configuration to its network."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import nn

from qhdm import data
from qhdm.config import Config
from qhdm.models.baselines import check_linear, filter_layer
from qhdm.models.blocks import Attention, Condition, ResnetBlock
from qhdm.models.quantum_blocks import FilterBank, QResnetBlock, QuanResnetBlock
from qhdm.models.released import (
    DiscardingQResnetBlock,
    InputReadingQuanResnetBlock,
    TokenNormalisedAttention,
)
from qhdm.models.unet import UNet
from qhdm.quantum.connector import FilterConnector
from qhdm.quantum.engines import Engine, make_engine
from qhdm.quantum.files.load import find_filter
from qhdm.quantum.filter import Filter
from qhdm.quantum.layer import check_patch
from qhdm.seeds import Stream, derive_seed


def build_filters(config: Config) -> dict[str, Filter]:
    """The filters of the places that have some: of "vertex", "encoder" or both.

    Places with the same circuit share one filter, which is planned once.

    Raises:
        CircuitError: a filter cannot be built, does not fit a patch, or has more weights than the
            control that is to match it can have.
    """

    @cache
    def filter_of(ansatz: str, layers: int | None) -> Filter:
        filter = find_filter(ansatz, layers=layers)
        check_patch(filter)
        if config.quantum.filter == "linear":
            check_linear(filter)
        return filter

    quantum = config.quantum
    places = {"vertex": (quantum.vertex, config.vertex_filters)}
    places["encoder"] = (quantum.encoder, len(config.encoder_levels))
    return {
        name: filter_of(place.ansatz, place.layers)
        for name, (place, count) in places.items()
        if count
    }


def build_model(config: Config) -> UNet:
    """Build the network of `config`, its weights drawn from the configuration's seed.

    The global random state is left as it was.

    Args:
        config: `data.classes` gives the number of classes; if it is null, the class folders of
            `data.root` do.

    Returns:
        A module called as `model(x_t, t, label)`: x_t (B, C, H, W), t and label (B,).

    Raises:
        DataError: the classes are not given and the data set is absent.
        CircuitError: a filter cannot be built.
        EngineError: the engine cannot be set up.

    Example:
        >>> config = load_config("configs/quickstart.yaml", ["model.kind=unet"])
        >>> model = build_model(config)
    """
    model = config.model
    quantum = config.quantum
    engine = make_engine(quantum.engine_options)
    filters = build_filters(config)

    def bank(place: str, count: int) -> FilterBank:
        layer = partial(filter_layer, quantum.filter, filters[place], count=count, engine=engine)
        return FilterBank(count, layer)

    vertex = bank("vertex", config.vertex_filters) if config.vertex_filters else None
    encoder = {
        level: bank("encoder", quantum.encoder.count(model.level_channels[level]))
        for level in config.encoder_levels
    }
    emb_dim, groups = 4 * model.dim, model.groups
    released = config.released
    qresnet = DiscardingQResnetBlock if released.discard_second_pass else QResnetBlock
    quanresnet = (
        InputReadingQuanResnetBlock if released.second_pass_reads_input else QuanResnetBlock
    )
    num_classes = len(data.class_names(config.data))

    def block(place: int | str, width: int) -> ResnetBlock:
        if place == "vertex" and vertex:
            return qresnet(width, vertex, emb_dim=emb_dim, groups=groups)
        if place in encoder:
            bank = encoder[int(place)]
            return quanresnet(
                width, bank, replace=quantum.encoder.replace, emb_dim=emb_dim, groups=groups
            )
        return ResnetBlock(width, width, emb_dim=emb_dim, groups=groups)

    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, Stream.INIT))
        return UNet(
            condition=Condition(
                time_dim=0 if released.time_blind else model.dim,
                label_dim=model.label_dim,
                num_classes=model.dim if released.swapped_embedding else num_classes,
                emb_dim=emb_dim,
            ),
            channels=config.data.channels,
            dim=model.dim,
            dim_mults=model.dim_mults,
            groups=model.groups,
            heads=model.heads,
            dim_head=model.dim_head,
            block=block,
            attention=TokenNormalisedAttention if released.attention_over_tokens else Attention,
        )


def set_engine(model: nn.Module, engine: Engine) -> None:
    """Let another engine evaluate all filters of `model`."""
    for module in model.modules():
        if isinstance(module, FilterConnector):
            module.engine = engine
