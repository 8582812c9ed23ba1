"""The configuration as a whole, and its YAML files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    released_problems,
    sampling_problems,
    shape_problems,
)
from qhdm.config.diffusion import DiscreteConfig, EdmConfig
from qhdm.config.sampling import SampleConfig
from qhdm.config.sections import (
    STRICT,
    DataConfig,
    ModelConfig,
    QuantumConfig,
    ReleasedConfig,
    TrainConfig,
    VertexConfig,
    is_circuit_file,
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
        1
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "eurosat"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    quantum: QuantumConfig = field(default_factory=QuantumConfig)
    # Until the recommended network is the default, so is not EDM, which needs it.
    diffusion: Annotated[EdmConfig | DiscreteConfig, Either] = field(default_factory=DiscreteConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    released: ReleasedConfig = field(default_factory=ReleasedConfig)

    @property
    def encoder_levels(self) -> tuple[int, ...]:
        """Encoder levels with quantum filters."""
        return self.quantum.encoder.levels if self.model.kind == "qcunet" else ()

    @property
    def vertex_filters(self) -> int:
        """Number of filters at the vertex."""
        channels = self.model.vertex_channels
        if self.model.kind == "unet":
            return 0
        if self.model.kind == "fullqvunet":
            return channels // PATCH_CHANNELS
        return self.quantum.vertex.count(channels)

    @model_validator(mode="after")
    def _check(self) -> Config:
        data, model, quantum = self.data, self.model, self.quantum
        if aer := quantum.aer.problem():
            raise ValueError(f"quantum.aer.{aer[0]}: {aer[1]}")
        for problem in chain(
            shape_problems(data, model),
            filter_problems(data, model, quantum),
            released_problems(self.released, data, model, quantum.encoder),
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
