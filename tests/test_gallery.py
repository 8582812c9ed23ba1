"""benchmarks/gallery.py: the picture of real and generated images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from place import call_script

from qhdm.data import EUROSAT_CLASSES

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gallery.py"


def test_first_generated_images_stand_in_the_row_of_their_class(tmp_path: Path) -> None:
    for label, name in enumerate(EUROSAT_CLASSES):
        (tmp_path / "made" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (32, 32), (20 * label, 80 * i, 200)).save(
                tmp_path / "made" / name / f"{name}_{i:05d}.png"
            )
    out = tmp_path / "gallery.png"
    made = str(tmp_path / "made")
    words = ("bundled", made, made, "--size", "32", "--count", "2", "--out", str(out))
    call_script(SCRIPT, *words)
    picture = np.asarray(Image.open(out))
    tops = []
    for label in range(len(EUROSAT_CLASSES)):
        first, second, third = ((picture == (20 * label, 80 * i, 200)).all(-1) for i in range(3))
        assert first.sum() == second.sum() == 2 * 64 * 64
        assert not third.any()
        assert first.any(1).argmax() == second.any(1).argmax()
        assert first.any(0).argmax() < second.any(0).argmax()
        tops.append(first.any(1).argmax())
    assert tops == sorted(set(tops))
