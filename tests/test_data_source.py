"""Which images a folder or zip holds, and to which class they belong."""

from __future__ import annotations

import os
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from command_line import call, refused
from image_sets import MAKERS, PNG, fill, pack, tiff

from qhdm.data import EUROSAT_CLASSES, eurosat_folder, open_source
from qhdm.errors import DataError


def refusal(root: Path | str) -> str:
    with pytest.raises(DataError) as refusal:
        open_source(str(root))
    message = str(refusal.value)
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
@pytest.mark.parametrize("kind", MAKERS)
def test_classes_are_the_first_folders_that_differ(layout: str, kind: str, tmp_path: Path) -> None:
    names, expected, ignored = LAYOUTS[layout]
    with open_source(str(MAKERS[kind](tmp_path / "set", names))) as source:
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
    with open_source(str(tmp_path / "link")) as source:
        assert [item.name for item in source.items] == ["Forest/a.png"]


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
    "entry",
    [
        "/etc/a.png",
        "../a.png",
        "Forest/../../a.png",
        "Forest\\..\\a.png",
        "Forest\\a.png",  # as some programs for Windows separate folders
        "C:/a.png",
    ],
)
def test_unsafe_entries_are_refused(entry: str, tmp_path: Path) -> None:
    path = pack(tmp_path / "set.zip", ["Forest/a.png", entry])
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert repr(entry) in message
    assert ("backslash" in message) == ("\\" in entry)


def test_entries_without_a_name_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "set.zip", ["Forest/a.png"])
    nameless = zipfile.ZipInfo("x")
    nameless.filename = ""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(nameless, b"")
    assert "entry ''" in refusal(path)


def patched(path: Path, offset: int, value: bytes) -> Path:
    """Overwrite a field of the first entry in a zip's central directory."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + offset
    data[at : at + len(value)] = value
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("offset", "value", "what"),
    [(8, b"\1\0", "encrypted"), (24, (300 * 2**20).to_bytes(4, "little"), "314572800")],
    ids=["encrypted", "huge"],
)
def test_entries_that_cannot_be_used_are_named(
    offset: int, value: bytes, what: str, tmp_path: Path
) -> None:
    path = patched(pack(tmp_path / "set.zip", ["Forest/a.png"]), offset, value)
    message = refusal(path)
    assert message.startswith(f"{path}: Forest/a.png: ")
    assert what in message


def test_huge_files_are_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", ["Forest/a.png"])
    os.truncate(root / "Forest" / "a.png", 300 * 2**20)  # sparse: takes no room
    with open_source(str(root)) as source, pytest.raises(DataError, match="314572800"):
        source.read(source.items[0])


def test_damaged_entries_are_named_when_read(tmp_path: Path) -> None:
    path = pack(tmp_path / "set.zip", ["Forest/a.png"])
    data = bytearray(path.read_bytes())
    data[data.index(PNG) + 20] ^= 0xFF
    path.write_bytes(data)
    with open_source(str(path)) as source, pytest.raises(DataError) as refused:
        source.read(source.items[0])
    assert str(refused.value).startswith(f"{path}: Forest/a.png: ")
    assert "CRC" in str(refused.value)


def test_vanished_files_are_named_when_read(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", ["Forest/a.png"])
    with open_source(str(root)) as source:
        (root / "Forest" / "a.png").unlink()
        with pytest.raises(DataError, match=rf"^{root}/Forest/a\.png: .*data\.skip_broken"):
            source.read(source.items[0])


def test_absent_sets_are_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QHDM_DATA", str(tmp_path / "data"))
    message = refusal("eurosat")
    assert message.startswith("data.root: ")
    for words in (f"{tmp_path}/data/EuroSAT_RGB", "qhdm data download eurosat", "data.root=PATH"):
        assert words in message
    assert refusal(tmp_path / "none").startswith(f"data.root: {tmp_path}/none: ")
    monkeypatch.chdir(tmp_path)
    assert "did you mean bundled?" in refusal("bundeld")


def test_sets_without_classes_are_refused(tmp_path: Path) -> None:
    flat = fill(tmp_path / "flat", ["a.png", "b.png"])
    for name in ("empty", "links"):
        (tmp_path / name).mkdir()
    (tmp_path / "links" / "Forest").symlink_to(flat)
    (tmp_path / "notes.txt").write_text("not a zip")
    pack(tmp_path / "set.zip", ["Forest/readme.txt"])
    for name, what in (
        ("empty", "no images"),
        ("flat", "2 image(s)"),
        ("links", "1 link(s)"),
        ("set.zip", "1 .txt"),
    ):
        message = refusal(tmp_path / name)
        assert message.startswith(f"data.root: {tmp_path / name}: ")
        assert what in message
    assert refusal(tmp_path / "notes.txt").startswith(f"{tmp_path}/notes.txt: not a zip")


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
    with open_source(str(path)) as source:
        assert len(source.items) == 27_000
    assert time.process_time() - start < 5


def test_bands_without_rasterio_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QHDM_DATA", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    root = fill(tmp_path / "set", {"a/a.tif": tiff(np.zeros((8, 8, 3), np.uint8))})
    done = call("data", "info", root, "--bands", 1, "--sheet", tmp_path / "sheet.png")
    refused(done, "data.bands: ", "qhdm[geo]")
    assert not (tmp_path / "sheet.png").exists()
