"""The configuration as a whole, and its files."""

from __future__ import annotations

import hashlib
import re
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
    EncoderConfig,
    ModelConfig,
    QuantumConfig,
    ReleasedConfig,
    SampleConfig,
    TrainConfig,
    VertexConfig,
    is_circuit_file,
)
from qhdm.errors import RunError
from qhdm.schema import MAX_BYTES, read_document, validate, with_overrides

#: First line of a run's configuration, which tells whether the rest is as it was written.
_SEAL = (
    "# sha256 {} of the lines below; to change settings: qhdm train --resume RUN --set KEY=VALUE"
)
_SEALED = re.compile(
    re.escape(_SEAL).replace(r"\{\}", "([0-9a-f]{64})").encode() + rb"\n(.*)", re.S
)


@dataclass(frozen=True, config=STRICT)
class Config:
    """Everything a run depends on. `name` is the first part of the run directory's name."""

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
    """
    return validate(Config, with_overrides(read_document(Path(path)), overrides))


def config_path(run: Path) -> Path:
    """The configuration in a run directory.

    Raises:
        RunError: `run` is not a run directory.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise RunError(
            f"{run}: not a run directory (no config.yaml in it); "
            "`qhdm train` prints the one it makes"
        )
    return path


def load_run_config(run: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a run directory, its circuit files found there.

    Raises:
        RunError: `run` is not a run directory, its configuration is damaged, or one of its
            circuits is missing or was changed.
        ConfigError: the configuration or an override cannot be used.
    """
    path = config_path(run)
    _check_seal(path)
    whole = load_config(path)
    if whole.data.classes is None:
        raise RunError(
            f"{path}: data.classes is null, which it is in no run: damaged; {_copy(path)}"
        )
    kept = {place.ansatz for place in _places(whole)}

    def locate(ansatz: str) -> str:
        # Overrides name files as everywhere, relative to the current folder.
        if ansatz not in kept or not is_circuit_file(ansatz):
            return ansatz
        file = run / ansatz
        if Path(ansatz).is_absolute() or ".." in Path(ansatz).parts:
            raise RunError(f"{path}: {ansatz}: not in the run; damaged; {_copy(path)}")
        if not file.is_file():
            raise RunError(f"{file}: missing; a run needs the circuits it was made with")
        if file.stem.rpartition("-")[2] != circuit_digest(file.read_bytes()):
            raise RunError(
                f"{file}: changed since the run was made; put back the circuit of the run"
            )
        return str(file)

    return with_ansatz(load_config(path, overrides), locate)


def sealed(text: str) -> str:
    """A configuration as a run keeps it: behind a line with its checksum."""
    return _SEAL.format(hashlib.sha256(text.encode()).hexdigest()) + "\n" + text


def _check_seal(path: Path) -> None:
    """Raise `RunError` if a run's configuration is not as it was written."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if not content.startswith(b"# sha256 "):
        return  # of a version before checksums, or written by hand
    match = _SEALED.fullmatch(content)
    if not match or hashlib.sha256(match[2]).hexdigest() != match[1].decode():
        raise RunError(f"{path}: damaged, or changed by hand (its checksum differs); {_copy(path)}")


def _copy(path: Path) -> str:
    copies = sorted(path.parent.glob(f"checkpoints/step_*/{path.name}"))
    return f"put back its copy: cp {copies[-1]} {path}" if copies else "put it back from a copy"


def circuit_digest(content: bytes) -> str:
    """What the name of a circuit file in a run directory ends in: part of its sha256."""
    return hashlib.sha256(content).hexdigest()[:16]


def with_ansatz(config: Config, change: Callable[[str], str]) -> Config:
    """`config` with `change` applied to every ansatz."""
    quantum = config.quantum
    vertex = replace(quantum.vertex, ansatz=change(quantum.vertex.ansatz))
    encoder = replace(quantum.encoder, ansatz=change(quantum.encoder.ansatz))
    return replace(config, quantum=replace(quantum, vertex=vertex, encoder=encoder))


def _places(config: Config) -> tuple[VertexConfig, EncoderConfig]:
    return config.quantum.vertex, config.quantum.encoder


def to_dict(config: Config) -> dict[str, Any]:
    """`config` as plain data (dicts, lists, scalars)."""
    data: dict[str, Any] = TypeAdapter(Config).dump_python(config, mode="json")
    return data


def to_yaml(config: Config) -> str:
    """`config` as YAML that `load_config` reads back to an equal configuration."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
