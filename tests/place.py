"""A folder in which the commands of the pages run: it contains what they name, made from the
bundled patches.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from band_sets import band_set, scene
from command_line import Done, call, succeeded
from conftest import TINY
from pages import ROOT
from PIL import Image

from qhdm import data
from qhdm.comparison.cells import cells_of
from qhdm.comparison.spec import load_grid
from qhdm.config import DataConfig


def call_script(path: Path, *words: str) -> str:
    """The stdout of a script, run in this process."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(sys, "argv", [str(path), *words])
        patch.syspath_prepend(path.parent)
        runpy.run_path(str(path), run_name="__main__")
    return out.getvalue()


def parse(path: Path, words: str) -> None:
    """Check that a script accepts these arguments; it ends when it has parsed them."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser, *arguments: Any) -> NoReturn:
        original(parser, *arguments)
        raise SystemExit("parsed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        with pytest.raises(SystemExit) as end:
            call_script(path, *shlex.split(words, comments=True))
    assert end.value.code == "parsed"


@dataclass
class Place:
    """The current folder.

    `RUN` is a run of two steps, and the quickstart; `PATH`, `DIR`, `ROOT` and the EuroSAT of the
    cache are class folders of its images; `CONFIG` is its configuration. `TILES` are class folders
    of GeoTIFF files with 13 bands, `scene` holds some bands of a scene.

    Attributes:
        folder: its path.
        count: number of outputs so far.
        seen: results of commands that have run, by their arguments without output paths.
    """

    folder: Path
    count: int = 0
    seen: dict[tuple[str, ...], Done] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path) -> Place:
        for name in ("configs", "circuits", "jobs"):
            shutil.copytree(ROOT / name, folder / name)
        for name in ("runs", "docs", "cache", "made"):
            (folder / name).mkdir()
        _cut_patches(folder / "PATH")
        for name in ("DIR", "ROOT", "cache/EuroSAT_RGB"):
            (folder / name).symlink_to(folder / "PATH")
        shutil.copy(ROOT / "circuits" / "reuploading.qasm", folder / "mine.qasm")
        scene(folder / "scene")
        band_set(folder / "TILES", {"Forest": 4, "River": 4}, place=True, apart=12_800)
        tiny = {**TINY, "data": {"root": "PATH", "image_size": 16}}
        tiny["train"] = {**TINY["train"], "steps": 2}
        filters = {"ansatz": "fqconv", "layers": 1}
        tiny["quantum"] = {"vertex": filters, "encoder": {"levels": [1], **filters}}
        (folder / "CONFIG").write_text(yaml.safe_dump(tiny))
        succeeded(call("train", "CONFIG", "--out", "runs/quickstart"))
        (folder / "RUN").symlink_to(folder / "runs" / "quickstart")
        for number, name in enumerate(("Forest", "River")):
            shutil.copytree(folder / "PATH" / name, folder / "TWO" / str(number))
        for name, images in (
            ("", ["RUN"]),
            ("64", ["--data", "bundled", "--size", 64]),
            ("_two", ["--data", "TWO", "--size", 32]),  # classes 0 and 1, as in the README
        ):
            succeeded(call("train-classifier", *images, "--steps", 1, "--out", f"classifier{name}"))
        return cls(folder)

    def new(self, name: str) -> str:
        """A new output path."""
        self.count += 1
        return f"made/{self.count}/{name}"

    def once(self, words: Sequence[str]) -> Done:
        """Run a command, unless the same one has run."""
        key = tuple(re.sub(r"^made/\d+/.*", "made", word) for word in words)
        if key not in self.seen:
            self.seen[key] = call(*words)
        return self.seen[key]

    def comparison(self) -> None:
        """Make `comparisons/NAME`, a finished comparison."""
        if (self.folder / "comparisons" / "NAME").exists():
            return
        evaluate = {"num": 2, "steps": 1, "metrics": ["classes"]}
        spec = {
            "name": "NAME",
            "base": "CONFIG",
            "baseline": "unet",
            "seeds": [0],
            "variants": {"unet": {"model.kind": "unet"}},
            "evaluate": {**evaluate, "extractor_weights": str(self.folder / "classifier")},
        }
        (self.folder / "spec.yaml").write_text(yaml.safe_dump(spec))
        for cell in cells_of(load_grid(self.folder / "spec.yaml"), Path("comparisons/NAME")):
            cell.create()
            job = cell.job(self.folder / "log")
            assert job is not None
            for command in job.commands:  # what `qhdm compare` would start
                succeeded(call(*command[3:]))
        succeeded(call("compare", "spec.yaml", "--out", "comparisons/NAME"))

    def golden(self) -> None:
        """Make `runs/golden`: parameters and outputs of the published code."""
        if not (self.folder / "runs" / "golden").exists():
            call_script(ROOT / "tests" / "reference.py", "runs/golden")


def _cut_patches(folder: Path) -> None:
    """Tiles of the bundled patches: enough images to compare distributions."""
    whole = data.load(DataConfig(root="bundled", image_size=64))
    for i, (image, label) in enumerate(zip(whole.images, whole.labels, strict=True)):
        into = folder / whole.class_names[label]
        into.mkdir(parents=True, exist_ok=True)
        for j in range(8):
            top, left = 16 * (j // 4), 16 * (j % 4)
            Image.fromarray(image[top : top + 16, left : left + 16]).save(into / f"{i}_{j}.png")
