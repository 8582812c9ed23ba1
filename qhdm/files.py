"""Atomic writing of files and folders, and locks of folders."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success, it replaces `path` (a file or a new directory).

    The temporary is in the same directory, so that the rename is atomic. If the body raises, it is
    removed and `path` is unchanged.

    Example:
        >>> with atomic_path(Path("weights.bin")) as temporary:
        ...     temporary.write_bytes(b"...")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        files = temporary.rglob("*") if temporary.is_dir() else [temporary]
        for file in files:
            _sync(file)
        if temporary.is_dir():
            _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        if error.filename is None:  # as where the disk is full
            error.filename = str(path)
        raise
    finally:
        _delete(temporary)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_folder(path: Path) -> None:
    """Remove a folder at once: a crash in the middle leaves a temporary, not half a folder."""
    temporary = _temporary(path)
    os.replace(path, temporary)
    _delete(temporary)


def sweep(folder: Path, name: str = "*") -> None:
    """Remove the temporaries of `name` (a pattern) that killed processes left in a folder.

    No other process may be writing such files at the same time.
    """
    for path in folder.glob(f".{name}.*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            _delete(path)


def timed_path(folder: Path, name: str) -> Path:
    """`folder/<name>-<date>-<time>`, with a number behind it where that exists already."""
    first = path = folder / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    numbers = itertools.count(2)
    while path.exists():
        path = first.with_name(f"{first.name}-{next(numbers)}")
    return path


@contextmanager
def locked(folder: Path, refusal: Exception) -> Iterator[None]:
    """Keep other processes from working on a folder; the system frees it when one dies.

    Args:
        folder: gets a permanent file `lock`; may be on a network file system.
        refusal: raised if another process has it.
    """
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        yield
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
