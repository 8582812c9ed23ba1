"""Untrusted files and arguments are read or refused within bounds of time and memory.

Coverage-guided fuzzing of the same readers is in tests/fuzz (docs/reliability.md).
"""

from __future__ import annotations

import faulthandler
import io
import os
import resource
import signal
import sys
import zipfile
import zlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import msgpack
import numpy as np
import pytest
import tifffile
from command_line import Cli, refused, sets
from forked import FORKED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
from readers import READERS, Watch, refusal

#: Bounds of a reader on any of the files below: seconds of CPU, and additional bytes.
SECONDS, BYTES = 10, 2**30

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join(f'*a{i - 1}' for _ in range(10))}]\n" for i in range(1, 10)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join(f'*a{i - 1}' for _ in range(10))}]}}\n" for i in range(1, 10)
)


def resized(kind: str, width: int, height: int) -> bytes:
    """A small image whose header claims another size."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, kind)
    data = bytearray(file.getvalue())
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    else:
        data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def deep(width: int, height: int) -> bytes:
    """A small TIFF of 16 bits whose header claims another size."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((16, 16, 3), np.uint16), photometric="rgb", compression="zlib")
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        tiff.pages.first.tags["ImageWidth"].overwrite(width)
        tiff.pages.first.tags["ImageLength"].overwrite(height)
    return file.getvalue()


def bomb() -> bytes:
    """A zip of 100 KB whose entries have 3 x 32 MiB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a/1.png", "a/2.png", "b/3.png"):
            with archive.open(name, "w") as entry:
                for _ in range(32):
                    entry.write(bytes(2**20))
    return file.getvalue()


def nested(levels: int) -> bytes:
    return b"\x81\xa1a" * levels + b"\x80"


def leaf(shape: list[int]) -> bytes:
    array = msgpack.packb((shape, "float32", bytes(8)))
    packed: bytes = msgpack.packb({"params": {"w": msgpack.ExtType(1, array)}})
    return packed


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
HOSTILE: dict[str, tuple[str, bytes | Callable[[], bytes], str]] = {
    "deep lists": ("config", b"[" * 60_000, "nested deeper than 50 levels"),
    "deep mappings": ("config", b"{a: " * 10_000, "nested deeper than 50 levels"),
    "100 levels": ("config", b"a: " + b"[" * 100 + b"]" * 100, ":1: nested deeper than 50"),
    "many laughs": ("config", LAUGHS.encode(), "more than 10,000 values, aliases counted"),
    "many merges": ("config", MERGES.encode(), "more than 10,000 values, aliases counted"),
    "itself within": ("config", b"a: &a [*a]", ":1: nested deeper than 50 levels"),
    "itself merged": ("config", b"a: &a {<<: *a}", "nested deeper than 50 levels"),
    "5,000 digits": ("config", b"seed: " + b"9" * 5000, "holds a value that cannot be read"),
    "hexadecimal": ("config", b"seed: 0x" + b"f" * 9000, "holds a value that cannot be read"),
    "no such date": ("config", b"name: 2026-99-99", "holds a value that cannot be read"),
    "no number": ("config", b"seed: !!int ''", "holds a value that cannot be read"),
    "no truth": ("config", b"seed: !!bool maybe", "holds a value that cannot be read"),
    "no moment": ("config", b"seed: !!timestamp x", "holds a value that cannot be read"),
    "control character": ("config", b"name: \x01", "not valid YAML"),
    "half a character": ("config", b'name: "\\ud800"', "holds a value that cannot be read"),
    "a list as key": ("config", b"? [a]\n: b", ":1: a key must be a name"),
    "a date as key": ("config", b"2026-01-01: 1", "holds a value that cannot be read"),
    "a long key": ("config", b"k" * 1_000 + b": 1", "kkk...: unknown key"),
    "a long file": ("config", b"#" * 70_000, "larger than 65,536 bytes"),
    "an object": ("config", b"a: !!python/object/apply:os.system [true]", "not valid YAML"),
    "NUL in a path": ("config", b'data: {root: "a\\0b"}', "data.root: "),
    "class outside": ("config", b"data: {classes: [../../up]}", "must be the plain name of a fold"),
    "class at the root": ("config", b"data: {classes: [/etc]}", "must be the plain name of a fold"),
    "job elsewhere": ("job", b'backend: aer\nrun: "a\\0b"', "run: "),
    "deep job": ("job", b"[" * 60_000, "nested deeper than 50 levels"),
    "emptied run": ("run_config", b"", "data.classes is null, which it is in no run: damaged"),
    "circuit elsewhere": (
        "run_config",
        b"data: {classes: [a]}\nquantum: {vertex: {ansatz: ../../elsewhere.qasm}}",
        "elsewhere.qasm: not in the run",
    ),
    "100 megapixels": ("image", lambda: resized("JPEG", 10_000, 10_000), "decompression bomb"),
    "4 exapixels": ("image", lambda: resized("PNG", 2**31 - 1, 2**31 - 1), "decompression bomb"),
    "79 megapixels": ("image", lambda: resized("JPEG", 8_900, 8_900), ""),  # read, as grey
    "100 deep megapixels": ("image", lambda: deep(10_000, 10_000), "decompression bomb"),
    "60 deep megapixels": ("image", lambda: deep(7_700, 7_700), "decompression bomb"),
    "44 deep megapixels": ("image", lambda: deep(6_600, 6_600), "cannot be read as an image"),
    "PostScript": ("image", POSTSCRIPT, "of another format than JPEG"),
    "zip bomb": ("zip", bomb, "cannot be read as an image"),
    "deep tree": ("flax", nested(900), "more than 64 levels"),
    "deeper tree": ("flax", nested(100_000), "neither a Flax checkpoint"),
    "many maps": ("flax", b"\x81\xa6params\xdd\x00\x40\x00\x00" + b"\x80" * 2**22, "100,000 maps"),
    "many dimensions": ("flax", lambda: leaf([2**60] * 50_000), "damaged array"),
    "deep calibration": ("calibration", b"[" * 100_000, "not a calibration: Invalid JSON"),
    "large calibration": ("calibration", b"1" * 5_000, "not a calibration: Invalid JSON"),
}  # fmt: skip


def _bounded(name: str, content: bytes, folder: str, answer: Connection) -> None:
    """Read in a process that is limited to the bounds."""
    faulthandler.disable()
    for seed in READERS[name].seeds()[:1]:  # imports do not count
        refusal(name, seed, Path(folder), WATCH)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, size + BYTES))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the process
    answer.send(refusal(name, content, Path(folder), WATCH))


WATCH = Watch()


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_within_bounds(kind: str, tmp_path: Path) -> None:
    name, content, words = HOSTILE[kind]
    ours, theirs = FORKED.Pipe(duplex=False)
    arguments = (name, content if isinstance(content, bytes) else content(), str(tmp_path), theirs)
    process = FORKED.Process(target=_bounded, args=arguments)
    process.start()
    theirs.close()
    try:
        message = ours.recv()
    except EOFError:
        process.join()
        pytest.fail(f"no answer; exit code {process.exitcode}")
    process.join()
    assert (message is None) == (words == "")
    assert words in (message or "")
    assert len(message or "") < 2000


def test_metrics_that_are_none_are_left_out(tmp_path: Path) -> None:
    for line in (b"[" * 100_000, b"\xff\xfe", b'{"step": ' + b"9" * 5000 + b"}", b'{"step": true}'):
        (tmp_path / "metrics.jsonl").write_bytes(line + b'\n{"step": 1}\n{"st')
        assert READERS["metrics"].read(tmp_path / "metrics.jsonl") == [{"step": 1}]


# The circuits' readers have their own (tests/test_circuit_files.py), and so have Flax files.
@pytest.mark.parametrize(
    "name",
    [n for n in READERS if n not in ("openqasm", "qpy", "flax")],
)
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path, data: st.DataObject) -> None:
    content = data.draw(st.sampled_from(READERS[name].seeds()))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        patch = data.draw(st.binary(max_size=8))
        cut = data.draw(st.integers(0, 8) | st.just(len(content)))
        content = content[:at] + patch + content[at + cut :]
    refusal(name, content, tmp_path, WATCH)


VERBS = [
    ["train"], ["train", "--resume"], ["train", "--set"], ["sample"], ["data", "info"], ["submit"],
    ["jobs", "status"], ["import-flax"], ["export"], [],
]  # fmt: skip
words = st.sampled_from(
    ["-", "--", "--num", "--seed", "--set", "--out", "--steps", "-1", "0", "1e999", "nan", "=",
     "9" * 5000, "a" * 5000, "~nobody-of-this-name/x", "\udcff", "\x1b[2J", "a=b", "a.b=[", "/",
     "[" * 2000,
     "a." * 3000 + "b=1", "data.root=~nobody-of-this-name", "\u202e", "*", "$(touch executed)"]
) | st.text(st.characters(exclude_characters="\0"), max_size=5)  # fmt: skip


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(VERBS), st.lists(words, max_size=4))
def test_any_arguments_are_refused_in_one_line(
    tmp_path: Path, cli: Cli, verb: list[str], arguments: list[str]
) -> None:
    done = cli(*verb, *arguments, cwd=tmp_path)
    if done.returncode:
        refused(done, code=done.returncode)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        ("data.root=~nobody-of-this-name/x", "data.root"),
        ('data.root="a\\0b"', "data.root: "),
        ("data.root=" + "a" * 5000, "data.root: "),
        ("data.root=" + "/a" * 2000, "data.root: "),
        ("a." * 3000 + "b=1", "--set a.a.a."),
        ('name="\\e[2J"', "--set name: "),
        ("seed=0x" + "f" * 9000, "--set seed=0x"),
        ("quantum.aer.noise=~nobody-of-this-name/x.json", "noise: "),
    ],
    ids=lambda text: text[:20],
)
def test_settings_of_any_value_are_refused_by_name(cli: Cli, setting: str, place: str) -> None:
    settings = sets("quantum.engine=aer", setting)
    refused(cli("train", "quickstart", "--dry-run", *settings), place)
