"""Downloads of data sets: resumed after dropped connections, verified, unpacked atomically."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import requests

from qhdm import console
from qhdm.errors import DownloadError, one_line
from qhdm.files import atomic_path
from qhdm.retries import retry

_CHUNK = 2**16
_TIMEOUT = (10, 60)  # seconds to connect, and between two chunks
_REMEDY = "download it in a browser and give it with --set data.root=PATH"


@dataclass(frozen=True)
class Archive:
    """A zip on the web.

    Attributes:
        name: file name of the zip.
        url: its address.
        size: in bytes.
        md5: checksum, in hexadecimal.
        folder: its top folder, and the name of the folder that it is unpacked to.
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
    """Download, verify and unpack an archive, unless its folder exists already.

    What has arrived is kept in `<directory>/<name>.part`, from where a later call continues.

    Args:
        archive: what to download.
        directory: the parent of the unpacked folder; made if absent.
        progress: show a bar on stderr, where that is a terminal.
        retries: how often to try again after a dropped connection or a server error.
        backoff: seconds to wait before the first retry; doubles with each.

    Returns:
        The unpacked folder.

    Raises:
        DownloadError: the server cannot be reached or refuses, what arrived is not the archive, or
            it cannot be written. No folder is left behind.
    """
    target = directory / archive.folder
    if target.is_dir():
        return target
    part = directory / f"{archive.name}.part"

    def notify(error: _TransientError, seconds: float) -> None:
        if progress:
            console.message(f"{archive.url}: {error}; next try in {seconds:g} s")

    try:
        directory.mkdir(parents=True, exist_ok=True)
        retry(
            lambda: _fetch_rest(archive, part, progress=progress),
            _TransientError,
            attempts=retries + 1,
            pause=lambda attempt, error: backoff * 2**attempt,
            notify=notify,
        )
        _verify(archive, part)
        _unpack(archive, part, target, progress=progress)
        part.unlink()
    except _TransientError as error:
        raise DownloadError(
            f"{archive.url}: {error}, {retries + 1} times; check the connection and try again "
            f"(resumes at {_size(part)} of {archive.size} bytes), or {_REMEDY}"
        ) from None
    except OSError as error:
        raise DownloadError(
            f"{directory}: {archive.name} cannot be stored ({error.strerror or one_line(error)}); "
            "free some space there or set QHDM_DATA to another folder, then try again"
        ) from None
    return target


def _fetch_rest(archive: Archive, part: Path, *, progress: bool) -> None:
    """Request what is missing of `part`, and append it."""
    start = _size(part)
    if start == archive.size:
        return
    if start > archive.size:
        start = 0
    # Compressed by the server, the bytes would be others than those that are counted.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with requests.get(archive.url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            if response.status_code == 416:
                part.unlink(missing_ok=True)
            if response.status_code in (416, 429) or response.status_code >= 500:
                raise _TransientError(f"the server answers {_status(response)}")
            if not response.ok:
                raise DownloadError(
                    f"{archive.url}: the server answers {_status(response)}; {_REMEDY}"
                )
            if response.status_code != 206:
                start = 0
            _append(archive, part, start, response, progress=progress)
    except requests.exceptions.SSLError:
        raise DownloadError(
            f"{archive.url}: no secure connection; check the certificates here, or {_REMEDY}"
        ) from None
    except requests.Timeout:
        raise _TransientError("the server does not answer") from None
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
        raise _TransientError("the server cannot be reached or hung up") from None
    except requests.RequestException as error:
        raise DownloadError(f"{archive.url}: {one_line(error)}; {_REMEDY}") from None
    if _size(part) < archive.size:
        raise _TransientError("the connection was closed early")


def _append(
    archive: Archive, part: Path, start: int, response: requests.Response, *, progress: bool
) -> None:
    """Write the body of a response to `part`, from byte `start` on."""
    other = f"{archive.url}: sends other bytes than those of {archive.name}; {_REMEDY}"
    length = response.headers.get("Content-Length")
    if length and length != str(archive.size - start):
        raise DownloadError(other)
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
        for chunk in response.iter_content(_CHUNK):
            if file.tell() + len(chunk) > archive.size:
                part.unlink()
                raise DownloadError(other)
            file.write(chunk)
            bar.update(len(chunk))


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
    """Unpack a verified zip into `target`, without its top folder, whole or not at all."""
    with zipfile.ZipFile(part) as file, atomic_path(target) as temporary:
        for info in console.bar(
            file.infolist(),
            desc=f"unpacking {archive.name}",
            unit=" files",
            show=progress,
            in_logs=False,
        ):
            info.filename = info.filename.removeprefix(f"{archive.folder}/")
            if info.filename:
                file.extract(info, temporary)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _status(response: requests.Response) -> str:
    return f"{response.status_code} {response.reason}"
