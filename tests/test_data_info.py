"""The text of `qhdm data info`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qhdm.config import DataConfig
from qhdm.data.info import describe
from qhdm.errors import DataError


def test_bundled_patches() -> None:
    text = describe(DataConfig(root="bundled"))
    lines = text.splitlines()
    assert lines[0].startswith("bundled: 103 images in 10 classes (")
    table = {line.split()[0]: line.split()[1:] for line in lines[3:14]}
    assert table["Forest"] == ["12", "11", "1"]
    assert table["total"] == ["103", "93", "10"]
    assert "stored as: 64x64 RGB: 103" in text
    assert "values: uint8 from 19 to 255" in text
    assert "broken" not in text
    assert "ignored" not in text


def test_what_cannot_be_used_is_reported(tmp_path: Path) -> None:
    root = tmp_path / "set"
    (root / "Forest").mkdir(parents=True)
    for number in range(20):
        Image.new("L" if number % 2 else "RGB", (8 + number % 2, 8)).save(
            root / "Forest" / f"{number:02}.png"
        )
    for number in range(7):
        (root / "Forest" / f"{number:02}.png").write_bytes(b"broken")
    Image.fromarray(np.ones((8, 8), np.float32)).save(root / "Forest" / "float.tif")
    Image.new("L", (8, 8)).save(root / "map.png")
    (root / "River").symlink_to(tmp_path)

    text = describe(DataConfig(root=str(root), image_size=8))
    assert "set: 21 images in 1 class (" in text
    assert "stored as: 9x8 L: 7, 8x8 RGB: 6, 8x8 float32 grey: 1" in text
    assert "values: float32 from 1 to 1, uint8 from 0 to 0" in text
    assert f"data.range: {root}: float32 from 1 to 1: a type without black and white" in text
    assert "images outside class folders, ignored: 1" in text
    assert "links to folders or out of the set, not followed: 1" in text
    assert "broken images: 7" in text
    assert f"  {root}/Forest/00.png: cannot be read as an image (" in text
    assert "Forest/04.png" in text
    assert "Forest/05.png" not in text
    assert text.endswith("  and 2 more")
    total = next(line.split() for line in text.splitlines() if line.startswith("total"))
    assert int(total[1]) == 21
    assert int(total[2]) + int(total[3]) == 14
    assert int(total[4]) == 7


def test_an_absent_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.root: .*/none: "):
        describe(DataConfig(root=str(tmp_path / "none")))
