"""A run of version 0.1.0, made before the redesign, is read, sampled, resumed and trained alike."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference import GOLDEN
from safetensors.torch import load_file

import qhdm
from qhdm.runs.directory import RunDirectory

#: SHA-256 of the names and values of the weights that its configuration draws.
DRAWN = "d3ef27199162cb44464b5cd7eb4ec7b1a51e2b67bb123d42c0f0e40b3848befc"


@pytest.fixture
def older(tmp_path: Path) -> Path:
    with zipfile.ZipFile(GOLDEN / "run_0.1.0.zip") as archive:
        archive.extractall(tmp_path / "older")
    return tmp_path / "older"


def test_its_seed_draws_the_same_weights_to_the_bit(older: Path) -> None:
    digest = hashlib.sha256()
    for name, value in qhdm.build_model(RunDirectory.open(older).config).state_dict().items():
        digest.update(name.encode())
        digest.update(value.numpy().tobytes())
    assert digest.hexdigest() == DRAWN


def test_the_same_training_ends_at_its_weights(older: Path, tmp_path: Path) -> None:
    again = qhdm.train(RunDirectory.open(older).config, out=tmp_path / "again", callbacks=[])
    for name in ("model", "ema"):
        old = load_file(older / "checkpoints" / "step_0000004" / f"{name}.safetensors")
        new = load_file(again.path / "checkpoints" / "step_0000004" / f"{name}.safetensors")
        assert old.keys() == new.keys()
        for key, value in old.items():
            # To the bit on one machine; others sum in another order.
            torch.testing.assert_close(new[key], value, atol=1e-5, rtol=1e-4)


def test_its_images_are_the_same(older: Path) -> None:
    run = qhdm.Run.open(older, device="cpu")
    images = run.sample(qhdm.Sampling(classes=["Forest", "River"], num=1, steps=4, seed=3))
    for name, image in zip(("Forest", "River"), images, strict=True):
        kept = np.asarray(Image.open(older / "images" / f"{name}_00000.png"))
        assert np.abs(image.astype(int) - kept).max() <= 1


def test_it_goes_on(older: Path) -> None:
    config = RunDirectory.open(older).config
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=6))
    assert qhdm.resume(older, config=longer, callbacks=[]).config.train.steps == 6
    assert RunDirectory.open(older).last_step() == 6
