"""Bands that are chosen by number, and what is said about files that differ."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import call, refused, succeeded

import qhdm
from qhdm import data
from qhdm.config import DataConfig
from qhdm.config.fields import BAND_ORDERS
from qhdm.data import GeoImage, cache, load, write_geotiff
from qhdm.data.bands import BandImages, Bands
from qhdm.errors import DataError
from qhdm.report import samples

pytest.importorskip("rasterio")

from band_sets import EUROSAT, LEVEL, band_set, patch

NATURAL = BAND_ORDERS["sentinel2"]
NETWORK = qhdm.ModelConfig(kind="unet", widths=(8, 8), head_dim=8, emb_dim=8)
TRAIN = qhdm.TrainConfig(steps=1, batch_size=4, device="cpu")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QHDM_DATA", str(tmp_path / "cache"))


def config_of(root: Path, *bands: str | int, **options: Any) -> DataConfig:
    return DataConfig(root=str(root), image_size=8, bands=bands, **{"range": (0, 5000), **options})


def names_of(config: DataConfig) -> tuple[str, ...]:
    bands = load(config).bands
    assert bands is not None
    return bands.names


def test_numbers_keep_the_names_that_are_known(tmp_path: Path) -> None:
    named = band_set(tmp_path / "named", {"a": 2}, named=True, order=NATURAL)
    assert names_of(config_of(named, 9, "B04")) == ("B8A", "B04")
    eurosat = band_set(tmp_path / "eurosat", {"a": 2})
    assert names_of(config_of(eurosat, 13, 4)) == ("B8A", "B04")
    # The darkest band is not where EuroSAT has it: of this order, nothing is known.
    natural = band_set(tmp_path / "natural", {"a": 2}, order=NATURAL)
    assert names_of(config_of(natural, 9, 4)) == ("band 9", "band 4")
    for path in eurosat.glob("a/*"):
        write_geotiff(path, GeoImage(patch()[:, :, :4], (None,) * 4))
    assert names_of(config_of(eurosat, 4)) == ("band 4",)
    assert "band B04: " in succeeded(
        call("data", "info", named, "--bands", 4, "--range", 0, 5000, "--sheet", tmp_path / "s.png")
    )


def test_a_run_by_number_has_true_colour_and_indices(tmp_path: Path) -> None:
    root = band_set(tmp_path / "set", {"a": 6, "b": 6})
    config = qhdm.Config(data=config_of(root, 4, 3, 2, 8), model=NETWORK, train=TRAIN)
    run = qhdm.train(config, out=tmp_path / "run", callbacks=[])
    assert run.bands is not None
    assert [name.partition(" (")[0] for name in run.bands.composites] == [
        "true colour", "false colour"
    ]  # fmt: skip
    result = qhdm.evaluate(run, settings=qhdm.EvaluationSettings(num=4, metrics=("bands",)))
    assert "NDVI" in [metric.name for metric in result.metrics]


def test_a_run_without_names_is_resumed(tmp_path: Path) -> None:
    """Runs of earlier versions have numbers even where the names are known."""
    root, run = band_set(tmp_path / "set", {"a": 6, "b": 6}), tmp_path / "run"
    qhdm.train(
        qhdm.Config(data=config_of(root, 4, 3), model=NETWORK, train=TRAIN), out=run, callbacks=[]
    )
    plain = yaml.safe_load((run / "config.yaml").read_text())
    plain["data"]["bands"] = [4, 3]
    (run / "config.yaml").write_text(yaml.safe_dump(plain))
    succeeded(call("train", "--resume", run, "--set", "train.steps=2"))
    assert qhdm.Run.open(run).config.data.bands == (4, 3)


def test_data_sets_in_memory_keep_names_of_numbers(tmp_path: Path) -> None:
    class Named(list[Any]):
        bands = EUROSAT

    def items(order: tuple[str, ...]) -> list[Any]:
        images = [patch(i, order).astype(np.float32).transpose(2, 0, 1) for i in range(8)]
        return [{"image": torch.from_numpy(x), "label": i % 2} for i, x in enumerate(images)]

    config = DataConfig(image_size=8, bands=(13, 4), percentile=(0, 100))
    for known, names in (
        (Named(items(EUROSAT)), ("B8A", "B04")),
        (items(EUROSAT), ("B8A", "B04")),
        (items(NATURAL), ("band 13", "band 4")),
    ):
        pairs = data.from_torchgeo(known)
        dataset = data.given(pairs, config)
        assert dataset.bands is not None
        assert dataset.bands.names == names
        assert data.given(dataset, config) is dataset
        kept = data.of_given(dataset, config)
        assert data.given(pairs, kept).bands == data.Bands.of(kept) == dataset.bands


def test_numbers_that_mean_several_bands_are_refused(tmp_path: Path) -> None:
    root = band_set(tmp_path / "set", {"a": 2}, named=True, order=NATURAL)
    write_geotiff(root / "a" / "a_9.tif", GeoImage(patch(order=EUROSAT), EUROSAT))
    with pytest.raises(DataError, match=r"^data\.bands: .*a_9\.tif"):
        load(config_of(root, 9))
    assert names_of(config_of(root, "B8A")) == ("B8A",)
    # Names of other kinds, as with dates, differ without a different meaning.
    for day, path in enumerate(root.glob("a/*")):
        write_geotiff(path, GeoImage(patch(), tuple(f"day {day} {name}" for name in NATURAL)))
    assert names_of(config_of(root, 9)) == ("band 9",)


@pytest.mark.parametrize("limits", [(0, 500_000), (-1e6, 1e6)])
def test_a_range_of_other_units_is_refused(limits: tuple[float, float], tmp_path: Path) -> None:
    root = band_set(tmp_path / "set", {"a": 2})
    with pytest.raises(DataError, match=r"^data\.range: "):
        load(config_of(root, "B04", "B08", range=limits))
    assert len(load(config_of(root, "B10", "B08", range=((0, 500_000), (0, 5000))))) == 2


def test_info_tells_sizes_and_takes_names(tmp_path: Path) -> None:
    root = band_set(tmp_path / "set", {"a": 3}, order=NATURAL)
    write_geotiff(root / "a" / "b.tif", GeoImage(patch(order=NATURAL, size=16), (None,) * 13))
    words = ("data", "info", root, "--bands", "B8A", "--range", 0, 5000)
    refused(call(*words), "data.file_bands: ")
    for names in (["sentinel2"], NATURAL):
        text = succeeded(call(*words, "--file-bands", *names, "--sheet", tmp_path / "s.png"))
        assert "stored as: 8x8 uint16: 3, 16x16 uint16: 1" in text
        assert f"band B8A: {LEVEL['B8A']} to" in text


def test_images_of_reports_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    bands = Bands(("B04", "B08"), (0.0, 0.0), (4000.0, 6000.0))
    values = rng.integers(6000, size=(20, 8, 8, 2), dtype=np.uint16)
    real = BandImages(values, np.arange(2, 20), bands)
    made = bands.levels(rng.integers(6000, size=(5, 8, 8, 2)))
    near, apart = samples.nearest(made, real[:], turned=True)
    spectrum = samples._spectrum(real[:], bands)
    monkeypatch.setattr(samples, "_ROWS", 4)
    most: list[int] = []
    levels = Bands.levels
    monkeypatch.setattr(Bands, "levels", lambda s, v: most.append(len(v)) or levels(s, v))
    blocks = samples.nearest(made, real, turned=True)
    np.testing.assert_array_equal(blocks[0], near)
    np.testing.assert_array_equal(blocks[1], apart)
    np.testing.assert_allclose(samples._spectrum(real, bands), spectrum)
    assert max(most) == 5  # of 18 real images: four, and the nearest of five


@pytest.mark.parametrize("key", ["blocks", "split"])
def test_a_class_without_training_images_names_the_remedy(key: str, tmp_path: Path) -> None:
    root = band_set(tmp_path / "set", {"a": 8, "b": 1}, place=True)
    path = tmp_path / "list.csv"
    path.write_text("path,split\na/a_0.tif,train\na/a_1.tif,test\nb/b_0.tif,test\n")
    options: dict[str, Any] = {"blocks": 3200.0} if key == "blocks" else {"split": str(path)}
    words = "data.blocks" if key == "blocks" else str(path)
    with pytest.raises(DataError, match=f"^data.classes: .* class b .*{words}"):
        load(dataclasses.replace(config_of(root, 4), test_fraction=0.7, **options))


def test_a_full_disk_is_refused_before_all_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, reads, read = band_set(tmp_path / "set", {"a": 80}), [], cache.read_raster

    def slowly(content: bytes) -> GeoImage:
        reads.append(1)
        time.sleep(0.01)
        return read(content)

    monkeypatch.setattr(cache, "read_raster", slowly)
    monkeypatch.setattr(cache, "_THREADS", 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(DataError, match="QHDM_DATA"):
        load(config_of(root, "B04"))
    assert len(reads) < 60
    assert not [*(data.cache_folder() / "bands").glob("*/values.npy")]
