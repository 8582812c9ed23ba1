"""Downloads that survive dropped connections and leave either a complete data set or nothing."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests

from qhdm import console
from qhdm.data.zips import ZIP_FAULTS, entry_parts, is_link, open_zip
from qhdm.errors import DataError, DownloadError, one_line
from qhdm.files import atomic_path

_CHUNK = 2**16
_TIMEOUT = (10, 60)  # seconds to connect, and between two chunks
_REMEDY = "download it in a browser and give it with --set data.root=PATH"

# Image archives hardly shrink: whatever unpacks to more than this is a decompression bomb.
_MAX_RATIO = 8
_MAX_SLACK = 64 * 2**20


@dataclass(frozen=True)
class Archive:
    """A zip on the web, with its expected size and checksum.

    Attributes:
        name: file name of the zip.
        url: its address.
        size: in bytes.
        md5: checksum, in hexadecimal.
        folder: name of the folder it is unpacked to.
    """

    name: str
    url: str
    size: int
    md5: str
    folder: str


EUROSAT = Archive(
    name="EuroSAT_RGB.zip",
    url="https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip",
    size=94_658_721,
    md5="f46e308c4d50d4bf32fedad2d3d62f3b",
    folder="EuroSAT_RGB",
)


class _TransientError(Exception):
    """A fault of the connection or the server that may pass."""


def download(
    archive: Archive,
    directory: Path,
    *,
    progress: bool = True,
    retries: int = 5,
    backoff: float = 1.0,
) -> Path:
    """Download, verify and unpack an archive, unless its folder is there already.

    A partial download is kept in `<directory>/<name>.part`; a later call continues it.

    Args:
        archive: what to download.
        directory: parent of its folder; created if absent.
        progress: show a bar on stderr, where that is a terminal.
        retries: how often to try again after a dropped connection or a server error.
        backoff: seconds to wait before the first retry; doubles with each.

    Returns:
        The unpacked folder.

    Raises:
        DownloadError: the server cannot be reached or refuses, the download is not the archive, or
            it cannot be written. No folder is left behind.
    """
    target = directory / archive.folder
    if target.is_dir():
        return target
    part = directory / f"{archive.name}.part"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _fetch(archive, part, progress=progress, retries=retries, backoff=backoff)
        _verify(archive, part)
        _unpack(archive, part, target, progress=progress)
        part.unlink()
    except OSError as error:
        raise DownloadError(
            f"{directory}: {archive.name} cannot be stored ({error.strerror or one_line(error)}); "
            "free some space there or set QHDM_DATA to another folder, then try again"
        ) from None
    return target


def _fetch(archive: Archive, part: Path, *, progress: bool, retries: int, backoff: float) -> None:
    """Complete the partial file `part`."""
    for attempt in range(retries + 1):
        try:
            _fetch_rest(archive, part, progress=progress)
            return
        except _TransientError as error:
            if attempt == retries:
                raise DownloadError(
                    f"{archive.url}: {error}, {attempt + 1} times; check the connection and try "
                    f"again (it continues from {_size(part)} of {archive.size} bytes), or {_REMEDY}"
                ) from None
            wait = backoff * 2**attempt
            if progress:
                console.message(f"{archive.url}: {error}; next try in {wait:g} s")
        time.sleep(wait)


def _fetch_rest(archive: Archive, part: Path, *, progress: bool) -> None:
    """Request the missing bytes of `part`."""
    have = _size(part)
    if have > archive.size:
        part.unlink()
        have = 0
    if have == archive.size:
        return
    # Compressed by the server, the bytes would be others than those that are counted.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with requests.get(archive.url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            start = _start(archive, part, have, response)
            _append(archive, part, start, _chunks(archive, response), progress=progress)
    except requests.RequestException as error:
        raise _network_error(archive, error) from None
    if _size(part) < archive.size:
        raise _TransientError("the connection was closed early")


def _start(archive: Archive, part: Path, have: int, response: requests.Response) -> int:
    """The position in the archive that the body of a response starts at."""
    status = response.status_code
    if status == 429 or status >= 500:
        raise _TransientError(f"the server answers {status} {response.reason}")
    if status == 416:
        part.unlink(missing_ok=True)
        raise _TransientError("the server has no bytes after those that are here")
    if status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not found or int(found[1]) != have or found[2] not in ("*", str(archive.size)):
            part.unlink(missing_ok=True)
            raise _TransientError("the server sends other bytes than asked for")
        return have
    if status != 200:
        raise DownloadError(
            f"{archive.url}: the server answers {status} {response.reason}; {_REMEDY}"
        )
    length = response.headers.get("Content-Length")
    if length and length != str(archive.size):
        raise DownloadError(
            f"{archive.url}: has {length} bytes instead of {archive.size}, so it is not "
            f"{archive.name}; {_REMEDY}"
        )
    return 0


def _append(
    archive: Archive, part: Path, start: int, chunks: Iterator[bytes], *, progress: bool
) -> None:
    with (
        part.open("r+b" if start else "wb") as file,
        console.bar(
            initial=start,
            total=archive.size,
            desc=archive.name,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            show=progress,
            in_logs=False,
        ) as bar,
    ):
        file.seek(start)
        for chunk in chunks:
            if file.tell() + len(chunk) > archive.size:
                file.close()
                part.unlink()
                raise DownloadError(
                    f"{archive.url}: sends more than {archive.size} bytes, so it is not "
                    f"{archive.name}; {_REMEDY}"
                )
            file.write(chunk)
            bar.update(len(chunk))


def _chunks(archive: Archive, response: requests.Response) -> Iterator[bytes]:
    """The body in pieces; network errors are separated from disk errors here."""
    try:
        yield from response.iter_content(_CHUNK)
    except OSError as error:
        raise _network_error(archive, error) from None


def _network_error(archive: Archive, error: OSError) -> Exception:
    if isinstance(error, requests.Timeout):
        return _TransientError("the server does not answer")
    if isinstance(error, requests.exceptions.SSLError):
        return DownloadError(
            f"{archive.url}: no secure connection; check the certificates here, or {_REMEDY}"
        )
    if isinstance(error, requests.ConnectionError):
        return _TransientError("the server cannot be reached or hung up")
    if isinstance(error, requests.exceptions.ChunkedEncodingError | ConnectionError | TimeoutError):
        return _TransientError("the connection broke off")
    return DownloadError(f"{archive.url}: {one_line(error)}; {_REMEDY}")


def _verify(archive: Archive, part: Path) -> None:
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    if digest.hexdigest() != archive.md5:
        part.unlink()
        raise DownloadError(
            f"{archive.url}: wrong checksum (md5 {digest.hexdigest()} instead of {archive.md5}), "
            f"the download was deleted; try again, or {_REMEDY}"
        )


def _unpack(archive: Archive, part: Path, target: Path, *, progress: bool) -> None:
    """Unpack into `target`, completely or not at all."""
    try:
        with open_zip(part) as file, atomic_path(target) as temporary:
            entries = _entries(archive, file, part)
            for info, relative in console.bar(
                entries,
                desc=f"unpacking {archive.name}",
                unit=" files",
                show=progress,
                in_logs=False,
            ):
                path = temporary / relative
                path.parent.mkdir(parents=True, exist_ok=True)
                with file.open(info) as compressed, path.open("xb") as plain:
                    shutil.copyfileobj(compressed, plain, _CHUNK)
    except (DataError, FileExistsError, *ZIP_FAULTS) as error:  # exists: two of one name in the zip
        part.unlink()
        raise DownloadError(
            f"{archive.url}: cannot be unpacked ({one_line(error)}) and was deleted; {_REMEDY}"
        ) from None


def _entries(
    archive: Archive, file: zipfile.ZipFile, part: Path
) -> list[tuple[zipfile.ZipInfo, Path]]:
    """The files in the zip and where they go, its own top folder left out.

    Raises:
        DataError: an entry is unsafe, or the whole would be too large.
    """
    infos = [info for info in file.infolist() if entry_parts(info, part) and not info.is_dir()]
    total = sum(info.file_size for info in infos)
    if total > _MAX_RATIO * archive.size + _MAX_SLACK:
        raise DataError(f"{total} bytes unpacked are too many for {archive.size} bytes of zip")
    if not infos:
        raise DataError("holds no files")
    entries = []
    for info in infos:
        parts = entry_parts(info, part)
        if is_link(info):
            raise DataError(f"entry {info.filename!r} is a symbolic link")
        inside = parts[1:] if parts[0] == archive.folder and len(parts) > 1 else parts
        entries.append((info, Path(*inside)))
    return entries


def _size(path: Path) -> int:
    return os.path.getsize(path) if path.exists() else 0
