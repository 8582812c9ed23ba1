"""What the HTML pages show: trajectories, nearest images, draws of angles, numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qhdm import Run, data
from qhdm.config import Sampling, load_config
from qhdm.data.batches import symmetries
from qhdm.models import build_model
from qhdm.models.named_filters import named_filters
from qhdm.report.run import redraw_distance
from qhdm.report.samples import nearest
from qhdm.tables import number


@pytest.mark.parametrize("name", ["quickstart", "published"])
def test_the_distance_of_two_draws_of_angles(name: str) -> None:
    draws = []
    for seed in (0, 1):
        config = load_config(name, [f"seed={seed}", "data.root=bundled"])
        model = build_model(data.resolved(config))
        draws.append(np.concatenate([item.weights for item in named_filters(model)]))
    around = np.angle(np.exp(1j * (draws[1] - draws[0])))
    assert np.sqrt(np.square(around).mean()) == pytest.approx(redraw_distance(config), rel=0.1)


def test_trajectories_end_in_the_samples(tiny_run: Path) -> None:
    pipeline = Run.open(tiny_run, device="cpu")
    labels, indices = pipeline.images_of(["Forest", "River"], 2)
    way = pipeline.trajectory(Sampling(seed=3), labels=labels, indices=indices)
    steps = pipeline.config.sample.steps
    np.testing.assert_array_equal(
        way.images, pipeline.sample(Sampling(seed=3), labels=labels, indices=indices)
    )
    assert list(way.sigmas) == pipeline.preconditioning.sampling(steps).sigma.tolist()
    assert way.x_t.shape == way.x_0.shape == (steps, *way.images.shape)
    # The last step of DPM-Solver++ leaves the estimate itself.
    np.testing.assert_array_equal(way.x_0[-1], way.images)
    # At the beginning there is noise: half of it within [-0.67, 0.67].
    inside = np.abs(way.x_t[0] / 127.5 - 1) < 0.674
    assert 0.45 < inside.mean() < 0.55


@pytest.mark.parametrize("turned", [False, True])
def test_nearest_images_by_brute_force(turned: bool) -> None:
    rng = np.random.default_rng(0)
    real = rng.integers(256, size=(9, 6, 6, 3), dtype=np.uint8)
    images = rng.integers(256, size=(4, 6, 6, 3), dtype=np.uint8)
    images[0] = np.rot90(real[3])
    images[1] = real[5]
    kinds = range(8 if turned else 1)
    every = np.concatenate([symmetries(real, np.full(len(real), kind)) for kind in kinds])
    difference = every[None].astype(float) - images[:, None]
    table = np.sqrt(np.square(difference).mean(axis=(2, 3, 4)))
    near, apart = nearest(images, real, turned=turned)
    np.testing.assert_allclose(apart, table.min(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(near, every[table.argmin(axis=1)])
    assert apart[1] == 0
    assert (apart[0] == 0) == turned


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0, "0.000"),
        (0.12346, "0.1235"),
        (12.345, "12.35"),
        (1234.5, "1234"),
        (0.00012, "0.0001200"),
        (-0.5, "-0.5000"),
        (123456.0, "1.235e+05"),
    ],
)
def test_numbers_have_four_digits(value: float | None, text: str) -> None:
    assert number(value) == text
