"""Contradictions between sections of a configuration.

Each generator yields a message that begins with the key to change, and ends before a check that
would need the failed one.
"""

from __future__ import annotations

from collections.abc import Iterator

from qhdm.config.diffusion import DiscreteConfig, EdmConfig
from qhdm.config.sampling import SampleConfig
from qhdm.config.sections import (
    DataConfig,
    EncoderConfig,
    ModelConfig,
    QuantumConfig,
    ReleasedConfig,
    TrainConfig,
    VertexConfig,
    is_circuit_file,
)
from qhdm.quantum.options import PATCH_CHANNELS, PATCH_SIZE


def shape_problems(data: DataConfig, model: ModelConfig) -> Iterator[str]:
    """Feature maps that do not fit the levels of the network."""
    if model.dim % model.groups:
        yield f"model.groups: {model.groups} does not divide model.dim ({model.dim})"
    factor = 2 ** (len(model.dim_mults) - 1)
    if data.image_size % factor:
        yield (
            f"data.image_size: {data.image_size} is not divisible by {factor}, as "
            f"{len(model.dim_mults)} levels (model.dim_mults) require"
        )


def filter_problems(data: DataConfig, model: ModelConfig, quantum: QuantumConfig) -> Iterator[str]:
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
    yield from _map_problems("the vertex", len(model.dim_mults) - 1, data)
    if model.kind != "fullqvunet":
        yield from _count_problems("quantum.vertex", quantum.vertex, model.vertex_channels)
    elif model.vertex_channels % PATCH_CHANNELS:
        yield (
            f"model.kind: fullqvunet needs vertex channels in multiples of {PATCH_CHANNELS}, but "
            f"model.dim x model.dim_mults[-1] is {model.vertex_channels}"
        )


def _encoder_problems(
    data: DataConfig, model: ModelConfig, encoder: EncoderConfig
) -> Iterator[str]:
    if not encoder.levels:
        yield "quantum.encoder.levels: qcunet needs one; for none, use model.kind qvunet"
    for level in encoder.levels:
        if level >= len(model.dim_mults):
            yield (
                f"quantum.encoder.levels: there is no level {level}; model.dim_mults gives levels "
                f"0 to {len(model.dim_mults) - 1}"
            )
        yield from _map_problems(f"encoder level {level}", level, data)
        yield from _count_problems("quantum.encoder", encoder, model.level_channels[level])


def _map_problems(place: str, level: int, data: DataConfig) -> Iterator[str]:
    side = data.image_size >> level
    if side % PATCH_SIZE:
        yield (
            f"data.image_size: quantum filters tile their map with {PATCH_SIZE}x{PATCH_SIZE} "
            f"patches, but {place} has {side}x{side} pixels at image size {data.image_size}; "
            "use an even map (other image size, fewer levels) or model.kind unet"
        )


def _count_problems(section: str, place: VertexConfig, channels: int) -> Iterator[str]:
    count, most = place.count(channels), channels // PATCH_CHANNELS
    if not 1 <= count <= most:
        yield (
            f"{section}.{'filters' if place.rho is None else 'rho'}: gives {count} filters of "
            f"{PATCH_CHANNELS} channels on a map of {channels} channels; 1 to {most} fit"
        )


def diffusion_problems(model: ModelConfig, diffusion: EdmConfig | DiscreteConfig) -> Iterator[str]:
    """Noise levels that the network cannot be told."""
    if isinstance(diffusion, EdmConfig) and hasattr(model, "dim_mults"):
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


def released_problems(
    released: ReleasedConfig, data: DataConfig, model: ModelConfig, encoder: EncoderConfig
) -> Iterator[str]:
    """Switches of the published code on networks that lack what they change."""
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
