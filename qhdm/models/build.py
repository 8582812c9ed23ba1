"""From a configuration to its network."""

from __future__ import annotations

from functools import cache

import torch

from qhdm import data
from qhdm.config import Config, is_circuit_file
from qhdm.models.blocks import ResnetBlock
from qhdm.models.quantum_blocks import FilterBank, QResnetBlock, QuanResnetBlock
from qhdm.models.unet import UNet
from qhdm.quantum.filter import Filter
from qhdm.quantum.layer import check_patch
from qhdm.quantum.library import find_filter
from qhdm.seeds import Stream, derive_seed


def build_filters(config: Config) -> dict[str, Filter]:
    """The filters of the places that have some: of "vertex", "encoder" or both.

    Places with the same circuit share one filter, which is planned once.

    Raises:
        CircuitError: a filter cannot be built, or does not fit a patch.
    """

    @cache
    def filter_of(ansatz: str, layers: int) -> Filter:
        filter = find_filter(ansatz, layers=None if is_circuit_file(ansatz) else layers)
        check_patch(filter)
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

    Example:
        >>> config = load_config("configs/quickstart.yaml", ["model.kind=unet"])
        >>> model = build_model(config)
    """
    model = config.model
    quantum = config.quantum
    filters = build_filters(config)
    vertex = None
    if config.vertex_filters:
        vertex = FilterBank(filters["vertex"], config.vertex_filters, quantum.engine)
    encoder = {}
    for level in config.encoder_levels:
        count = quantum.encoder.count(model.level_channels[level])
        encoder[level] = FilterBank(filters["encoder"], count, quantum.engine)
    emb_dim, groups = 4 * model.dim, model.groups

    def block(place: int | str, width: int) -> ResnetBlock:
        if place == "vertex" and vertex:
            return QResnetBlock(width, vertex, emb_dim=emb_dim, groups=groups)
        if place in encoder:
            bank = encoder[int(place)]
            return QuanResnetBlock(
                width, bank, replace=quantum.encoder.replace, emb_dim=emb_dim, groups=groups
            )
        return ResnetBlock(width, width, emb_dim=emb_dim, groups=groups)

    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, Stream.INIT))
        return UNet(
            channels=config.data.channels,
            num_classes=len(data.class_names(config.data)),
            dim=model.dim,
            dim_mults=model.dim_mults,
            groups=model.groups,
            heads=model.heads,
            dim_head=model.dim_head,
            label_dim=model.label_dim,
            block=block,
        )
