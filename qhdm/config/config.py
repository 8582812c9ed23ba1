"""The configuration as a whole, and its files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from qhdm.config.sections import (
    STRICT,
    DataConfig,
    DiffusionConfig,
    ModelConfig,
    QuantumConfig,
    ReleasedConfig,
    SampleConfig,
    TrainConfig,
    VertexConfig,
    is_circuit_file,
)
from qhdm.errors import ConfigError
from qhdm.quantum.options import PATCH_CHANNELS, PATCH_SIZE
from qhdm.schema import read_document, validate, with_overrides
from qhdm.shipped import find_shipped


@dataclass(frozen=True, config=STRICT)
class Config:
    """Everything a run depends on. `name` is the first part of the run directory's name.

    Example:
        >>> config = qhdm.Config(
        ...     model=qhdm.ModelConfig(kind="qcunet"), train=qhdm.TrainConfig(steps=2000)
        ... )
        >>> config.vertex_filters
        1
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "eurosat"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    quantum: QuantumConfig = field(default_factory=QuantumConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    released: ReleasedConfig = field(default_factory=ReleasedConfig)

    @property
    def encoder_levels(self) -> tuple[int, ...]:
        """Encoder levels with quantum filters: none unless the kind has them."""
        return self.quantum.encoder.levels if self.model.kind == "qcunet" else ()

    @property
    def vertex_filters(self) -> int:
        """Filters at the vertex: none for the classical U-Net, all channels for `fullqvunet`."""
        channels = self.model.vertex_channels
        if self.model.kind == "unet":
            return 0
        if self.model.kind == "fullqvunet":
            return channels // PATCH_CHANNELS
        return self.quantum.vertex.count(channels)

    @property
    def p2_k(self) -> float:
        """k of the loss weight."""
        diffusion = self.diffusion
        return diffusion.p2_gamma if self.released.p2_k_from_gamma else diffusion.p2_k

    @model_validator(mode="after")
    def _check(self) -> Config:
        _check(self)
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML configuration.

    Args:
        path: the file, or the name of a shipped one: `quickstart`.
        overrides: `key=value` settings applied on top, for example `["model.kind=unet"]`.

    Raises:
        ConfigError: with the file, line, key and remedy.

    Example:
        >>> qhdm.load_config("configs/quickstart.yaml", ["model.kind=unet"]).model.kind
        'unet'
    """
    document = read_document(find_shipped("configs", path, ConfigError))
    return validate(Config, with_overrides(document, overrides))


def with_ansatz(config: Config, change: Callable[[str], str]) -> Config:
    """`config` with `change` applied to every ansatz."""
    quantum = config.quantum
    vertex = replace(quantum.vertex, ansatz=change(quantum.vertex.ansatz))
    encoder = replace(quantum.encoder, ansatz=change(quantum.encoder.ansatz))
    return replace(config, quantum=replace(quantum, vertex=vertex, encoder=encoder))


def to_dict(config: Config) -> dict[str, Any]:
    """`config` as plain data (dicts, lists, scalars)."""
    data: dict[str, Any] = TypeAdapter(Config).dump_python(config, mode="json")
    return data


def to_yaml(config: Config) -> str:
    """`config` as YAML that `load_config` reads back to an equal configuration."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def _check(config: Config) -> None:
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
                f"quantum.{section}.layers: {place.ansatz} fixes its own depth; set it to null "
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
