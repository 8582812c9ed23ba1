"""The stream of training batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qhdm.data import Batches, Dataset
from qhdm.data.batches import symmetries
from qhdm.errors import DataError


def numbered(count: int) -> Dataset:
    """Images of 2x2 pixels, all different: 4n, 4n+1, 4n+2, 4n+3."""
    images = np.arange(4 * count, dtype=np.uint8).reshape(count, 2, 2, 1)
    return Dataset(
        name="numbered",
        class_names=("even", "odd"),
        images=images,
        labels=np.arange(count) % 2,
        names=tuple(f"{'even' if n % 2 == 0 else 'odd'}/{n}.png" for n in range(count)),
        is_test=np.zeros(count, dtype=bool),
        skipped=(),
    )


def batches(count: int, size: int, seed: int = 0, *, augment: bool = False) -> Batches:
    return Batches(numbered(count), batch_size=size, seed=seed, augment=augment)


@given(count=st.integers(1, 20), size=st.integers(1, 50), seed=st.integers(0, 2**63 - 1))
@settings(deadline=None)
def test_every_epoch_is_a_permutation(count: int, size: int, seed: int) -> None:
    stream = batches(count, size, seed)
    epochs = 3
    steps = -(-epochs * count // size)
    indices = np.concatenate([stream.indices(step) for step in range(steps)])
    for epoch in indices[: epochs * count].reshape(epochs, count):
        assert sorted(epoch) == list(range(count))


@given(
    size=st.integers(1, 30),
    steps=st.lists(st.integers(0, 10_000), min_size=1, max_size=6),
    augment=st.booleans(),
)
@settings(deadline=None)
def test_a_batch_depends_on_seed_and_step_alone(size: int, steps: list[int], augment: bool) -> None:
    used = batches(11, size, 7, augment=augment)
    for step in steps:
        fresh = batches(11, size, 7, augment=augment)
        for one, other in zip(used.batch(step), fresh.batch(step), strict=True):
            np.testing.assert_array_equal(one, other)


def test_images_go_with_their_labels() -> None:
    images, labels = batches(11, 30).batch(5)
    assert images.shape == (30, 2, 2, 1)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[:, 0, 0, 0] // 4 % 2, labels)


def test_epochs_and_seeds_differ() -> None:
    stream = batches(50, 50)
    assert (stream.indices(0) != stream.indices(1)).any()
    assert (stream.indices(0) != batches(50, 50, 1).indices(0)).any()


def test_augmentation_keeps_pixels_and_leaves_the_data_set_alone() -> None:
    dataset = numbered(10)
    before = dataset.images.copy()
    images, _ = Batches(dataset, batch_size=10, seed=3, augment=True).batch(0)
    plain, _ = Batches(dataset, batch_size=10, seed=3, augment=False).batch(0)
    assert (images != plain).any()
    np.testing.assert_array_equal(np.sort(images.reshape(10, 4)), np.sort(plain.reshape(10, 4)))
    np.testing.assert_array_equal(dataset.images, before)


def test_augmentation_draws_each_symmetry_equally_often() -> None:
    draws, steps = 64, 100
    stream = batches(1, draws, augment=True)
    seen = [tuple(image.ravel()) for step in range(steps) for image in stream.batch(step)[0]]
    counts = {key: seen.count(key) for key in set(seen)}
    mean = draws * steps / 8
    assert len(counts) == 8
    assert all(abs(count - mean) < 5 * mean**0.5 for count in counts.values())


def test_symmetries_are_the_eight_of_the_square() -> None:
    image = np.arange(27).reshape(3, 3, 3)
    found = symmetries(np.stack([image] * 8), np.arange(8))
    np.testing.assert_array_equal(found[0], image)
    expected = [
        np.rot90(turned, quarter) for turned in (image, image[:, ::-1]) for quarter in range(4)
    ]
    assert {array.tobytes() for array in found} == {array.tobytes() for array in expected}
    assert len({array.tobytes() for array in found}) == 8


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(DataError, match=r"^numbered: .*data\.test_fraction"):
        batches(0, 4)
