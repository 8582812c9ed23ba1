"""The configuration as a whole, and its files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from qhdm.config.consistency import check
from qhdm.config.sections import (
    PATCH_CHANNELS,
    STRICT,
    DataConfig,
    DiffusionConfig,
    ModelConfig,
    QuantumConfig,
    ReleasedConfig,
    SampleConfig,
    TrainConfig,
)
from qhdm.schema import read_document, validate, with_overrides


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
        check(self)
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML configuration.

    Args:
        path: the file.
        overrides: `key=value` settings applied on top, for example `["model.kind=unet"]`.

    Raises:
        ConfigError: with the file, line, key and remedy.

    Example:
        >>> qhdm.load_config("configs/quickstart.yaml", ["model.kind=unet"]).model.kind
        'unet'
    """
    return validate(Config, with_overrides(read_document(Path(path)), overrides))


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
