"""The run directory: everything a training run leaves behind.

runs/<name>-<time>/
    config.yaml       the resolved configuration
    circuits/         copies of the circuit files it names, if any: <name>-<digest>.qasm
    versions.json     of Python and the packages that matter
    metrics.jsonl     one JSON object per line: step, loss, ...
    samples/          pictures
    checkpoints/      step_<number>/: model.safetensors, ema.safetensors, training.pt
    launch.txt        of runs made under torchrun: which launch made it
"""

from __future__ import annotations

import json
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qhdm import __version__
from qhdm.config import (
    Config,
    circuit_digest,
    is_circuit_file,
    load_run_config,
    to_yaml,
    with_ansatz,
)
from qhdm.errors import RunError
from qhdm.files import atomic_path, write_text

_PACKAGES = (
    "torch",
    "qiskit",
    "qiskit-aer",
    "qiskit-machine-learning",
    "numpy",
    "pillow",
    "safetensors",
)


@dataclass(frozen=True)
class Run:
    """A run directory and the configuration it was made with.

    Attributes:
        path: the directory.
        config: the resolved configuration; `data.classes` is never null.
    """

    path: Path
    config: Config

    @classmethod
    def create(cls, config: Config, path: Path | None = None, *, launch: str | None = None) -> Run:
        """Make a new run directory, `runs/<name>-<time>` unless `path` is given.

        Circuit files are copied into it, so that the run stays what it is if they change. `launch`
        is kept, so that the same launch knows its run again (`made_by`).

        Raises:
            RunError: the directory exists and is not empty, or cannot be made.
        """
        if path is None:
            stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
            base = path = Path("runs") / f"{config.name}-{stamp}"
            attempt = 1
            while path.exists():
                attempt += 1
                path = base.with_name(f"{base.name}-{attempt}")
        check_absent(path)
        circuits = _Circuits(path / "circuits")
        config = with_ansatz(config, circuits.keep)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{path}: cannot be made ({error.strerror})") from None
        write_text(path / "versions.json", json.dumps(versions(), indent=2) + "\n")
        circuits.write()
        run = cls(path, config)
        run.write_config()
        if launch is not None:
            write_text(path / "launch.txt", launch + "\n")
        return run

    @staticmethod
    def made_by(launch: str | None, path: Path | None) -> bool:
        """Whether `path` is a run that this launch has made, before it was started again."""
        if launch is None or path is None:
            return False
        try:
            return (path / "launch.txt").read_text(encoding="utf-8").strip() == launch
        except (OSError, UnicodeDecodeError):
            return False

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open an existing run directory.

        Raises:
            RunError: it is not a run directory, or one of its circuits is missing or changed.
            ConfigError: its configuration cannot be read.
        """
        path = Path(path)
        return cls(path, load_run_config(path))

    @classmethod
    def newest(cls, path: str | Path) -> Path:
        """A run directory, or the newest that `create` made for a configuration of that name.

        `runs/quickstart` is the folder of that name, and where there is none, the newest of
        `runs/quickstart-<time>` that has a configuration.

        Raises:
            RunError: there is neither.
        """
        path = Path(path)
        if path.exists():
            return path
        stamped = re.compile(re.escape(path.name) + r"-(\d{8}-\d{6})(?:-(\d+))?")
        found = [
            ((match[1], int(match[2] or 1)), run)
            for run in path.parent.glob("*")
            if (match := stamped.fullmatch(run.name)) and (run / "config.yaml").is_file()
        ]
        if not found:
            raise RunError(
                f"{path}: neither a run directory nor the name of one ({path.name}-<time>); train "
                "one, or name another"
            )
        return max(found)[1]

    def write_config(self) -> None:
        """Write the configuration to the directory, with circuit files relative to it."""

        def relative(ansatz: str) -> str:
            if not is_circuit_file(ansatz):
                return ansatz
            return Path(ansatz).relative_to(self.path).as_posix()

        write_text(self.path / "config.yaml", to_yaml(with_ansatz(self.config, relative)))

    def picture_path(self, step: int) -> Path:
        """Where the sample grid of a training step goes."""
        return self.path / "samples" / f"step_{step:07d}.png"

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of a training step is."""
        return self.path / "checkpoints" / f"step_{step:07d}"

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = (self.path / "checkpoints").glob("step_*")
        return sorted((path for path in found if _step(path) >= 0), key=_step)

    def last_step(self) -> int:
        """The step of the newest checkpoint, 0 if there is none."""
        checkpoints = self.checkpoints()
        return _step(checkpoints[-1]) if checkpoints else 0

    def save_checkpoint(
        self,
        step: int,
        *,
        model: Mapping[str, Tensor],
        ema: Mapping[str, Tensor],
        optimizer: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint whole, then drop the oldest beyond `train.keep_checkpoints`."""
        path = self.checkpoint_path(step)
        if path.exists():
            return path
        with atomic_path(path) as temporary:
            temporary.mkdir()
            save_file(_plain(model), temporary / "model.safetensors")
            save_file(_plain(ema), temporary / "ema.safetensors")
            torch.save({"step": step, "optimizer": optimizer}, temporary / "training.pt")
        for old in self.checkpoints()[: -self.config.train.keep_checkpoints]:
            shutil.rmtree(old)
        return path

    def latest_checkpoint(self) -> Path:
        """The newest checkpoint.

        Raises:
            RunError: there is none yet.
        """
        checkpoints = self.checkpoints()
        if not checkpoints:
            raise RunError(f"{self.path}: has no checkpoint yet; train it first")
        return checkpoints[-1]


def check_absent(path: Path) -> None:
    """Raise `RunError` unless a run directory can be made at `path`: no overwriting."""
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(
                f"{path}: exists already; give another --out, or go on with "
                f"`qhdm train --resume {path}`"
            )
    except OSError as error:
        raise RunError(f"{path}: cannot be made ({error.strerror})") from None


class _Circuits:
    """The circuit files of a new run: read before anything is made, then copied to `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._contents: dict[Path, bytes] = {}

    def keep(self, ansatz: str) -> str:
        """Where the copy of a circuit file will be, under a name that tells its content."""
        if not is_circuit_file(ansatz):
            return ansatz
        source = Path(ansatz)
        content = source.read_bytes()
        copy = self._folder / f"{source.stem}-{circuit_digest(content)}{source.suffix}"
        self._contents[copy] = content
        return str(copy)

    def write(self) -> None:
        for copy, content in self._contents.items():
            with atomic_path(copy) as temporary:
                temporary.write_bytes(content)


def load_weights(path: Path, device: torch.device) -> dict[str, Tensor]:
    """Weights of a checkpoint file.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        return load_file(path, device=str(device))
    except FileNotFoundError:
        raise RunError(f"{path}: missing; the checkpoint is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path}: damaged ({error}); {_older(path)}") from None


def load_training_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Step and optimiser state of a checkpoint file; nothing in it is executed.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        return state
    except FileNotFoundError:
        raise RunError(f"{path}: missing; the checkpoint is incomplete") from None
    except Exception:  # torch raises many kinds for a damaged or hostile file
        raise RunError(f"{path}: damaged, or not a training state; {_older(path)}") from None


def _older(file: Path) -> str:
    return f"delete {file.parent} to go on from the checkpoint before it"


def _step(checkpoint: Path) -> int:
    """The step of a checkpoint directory, -1 for another name."""
    number = checkpoint.name.removeprefix("step_")
    return int(number) if number.isdecimal() else -1


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def versions() -> dict[str, str]:
    """Of qhdm, Python and the packages that matter."""
    own = {"qhdm": __version__, "python": platform.python_version()}
    return own | {name: metadata.version(name) for name in _PACKAGES}
