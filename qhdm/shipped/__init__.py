"""The configurations, circuits and jobs that come with the package, found by name.

In a wheel, the folders `configs`, `circuits` and `jobs` are inside this package; in a clone, they
are beside `qhdm`.
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
        ['aer', 'fez', 'rehearsal']
        >>> shipped_files("configs")["released/unet"].name
        'unet.yaml'
    """
    installed = _HERE / kind
    folder = installed if installed.is_dir() else _HERE.parents[1] / kind
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


def _is_file(path: Path) -> bool:
    """Whether a path is something that can be read: a file, pipe or device."""
    try:
        return path.exists() and not path.is_dir()
    except OSError:
        return True  # its reader will report why it cannot be read
