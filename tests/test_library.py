"""The library: the example of every public name runs, and so do the ten lines of a notebook."""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from torch.utils.data import Dataset

import qhdm
from qhdm.data import given
from qhdm.errors import ConfigError, DataError, EvaluationError, SamplingError
from qhdm.metrics.samples import sampled
from qhdm.run import load_model
from qhdm.runs.directory import RunDirectory
from qhdm.schema import Document, validate

ROOT = Path(__file__).parent.parent


class Squares(Dataset[tuple[Any, int]]):
    """Any torch data set of (image, label): PIL images, larger than the network's."""

    classes = ("Forest", "River")

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index >= len(self):
            raise IndexError
        random = np.random.default_rng(index)
        return Image.fromarray(random.integers(0, 255, (24, 24, 3), dtype=np.uint8)), index % 2


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the examples may use, in a folder of their own."""
    for folder in ("configs", "circuits"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QHDM_DATA", str(tmp_path / "cache"))
    train = TINY["train"] | {"steps": 2, "log_every": 2}  # type: ignore[operator]
    config = validate(qhdm.Config, Document("tiny", TINY | {"train": train}, {}))
    filter = qhdm.build_filter("fqconv", layers=1)
    return {
        **{name: getattr(qhdm, name) for name in qhdm.__all__},
        **{"qhdm": qhdm, "torch": torch, "np": np, "dataclasses": dataclasses},
        **{"CONFIG": config, "DATASET": Squares(), "filter": filter},
    }


@pytest.mark.parametrize("name", [n for n in qhdm.__all__ if n != "__version__"])
def test_every_public_name_has_an_example_that_runs(name: str, names: dict[str, Any]) -> None:
    documented = getattr(qhdm, name)
    (example,) = [
        test
        for test in doctest.DocTestFinder(recurse=False).find(documented, name, globs=names)
        if test.examples
    ]
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    printed: list[str] = []
    assert runner.run(example, out=printed.append).failed == 0, "".join(printed)


def test_ten_lines_of_a_notebook(names: dict[str, Any]) -> None:
    """Training on any torch data set, sampling, evaluation, and a layer for any module."""
    config, dataset, called = names["CONFIG"], names["DATASET"], []

    class Noted(qhdm.Callback):
        def on_step(self, step: int) -> None:
            called.append(step)

    run = qhdm.train(config, dataset, callbacks=[Noted()])
    images = run.sample(qhdm.Sampling(classes=["Forest"], num=8, engine=qhdm.Aer(shots=1024)))
    result = qhdm.evaluate(images, dataset)
    layer = qhdm.QuantumConv2d(channels=12, ansatz="fqconv")
    assert called == [1, 2]
    assert run.class_names == ("Forest", "River")
    assert images.shape == (8, 16, 16, 3)
    assert result.generated.num == 8
    assert [metric.name for metric in result.metrics] == ["memorisation"]
    assert layer(torch.zeros(1, 12, 4, 4)).shape == (1, 12, 4, 4)
    # The run knows that it cannot read its images again.
    with pytest.raises(DataError, match=r"^data\.root: "):
        qhdm.resume(run.path)
    assert qhdm.resume(run.path, dataset, callbacks=[]).config == run.config
    labelled = qhdm.evaluate(images, dataset, labels=["Forest"] * 8)
    assert "class accuracy" in [metric.name for metric in labelled.metrics]


@pytest.mark.parametrize(
    ("ema", "names"),
    [
        (None, ["ema", "model", "step:15"]),
        (qhdm.PowerEmaConfig(snapshots=5), ["ema", "model", "ema:0.1", "ema:0.07", "step:8"]),
    ],
    ids=["published", "power"],
)
def test_one_place_decides_which_weights_sample(
    ema: qhdm.PowerEmaConfig | None, names: list[str], tiny_run: Path, tmp_path: Path
) -> None:
    """Every way of sampling: the images are those of a run with these weights alone."""
    path = tmp_path / "run"
    if ema is None:
        shutil.copytree(tiny_run, path)  # an evaluation is kept in it
    else:
        config = RunDirectory.open(tiny_run).config
        config = replace(config, train=replace(config.train, lr=1e-2, ema=ema))
        qhdm.train(config, out=path, callbacks=[])
    run = qhdm.Run.open(path, device="cpu")
    assert "weights" not in inspect.signature(qhdm.Run.open).parameters
    images = []
    for weights in names:
        model, _ = load_model(path, weights=weights)
        alone = qhdm.Run(model, run.config, device=run.device)
        request = qhdm.Sampling(weights=weights, steps=2, num=1, classes=["Forest", "River"])
        images.append(run.sample(request))
        np.testing.assert_array_equal(images[-1], alone.sample(replace(request, weights="ema")))
        np.testing.assert_array_equal(run.trajectory(request).images, images[-1])
        exact = run.sample(replace(request, engine=qhdm.Exact()))
        np.testing.assert_array_equal(exact, images[-1])
        theta = run.with_engine("exact", weights=weights).state_dict()
        assert all(torch.equal(theta[name], value) for name, value in model.state_dict().items())
        settings = qhdm.EvaluationSettings(num=10, steps=2, weights=weights, device="cpu")
        evaluated, _ = sampled(RunDirectory.open(path), settings)
        expected = alone.sample(
            qhdm.Sampling(steps=2), labels=list(range(10)), indices=list(range(10))
        )
        np.testing.assert_array_equal(evaluated.images, expected)
    assert all((one != other).any() for one, other in combinations(images, 2))
    with pytest.raises(SamplingError, match=r"^weights: model"):
        alone.sample(qhdm.Sampling(weights="model"))


class Bad(Squares):
    def __init__(self, image: Any, label: Any) -> None:
        self.item = image, label

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.item


RGB = np.zeros((16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (RGB, 2, "labels from 2 to 2 for 2 classes"),
        (RGB, -1, "labels from -1"),
        (RGB, 1.7, r"Bad\[0\]: "),
        (RGB, "Forest", r"Bad\[0\]: is not an \(image, label\)"),
        (RGB.astype(np.float32) + 2, 0, r"floating-point values from 2 to 2; .* \[0, 1\]"),
        (RGB.astype(np.float32) + np.nan, 0, "floating-point values"),
        (RGB.astype(np.uint16), 0, "values of type uint16"),
        (np.zeros((16, 16, 13), np.uint8), 0, r"shape \(16, 16, 13\)"),
        (np.zeros(16, np.uint8), 0, r"shape \(16,\)"),
    ],
)
def test_items_that_cannot_be_images_are_refused(
    image: Any, label: Any, message: str, names: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=message):
        qhdm.train(names["CONFIG"], Bad(image, label))
    assert not Path("runs").exists()


def test_images_of_every_form_are_the_same(names: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    picture = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    forms = [
        picture,
        Image.fromarray(picture),
        torch.as_tensor(picture).permute(2, 0, 1),
        torch.as_tensor(picture).permute(2, 0, 1) / 255,
        picture / 255,
    ]
    for form in forms:
        images = given([(form, 0)], names["CONFIG"].data)
        np.testing.assert_array_equal(images.images[0], picture)


def test_what_cannot_be_evaluated_is_refused(names: dict[str, Any]) -> None:
    images, dataset = np.zeros((4, 16, 16, 3), np.uint8), names["DATASET"]
    settings = qhdm.EvaluationSettings(metrics=("classes",))
    for arguments, message in (
        ((images,), "give the real images"),
        ((images / 255.0, dataset), "give uint8"),
        ((images, dataset, settings), "labels: needed by the metrics classes"),
    ):
        with pytest.raises(EvaluationError, match=message):
            qhdm.evaluate(*arguments)
    with pytest.raises(EvaluationError, match=r"^labels: "):
        qhdm.evaluate(images, dataset, labels=[0])


class Changed(Squares):
    """`Squares`, the images of some indices black; never raises IndexError."""

    def __init__(self, indices: set[int], classes: tuple[str, ...] = Squares.classes) -> None:
        self.indices, self.classes = indices, classes

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = super().__getitem__(index % len(self))
        return (Image.new("RGB", image.size) if index in self.indices else image), label


def test_what_is_held_out_is_not_trained_on(names: dict[str, Any]) -> None:
    config = names["CONFIG"]
    test = set(np.flatnonzero(given(Squares(), config.data).is_test).tolist())
    assert len(test) == 4
    plain, same, other = (
        qhdm.train(config, Changed(indices), callbacks=[])
        for indices in (set(), test, {min(set(range(40)) - test)})
    )

    def weights(run: qhdm.Run) -> np.ndarray:
        return torch.cat([p.detach().flatten() for p in run.network("ema").parameters()]).numpy()

    np.testing.assert_array_equal(weights(plain), weights(same))
    assert (weights(plain) != weights(other)).any()
    whole = given(Squares(), config.data)  # with its split, which training keeps
    np.testing.assert_array_equal(weights(plain), weights(qhdm.train(config, whole, callbacks=[])))
    # The run is evaluated with the split that it was trained with.
    settings = qhdm.EvaluationSettings(num=4, steps=1, metrics=("memorisation",))
    result = qhdm.evaluate(plain, Squares(), settings)
    assert (result.data.train, result.data.test) == (36, 4)
    assert result.data.digest == qhdm.evaluate(plain.sample(), Squares()).data.digest
    with pytest.raises(EvaluationError, match="only root"):
        qhdm.evaluate(plain, config.data)


def test_data_sets_are_evaluated_as_arrays_are(names: dict[str, Any]) -> None:
    settings = qhdm.EvaluationSettings(metrics=("memorisation",))
    result = qhdm.evaluate(Changed(set()), Squares(), settings)
    assert result.generated.num == 40
    swapped = Changed(set(), ("River", "Forest"))
    with pytest.raises(DataError, match=r"River, Forest, .*Forest, River"):
        qhdm.evaluate(swapped, Squares(), settings)
    with pytest.raises(EvaluationError, match=r"\(24, 24, 3\)"):
        qhdm.evaluate(np.zeros((24, 24, 3), np.uint8), Squares(), settings)
    small = given(Squares(), names["CONFIG"].data)
    with pytest.raises(DataError, match="24x24"):
        qhdm.evaluate(small, given(Squares(), replace(names["CONFIG"].data, image_size=24)))
    for nothing in (3, [3], []):
        with pytest.raises(DataError, match=type(nothing).__name__):
            qhdm.evaluate(nothing, Squares(), settings)


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda: qhdm.Sampling(clases=["Forest"]), "Sampling: clases: .*classes"),
        (lambda: qhdm.Sampling(classes="Forest"), "Sampling: classes: "),
        (lambda: qhdm.Sampling(shots=5), "Sampling: shots: "),
        (lambda: qhdm.TrainConfig(lr="x"), "TrainConfig: lr: "),
        (lambda: qhdm.Config(model=qhdm.ModelConfig(head_dim=7)), r"Config: model\.head_dim: 7"),
        (lambda: replace(qhdm.Config(), seed=-3), "Config: seed: .*-3"),
        (
            lambda: qhdm.EvaluationSettings(engine=qhdm.Hardware(backend="fake_fez")),
            "EvaluationSettings: engine: ",
        ),
    ],
)
def test_wrong_values_are_refused_in_one_line(make: Any, place: str) -> None:
    with pytest.raises(ConfigError, match=f"^{place}[^\n]*$"):
        make()


def test_other_classes_are_refused(names: dict[str, Any]) -> None:
    run = qhdm.train(names["CONFIG"], Squares(), callbacks=[])
    for classes in (("River", "Forest"), ("a", "b", "c")):
        with pytest.raises(DataError, match=r"data\.classes"):
            qhdm.resume(run.path, Changed(set(), classes))
    for classes in (("T-shirt/top", "Bag"), ("Bag", "Bag")):
        with pytest.raises(DataError, match=r"data\.classes"):
            qhdm.train(names["CONFIG"], Changed(set(), classes))


def test_labels_and_classes_exclude_each_other(names: dict[str, Any]) -> None:
    run = qhdm.train(names["CONFIG"], Squares(), callbacks=[])
    for request, arguments in (
        (qhdm.Sampling(classes=[0], num=2, steps=1), {"indices": [5, 6]}),
        (qhdm.Sampling(classes=[0], steps=1), {"labels": [1]}),
        (qhdm.Sampling(steps=1), {"labels": [1], "indices": [-1]}),
        (qhdm.Sampling(engine=qhdm.Hardware(backend="fake_fez")), {"indices": [5, 6]}),
    ):
        with pytest.raises(SamplingError, match=r"^(labels|indices): "):
            run.sample(request, **arguments)


def test_optimisers_and_schedules_have_names(names: dict[str, Any]) -> None:
    from qhdm.training.optimizers import rate_share

    config = names["CONFIG"]
    rates = {}
    for schedule in ("constant", "linear", "cosine", "trapezoid"):
        train = dataclasses.replace(config.train, steps=110, warmup=10, lr_schedule=schedule)
        rates[schedule] = [rate_share(train, step) for step in range(110)]
        assert rates[schedule][:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert set(rates["constant"][10:]) == {1}
    assert rates["linear"][60] == rates["cosine"][60] == pytest.approx(0.5)
    assert rates["cosine"][35] == pytest.approx(0.5 * (1 + np.cos(np.pi / 4)))
    assert set(rates["trapezoid"][10:55]) == {1}
    assert rates["trapezoid"][55:] == pytest.approx([1 - i / 55 for i in range(55)])
    brief = dataclasses.replace(train, steps=100, warmup=0.03)
    assert [rate_share(brief, step) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    for optimizer in ("adamw", "sgd"):
        train = dataclasses.replace(config.train, optimizer=optimizer, weight_decay=0.1)
        run = qhdm.train(dataclasses.replace(config, train=train), out=optimizer, callbacks=[])
        more = dataclasses.replace(run.config.train, steps=3)
        longer = dataclasses.replace(run.config, train=more)
        assert qhdm.resume(run.path, config=longer, callbacks=[]).config.train.steps == 3
    other = dataclasses.replace(config.model, dim_head=16)
    with pytest.raises(ConfigError, match="--set model"):
        qhdm.resume(run.path, config=dataclasses.replace(run.config, model=other))
