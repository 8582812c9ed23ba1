"""The configuration in a run directory: sealed with a checksum, its circuit files found there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from qhdm.config import Config, is_circuit_file, load_config, with_ansatz
from qhdm.errors import RunError
from qhdm.schema import MAX_BYTES

#: First line of a run's configuration, which tells whether the rest is as it was written.
_SEAL = (
    "# sha256 {} of the lines below; to change settings: qhdm train --resume RUN --set KEY=VALUE"
)
_SEALED = re.compile(
    re.escape(_SEAL).replace(r"\{\}", "([0-9a-f]{64})").encode() + rb"\n(.*)", re.S
)


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
    kept = {place.ansatz for place in (whole.quantum.vertex, whole.quantum.encoder)}

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
