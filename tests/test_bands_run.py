"""A run on bands: training, and samples as pictures and as GeoTIFF files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import call, refused, succeeded
from PIL import Image

import qhdm
from qhdm import data
from qhdm.augmentation import choice
from qhdm.config import DataConfig
from qhdm.data import Bands, GeoImage, read_geotiff, write_geotiff
from qhdm.metrics.classifier import ClassifierSettings

pytest.importorskip("rasterio")

from band_sets import RIVER, band_set

BANDS = ("B04", "B03", "B02", "B08", "B10")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[qhdm.Run]:
    folder = tmp_path_factory.mktemp("bands")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QHDM_DATA", str(folder / "cache"))
        root = band_set(folder / "set", {"a": 10, "b": 10})
        config = qhdm.Config(
            data=DataConfig(
                root=str(root), image_size=8, bands=BANDS, percentile=(0, 100), test_fraction=0.3
            ),
            model=qhdm.ModelConfig(kind="unet", widths=(8, 8), head_dim=8, emb_dim=8),
            train=qhdm.TrainConfig(steps=2, batch_size=4, sample_every=2, device="cpu"),
            sample=qhdm.SampleConfig(steps=2, num=2),
        )
        yield qhdm.train(config, out=folder / "run")


def test_a_run_needs_no_data_to_convert_its_samples(run: qhdm.Run) -> None:
    assert run.path is not None
    opened = qhdm.Run.open(run.path)
    images = opened.sample(qhdm.Sampling(num=2))
    assert (images.shape, images.dtype) == ((4, 8, 8, 5), np.uint16)
    bands = opened.bands
    assert isinstance(bands, Bands)
    assert bands == data.load(run.config.data).bands
    values = bands.values(images)
    assert (values >= bands.low).all()
    assert (values <= bands.high).all()
    # Levels of 8 bits, as of earlier steps, are on the same scale.
    coarse = np.rint(images / 257).astype(np.uint8)
    steps = (np.array(bands.high) - bands.low) / 255
    assert (np.abs(bands.values(coarse) - values) <= 0.51 * steps).all()


def test_previews_and_grids_show_both_composites(run: qhdm.Run) -> None:
    assert run.path is not None
    (preview,) = (run.path / "samples").glob("step_*.png")
    grid = run.path / "grid.png"
    succeeded(call("sample", run.path, "--grid", grid))
    rows = 4  # two classes in true and false colour
    for path in (preview, grid):
        with Image.open(path) as picture:
            assert rows * 96 < picture.height < (rows + 1) * 96 + 150
    assert run.bands is not None
    assert [*run.bands.composites.values()] == [(0, 1, 2), (3, 0, 1)]
    assert "B08 1700 to 1772" in run.bands.stretch


@pytest.mark.parametrize("form", ["geotiff", "geotiff-uint16"])
def test_samples_as_geotiff_have_the_values_of_samples(
    form: str, run: qhdm.Run, tmp_path: Path
) -> None:
    assert run.path is not None
    assert run.bands is not None
    succeeded(call("sample", run.path, "--num", 2, "--out", tmp_path / "out", "--format", form))
    expected = run.bands.values(run.sample(qhdm.Sampling(num=2)))
    files = sorted((tmp_path / "out").glob("*/*.tif"))
    assert [file.name for file in files] == [f"{n}_{i:05d}.tif" for n in "ab" for i in range(2)]
    for file, values in zip(files, expected, strict=True):
        image = read_geotiff(file)
        assert (image.names, image.crs, image.transform) == (BANDS, None, None)
        assert image.values.dtype == ("float32" if form == "geotiff" else "uint16")
        # The ranges of these bands are 72: whole numbers would be coarse, and have scale tags.
        assert image.is_scaled == (form == "geotiff-uint16")
        np.testing.assert_allclose(image.physical, values, atol=2e-3)
    # Read again, they are the levels that were sampled.
    again = data.load(
        DataConfig(root=str(tmp_path / "out"), image_size=8, bands=BANDS, range=run.bands.range)
    )
    assert np.abs(again.images[:].astype(int) - run.bands.levels(expected)).max() <= 1


def test_whole_numbers_have_the_units_of_reflectances(tmp_path: Path) -> None:
    from qhdm.data.geotiff import of_levels

    real = read_geotiff(RIVER)
    bands = Bands(tuple(f"b{i}" for i in range(13)), (0.0,) * 13, (65535.0,) * 13)
    write_geotiff(tmp_path / "a.tif", of_levels(bands.levels(real.values), bands, True))
    copy = read_geotiff(tmp_path / "a.tif")
    assert not copy.is_scaled
    np.testing.assert_array_equal(copy.values, real.values)


def test_the_georeference_is_that_of_a_given_file(run: qhdm.Run, tmp_path: Path) -> None:
    assert run.path is not None
    out = ("--num", 1, "--class", "a", "--format", "geotiff")
    succeeded(call("sample", run.path, *out, "--out", tmp_path / "out", "--like", RIVER))
    image, like = read_geotiff(tmp_path / "out" / "a" / "a_00000.tif"), read_geotiff(RIVER)
    assert image.crs == like.crs
    # The same ground, of 64x64 and of 8x8 pixels.
    assert image.transform * (0, 0) == like.transform * (0, 0)
    assert image.transform * (8, 8) == like.transform * (64, 64)
    oblong = dataclasses.replace(like, values=like.values[:40])
    write_geotiff(tmp_path / "oblong.tif", oblong)
    write_geotiff(tmp_path / "plain.tif", GeoImage(np.zeros((8, 8, 1)), (None,)))
    for words in (
        ("--like", tmp_path / "plain.tif"),
        ("--like", tmp_path / "none.tif"),
        ("--like", tmp_path / "oblong.tif"),
        ("--like", __file__),
    ):
        refused(call("sample", run.path, *out, "--out", tmp_path / "new", *words), str(words[1]))
    refused(call("sample", run.path, *out), "--format: ")
    refused(call("sample", run.path, "--like", RIVER, "--out", tmp_path / "new"), "--like: ")
    assert not (tmp_path / "new").exists()


def test_the_report_shows_spectra_and_both_composites(run: qhdm.Run, tmp_path: Path) -> None:
    assert run.path is not None
    succeeded(call("report", run.path, "--out", tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in ("Spectra", "a, true colour (B04, B03, B02)", "b, false colour (B08, B04, B03)"):
        assert f">{text}</h" in page
    assert run.bands is not None
    assert run.bands.stretch in page


def test_real_images_are_as_near_to_themselves_as_the_floor(run: qhdm.Run) -> None:
    """Evaluated in the place of generated images, training images have the floor's distances."""
    whole = data.load(run.config.data)
    training = whole.split("train")
    settings = qhdm.EvaluationSettings(metrics=("bands",))
    result = qhdm.evaluate(training.images[:], whole, settings, labels=training.labels.tolist())
    assert [metric.name for metric in result.metrics] == [
        "spectral angle", "band correlation", "NDVI", "NDWI"
    ]  # fmt: skip
    assert result.extractor is None
    for metric in result.metrics:
        assert metric.value == metric.floor
        assert 0 <= metric.value < 0.5
    dark = np.zeros_like(training.images[:])
    worse = qhdm.evaluate(dark, whole, settings, labels=training.labels.tolist())
    assert all(
        m.value > 1.5 * m.floor for m in worse.metrics if m.name != "spectral angle" and m.floor
    )


def test_files_are_evaluated_in_the_range_of_the_real_images(run: qhdm.Run, tmp_path: Path) -> None:
    """Of generated images, percentiles are those of the real ones, never their own."""
    out = band_set(tmp_path / "made", {"a": 6, "b": 6})
    real = run.config.data
    measured = DataConfig(
        root=real.root, image_size=8, bands=BANDS, percentile=(0, 50), test_fraction=0.3
    )
    settings = qhdm.EvaluationSettings(metrics=("bands",))
    asked = qhdm.evaluate(out, measured, settings, out=tmp_path / "e.json")
    known = data.load(measured).bands
    assert known is not None
    fixed = DataConfig(
        root=real.root, image_size=8, bands=BANDS, range=known.range, test_fraction=0.3
    )
    assert asked.metrics == qhdm.evaluate(out, fixed, settings).metrics


def test_pictures_have_no_metrics_of_bands(run: qhdm.Run) -> None:
    assert run.path is not None
    refused(
        call("evaluate", "--images", run.path.parent / "set", "--data", "bundled", "--metrics",
             "bands"),
        "bands",
    )  # fmt: skip
    refused(
        call("evaluate", run.path, "--num", 4, "--metrics", "classes", "--extractor", "dinov2",
             "--extractor-weights", "none"),
        "extractor: ",
    )  # fmt: skip


def test_augmented_bands_are_geotiff(
    run: qhdm.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ClassifierSettings(resolution=8, width=4, dim=4, steps=2, batch_size=8)
    monkeypatch.setattr(choice, "RETRAINED", small)
    monkeypatch.setattr(choice.Trial, "lower", property(lambda trial: 1.0))  # any gain is enough
    request = qhdm.AugmentSettings(num=5)
    record = qhdm.augment(run.config.data.root, run, tmp_path / "out", request)
    assert [own.real for own in record.classes] == [7, 7]  # held-out images are not touched
    assert len(record.notes) == 1  # of the training images
    files = sorted((tmp_path / "out").glob("*/*.tif"))
    assert len(files) == sum(record.chosen.values()) > 0
    like = dataclasses.replace(run.config.data, root=str(tmp_path / "out"), test_fraction=0.0)
    again = data.load(dataclasses.replace(like, classes=None))
    number = int(files[0].stem[-5:])
    image = run.sample(labels=[files[0].parent.name], indices=[2 * number + again.labels[0]])
    assert np.abs(again.images[0].astype(int) - image[0]).max() <= 2
