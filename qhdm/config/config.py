"""The configuration as a whole, and its YAML files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from qhdm.config.checks import (
    diffusion_problems,
    filter_problems,
    published_problems,
    sampling_problems,
    shape_problems,
)
from qhdm.config.data import DataConfig
from qhdm.config.diffusion import DiscreteConfig, EdmConfig
from qhdm.config.fields import STRICT, is_circuit_file
from qhdm.config.published import (
    PublishedModelConfig,
    ReleasedConfig,
    with_defaults,
)
from qhdm.config.sampling import SampleConfig
from qhdm.config.sections import (
    ModelConfig,
    QuantumConfig,
    TrainConfig,
    VertexConfig,
)
from qhdm.errors import ConfigError
from qhdm.quantum.options import PATCH_CHANNELS
from qhdm.schema import Either, one_line_errors, read_document, validate, with_overrides
from qhdm.shipped import find_shipped

P = TypeVar("P", bound=VertexConfig)


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class Config:
    """Everything a run depends on.

    `name` is the first part of the run directory's name.

    Example:
        >>> config = qhdm.Config(
        ...     model=qhdm.ModelConfig(kind="qcunet"), train=qhdm.TrainConfig(steps=2000)
        ... )
        >>> config.vertex_filters
        4
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "eurosat"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    data: DataConfig = field(default_factory=DataConfig)
    model: Annotated[ModelConfig | PublishedModelConfig, Either] = field(
        default_factory=ModelConfig
    )
    quantum: QuantumConfig = field(default_factory=QuantumConfig)
    diffusion: Annotated[EdmConfig | DiscreteConfig, Either] = field(default_factory=EdmConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    released: ReleasedConfig = field(default_factory=ReleasedConfig)

    @property
    def encoder_filters(self) -> dict[int, int]:
        """Number of filters on each encoder level that has some."""
        if self.model.kind != "qcunet":
            return {}
        return self.quantum.encoder.counts(self.model.level_channels)

    @property
    def vertex_filters(self) -> int:
        """Number of filters at the vertex."""
        channels = self.model.vertex_channels
        if self.model.kind == "unet":
            return 0
        if self.model.kind == "fullqvunet":
            return channels // PATCH_CHANNELS
        return self.quantum.vertex.count(channels)

    @classmethod
    def completed(cls, data: Any) -> Any:
        """The data of a file, with the published values of keys that it leaves out."""
        variants = (ModelConfig, PublishedModelConfig)
        if isinstance(data, Mapping) and Either.is_second(data.get("model"), variants):
            return with_defaults(data)
        return data

    @model_validator(mode="after")
    def _check(self) -> Config:
        data, model, quantum = self.data, self.model, self.quantum
        if aer := quantum.aer.problem():
            raise ValueError(f"quantum.aer.{aer[0]}: {aer[1]}")
        for problem in chain(
            shape_problems(data, model),
            filter_problems(data, model, quantum),
            published_problems(self.released, data, model, quantum.encoder),
            diffusion_problems(model, self.diffusion),
            sampling_problems(self.sample, self.diffusion, self.train),
        ):
            raise ValueError(problem)
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


def with_circuit_files(config: Config, change: Callable[[str], str]) -> Config:
    """`config` with `change` applied to the path of each circuit file."""

    def changed(place: P) -> P:
        file = is_circuit_file(place.ansatz)
        return replace(place, ansatz=change(place.ansatz)) if file else place

    quantum = config.quantum
    quantum = replace(quantum, vertex=changed(quantum.vertex), encoder=changed(quantum.encoder))
    return replace(config, quantum=quantum)


def to_dict(config: Config) -> dict[str, Any]:
    """`config` as plain data (dicts, lists, scalars)."""
    data: dict[str, Any] = TypeAdapter(Config).dump_python(config, mode="json")
    return data


def to_yaml(config: Config) -> str:
    """`config` as YAML that `load_config` reads back to an equal configuration."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
