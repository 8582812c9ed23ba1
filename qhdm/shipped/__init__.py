"""The configurations, circuits and jobs that come with the package, found by name.

They are the folders `configs`, `circuits` and `jobs` of the repository: a wheel holds them inside
this package, in a clone they lie beside `qhdm`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from qhdm.errors import QhdmError, did_you_mean, shortened

Kind = Literal["configs", "circuits", "jobs"]
#: Folders of shipped files, and how the names of their files end.
SUFFIXES: dict[Kind, str] = {"configs": ".yaml", "circuits": ".qasm", "jobs": ".yaml"}

_HERE = Path(__file__).parent


def shipped_files(kind: Kind) -> dict[str, Path]:
    """Shipped files by name, which is the path below their folder without the suffix.

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
    """The file that a user means: an existing one, or else the shipped one of that name.

    Args:
        kind: where to look for shipped files.
        name: a path, or the name of a shipped file without its suffix.
        refusal: what to raise.
        others: further names that the caller knows, for the message.

    Returns:
        A path. That of a folder, or in one that does not exist, is returned as it is, for its
        reader to refuse.

    Raises:
        refusal: it is neither.

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
    """Whether a path is anything but a folder: pipes can be read as well."""
    try:
        return path.exists() and not path.is_dir()
    except OSError:
        return True  # exists or not, it cannot be read: its reader says why
