"""Images whose shapes are destroyed keep what they should, and the network has a class for them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from qhdm import data
from qhdm.config import DataConfig
from qhdm.data import Dataset
from qhdm.metrics.resnet import (
    ResNetSettings,
    destroy_shapes,
    phase_randomised,
    shuffled,
)
from qhdm.metrics.training import predicted, train_network


@pytest.fixture(scope="module")
def patches() -> Dataset:
    classes = ("Highway", "Industrial", "River")
    return data.load(DataConfig(root="bundled", image_size=32, classes=classes))


@pytest.mark.parametrize(("size", "pieces"), [(32, 8), (32, 4), (30, 8), (7, 16)])
def test_pieces_are_moved_but_not_changed(patches: Dataset, size: int, pieces: int) -> None:
    images = patches.images[:, :size, :size]
    moved = shuffled(images, pieces, np.random.default_rng(0))
    side = size // min(pieces, size)
    used = size // side * side

    def squares(image: np.ndarray) -> list[bytes]:
        corners = range(0, used, side)
        return sorted(image[i : i + side, j : j + side].tobytes() for i in corners for j in corners)

    for before, after in zip(images, moved, strict=True):
        assert not np.array_equal(before, after)
        assert squares(before) == squares(after)
        assert np.array_equal(before[used:], after[used:])


def test_random_phases_leave_means_and_correlations(patches: Dataset) -> None:
    rng = np.random.default_rng(0)
    # Far from black and white, so that nothing is clipped.
    images = (96 + patches.images // 4).astype(np.uint8)
    textures = phase_randomised(images, rng)
    axes = (1, 2)
    before, after = (np.fft.fft2(i.astype(float), axes=axes) for i in (images, textures))
    # As far as rounding to whole grey levels lets them.
    assert np.abs(np.abs(before) - np.abs(after)).max() < 6 * (32**2 / 12) ** 0.5
    for image, texture in zip(images, textures, strict=True):
        channels, others = (np.cov(i.reshape(-1, 3).T.astype(float)) for i in (image, texture))
        assert np.allclose(channels, others, atol=1)
        assert not np.array_equal(image, texture)


def test_destroyed_images_have_a_class_of_their_own(patches: Dataset) -> None:
    """On the images it was trained on; benchmarks/extractor.py measures it on others."""
    patches = dataclasses.replace(patches, images=patches.images[:, :16, :16])
    settings = ResNetSettings(
        widths=(16, 32), dim=16, steps=80, batch_size=32, destroyed=16, lr=1e-2
    )
    network = train_network([patches], settings, device=torch.device("cpu"))
    destroyed = destroy_shapes(patches.images, np.random.default_rng(1))
    real, none = (
        (predicted(network, images, torch.device("cpu")) == 3).mean()
        for images in (patches.images, destroyed)
    )
    assert none > 0.7 > 0.3 > real


def test_one_channel_and_dark_images_are_trained_on(patches: Dataset) -> None:
    black = dataclasses.replace(patches, images=np.zeros((len(patches), 8, 8, 1), np.uint8))
    settings = ResNetSettings(widths=(8,), dim=8, steps=2, batch_size=8, destroyed=4)
    network = train_network([black], settings, device=torch.device("cpu"))
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())
