"""Downloads from a real server on the loopback that misbehaves as told."""

from __future__ import annotations

import hashlib
import io
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from qhdm.data.download import EUROSAT, Archive, download
from qhdm.errors import DownloadError


class Server(ThreadingHTTPServer):
    """Serves `body`; each request takes its manner from `script`, then all are well-behaved."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = b""
        self.script: list[str] = []
        self.ranges: list[str | None] = []
        self.stalled = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/Set.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers["Range"])
        manner = self.server.script.pop(0) if self.server.script else "well"
        body = self.server.body
        if manner.isdigit():
            self.send_error(int(manner))
            return
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = int(asked[1]) if asked and manner != "ignore range" else 0
        self.send_response(206 if start else 200)
        if manner == "other range":
            body = bytes(len(body))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if manner == "endless":
            self.end_headers()
            self.wfile.write(body + b"more")
            return
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        rest = body[start:]
        if manner in ("drop", "stall"):
            self.wfile.write(rest[: len(rest) // 2])
            self.wfile.flush()
            if manner == "stall":
                self.server.stalled.wait(30)
            self.close_connection = True
            return
        self.wfile.write(rest)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.stalled.set()
        server.shutdown()
        thread.join()


FILES = {
    f"Set/{label}/{number}.jpg": np.random.default_rng([number, len(label)]).bytes(100_000)
    for label in ("Forest", "River")
    for number in range(5)
}


def packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def offer(server: Server, body: bytes, *script: str) -> Archive:
    """Let the server offer `body`, answering the first requests as `script` says."""
    server.body = body
    server.script = list(script)
    return Archive("Set.zip", server.url, len(body), hashlib.md5(body).hexdigest(), "Set")


def fetch(archive: Archive, directory: Path, retries: int = 3) -> Path:
    return download(archive, directory, progress=False, retries=retries, backoff=0.01)


def refusal(archive: Archive, directory: Path, retries: int = 1) -> str:
    with pytest.raises(DownloadError) as refused:
        fetch(archive, directory, retries)
    message = str(refused.value)
    assert "\n" not in message
    return message


def check(folder: Path) -> None:
    """The folder holds exactly the files, and lies alone in its directory."""
    files = {
        f"Set/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert files == FILES
    assert list(folder.parent.iterdir()) == [folder]


def test_a_download_is_verified_and_unpacked(server: Server, tmp_path: Path) -> None:
    folder = fetch(offer(server, packed(FILES)), tmp_path / "new" / "data")
    assert folder == tmp_path / "new" / "data" / "Set"
    check(folder)
    assert server.ranges == [None]


def test_a_set_that_is_there_costs_no_request(server: Server, tmp_path: Path) -> None:
    archive = offer(server, packed(FILES))
    assert fetch(archive, tmp_path) == fetch(archive, tmp_path)
    assert len(server.ranges) == 1


def test_an_archive_without_a_top_folder_gets_one(server: Server, tmp_path: Path) -> None:
    bare = {name.removeprefix("Set/"): data for name, data in FILES.items()}
    check(fetch(offer(server, packed(bare)), tmp_path))


def test_a_dropped_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    check(fetch(offer(server, packed(FILES), "drop", "drop"), tmp_path))
    starts = [int(text.removeprefix("bytes=").removesuffix("-")) for text in server.ranges[1:]]
    assert server.ranges[0] is None
    assert 0 < starts[0] < starts[1]


def test_a_later_call_resumes(server: Server, tmp_path: Path) -> None:
    archive = offer(server, packed(FILES), "drop")
    message = refusal(archive, tmp_path, retries=0)
    part = tmp_path / "Set.zip.part"
    size = part.stat().st_size
    assert size > archive.size // 4
    assert message.startswith(f"{archive.url}: ")
    assert f"{size} of {archive.size} bytes" in message
    check(fetch(archive, tmp_path))
    assert server.ranges == [None, f"bytes={size}-"]


def test_a_complete_part_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    archive = offer(server, packed(FILES))
    (tmp_path / "Set.zip.part").write_bytes(server.body)
    check(fetch(archive, tmp_path))
    assert server.ranges == []


@pytest.mark.parametrize("manner", ["ignore range", "416"])
def test_servers_that_cannot_resume_are_read_from_the_start(
    manner: str, server: Server, tmp_path: Path
) -> None:
    archive = offer(server, packed(FILES), manner)
    (tmp_path / "Set.zip.part").write_bytes(server.body[:1000])
    check(fetch(archive, tmp_path))
    assert server.ranges[0] == "bytes=1000-"


def test_bytes_of_another_range_are_not_taken(server: Server, tmp_path: Path) -> None:
    archive = offer(server, packed(FILES), "other range")
    (tmp_path / "Set.zip.part").write_bytes(server.body[:1000])
    refusal(archive, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_part_that_is_too_long_is_read_from_the_start(server: Server, tmp_path: Path) -> None:
    archive = offer(server, packed(FILES))
    (tmp_path / "Set.zip.part").write_bytes(server.body + b"more")
    check(fetch(archive, tmp_path))
    assert server.ranges == [None]


@pytest.mark.parametrize("status", ["500", "503", "429"])
def test_servers_out_of_breath_are_asked_again(status: str, server: Server, tmp_path: Path) -> None:
    check(fetch(offer(server, packed(FILES), status, status), tmp_path))
    assert len(server.ranges) == 3


def test_patience_ends(server: Server, tmp_path: Path) -> None:
    message = refusal(offer(server, packed(FILES), *["503"] * 9), tmp_path, retries=2)
    assert message.startswith(f"{server.url}: ")
    assert "503 Service Unavailable" in message
    assert len(server.ranges) == 3


def test_a_missing_file_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    message = refusal(offer(server, packed(FILES), "404"), tmp_path)
    assert message.startswith(f"{server.url}: ")
    assert "404 Not Found" in message
    assert "--set data.root=PATH" in message
    assert len(server.ranges) == 1
    assert not list(tmp_path.iterdir())


def test_an_unreachable_server(server: Server, tmp_path: Path) -> None:
    archive = offer(server, packed(FILES))
    with Server() as closed:
        pass
    archive = Archive("Set.zip", closed.url, archive.size, archive.md5, "Set")
    message = refusal(archive, tmp_path)
    assert message.startswith(f"{closed.url}: ")


def test_an_address_that_is_none_is_not_retried(tmp_path: Path) -> None:
    message = refusal(Archive("Set.zip", "nowhere", 1, "", "Set"), tmp_path, retries=50)
    assert message.startswith("nowhere: ")


def test_another_file_is_refused_before_it_is_written(server: Server, tmp_path: Path) -> None:
    archive = offer(server, packed(FILES))
    server.body = b"<html>Please log in</html>"
    assert refusal(archive, tmp_path).startswith(f"{server.url}: ")
    assert not list(tmp_path.iterdir())


def test_more_bytes_than_declared_are_refused(server: Server, tmp_path: Path) -> None:
    archive = offer(server, packed(FILES), "endless")
    assert refusal(archive, tmp_path).startswith(f"{server.url}: ")
    assert not list(tmp_path.iterdir())


def test_wrong_content_is_deleted(server: Server, tmp_path: Path) -> None:
    archive = offer(server, packed(FILES))
    server.body = bytes(archive.size)
    message = refusal(archive, tmp_path)
    assert message.startswith(f"{server.url}: ")
    assert archive.md5 in message
    assert not list(tmp_path.iterdir())


def test_entries_that_lead_out_of_the_folder_stay_in_it(server: Server, tmp_path: Path) -> None:
    body = packed({"Set/a.jpg": b"a", "../evil.jpg": b"b", "/evil.jpg": b"c", "Set/../../e": b"d"})
    fetch(offer(server, body), tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["Set"]


def test_a_directory_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = refusal(offer(server, packed(FILES)), tmp_path / "file" / "data")
    assert message.startswith(f"{tmp_path}/file/data: ")
    assert "Not a directory" in message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Set.zip.part").symlink_to("/dev/full")
    message = refusal(offer(server, packed(FILES)), tmp_path)
    assert "No space left on device" in message
    assert "QHDM_DATA" in message


def test_an_interrupt_leaves_what_has_come(server: Server, tmp_path: Path) -> None:
    archive = offer(server, packed(FILES), "stall")
    code = (
        # Shells start what they put into the background without it.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path; from qhdm.data.download import Archive, download\n"
        f"download({archive!r}, Path({str(tmp_path)!r}))"
    )
    part = tmp_path / "Set.zip.part"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size > archive.size // 4):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) != 0
    size = part.stat().st_size
    assert list(tmp_path.iterdir()) == [part]
    check(fetch(archive, tmp_path))
    assert server.ranges == [None, f"bytes={size}-"]


def test_eurosat_is_the_published_archive() -> None:
    assert EUROSAT.url.startswith("https://zenodo.org/records/7711810/")
    assert EUROSAT.folder == "EuroSAT_RGB"
