"""A small comparison: its specification and cells."""

from __future__ import annotations

from pathlib import Path

import yaml
from conftest import TINY

from qhdm.comparison.cells import Cell, cells_of
from qhdm.comparison.spec import load_grid

SPECIFICATION = {
    "name": "small",
    "base": "tiny.yaml",
    "seeds": [0, 1, 2],
    "baseline": "unet",
    "variants": {
        "unet": {"model.kind": "unet"},
        "qcunet": {},
        "cosine": {"quantum": {"filter": "cosine"}},
    },
    "settings": {"train.steps": 2, "train.checkpoint_every": 2},
    "evaluate": {"num": 40, "steps": 3},
    "inference": [{"engine": "exact"}, {"engine": "aer", "shots": 64}],
}


def write_specification(folder: Path) -> Path:
    """A comparison file beside its base."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SPECIFICATION, sort_keys=False))
    return path


def cells(path: Path, *overrides: str) -> list[Cell]:
    return cells_of(load_grid(path, overrides), path.parent / "out")
