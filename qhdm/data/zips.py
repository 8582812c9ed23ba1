"""Reading zips that nobody has vetted: unsafe, damaged and encrypted entries are refused."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path

from qhdm.errors import DataError, one_line

#: What `zipfile` raises for damaged archives and for compressions it does not know.
ZIP_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip for reading.

    Raises:
        DataError: the file cannot be read, or is not a zip.
    """
    try:
        return zipfile.ZipFile(path)
    except ZIP_FAULTS as error:
        raise DataError(
            f"{path}: not a zip, or damaged ({one_line(error)}); give a folder or a whole zip"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from None


def entry_parts(info: zipfile.ZipInfo, path: Path) -> list[str]:
    """The components of an entry's name, without empty ones and `.`.

    Raises:
        DataError: there is no name, or it is absolute, climbs with `..`, or hides a path in a
            backslash, a drive letter or a NUL.
    """
    # `filename` has been cut at a NUL and had its separators replaced; the tricks are in the raw.
    raw = info.orig_filename
    if "\\" in raw:
        raise DataError(
            f"{path}: backslash in entry {raw!r}: zips separate folders with /; unpack it and give "
            "the folder, or make the zip again with a program that keeps to this"
        )
    parts = raw.split("/")
    if not raw or raw.startswith("/") or ".." in parts or re.search(r"^[A-Za-z]:|\0", raw):
        raise DataError(
            f"{path}: unsafe path in entry {raw!r}; make the zip again with plain relative paths"
        )
    return [part for part in parts if part not in ("", ".")]


def read_entry(archive: zipfile.ZipFile, entry: str, path: Path) -> bytes:
    """The content of one entry, its checksum verified. Safe to call from several threads.

    Raises:
        DataError: the entry is damaged, or compressed in a way that is not supported.
    """
    try:
        return archive.read(entry)
    except (*ZIP_FAULTS, OSError) as error:
        raise DataError(
            f"{path}: {entry}: damaged zip entry ({one_line(error)}); make the zip again, "
            "or set data.skip_broken: true"
        ) from None
