"""Which images a folder or zip holds, and to which class they belong."""

from __future__ import annotations

import io
import os
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from qhdm.data import EUROSAT_CLASSES, eurosat_folder, open_source
from qhdm.errors import DataError


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (10, 120, 40)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()


def fill(root: Path, names: Iterable[str]) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    return root


def pack(path: Path, names: Iterable[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, PNG)
    return path


def listed(root: Path) -> list[tuple[str, str]]:
    with open_source(str(root)) as source:
        return [(item.class_name, item.name) for item in source.items]


def refusal(root: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        open_source(str(root))
    message = str(caught.value)
    assert "\n" not in message
    return message


LAYOUTS = {
    "plain": (["Forest/a.png", "River/b.png"], ["Forest/a.png", "River/b.png"], 0),
    "wrapped": (["Set/Forest/a.png", "Set/River/b.png"], ["Forest/a.png", "River/b.png"], 0),
    "wrapped twice": (["A/B/Forest/a.png", "A/B/River/b.png"], ["Forest/a.png", "River/b.png"], 0),
    "single class": (["Forest/a.png", "Forest/b.png"], ["Forest/a.png", "Forest/b.png"], 0),
    "single class, wrapped": (["Set/Forest/a.png"], ["Forest/a.png"], 0),
    "deeper images": (
        ["Forest/2019/a.png", "River/b.png"],
        ["Forest/2019/a.png", "River/b.png"],
        0,
    ),
    "deeper images of one class": (
        ["Forest/a.png", "Forest/2019/b.png"],
        ["Forest/2019/b.png", "Forest/a.png"],
        0,
    ),
    "images in the root": (
        ["map.png", "Set/Forest/a.png", "Set/River/b.png"],
        ["Forest/a.png", "River/b.png"],
        1,
    ),
    "images in the wrapper": (
        ["Set/map.png", "Set/Forest/a.png", "Set/River/b.png"],
        ["Forest/a.png", "River/b.png"],
        1,
    ),
    "hidden and other files": (
        [
            "Forest/a.PNG",
            "Forest/._a.png",
            "Forest/notes.txt",
            "Forest/png",
            ".cache/x.png",
            "__MACOSX/Forest/a.png",
        ],
        ["Forest/a.PNG"],
        0,
    ),
    "classes that sort unlike their paths": (
        ["A/x.png", "A B/y.png", "A/z.png"],
        ["A/x.png", "A/z.png", "A B/y.png"],
        0,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_classes_are_the_first_folders_that_differ(layout: str, kind: str, tmp_path: Path) -> None:
    names, expected, ignored = LAYOUTS[layout]
    make = {"folder": fill, "zip": pack}[kind]
    with open_source(str(make(tmp_path / "set", names))) as source:
        assert [item.name for item in source.items] == expected
        assert [item.class_name for item in source.items] == [
            name.split("/")[0] for name in expected
        ]
        assert source.class_names == tuple(sorted({item.class_name for item in source.items}))
        assert source.ignored == ignored
        assert source.name == "set"
        assert {source.read(item) for item in source.items} == {PNG}


def test_bundled_patches() -> None:
    with open_source("bundled") as source:
        assert source.name == "bundled"
        assert source.class_names == EUROSAT_CLASSES
        assert len(source.items) == 103
        assert source.items[0].name == "AnnualCrop/AnnualCrop_1.jpg"


def test_the_bundled_licence_goes_with_the_patches() -> None:
    with open_source("bundled") as source:
        licence = (source.path.parent / "LICENSE.md").read_text(encoding="utf-8")
    assert "MIT" in licence
    assert "10.1109/JSTARS.2019.2918242" in licence


def test_links_inside_are_followed_and_those_out_are_counted(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", ["Forest/a.png", "River/b.png"])
    outside = fill(tmp_path / "elsewhere", ["c.png"])
    (root / "Forest" / "same.png").symlink_to(root / "River" / "b.png")
    (root / "Forest" / "out.png").symlink_to(outside / "c.png")
    (root / "Lake").symlink_to(outside)
    (root / "Loop").symlink_to(root)
    with open_source(str(root)) as source:
        names = [item.name for item in source.items]
        assert names == ["Forest/a.png", "Forest/same.png", "River/b.png"]
        assert source.links == 3


def test_a_folder_behind_a_link_is_a_set_like_another(tmp_path: Path) -> None:
    fill(tmp_path / "set", ["Forest/a.png"])
    (tmp_path / "link").symlink_to(tmp_path / "set")
    assert listed(tmp_path / "link") == [("Forest", "Forest/a.png")]


def test_links_in_zips_are_not_images(tmp_path: Path) -> None:
    path = pack(tmp_path / "set.zip", ["Forest/a.png"])
    link = zipfile.ZipInfo("Forest/passwd.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with open_source(str(path)) as source:
        assert len(source.items) == 1
        assert source.links == 1


@pytest.mark.parametrize(
    "entry", ["/etc/a.png", "../a.png", "Forest/../../a.png", "Forest\\..\\a.png", "C:/a.png"]
)
def test_unsafe_entries_are_refused(entry: str, tmp_path: Path) -> None:
    message = refusal(pack(tmp_path / "set.zip", ["Forest/a.png", entry]))
    assert "set.zip" in message
    assert repr(entry) in message


def test_backslashes_are_named_as_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("Forest", "River"):
            archive.writestr(f"{name}\\a.png", PNG)  # as some programs for Windows do
    message = refusal(path)
    assert f"{path}: backslash in entry 'Forest\\\\a.png': zips separate folders with /" in message
    assert "unsafe" not in message


def test_entries_without_a_name_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "set.zip", ["Forest/a.png"])
    nameless = zipfile.ZipInfo("x")
    nameless.filename = ""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(nameless, b"")
    assert "set.zip: unsafe path in entry ''" in refusal(path)


def test_encrypted_entries_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "set.zip", ["Forest/a.png"])
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    path.write_bytes(data)
    assert "set.zip: Forest/a.png: encrypted" in refusal(path)


def test_huge_entries_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "set.zip", ["Forest/a.png"])
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 24  # the uncompressed size
    data[at : at + 4] = (300 * 2**20).to_bytes(4, "little")
    path.write_bytes(data)
    assert "set.zip: Forest/a.png: 314572800 bytes are more than 256 MiB" in refusal(path)


def test_huge_files_are_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", ["Forest/a.png"])
    os.truncate(root / "Forest" / "a.png", 300 * 2**20)  # sparse: takes no room
    with open_source(str(root)) as source, pytest.raises(DataError, match="more than 256 MiB"):
        source.read(source.items[0])


def test_damaged_entries_are_named_when_read(tmp_path: Path) -> None:
    path = pack(tmp_path / "set.zip", ["Forest/a.png"])
    data = bytearray(path.read_bytes())
    data[data.index(PNG) + 20] ^= 0xFF
    path.write_bytes(data)
    with open_source(str(path)) as source, pytest.raises(DataError) as caught:
        source.read(source.items[0])
    assert f"{path}: Forest/a.png: damaged zip entry (Bad CRC-32" in str(caught.value)


def test_vanished_files_are_named_when_read(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", ["Forest/a.png"])
    with open_source(str(root)) as source:
        (root / "Forest" / "a.png").unlink()
        with pytest.raises(DataError, match=r"a\.png: cannot be read \(No such file"):
            source.read(source.items[0])


def test_absent_sets_are_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QHDM_DATA", str(tmp_path / "data"))
    message = refusal("eurosat")
    assert f"no EuroSAT RGB at {tmp_path}/data/EuroSAT_RGB" in message
    assert "qhdm data download eurosat" in message
    assert "--set data.root=PATH" in message
    assert f"data.root: {tmp_path}/none: no such folder or zip; give" in refusal(tmp_path / "none")
    monkeypatch.chdir(tmp_path)
    assert "did you mean bundled?" in refusal("bundeld")


def test_sets_without_classes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty: no images; give a folder or zip with one folder" in refusal(tmp_path / "empty")
    flat = fill(tmp_path / "flat", ["a.png", "b.png"])
    assert "flat: 2 image(s), but no class folders; give" in refusal(flat)
    links = fill(tmp_path / "links", [])
    links.mkdir()
    (links / "Forest").symlink_to(flat)
    assert "1 link(s) that lead elsewhere are not followed" in refusal(links)
    text = tmp_path / "notes.txt"
    text.write_text("not a zip")
    assert "notes.txt: not a zip, or damaged" in refusal(text)
    assert "set.zip: no images" in refusal(pack(tmp_path / "set.zip", ["Forest/readme.txt"]))


def test_eurosat_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QHDM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert eurosat_folder() == tmp_path / "data" / "EuroSAT_RGB"
    monkeypatch.delenv("QHDM_DATA")
    assert eurosat_folder() == tmp_path / "cache" / "qhdm" / "EuroSAT_RGB"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert eurosat_folder() == tmp_path / ".cache" / "qhdm" / "EuroSAT_RGB"


def test_a_set_of_eurosat_size_is_listed_quickly(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in EUROSAT_CLASSES:
            for number in range(2700):
                archive.writestr(f"EuroSAT_RGB/{name}/{name}_{number}.jpg", b"")
    start = time.process_time()
    assert len(listed(path)) == 27_000
    assert time.process_time() - start < 5
