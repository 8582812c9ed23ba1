"""Files that are either whole or absent: written beside their place, synced, then renamed."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success, it replaces `path` (a file or a new directory).

    The temporary lies in the same directory, so that the rename is atomic. When the body raises,
    the temporary is removed and `path` is left as it was.

    Example:
        >>> with atomic_path(Path("weights.bin")) as temporary:
        ...     temporary.write_bytes(b"...")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield temporary
        files = temporary.rglob("*") if temporary.is_dir() else [temporary]
        for file in files:
            _sync(file)
        if temporary.is_dir():
            _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
