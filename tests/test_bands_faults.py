"""Files and data sets whose bands could be taken for others."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import call, refused, succeeded

import qhdm
from qhdm import data
from qhdm.config import DataConfig, load_config
from qhdm.config.fields import BAND_ORDERS, band_name
from qhdm.data import Bands, GeoImage, load, read_geotiff, write_geotiff
from qhdm.errors import DataError, EvaluationError

pytest.importorskip("rasterio")

import rasterio
from band_sets import EUROSAT, LEVEL, RIVER, band_set, patch

NATURAL = BAND_ORDERS["sentinel2"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QHDM_DATA", str(tmp_path / "cache"))


def config_of(root: Path, *bands: str | int, **options: Any) -> DataConfig:
    return DataConfig(root=str(root), image_size=8, bands=bands, **{"range": (0, 5000), **options})


def first_pixel(dataset: data.Dataset) -> list[int]:
    assert dataset.bands is not None
    return dataset.bands.values(dataset.images[0])[0, 0].round().astype(int).tolist()


def write_all(root: Path, *images: GeoImage) -> Path:
    for number, image in enumerate(images):
        write_geotiff(root / "a" / f"{number}.tif", image)
    return root


@pytest.mark.parametrize("given", [list(NATURAL), "sentinel2"], ids=["list", "name"])
def test_names_of_bands_survive_yaml_training_and_resuming(given: Any, tmp_path: Path) -> None:
    root = band_set(tmp_path / "set", {"a": 6, "b": 6}, order=NATURAL)
    plain = {
        "data": {"root": str(root), "image_size": 8, "bands": [9, "B04"], "percentile": [0, 100]},
        "model": {"kind": "unet", "widths": [8, 8], "head_dim": 8, "emb_dim": 8},
        "train": {"steps": 1, "batch_size": 4, "device": "cpu"},
    }
    (tmp_path / "without.yaml").write_text(yaml.safe_dump(plain))
    plain["data"]["file_bands"] = given
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(plain))
    expected = load_config(tmp_path / "c.yaml")
    assert expected.data.file_bands == NATURAL
    setting = f"data.file_bands={given}".replace("'", "")
    assert load_config(tmp_path / "without.yaml", [setting]).data == expected.data
    run = tmp_path / "run"
    succeeded(call("train", tmp_path / "without.yaml", "--set", setting, "--out", run))
    succeeded(call("train", "--resume", run, "--set", "train.steps=2"))
    bands = qhdm.Run.open(run).bands
    assert bands is not None
    assert bands.names == ("B8A", "B04")
    # What it writes is read as these bands again, though 13 are named for the files.
    out = ("--num", 1, "--steps", 2, "--out", tmp_path / "out", "--format", "geotiff")
    succeeded(call("sample", run, *out))
    again = load(dataclasses.replace(qhdm.Run.open(run).config.data, root=str(tmp_path / "out")))
    assert (
        first_pixel(again)
        == read_geotiff(tmp_path / "out/a/a_00000.tif").values[0, 0].round().astype(int).tolist()
    )


@pytest.mark.parametrize("last", [None, "B11"], ids=["without", "twice"])
def test_names_of_some_bands_are_kept(last: str | None, tmp_path: Path) -> None:
    names = (*NATURAL[:-1], last)
    root = write_all(tmp_path / "set", *(GeoImage(patch(i, NATURAL), names) for i in range(3)))
    dataset = load(config_of(root, "B8A", "B09"))
    assert first_pixel(dataset) == [LEVEL["B8A"], LEVEL["B09"]]
    with pytest.raises(DataError, match=r"no band B12|several bands are called B11"):
        load(config_of(root, "B11" if last else "B12"))
    assert first_pixel(load(config_of(root, "B12", file_bands="sentinel2"))) == [LEVEL["B12"]]
    with pytest.raises(DataError, match=r"data\.file_bands"):
        load(config_of(root, "B12", file_bands="eurosat"))


def test_an_order_is_checked_where_few_names_are_there(tmp_path: Path) -> None:
    names = ("B01", *(None,) * 12)
    root = write_all(tmp_path / "set", *(GeoImage(patch(i, NATURAL), names) for i in range(3)))
    with pytest.raises(DataError, match=r"^data\.file_bands: .*darkest"):
        load(config_of(root, "B04", file_bands="eurosat"))


def test_samples_of_bands_by_number_keep_their_order(tmp_path: Path) -> None:
    values = np.broadcast_to(np.array([100, 200, 300], np.uint16), (8, 8, 3))
    root = write_all(
        tmp_path / "set", *(GeoImage(values + np.uint16(i), (None,) * 3) for i in range(6))
    )
    config = qhdm.Config(
        data=config_of(root, 3, 1, 2, range=None, percentile=(0, 100)),
        model=qhdm.ModelConfig(kind="unet", widths=(8, 8), head_dim=8, emb_dim=8),
        train=qhdm.TrainConfig(steps=1, batch_size=4, device="cpu"),
    )
    run = qhdm.train(config, out=tmp_path / "run", callbacks=[])
    out = ("--num", 2, "--steps", 2, "--format", "geotiff", "--out", tmp_path / "out")
    succeeded(call("sample", tmp_path / "run", *out))
    again = load(dataclasses.replace(run.config.data, root=str(tmp_path / "out")))
    sampled = run.sample(qhdm.Sampling(num=2, steps=2))
    assert (again.images[:].max((0, 1, 2)) > 0).all()
    assert np.abs(again.images[:].astype(int) - sampled).max() <= 1


def test_replaced_files_are_read_again(tmp_path: Path) -> None:
    root = band_set(tmp_path / "set", {"a": 3, "b": 3})
    for path in (root / "b").iterdir():
        write_geotiff(path, GeoImage(patch(int(path.stem[-1])) + np.uint16(500), (None,) * 13))
    size = max(path.stat().st_size for path in root.glob("*/*"))
    for path in root.glob("*/*"):
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        path.rename(path.with_name(path.stem[-1] + ".tif"))
    for path in root.glob("*/*"):
        os.utime(path, (1e9, 1e9))
    before = load(config_of(root, "B04")).images[:].copy()
    (root / "a").rename(root / "x")
    (root / "b").rename(root / "a")
    (root / "x").rename(root / "b")
    after = load(config_of(root, "B04")).images[:]
    np.testing.assert_array_equal(after, np.concatenate([before[3:], before[:3]]))


def test_files_of_several_numbers_of_bands_have_no_numbers(tmp_path: Path) -> None:
    root = write_all(
        tmp_path / "set", GeoImage(patch(), EUROSAT), GeoImage(patch()[..., :4], EUROSAT[:4])
    )
    with pytest.raises(DataError, match=r"^data\.bands: .*1\.tif"):
        load(config_of(root, 4))
    assert first_pixel(load(config_of(root, "B04"))) == [LEVEL["B04"]]


def test_only_whole_names_are_sentinels() -> None:
    for text in ("B4", "b04", "B4, 665 nm", "B4 (665nm)", "B4, central wavelength 665 nm"):
        assert band_name(text) == "B04"
    for text in ("B8-B4", "B4/B3", "B4.1", "B4_red", "xB4", "B4 - B3"):
        assert band_name(text) == text


@pytest.mark.parametrize(
    ("images", "bands", "labels"),
    [
        ([np.zeros((13, 8, 8))], (1,), [0]),
        ([torch.zeros(13, 13, 8)], (1,), [0]),
        ([torch.zeros(12, 16, 8)], (1,), [0]),
        ([torch.arange(13.0)[:, None, None].expand(13, 8, 8)], ("B04",), [0]),
        ([torch.zeros(13, 8, 8), torch.zeros(5, 8, 8)], (1,), [0, 0]),
        ([torch.zeros(13, 8, 8)], (1,), [1.7]),
        ([torch.zeros(13, 8, 8, dtype=torch.complex64)], (1,), [0]),
        ([torch.zeros(13, 8, 8)], ("B04", 4), [0]),
    ],
    ids=[
        "array",
        "channels last",
        "channels last, oblong",
        "another order",
        "mixed",
        "label",
        "complex",
        "same",
    ],
)
def test_items_that_could_be_taken_for_others(
    images: list[Any], bands: tuple[str | int, ...], labels: list[Any]
) -> None:
    items = [{"image": images[i % len(images)], "label": labels[0]} for i in range(6)]
    config = DataConfig(image_size=8, bands=bands, range=(0, 9))
    with pytest.raises(DataError):
        data.given(data.from_torchgeo(items), config)


class Named(list[Any]):
    bands = ("B04", "B03", "B02")


def test_names_of_another_number_of_bands_are_refused() -> None:
    items = Named({"image": torch.zeros(13, 8, 8), "label": 0} for _ in range(4))
    with pytest.raises(DataError, match="names 3"):
        data.given(data.from_torchgeo(items), DataConfig(image_size=8, bands=(1,), range=(0, 9)))


def test_tensors_of_networks_are_images() -> None:
    image = 16 * torch.arange(64.0).reshape(1, 8, 8)
    config = DataConfig(image_size=8, bands=(1,), range=(0, 1100))
    for kind in (image.bfloat16(), image.half(), image.clone().requires_grad_()):
        dataset = data.given(
            data.from_torchgeo([{"image": kind, "label": torch.tensor(0)}] * 4), config
        )
        assert first_pixel(dataset) == [0]
        assert dataset.images[0].max() == round(65535 * 1008 / 1100)


def test_masks_beside_files_are_refused(tmp_path: Path) -> None:
    root = band_set(tmp_path / "set", {"a": 3})
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False),
        rasterio.open(root / "a" / "a_0.tif", "r+") as file,
    ):
        file.write_mask(np.arange(64).reshape(8, 8) % 2 > 0)
    assert (root / "a" / "a_0.tif.msk").exists()
    with pytest.raises(DataError, match=r"1 \.msk"):
        load(config_of(root, 4))
    refused(call("data", "info", root, "--bands", 4, "--range", 0, 5000), ".msk")
    with pytest.raises(DataError, match=r"a_0\.tif\.msk"):
        read_geotiff(root / "a" / "a_0.tif")


@pytest.mark.parametrize("scale", [float("nan"), 0.0])
def test_scales_that_are_no_numbers_are_refused(scale: float, tmp_path: Path) -> None:
    root = band_set(tmp_path / "set", {"a": 3})
    with rasterio.open(root / "a" / "a_0.tif", "r+") as file:
        file.scales = (scale,) * 13
    with pytest.raises(DataError, match=r"a_0\.tif: .*scales"):
        load(config_of(root, 4))


@pytest.mark.parametrize("kind", ["complex64", "complex_int16"])
def test_complex_values_are_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    with rasterio.open(
        tmp_path / "set/a/0.tif", "w", driver="GTiff", width=8, height=8, count=1, dtype=kind
    ) as file:
        file.write(np.ones((1, 8, 8), np.complex64))
    with pytest.raises(DataError, match=r"0\.tif: .*complex values"):
        load(config_of(tmp_path / "set", 1))


def test_blocks_that_hold_out_nothing_are_refused(tmp_path: Path) -> None:
    root = band_set(tmp_path / "set", {"a": 8}, place=True)
    for blocks in (1e7, 1e6):
        with pytest.raises(DataError, match=r"^data\.blocks: .*smaller"):
            load(config_of(root, 4, blocks=blocks))
    (root / "a" / "a_3.tif").write_bytes(b"II*")
    with pytest.raises(DataError, match=r"a_3\.tif: cannot be read"):
        load(config_of(root, 4, blocks=700, test_fraction=0.3))
    dataset = load(config_of(root, 4, blocks=700, test_fraction=0.3, skip_broken=True))
    assert dataset.skipped == ("a/a_3.tif",)
    assert dataset.is_test.any()


def test_gaps_and_ties_are_no_evidence_of_an_order(tmp_path: Path) -> None:
    gap = patch()
    gap[:, :, :4] = 0  # B04 seems darkest
    root = band_set(tmp_path / "set", {"a": 3})
    write_geotiff(root / "a" / "gap.tif", GeoImage(gap, (None,) * 13, nodata=0))
    assert len(load(config_of(root, "B08"))) == 4
    ramp = 80 * np.arange(64, dtype=np.uint16).reshape(8, 8, 1)
    equal = GeoImage(np.broadcast_to(ramp, (8, 8, 13)), (None,) * 13)
    assert len(load(config_of(write_all(tmp_path / "tie", equal, equal), "B08"))) == 2


def test_a_wrong_name_is_no_broken_image(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refusal:
        load(config_of(band_set(tmp_path / "set", {"a": 2}), "B13"))
    assert "skip_broken" not in str(refusal.value)


def test_a_band_is_read_once(tmp_path: Path) -> None:
    root = band_set(tmp_path / "set", {"a": 2})
    done = call("data", "info", root, "--bands", 4, "B04", "--range", 0, 5000)
    refused(done, "twice")


def test_scales_need_no_offsets(tmp_path: Path) -> None:
    image = GeoImage(np.ones((8, 8, 2), np.uint16), (None,) * 2, scales=(0.5, 2.0))
    write_geotiff(tmp_path / "a.tif", image)
    np.testing.assert_array_equal(read_geotiff(tmp_path / "a.tif").physical, image.physical)
    assert image.physical[0, 0].tolist() == [0.5, 2]


@pytest.mark.parametrize(
    "image",
    [
        GeoImage(np.zeros((8, 8, 2), np.float16), (None,) * 2),
        GeoImage(np.zeros((8, 8, 2), bool), (None,) * 2),
        GeoImage(np.zeros((8, 8, 2), np.uint8), ("B04",)),
        GeoImage(np.zeros((8, 8, 2), np.uint8), (None,) * 2, scales=(1.0,)),
        GeoImage(np.zeros((8, 8), np.uint8), (None,)),
    ],
    ids=["float16", "bool", "names", "scales", "shape"],
)
def test_what_no_geotiff_holds(image: GeoImage, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write_geotiff(tmp_path / "a.tif", image)
    assert not [*tmp_path.iterdir()]


def test_messages_name_files_alone(tmp_path: Path) -> None:
    (tmp_path / "a.tif").touch()
    (tmp_path / "b.tif").write_bytes(b"text")
    (tmp_path / "c.tif").write_bytes(RIVER.read_bytes()[:90])
    for name in ("a.tif", "b.tif", "c.tif", "none.tif"):
        with pytest.raises(DataError) as refusal:
            read_geotiff(tmp_path / name)
        text = str(refusal.value)
        assert text.count(name) == 1
        assert not any(word in text for word in ("vsimem", "qhdm-image", "Errno", "attribute"))


def test_data_is_there_without_an_import_of_its_own() -> None:
    code = "import qhdm; qhdm.data.from_torchgeo([])"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_images_are_evaluated_beside_a_given_set() -> None:
    items = [
        {"image": torch.from_numpy(patch(i).astype(np.float32)).permute(2, 0, 1), "label": i % 2}
        for i in range(20)
    ]
    config = DataConfig(image_size=8, bands=(4, 8), range=(0, 5000), test_fraction=0.3)
    pairs = qhdm.data.from_torchgeo(items)
    dataset = qhdm.data.given(pairs, config)
    settings = qhdm.EvaluationSettings(metrics=("bands",))
    labels = dataset.labels.tolist()
    with pytest.raises(EvaluationError, match=r"qhdm\.data\.given"):
        qhdm.evaluate(dataset.images[:], pairs, settings, labels=labels)
    assert qhdm.evaluate(dataset.images[:], dataset, settings, labels=labels).metrics
    # Without light, spectra have no direction.
    dark = dataset.images[:].copy()
    dark[dataset.labels == 1] = 0
    result = qhdm.evaluate(dark, dataset, settings, labels=labels)
    assert all(np.isfinite(metric.value) for metric in result.metrics)
    assert [note for note in result.notes if "without 1" in note]


def test_spectra_of_many_images_take_some_pixels() -> None:
    from qhdm.report import samples

    bands = Bands(("B04",), (0.0,), (65535.0,))
    levels = np.arange(2**19, dtype=np.uint32).astype(np.uint16).reshape(-1, 64, 64, 1)
    low, high = samples._spectrum(levels, bands)[1:, 0]
    assert abs(low / 6553.5 - 1) < 0.03
    assert abs(high / 58981.5 - 1) < 0.01
