"""The directory of a training run.

runs/<name>-<time>/
    config.yaml       the resolved configuration
    circuits/         copies of the circuit files it names, if any: <name>-<digest>.qasm
    versions.json     versions of Python and the main packages
    metrics.jsonl     one JSON object per line: step, loss, ...
    samples/          pictures
    checkpoints/      step_<number>/: model.safetensors, ema.safetensors, training.pt, their
                      SHA256SUMS, and a copy of config.yaml; with several averages, ema-<length>
    snapshots/        step_<number>/: averages of earlier steps in half precision, SHA256SUMS
    diverged.json     the step whose loss was not finite, and its batch, if there was one
    lock              held by the process that trains
    launch.txt        of runs under torchrun: the launch that made it
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from qhdm import console
from qhdm._version import __version__
from qhdm.config import Config, PowerEmaConfig, to_yaml, with_circuit_files
from qhdm.errors import RunError
from qhdm.files import atomic_path, locked, remove_folder, sweep, timed_path, write_text
from qhdm.runs.checkpoints import (
    TRAINING,
    checkpoint_files,
    checkpoint_step,
    is_released,
    snapshot_files,
    verify,
    weight_file,
)
from qhdm.runs.config import circuit_digest, load_run_config, sealed
from qhdm.shipped import other_runs, run_path

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
class RunDirectory:
    """A run directory and the configuration it was made with.

    Attributes:
        path: the directory.
        config: the resolved configuration; `data.classes` is never null.
    """

    path: Path
    config: Config

    @classmethod
    def create(
        cls, config: Config, path: Path | None = None, *, launch: str | None = None
    ) -> RunDirectory:
        """Make a new run directory, `runs/<name>-<time>` unless `path` is given.

        Circuit files are copied into it, so that later changes to them do not affect the run.
        A directory that the same `launch` began and did not finish is completed (`made_by`).

        Raises:
            RunError: the directory exists and is not empty, or cannot be made.
        """
        if path is None:
            path = timed_path(Path("runs"), config.name)
        if not _begun_by(launch, path) or (path / "config.yaml").exists():
            check_absent(path)
        contents: dict[Path, bytes] = {}

        def copied(circuit: str) -> str:
            source = Path(circuit)
            content = source.read_bytes()
            copy = path / "circuits" / f"{source.stem}-{circuit_digest(content)}{source.suffix}"
            contents[copy] = content
            return str(copy)

        run = cls(path, with_circuit_files(config, copied))
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{path}: cannot be made ({error.strerror})") from None
        if launch is not None:
            write_text(path / "launch.txt", launch + "\n")
        write_text(path / "versions.json", json.dumps(versions(), indent=2) + "\n")
        for copy, content in contents.items():
            with atomic_path(copy) as temporary:
                temporary.write_bytes(content)
        run.write_config()
        return run

    @staticmethod
    def made_by(launch: str | None, path: Path) -> bool:
        """Whether `path` is a run that an earlier start of this launch has made."""
        return _begun_by(launch, path) and (path / "config.yaml").is_file()

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """Open an existing run directory, given by its path or as the name of a shipped model.

        Raises:
            RunError: it is not a run directory, or one of its circuits is missing or changed.
            ConfigError: its configuration cannot be read.
        """
        path = run_path(path)
        return cls(path, load_run_config(path))

    @classmethod
    def newest(cls, path: str | Path) -> Path:
        """`path`, or if there is no such folder, the newest run named `<path>-<time>`.

        The name of a shipped model stays as it is.

        Raises:
            RunError: there is none of these.
        """
        path = Path(path)
        if path.exists():
            return path
        timed = re.compile(re.escape(path.name) + r"-(\d{8}-\d{6})(?:-(\d+))?")
        runs = [
            ((match[1], int(match[2] or 1)), run)
            for run in path.parent.glob("*")
            if (match := timed.fullmatch(run.name)) and (run / "config.yaml").is_file()
        ]
        if runs:
            return max(runs)[1]
        if run_path(path) == path:
            raise RunError(
                f"{path}: neither a run directory nor the name of one ({path.name}-<time>); train "
                f"one, or name another{other_runs(path)}"
            )
        return path

    def write_config(self) -> None:
        """Write the configuration to the directory."""
        write_text(self.path / "config.yaml", self._config_text())

    def _config_text(self) -> str:
        """The sealed configuration, with circuit files relative to the directory."""

        def relative(circuit: str) -> str:
            return Path(circuit).relative_to(self.path).as_posix()

        return sealed(to_yaml(with_circuit_files(self.config, relative)))

    def locked(self) -> AbstractContextManager[None]:
        """Lock the run for training by this process.

        Raises:
            RunError: another process is training it.
        """
        return locked(
            self.path,
            RunError(f"{self.path}: another process is training this run; wait for it, or stop it"),
        )

    def picture_path(self, step: int) -> Path:
        """The file for the sample grid of a training step."""
        return self.path / "samples" / f"step_{step:07d}.png"

    def checkpoint_path(self, step: int) -> Path:
        """The folder for the checkpoint of a training step."""
        return self.path / "checkpoints" / f"step_{step:07d}"

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return _by_step(self.path / "checkpoints")

    def snapshots(self) -> list[Path]:
        """Snapshots of averaged weights, oldest first."""
        return _by_step(self.path / "snapshots")

    def last_step(self) -> int:
        """The step of the newest undamaged checkpoint, 0 if there is none."""
        good, _ = self._newest_good()
        return checkpoint_step(good) if good else 0

    def save_checkpoint(
        self, step: int, weights: Mapping[str, Mapping[str, Tensor]], optimizer: Mapping[str, Any]
    ) -> Path:
        """Write a checkpoint atomically and remove the oldest beyond `train.keep_checkpoints`.

        Checkpoints of this step and later ones are damaged, as training resumed before them; they
        are removed too.

        Args:
            step: its number.
            weights: `model`, and the averages by name.
            optimizer: its state.

        Raises:
            RunError: it cannot be written, for example on a full disk; earlier ones are kept.
        """
        contents = checkpoint_files(weights, step=step, optimizer=optimizer)
        contents["config.yaml"] = self._config_text().encode()
        path = self.checkpoint_path(step)
        with self._writing(path):
            _write_folder(path, contents)
            _keep_newest(self.checkpoints(), step, self.config.train.keep_checkpoints)
        return path

    def save_snapshot(self, step: int, averages: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write a snapshot of averages atomically and remove the oldest beyond those configured.

        Raises:
            RunError: it cannot be written.
        """
        ema = self.config.train.ema
        assert isinstance(ema, PowerEmaConfig)
        path = self.path / "snapshots" / f"step_{step:07d}"
        with self._writing(path):
            _write_folder(path, snapshot_files(averages))
            _keep_newest(self.snapshots(), step, ema.snapshots)

    def forget_snapshots(self, step: int) -> None:
        """Remove the snapshots after `step`, where training is resumed."""
        for path in self.snapshots():
            if checkpoint_step(path) > step:
                remove_folder(path)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritable(path, error, self.path) from None

    def latest_checkpoint(self) -> Path:
        """The newest undamaged checkpoint; damaged ones are reported on stderr.

        Raises:
            RunError: there is none.
        """
        good, damaged = self._newest_good()
        if good is None:
            if damaged:
                raise RunError(f"{damaged[0]}; {self.path} has no undamaged checkpoint")
            raise RunError(f"{self.path}: has no checkpoint yet; train it first")
        for problem in damaged:
            console.message(f"qhdm: {problem}; resuming from {good}")
        return good

    def _newest_good(self) -> tuple[Path | None, list[RunError]]:
        """The newest undamaged checkpoint, and what is wrong with newer ones."""
        damaged = []
        for checkpoint in reversed(self.checkpoints()):
            try:
                self.verify(checkpoint)
            except RunError as error:
                damaged.append(error)
            else:
                return checkpoint, damaged
        return None, damaged

    def verify(self, folder: Path) -> None:
        """Compare the files of a checkpoint or snapshot with their checksums.

        Raises:
            RunError: a file is missing or damaged.
        """
        names = [weight_file(name) for name in self.config.train.ema.names]
        if folder.parent.name == "checkpoints" and not is_released(folder):
            names = [weight_file("model"), *names, TRAINING]
        verify(folder, names)

    def sweep(self) -> None:
        """Remove partial files of killed processes. The run must be locked."""
        for name in ("checkpoints", "snapshots"):
            sweep(self.path / name)
        for name in ("config.yaml", "metrics.jsonl"):
            sweep(self.path, name)


def _by_step(folder: Path) -> list[Path]:
    """The folders `step_<number>` in a folder, by their numbers."""
    paths = (path for path in folder.glob("step_*") if checkpoint_step(path) >= 0)
    return sorted(paths, key=checkpoint_step)


def _write_folder(path: Path, contents: Mapping[str, bytes]) -> None:
    """Replace a folder of files atomically."""
    if path.exists():
        remove_folder(path)
    with atomic_path(path) as temporary:
        temporary.mkdir()
        for name, data in contents.items():
            (temporary / name).write_bytes(data)


def _keep_newest(folders: list[Path], step: int, number: int) -> None:
    """Remove the folders after `step`, and the oldest of the others beyond `number`."""
    older = [path for path in folders if checkpoint_step(path) <= step]
    for path in folders:
        if path not in older[-number:]:
            remove_folder(path)


def check_absent(path: Path) -> None:
    """Raise `RunError` if there is anything at `path` but an empty folder."""
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(
                f"{path}: exists already; give another --out, or resume it with "
                f"`qhdm train --resume {path}`"
            )
    except OSError as error:
        raise RunError(f"{path}: cannot be made ({error.strerror})") from None


def _begun_by(launch: str | None, path: Path) -> bool:
    try:
        text = (path / "launch.txt").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return launch is not None and text.strip() == launch


def unwritable(path: Path, error: OSError, run: Path) -> RunError:
    """The error for a file of a run in training that cannot be written."""
    return RunError(
        f"{path}: cannot be written ({error.strerror or error}); free some space or fix its "
        f"folder, then resume with `qhdm train --resume {run}`"
    )


def versions() -> dict[str, str]:
    """Versions of qhdm, Python and those of the main packages that are installed."""
    installed = {"qhdm": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed
