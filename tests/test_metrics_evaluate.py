"""`qhdm evaluate` and `qhdm train-classifier` on quarters of the bundled patches."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import Done, call
from conftest import TINY
from PIL import Image

from qhdm import data
from qhdm.cli import main
from qhdm.config import DataConfig, Sampling
from qhdm.errors import EvaluationError
from qhdm.metrics import EvaluationSettings, evaluate, read_evaluation
from qhdm.metrics.records import DataRecord
from qhdm.metrics.samples import described, sampled
from qhdm.run import Run
from qhdm.runs.directory import RunDirectory

CLASSES = ("Forest", "Industrial", "SeaLake")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QHDM_DATA", str(tmp_path_factory.mktemp("cache")))
        yield


def refused(done: Done, *words: str, code: int = 1) -> None:
    """Check that the last line on stderr, below the bars, is a refusal that holds `words`."""
    assert done.returncode == code
    last = done.stderr.strip().splitlines()[-1]
    assert "qhdm" in last
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in last


@pytest.fixture(scope="module")
def quarters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of the bundled patches, each patch cut into sixteen."""
    folder = tmp_path_factory.mktemp("quarters")
    whole = data.load(DataConfig(root="bundled", image_size=64, classes=CLASSES))
    for i, (image, label) in enumerate(zip(whole.images, whole.labels, strict=True)):
        (folder / CLASSES[label]).mkdir(exist_ok=True)
        for j in range(16):
            top, left = 16 * (j // 4), 16 * (j % 4)
            tile = Image.fromarray(image[top : top + 16, left : left + 16])
            tile.save(folder / CLASSES[label] / f"{i:03d}_{j:02d}.png")
    return folder


@pytest.fixture(scope="module")
def run(quarters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid U-Net of a few training steps on them."""
    folder = tmp_path_factory.mktemp("runs")
    tiny = {**TINY, "data": {"root": str(quarters), "image_size": 16, "test_fraction": 0.4}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    train = ["train", folder / "tiny.yaml", "--out", folder / "run", "--set", "train.steps=5"]
    assert main(list(map(str, train))) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def classifier(run: Path) -> Path:
    """Trained by the command, for fewer steps than is usual."""
    path = run.parent / "classifier.safetensors"
    assert main(["train-classifier", str(run), "--steps", "30", "--out", str(path)]) == 0
    return path


def test_a_run_is_evaluated_once(run: Path, classifier: Path) -> None:
    request = ("evaluate", run, "--num", 80, "--steps", 2, "--extractor-weights", classifier)
    groups = ("--metrics", "distances", "classes")
    done = call(*request, *groups)
    assert done.returncode == 0, done.stderr
    (path,) = (run / "evaluations").glob("*.json")
    assert "80images_dpmpp-2steps_guidance1_seed0_ema-step5_exact_resnet-" in path.name
    found = read_evaluation(path)
    assert found.groups == ("distances", "classes")
    assert found.generated.num == 80
    assert found.data.image_size == 16
    digest = found.extractor.digest
    for split in ("test", "train"):
        metric = found.find("FID", split=split)
        assert metric is not None
        assert metric.label == f"FID[resnet {digest}, N=80, {split}]"
        assert metric.label in done.stdout
        assert metric.error is not None or metric.num // 2 <= 64
        # A model of five steps is far from real images, and real images are near each other.
        assert metric.floor is not None
        assert metric.value > 2 * metric.floor
    assert found.find("class accuracy") is not None
    assert found.find("class accuracy", class_name="Forest") is not None

    again = call(*request, *groups)
    assert again.returncode == 0
    assert str(path) in again.stderr
    assert "sampl" not in again.stderr
    assert again.stdout == done.stdout

    more = call(*request, "--metrics", "classes", "memorisation")
    assert more.returncode == 0
    assert "80 of the 80 images" in more.stderr
    assert read_evaluation(path).groups == ("distances", "classes", "memorisation")
    assert read_evaluation(path).metrics[: len(found.metrics)] == found.metrics
    with Image.open(path.with_name(f"{path.stem}_neighbours.png")) as picture:
        assert picture.height > 500  # two rows for each of three classes


def test_images_of_a_folder(quarters: Path, classifier: Path, tmp_path: Path) -> None:
    """Real images in the place of generated ones are about as near as the floor says."""
    request = (
        *("evaluate", "--images", quarters, "--data", quarters),
        *("--size", 16, "--test-fraction", 0.4, "--extractor-weights", classifier),
    )
    done = call(*request, "--metrics", "distances")
    assert done.returncode == 0
    assert "FID[resnet" in done.stdout
    assert list(tmp_path.iterdir()) == []
    out = tmp_path / "evaluation.json"
    done = call(*request, "--metrics", "distances", "memorisation", "--out", out)
    assert done.returncode == 0
    found = read_evaluation(out)
    assert found.generated.steps is None
    fid = found.find("FID", split="test")
    assert fid is not None
    assert fid.floor is not None
    assert fid.value < 2 * fid.floor
    # All training images are among them: copies.
    memorised = found.find("memorisation")
    assert memorised is not None
    assert memorised.value > (memorised.floor or 0)
    assert memorised.value > 0.59
    assert {path.name for path in tmp_path.iterdir()} == {
        "evaluation.json",
        "evaluation_neighbours.png",
    }


def test_what_cannot_be_evaluated_is_refused(
    run: Path, tiny_run: Path, classifier: Path, quarters: Path, tmp_path: Path
) -> None:
    weights = ("--extractor-weights", classifier)
    small = call("evaluate", run, "--num", 64, *weights)
    refused(small, "64 images (generated)", "--num 65")
    bundled = call("train-classifier", tiny_run, "--steps", 1, "--out", tmp_path / "c.safetensors")
    assert bundled.returncode == 0
    assert "SeaLake" in bundled.stdout
    assert "64 features" in bundled.stdout
    few = call("evaluate", tiny_run, "--extractor-weights", tmp_path / "c.safetensors")
    refused(few, "10 images (test split)", "--metrics")
    assert not (tiny_run / "evaluations").exists()
    refused(call("evaluate"), "--images")
    refused(call("evaluate", tmp_path), str(tmp_path))
    refused(call("evaluate", run, "--shots", 64), "shots: ")
    refused(call("evaluate", run, "--extractor", "dinov2"), "extractor_weights: ")
    refused(call("evaluate", run, "--set", "data.test_fraction=0.5"), "data.test_fraction")
    refused(call("evaluate", run, *weights, "--set", f"data.root={tmp_path}/no"), f"{tmp_path}/no")
    refused(call("evaluate", run, "--images", quarters, "--steps", 3), "--steps: ")
    none = tmp_path / "none"
    refused(call("evaluate", run, "--images", none), f"--images: {none}: ")
    refused(call("evaluate", run, "--metrics", "beauty"), "'beauty'", code=2)
    refused(call("evaluate", run, "--out", tmp_path), f"--out: {tmp_path}: ")
    other = tmp_path / "other"
    (other / "Desert").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(other / "Desert" / "a.png")
    unknown = call("evaluate", run, "--images", other, *weights)
    refused(unknown, "Desert", "Forest")
    (tmp_path / "notes.json").write_text("{}")
    mine = call("evaluate", run, "--num", 70, *weights, "--out", tmp_path / "notes.json")
    refused(mine, "notes.json: ")
    assert (tmp_path / "notes.json").read_text() == "{}"
    refused(call("train-classifier"), "--data ROOT")
    refused(call("train-classifier", run, "--size", 16), "--size: ")
    refused(call("train-classifier", run, "--out", classifier), f"--out: {classifier}: ")


def test_sampled_images_are_those_of_the_pipeline(run: Path) -> None:
    opened = RunDirectory.open(run)
    settings = EvaluationSettings(num=30, steps=2, seed=7)
    found, present = sampled(opened, settings)
    assert present == 0
    assert np.bincount(found.labels).tolist() == [10, 10, 10]
    pipeline = Run.open(run)
    labels, indices = pipeline.images_of(["Industrial"], 10)
    direct = pipeline.sample(Sampling(steps=2, seed=7), labels=labels, indices=indices).astype(int)
    # Other batch sizes may round otherwise, by one grey level.
    assert np.abs(found.images[found.labels == 1] - direct).max() <= 1

    more, present = sampled(opened, EvaluationSettings(num=40, steps=2, seed=7))
    assert present == 30
    assert np.array_equal(more.images[:30], found.images)
    fewer, present = sampled(opened, EvaluationSettings(num=5, steps=2, seed=7))
    assert present == 5
    assert np.array_equal(fewer.images, found.images[:5])
    _, present = sampled(opened, EvaluationSettings(num=5, steps=1, seed=7))
    assert present == 0


def test_an_interruption_loses_a_few_images_at_most(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EvaluationSettings(num=60, steps=1, seed=9)
    calls = []
    sample = Run.sample

    def interrupted(self: Run, *arguments: object, **options: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "sample", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sampled(RunDirectory.open(run), settings)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "sample", interrupted)
        calls[:] = [1, 1]
        done = call("evaluate", run, "--num", 60, "--steps", 1, "--seed", 9, "--metrics", "classes")
    refused(done, "repeat the command", code=130)
    found, present = sampled(RunDirectory.open(run), settings)
    assert present == 50
    assert len(found) == 60
    (kept,) = (
        path.parent
        for path in (run / "evaluations" / "samples").glob("*/request.json")
        if json.loads(path.read_text())["seed"] == 9
    )
    (kept / "0000025.npy").write_bytes(b"damaged")
    with pytest.raises(EvaluationError, match=r"0000025\.npy: "):
        sampled(RunDirectory.open(run), settings)


def test_an_evaluation_of_images_of_an_older_version_is_replaced(
    run: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["evaluate", run, "--num", 9, "--steps", 1, "--extractor-weights", classifier]
    request = list(map(str, [*asked, "--metrics", "classes"]))
    assert main([*request, "loss"]) == 0
    (path,) = (run / "evaluations").glob("9images*.json")
    found = read_evaluation(path)
    older = json.loads(path.read_text())
    del older["generated"]["start"]
    for metric in older["metrics"]:
        if metric["name"] == "class accuracy":
            metric["value"] = 0.5
    path.write_text(json.dumps(older))
    capsys.readouterr()
    assert main(request) == 0
    assert f"{path}: measured anew" in capsys.readouterr().err
    # The loss, which depends on no image, is kept, although it was not asked for.
    assert read_evaluation(path) == found
    # Of other images, it is refused like any other.
    older["data"]["digest"] = "another"
    path.write_text(json.dumps(older))
    assert main(request) == 1
    assert "other data or another request" in capsys.readouterr().err
    assert json.loads(path.read_text()) == older
    path.unlink()


def test_shots_are_another_request(run: Path) -> None:
    exact, _ = sampled(RunDirectory.open(run), EvaluationSettings(num=3, steps=1))
    aer = EvaluationSettings(num=3, steps=1, engine="aer", shots=8)
    noisy, present = sampled(RunDirectory.open(run), aer)
    assert present == 0
    assert not np.array_equal(exact.images, noisy.images)


def test_the_python_interface_tells_requests_apart(
    run: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QHDM_DATA", str(tmp_path))
    settings = EvaluationSettings(
        num=9, steps=1, metrics=("classes",), extractor_weights=str(classifier)
    )
    out = tmp_path / "evaluation.json"
    found = evaluate(run, settings=settings, out=out)
    assert found == read_evaluation(out)
    assert "| class accuracy[" in str(found)
    accuracy = found.find("class accuracy")
    assert accuracy is not None
    assert accuracy.num == 9
    other = EvaluationSettings(
        num=12, steps=1, metrics=("classes",), extractor_weights=str(classifier)
    )
    with pytest.raises(EvaluationError, match=str(out)):
        evaluate(run, settings=other, out=out)


def test_a_file_does_not_answer_for_other_images_or_weights(
    run: Path, quarters: Path, classifier: Path, tmp_path: Path
) -> None:
    """As many of them, from a source of the same name."""
    own = dataclasses.replace(RunDirectory.open(run).config.data, root=str(quarters))
    real, out = data.load(own), tmp_path / "images.json"
    images, labels = real.images[:9], real.labels[:9].tolist()
    settings = EvaluationSettings(metrics=("classes",), extractor_weights=str(classifier))
    found = evaluate(images, real, settings, labels=labels, out=out)
    assert evaluate(images, real, settings, labels=labels, out=out) == found
    for others, classes in ((255 - images, labels), (images, [(n + 1) % 3 for n in labels])):
        with pytest.raises(EvaluationError, match="another request"):
            evaluate(others, real, settings, labels=classes, out=out)
    older = json.loads(out.read_text())
    del older["generated"]["digest"]  # which earlier versions did not record
    out.write_text(json.dumps(older))
    assert evaluate(images, real, settings, labels=labels, out=out).metrics == found.metrics

    folder, out = tmp_path / "folder", tmp_path / "folder.json"
    shutil.copytree(quarters / "Forest", folder / "Forest")
    evaluate(folder, own, settings, out=out)
    (folder / "Forest").rename(folder / "SeaLake")
    with pytest.raises(EvaluationError, match="another request"):
        evaluate(folder, own, settings, out=out)

    here, moved = RunDirectory.open(run), RunDirectory.open(shutil.copytree(run, tmp_path / "run"))
    weights = described(here, settings)
    assert described(moved, settings).answers(weights)
    checkpoint = moved.latest_checkpoint()
    file, sums = checkpoint / "ema.safetensors", checkpoint / "SHA256SUMS"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    shutil.copy(checkpoint / "model.safetensors", file)
    after = hashlib.sha256(file.read_bytes()).hexdigest()
    sums.write_text(sums.read_text().replace(before, after))
    assert not described(moved, settings).answers(weights)


@pytest.mark.parametrize(
    ("num", "size", "options", "place"),
    [
        (0, 16, {}, "shape"),
        (3, 8, {}, "shape"),
        (3, 16, {"labels": ["Forest", "Forest"]}, "labels: "),
        (3, 16, {"labels": ["Forest", "Forest", "Desert"]}, "labels: "),
        (3, 16, {"labels": [0, 1, 3]}, "labels: "),
        (3, 16, {"settings": EvaluationSettings(metrics=("classes",))}, "labels: .*classes"),
    ],
)
def test_arrays_that_cannot_be_evaluated_are_refused(
    quarters: Path, num: int, size: int, options: dict[str, Any], place: str
) -> None:
    images = np.zeros((num, size, size, 3), np.uint8)
    with pytest.raises(EvaluationError, match=place):
        evaluate(images, DataConfig(root=str(quarters), image_size=16), **options)


def test_a_run_is_evaluated_with_its_own_data_wherever_they_are(
    run: Path, quarters: Path, classifier: Path, tmp_path: Path
) -> None:
    own = RunDirectory.open(run).config.data
    settings = EvaluationSettings(
        num=3, steps=1, metrics=("classes",), extractor_weights=str(classifier)
    )
    moved = shutil.copytree(quarters, tmp_path / quarters.name)
    out = tmp_path / "moved.json"
    result = evaluate(run, dataclasses.replace(own, root=str(moved)), settings, out=out)
    assert result.data == DataRecord.of(data.load(own))
    for other in (dataclasses.replace(own, test_fraction=0.5), str(quarters)):
        with pytest.raises(EvaluationError, match="skip_broken"):
            evaluate(run, other, settings)
