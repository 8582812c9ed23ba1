"""What the sections of a configuration require of each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qhdm.config.sections import (
    PATCH_CHANNELS,
    PATCH_SIZE,
    VertexConfig,
    is_circuit_file,
)

if TYPE_CHECKING:
    from qhdm.config.config import Config


def check(config: Config) -> None:
    """Raise `ValueError`, with the key and the remedy, where sections contradict each other."""
    _check_shapes(config)
    _check_filters(config)
    _check_released(config)
    if problem := config.quantum.aer.problem():
        raise ValueError(f"quantum.aer.{problem[0]}: {problem[1]}")
    classes = config.data.classes
    if classes is not None and (not classes or len(set(classes)) != len(classes)):
        raise ValueError("data.classes: must name at least one class, each once (or be null)")
    if config.sample.steps > config.diffusion.timesteps:
        raise ValueError(
            f"sample.steps: {config.sample.steps} exceeds diffusion.timesteps "
            f"({config.diffusion.timesteps})"
        )
    if config.sample.guidance != 1 and config.train.label_dropout == 0:
        raise ValueError(
            "sample.guidance: guidance needs a model that was trained without labels at times; "
            "set train.label_dropout above 0, or sample.guidance to 1"
        )


def _check_shapes(config: Config) -> None:
    model, size = config.model, config.data.image_size
    if model.dim % model.groups:
        raise ValueError(f"model.groups: {model.groups} does not divide model.dim ({model.dim})")
    downsamplings = len(model.dim_mults) - 1
    if size % 2**downsamplings:
        raise ValueError(
            f"data.image_size: {size} is not divisible by {2**downsamplings}, as "
            f"{len(model.dim_mults)} levels (model.dim_mults) require"
        )


def _check_filters(config: Config) -> None:
    model, size = config.model, config.data.image_size
    if model.kind == "unet":
        return
    for section, place in (("vertex", config.quantum.vertex), ("encoder", config.quantum.encoder)):
        if is_circuit_file(place.ansatz) and place.layers is not None:
            raise ValueError(
                f"quantum.{section}.layers: {place.ansatz} has the layers it has; set it to null "
                f"(--set quantum.{section}.layers=null)"
            )
    levels = config.encoder_levels
    if model.kind == "qcunet" and not levels:
        raise ValueError(
            "quantum.encoder.levels: qcunet needs one; for none, use model.kind qvunet"
        )
    if len(set(levels)) != len(levels):
        raise ValueError(f"quantum.encoder.levels: a level is given twice in {list(levels)}")
    for level in levels:
        if level >= len(model.dim_mults):
            raise ValueError(
                f"quantum.encoder.levels: there is no level {level}; model.dim_mults gives levels "
                f"0 to {len(model.dim_mults) - 1}"
            )
        channels = model.level_channels[level]
        _check_map(f"encoder level {level}", size >> level, size)
        _check_count("quantum.encoder", config.quantum.encoder, channels)
    _check_map("the vertex", size >> (len(model.dim_mults) - 1), size)
    if model.kind == "fullqvunet":
        if model.vertex_channels % PATCH_CHANNELS:
            raise ValueError(
                f"model.kind: fullqvunet needs vertex channels in multiples of {PATCH_CHANNELS}, "
                f"but model.dim x model.dim_mults[-1] is {model.vertex_channels}"
            )
    else:
        _check_count("quantum.vertex", config.quantum.vertex, model.vertex_channels)


def _check_released(config: Config) -> None:
    released, model = config.released, config.model
    if released.discard_second_pass and model.kind not in ("qvunet", "qcunet"):
        raise ValueError(
            f"released.discard_second_pass: model.kind {model.kind} has no QResNet block whose "
            "second pass the published code discards; set it to false, or use qvunet or qcunet"
        )
    both = model.kind == "qcunet" and config.quantum.encoder.replace == "both"
    if released.second_pass_reads_input and not both:
        raise ValueError(
            "released.second_pass_reads_input: needs a second quantum pass in the encoder; use "
            "model.kind qcunet and quantum.encoder.replace both"
        )
    if released.swapped_embedding:
        _check_swapped_embedding(config)


def _check_swapped_embedding(config: Config) -> None:
    classes, model = config.data.classes, config.model
    if classes is None:
        raise ValueError(
            "released.swapped_embedding: the embedding has one value for each class, so name them "
            "in data.classes"
        )
    if len(classes) != model.label_dim:
        raise ValueError(
            f"released.swapped_embedding: embeds a label in one value for each class; set "
            f"model.label_dim to {len(classes)}, the number of data.classes"
        )
    if len(classes) > model.dim:
        raise ValueError(
            f"released.swapped_embedding: the table has model.dim ({model.dim}) vectors, too few "
            f"for {len(classes)} classes; raise model.dim or name fewer data.classes"
        )


def _check_map(place: str, side: int, image_size: int) -> None:
    if side % PATCH_SIZE:
        raise ValueError(
            f"data.image_size: quantum filters tile their map with {PATCH_SIZE}x{PATCH_SIZE} "
            f"patches, but {place} has {side}x{side} pixels at image size {image_size}; "
            "use an even map (other image size, fewer levels) or model.kind unet"
        )


def _check_count(section: str, place: VertexConfig, channels: int) -> None:
    count = place.count(channels)
    key = "filters" if place.rho is None else "rho"
    if count < 1 or count * PATCH_CHANNELS > channels:
        most = channels // PATCH_CHANNELS
        raise ValueError(
            f"{section}.{key}: gives {count} filters of {PATCH_CHANNELS} channels on a map of "
            f"{channels} channels; 1 to {most} fit"
        )
