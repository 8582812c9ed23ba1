"""Small data sets and image files, for tests."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image


def encode(image: Image.Image | np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    """A picture, or pixels of 8 bits, as a file of one of Pillow's formats."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray, **options: Any) -> bytes:
    """A TIFF file of any values; RGB unless `options` of tifffile say otherwise."""
    file = io.BytesIO()
    tifffile.imwrite(file, values, **{"photometric": "rgb", **options})
    return file.getvalue()


#: A green image of 8x8 pixels.
PNG = encode(Image.new("RGB", (8, 8), (10, 120, 40)))


def fill(root: Path, files: Iterable[str] | Mapping[str, bytes]) -> Path:
    """A folder of files; those without content are images."""
    for name, content in _contents(files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def pack(path: Path, files: Iterable[str] | Mapping[str, bytes]) -> Path:
    """A zip of files; those without content are images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in _contents(files).items():
            archive.writestr(name, content)
    return path


def _contents(files: Iterable[str] | Mapping[str, bytes]) -> dict[str, bytes]:
    return dict(files) if isinstance(files, Mapping) else dict.fromkeys(files, PNG)


#: Makes a set of either kind.
MAKERS = {"folder": fill, "zip": pack}
