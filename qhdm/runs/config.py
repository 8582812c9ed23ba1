"""The configuration in a run directory, sealed with a checksum, and its circuit files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from qhdm.config import Config, load_config, with_circuit_files
from qhdm.errors import RunError
from qhdm.schema import MAX_BYTES
from qhdm.shipped import other_runs

#: First line of a run's configuration. Readers check the checksum alone.
_SEAL = (
    "# sha256 {} of the lines below; to change settings: qhdm train --resume RUN --set KEY=VALUE"
)


def config_path(run: Path) -> Path:
    """The configuration in a run directory.

    Raises:
        RunError: `run` is not a run directory.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise RunError(
            f"{run}: not a run directory (no config.yaml in it); `qhdm train` prints the one it "
            f"makes{other_runs(run)}"
        )
    return path


def load_run_config(run: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a run directory, with the paths of its circuit files in it.

    Raises:
        RunError: `run` is not a run directory, its configuration is damaged, or one of its
            circuits is missing or was changed.
        ConfigError: the configuration or an override cannot be used.
    """
    path = config_path(run)
    _check_seal(path)
    own = load_config(path)
    if own.data.classes is None:
        raise RunError(
            f"{path}: data.classes is null, which it is in no run: damaged; {_remedy(path)}"
        )
    own_circuits = {own.quantum.vertex.ansatz, own.quantum.encoder.ansatz}

    def locate(circuit: str) -> str:
        if circuit not in own_circuits:  # an override: relative to the current folder
            return circuit
        file = run / circuit
        if Path(circuit).is_absolute() or ".." in Path(circuit).parts:
            raise RunError(f"{path}: {circuit}: not in the run; damaged; {_remedy(path)}")
        if not file.is_file():
            raise RunError(f"{file}: missing; a run needs the circuits it was made with")
        if file.stem.rpartition("-")[2] != circuit_digest(file.read_bytes()):
            raise RunError(
                f"{file}: changed since the run was made; put back the circuit of the run"
            )
        return str(file)

    return with_circuit_files(load_config(path, overrides), locate)


def sealed(text: str) -> str:
    """The text of a configuration behind a comment line with its checksum."""
    return _SEAL.format(hashlib.sha256(text.encode()).hexdigest()) + "\n" + text


def circuit_digest(content: bytes) -> str:
    """The end of a circuit file's name in a run directory: part of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def _check_seal(path: Path) -> None:
    """Raise `RunError` unless the checksum of a run's configuration fits, if it has one."""
    with path.open("rb") as file:
        seal, _, text = file.read(MAX_BYTES + 1).partition(b"\n")
    # Runs of versions before checksums, and configurations written by hand, have no seal.
    if seal.startswith(b"# sha256 ") and _digest(seal) != hashlib.sha256(text).hexdigest():
        raise RunError(
            f"{path}: damaged, or changed by hand (its checksum differs); {_remedy(path)}"
        )


def _digest(seal: bytes) -> str:
    return seal.removeprefix(b"# sha256 ").partition(b" ")[0].decode(errors="replace")


def _remedy(path: Path) -> str:
    copies = sorted(path.parent.glob(f"checkpoints/step_*/{path.name}"))
    return f"put back its copy: cp {copies[-1]} {path}" if copies else "put it back from a copy"
