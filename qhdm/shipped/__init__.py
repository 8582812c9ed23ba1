"""The configurations, circuits, jobs and trained models that come with the package, by name.

In a wheel, the folders `configs`, `circuits`, `jobs` and `pretrained` are inside this package; in a
clone, they are beside `qhdm`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from qhdm.errors import QhdmError, did_you_mean, shortened

Kind = Literal["configs", "circuits", "jobs"]
#: Folders of shipped files, and the suffix of their files.
SUFFIXES: dict[Kind, str] = {"configs": ".yaml", "circuits": ".qasm", "jobs": ".yaml"}

_HERE = Path(__file__).parent


def shipped_files(kind: Kind) -> dict[str, Path]:
    """Shipped files by name: the path below their folder, without the suffix.

    Example:
        >>> sorted(shipped_files("jobs"))
        ['aer', 'boston', 'rehearsal']
        >>> shipped_files("configs")["released/unet"].name
        'unet.yaml'
    """
    folder = _folder(kind)
    files = sorted(folder.rglob(f"*{SUFFIXES[kind]}"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def find_shipped(
    kind: Kind, name: str | Path, refusal: type[QhdmError], *, others: Iterable[str] = ()
) -> Path:
    """The file at the path `name`, or else the shipped file of that name.

    Paths of folders, and in folders that do not exist, are returned for their reader to refuse.

    Args:
        kind: of shipped file.
        name: a path, or the name of a shipped file without its suffix.
        refusal: type of the error.
        others: further known names, for the message.

    Raises:
        refusal: there is neither.

    Example:
        >>> find_shipped("configs", "quickstart", ConfigError).name
        'quickstart.yaml'
    """
    path = Path(name)
    files = shipped_files(kind)
    if _is_file(path):
        return path
    if str(name) in files:
        return files[str(name)]
    if path.is_dir():
        return path
    if path.parent == Path():
        known = list(dict.fromkeys([*others, *files]))
        raise refusal(
            f"{shortened(str(name))}: no such file, and not a name that qhdm knows; known are "
            f"{', '.join(known)}{did_you_mean(path.stem, known)}"
        )
    meant = path.with_suffix("").as_posix().removeprefix(f"{kind}/")
    if meant in files:
        raise refusal(
            f"{name}: no such file; the one that comes with qhdm is named {meant} "
            "(`qhdm init` copies all of them here)"
        )
    return path


def shipped_runs() -> dict[str, Path]:
    """Run directories of the shipped trained models, by name.

    Example:
        >>> sorted(shipped_runs())
        ['eurosat']
    """
    configs = sorted(_folder("pretrained").glob("*/config.yaml"))
    return {config.parent.name: config.parent for config in configs}


def run_path(name: str | Path) -> Path:
    """The path `name`, or else the run directory of the shipped model of that name.

    Paths where there is nothing are returned for their reader to refuse.
    """
    path = Path(name)
    runs = shipped_runs()
    return runs[str(path)] if str(path) in runs and not path.exists() else path


def run_name(run: Path) -> str:
    """The name of a shipped model, given by its run directory; of other runs, their path."""
    return run.resolve().name if is_shipped(run) else str(run)


def results_path(run: str | Path) -> Path:
    """The folder for what is made of a run, given by path or name: its directory.

    Of a shipped model, into which nothing is written, it is one in the working directory.
    """
    path = run_path(run)
    return Path("runs") / f"pretrained-{run_name(path)}" if is_shipped(path) else path


def other_runs(name: str | Path) -> str:
    """The end of a message about what is no run directory: which ones come with qhdm."""
    known = list(shipped_runs())
    if str(name) in known:
        return "; it hides the one that comes with qhdm: rename it, or work in another folder"
    if Path(name).exists():
        return ""
    return f"; qhdm comes with {', '.join(known)}{did_you_mean(Path(name).name, known)}"


def is_shipped(run: str | Path) -> bool:
    """Whether a run, given by path or name, is a shipped model."""
    return run_path(run).resolve().parent == _folder("pretrained").resolve()


def _folder(kind: Kind | Literal["pretrained"]) -> Path:
    installed = _HERE / kind
    return installed if installed.is_dir() else _HERE.parents[1] / kind


def _is_file(path: Path) -> bool:
    """Whether a path is something that can be read: a file, pipe or device."""
    try:
        return path.exists() and not path.is_dir()
    except OSError:
        return True  # its reader will report why it cannot be read
