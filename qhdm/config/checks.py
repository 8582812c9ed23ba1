"""Contradictions between sections of a configuration.

Each generator yields a message that begins with the key to change, and ends before a check that
would need the failed one.
"""

from __future__ import annotations

from collections.abc import Iterator

from qhdm.config.data import DataConfig
from qhdm.config.diffusion import DiscreteConfig, EdmConfig
from qhdm.config.fields import is_circuit_file
from qhdm.config.published import PublishedModelConfig, ReleasedConfig
from qhdm.config.sampling import SampleConfig
from qhdm.config.sections import (
    EncoderConfig,
    ModelConfig,
    QuantumConfig,
    TrainConfig,
    VertexConfig,
)
from qhdm.quantum.options import PATCH_CHANNELS, PATCH_SIZE

AnyModel = ModelConfig | PublishedModelConfig


def shape_problems(data: DataConfig, model: AnyModel) -> Iterator[str]:
    """Feature maps that do not fit the levels of the network, or their channels."""
    if isinstance(model, PublishedModelConfig) and model.dim % model.groups:
        yield f"model.groups: {model.groups} does not divide model.dim ({model.dim})"
    if isinstance(model, ModelConfig) and model.vertex_channels % model.head_dim:
        yield (
            f"model.head_dim: {model.head_dim} does not divide the channels of the vertex, "
            f"{model.vertex_channels} (the last of model.widths)"
        )
    factor = 2**model.halvings
    if data.image_size % factor:
        yield (
            f"data.image_size: {data.image_size} is not divisible by {factor}, as "
            f"{model.halvings + 1} levels ({_sizes(model)}) require"
        )


def _sizes(model: AnyModel) -> str:
    return "model.widths" if isinstance(model, ModelConfig) else "model.dim_mults"


def filter_problems(data: DataConfig, model: AnyModel, quantum: QuantumConfig) -> Iterator[str]:
    """Quantum filters that do not fit their feature maps."""
    if model.kind == "unet":
        return
    for name, place in quantum.places.items():
        if is_circuit_file(place.ansatz) and place.layers is not None:
            yield (
                f"quantum.{name}.layers: {place.ansatz} fixes its own depth; set it to null "
                f"(--set quantum.{name}.layers=null)"
            )
    if model.kind == "qcunet":
        yield from _encoder_problems(data, model, quantum.encoder)
    yield from _map_problems("the vertex", model.halvings, data)
    channels = model.vertex_channels
    if model.kind != "fullqvunet":
        count = quantum.vertex.count(channels)
        yield from _count_problems("quantum.vertex", quantum.vertex, count, channels)
    elif channels < PATCH_CHANNELS or (
        isinstance(model, PublishedModelConfig) and channels % PATCH_CHANNELS
    ):
        yield (
            f"model.kind: fullqvunet needs vertex channels in multiples of {PATCH_CHANNELS}, but "
            f"{_sizes(model)} gives {channels}"
        )


def _encoder_problems(data: DataConfig, model: AnyModel, encoder: EncoderConfig) -> Iterator[str]:
    if not encoder.levels:
        yield "quantum.encoder.levels: qcunet needs one; for none, use model.kind qvunet"
    levels = len(model.level_channels)
    for level in encoder.levels:
        if level >= levels:
            yield (
                f"quantum.encoder.levels: there is no level {level}; {_sizes(model)} gives levels "
                f"0 to {levels - 1}"
            )
        yield from _map_problems(f"encoder level {level}", level, data)
    if not isinstance(encoder.filters, int) and len(encoder.filters) != len(encoder.levels):
        yield (
            f"quantum.encoder.filters: has {len(encoder.filters)} numbers for "
            f"{len(encoder.levels)} quantum.encoder.levels; give one for each, or one for all"
        )
    for level, count in encoder.counts(model.level_channels).items():
        yield from _count_problems("quantum.encoder", encoder, count, model.level_channels[level])


def _map_problems(place: str, level: int, data: DataConfig) -> Iterator[str]:
    side = data.image_size >> level
    if side % PATCH_SIZE:
        yield (
            f"data.image_size: quantum filters tile their map with {PATCH_SIZE}x{PATCH_SIZE} "
            f"patches, but {place} has {side}x{side} pixels at image size {data.image_size}; "
            "use an even map (other image size, fewer levels) or model.kind unet"
        )


def _count_problems(section: str, place: VertexConfig, count: int, channels: int) -> Iterator[str]:
    most = channels // PATCH_CHANNELS
    if not 1 <= count <= most:
        yield (
            f"{section}.{'filters' if place.rho is None else 'rho'}: gives {count} filters of "
            f"{PATCH_CHANNELS} channels on a map of {channels} channels; 1 to {most} fit"
        )


def diffusion_problems(model: AnyModel, diffusion: EdmConfig | DiscreteConfig) -> Iterator[str]:
    """Noise levels that the network cannot be told."""
    if isinstance(diffusion, EdmConfig) and isinstance(model, PublishedModelConfig):
        yield (
            "diffusion.prediction: edm has continuous noise levels, but the published network "
            "(model.dim_mults) is told timesteps; set it to eps or x0, or take the recommended "
            "network"
        )


def sampling_problems(
    sample: SampleConfig, diffusion: EdmConfig | DiscreteConfig, train: TrainConfig
) -> Iterator[str]:
    """Defaults of sampling that the trained model could not follow."""
    if isinstance(diffusion, DiscreteConfig) and sample.steps > diffusion.timesteps:
        yield f"sample.steps: {sample.steps} exceeds diffusion.timesteps ({diffusion.timesteps})"
    if sample.guidance != 1 and sample.guide is None and train.label_dropout == 0:
        yield (
            "sample.guidance: guidance requires training with label dropout; set "
            "train.label_dropout above 0, or sample.guidance to 1"
        )


def published_problems(
    released: ReleasedConfig, data: DataConfig, model: AnyModel, encoder: EncoderConfig
) -> Iterator[str]:
    """Switches of the published code on networks that lack what they change."""
    if isinstance(model, ModelConfig):
        for name, switch in vars(released).items():
            # In p2_k_from_gamma it is the loss that differs, not the network.
            if switch and name != "p2_k_from_gamma":
                yield (
                    f"released.{name}: only for the published network; set it to false, or give "
                    "the keys of that network in `model` (configs/published.yaml)"
                )
        if encoder.replace != "first":
            yield "quantum.encoder.replace: both is only for the published network; use first"
        return
    if released.discard_second_pass and model.kind not in ("qvunet", "qcunet"):
        yield (
            f"released.discard_second_pass: model.kind {model.kind} has no QResNet block whose "
            "second pass the published code discards; set it to false, or use qvunet or qcunet"
        )
    if released.second_pass_reads_input and not (
        model.kind == "qcunet" and encoder.replace == "both"
    ):
        yield (
            "released.second_pass_reads_input: needs a second quantum pass in the encoder; use "
            "model.kind qcunet and quantum.encoder.replace both"
        )
    if not released.swapped_embedding:
        return
    if data.classes is None:
        yield (
            "released.swapped_embedding: the embedding has one value for each class, so name them "
            "in data.classes"
        )
    elif len(data.classes) != model.label_dim:
        yield (
            f"released.swapped_embedding: embeds a label in one value for each class; set "
            f"model.label_dim to {len(data.classes)}, the number of data.classes"
        )
    elif len(data.classes) > model.dim:
        yield (
            f"released.swapped_embedding: the table has model.dim ({model.dim}) vectors, too few "
            f"for {len(data.classes)} classes; raise model.dim or name fewer data.classes"
        )
