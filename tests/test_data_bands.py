"""Images with bands: reading, order, range, cache, and writing."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_sets import encode, tiff
from PIL import Image

import qhdm
from qhdm import data
from qhdm.config import DataConfig
from qhdm.config.fields import BAND_ORDERS
from qhdm.data import Bands, GeoImage, cache_folder, load, read_geotiff, resolved, write_geotiff
from qhdm.errors import DataError

pytest.importorskip("rasterio")

from band_sets import EUROSAT, LEVEL, RIVER, band_set, patch


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QHDM_DATA", str(tmp_path / "cache"))


def config_of(root: Path, *bands: str | int, **options: Any) -> DataConfig:
    return DataConfig(root=str(root), image_size=8, bands=bands, **{"range": (0, 5000), **options})


def level_of(root: Path, *bands: str | int, **options: Any) -> list[int]:
    """The first pixel of the first image of each band, in the units of the files."""
    dataset = load(config_of(root, *bands, **options))
    assert dataset.bands is not None
    return dataset.bands.values(dataset.images[0])[0, 0].round().astype(int).tolist()


def test_a_genuine_patch_survives_reading_and_writing(tmp_path: Path) -> None:
    real = read_geotiff(RIVER)
    assert (real.values.shape, real.values.dtype, real.nodata) == ((64, 64, 13), np.uint16, None)
    assert real.crs.to_epsg() == 32632
    write_geotiff(tmp_path / "copy.tif", real)
    copy = read_geotiff(tmp_path / "copy.tif")
    np.testing.assert_array_equal(copy.values, real.values)
    assert (copy.crs, copy.transform, copy.names) == (real.crs, real.transform, real.names)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"nodata": 0.0},
        {"valid": np.arange(63).reshape(9, 7) % 3 > 0},
        {"scales": (0.1, 1.0), "offsets": (0.0, 5.0)},
        {"names": ("B04", None)},
    ],
    ids=["plain", "nodata", "mask", "scales", "names"],
)
def test_all_that_is_written_is_read(dtype: str, more: dict[str, Any], tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(100, 30, (9, 7, 2)).astype(dtype)
    values[0] = 0
    image = GeoImage(values, **{"names": (None, None), **more})
    write_geotiff(tmp_path / "image.tif", image)
    copy = read_geotiff((tmp_path / "image.tif").read_bytes())
    assert copy.values.dtype == values.dtype
    for name in ("values", "missing", "physical"):
        np.testing.assert_array_equal(getattr(copy, name), getattr(image, name))
    assert (copy.names, copy.nodata, copy.crs) == (image.names, image.nodata, None)


def test_names_stand_for_eurosats_order(tmp_path: Path) -> None:
    root = tmp_path / "set"
    (root / "River").mkdir(parents=True)
    (root / "River" / "River_84.tif").write_bytes(RIVER.read_bytes())
    names = ("B8A", *reversed(EUROSAT[:-1]))
    dataset = load(DataConfig(root=str(root), bands=names, range=(0, 65535), test_fraction=0))
    expected = read_geotiff(RIVER).values[:, :, [12, *range(11, -1, -1)]]
    np.testing.assert_array_equal(dataset.images[0], expected)  # all of 16 bits: levels are values


def test_names_in_files_go_before_any_order(tmp_path: Path) -> None:
    natural = BAND_ORDERS["sentinel2"]
    root = band_set(tmp_path / "set", {"a": 2}, named=True, order=natural)
    assert level_of(root, "B8A", "B09", "b4") == [LEVEL["B8A"], LEVEL["B09"], LEVEL["B04"]]
    assert level_of(root, 9) == [LEVEL["B8A"]]
    # Of one file, too, in which they lie elsewhere than in others.
    image = GeoImage(patch(order=EUROSAT), EUROSAT)
    write_geotiff(root / "a" / "a_0.tif", image)
    assert level_of(root, "B8A") == [LEVEL["B8A"]]
    with pytest.raises(DataError, match=r"data\.file_bands"):
        load(config_of(root, "B8A", file_bands="sentinel2"))


def test_bands_of_another_order_are_not_taken_for_eurosats(tmp_path: Path) -> None:
    root = band_set(tmp_path / "set", {"a": 2}, order=BAND_ORDERS["sentinel2"])
    for name in ("B04", "B8A", "B12"):
        with pytest.raises(DataError, match=r"^data\.file_bands: .* 13 bands without names"):
            load(config_of(root, name))
    assert level_of(root, "B8A", file_bands="sentinel2") == [LEVEL["B8A"]]
    assert level_of(root, "B8A", file_bands=BAND_ORDERS["sentinel2"]) == [LEVEL["B8A"]]
    assert level_of(root, 9) == [LEVEL["B8A"]]
    other = band_set(tmp_path / "other", {"a": 2})
    with pytest.raises(DataError, match=r"^data\.file_bands: "):
        load(config_of(other, "B04", file_bands="sentinel2"))


@pytest.mark.parametrize(
    ("bands", "options", "words"),
    [
        (("B13",), {}, "no band B13"),
        ((14,), {}, "no band 14"),
        (("B04",), {"file_bands": ("B04", "B03")}, "data.file_bands names 2"),
        (("B04",), {"range": (9000, 9001)}, "data.range: "),
        (("B04",), {"range": None}, "data.percentile: [2, 98]"),
    ],
)
def test_bands_that_cannot_be_read(
    bands: tuple[str | int, ...], options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    root = band_set(tmp_path / "set", {"a": 2})
    with pytest.raises(DataError) as refusal:
        load(config_of(root, *bands, **options))
    assert words in str(refusal.value)


def test_four_bands_without_names_have_only_numbers(tmp_path: Path) -> None:
    for name in "ab":
        write_geotiff(tmp_path / f"s/c/{name}.tif", GeoImage(patch()[:, :, :4], (None,) * 4))
    with pytest.raises(DataError, match=r"no band B04.*data\.file_bands"):
        load(config_of(tmp_path / "s", "B04"))
    assert level_of(tmp_path / "s", 2) == [LEVEL["B02"]]
    own = ("red", "green", "blue", "nir")
    assert level_of(tmp_path / "s", "nir", file_bands=own) == [LEVEL["B04"]]


def test_ranges_are_measured_on_training_images_alone(tmp_path: Path) -> None:
    root = band_set(tmp_path / "set", {"a": 10, "b": 10})
    config = config_of(root, "B02", "B10", range=None, percentile=(10, 90), test_fraction=0.3)
    dataset = load(config)
    assert dataset.bands is not None
    raw = np.stack([patch(int(Path(name).stem[2:])) for name in dataset.names])
    expected = np.percentile(raw[~dataset.is_test][..., [1, 9]], (10, 90), axis=(0, 1, 2))
    np.testing.assert_allclose(dataset.bands.range, expected.T)
    # A run keeps them, and reads the same images with them.
    import qhdm

    kept = resolved(qhdm.Config(data=config, model=qhdm.ModelConfig(kind="unet", widths=(8, 32))))
    assert (kept.data.range, kept.data.percentile) == (dataset.bands.range, None)
    assert load(kept.data).digest() == dataset.digest()
    assert Bands.of(kept.data) == dataset.bands


def test_a_constant_band_has_no_percentiles(tmp_path: Path) -> None:
    write_geotiff(tmp_path / "s" / "a" / "a.tif", GeoImage(np.full((8, 8, 2), 7), (None,) * 2))
    with pytest.raises(DataError, match=r"data\.percentile: .* band 2 is 7"):
        load(config_of(tmp_path / "s", 2, range=None, percentile=(0, 100), test_fraction=0))


def test_levels_keep_whole_numbers() -> None:
    bands = Bands(("B04", "B10"), (264.0, 6.0), (2572.0, 22.0))
    values = np.stack([np.arange(264, 2573), np.arange(264, 2573) % 17 + 6], axis=-1)
    np.testing.assert_array_equal(np.rint(bands.values(bands.levels(values))), values)
    assert bands.levels(np.array([[0, 5], [9999, 23]])).tolist() == [[0, 0], [65535, 65535]]


def test_gaps_are_refused_or_skipped(tmp_path: Path) -> None:
    root = band_set(tmp_path / "set", {"a": 4})
    values = patch()
    values[3, 3, 3] = 0
    write_geotiff(root / "a" / "gap.tif", GeoImage(values, (None,) * 13, nodata=0))
    with pytest.raises(DataError, match=r"gap\.tif: .*1 of 64 values"):
        load(config_of(root, "B04"))
    assert load(config_of(root, "B04", skip_broken=True)).skipped == ("a/gap.tif",)
    assert load(config_of(root, "B05")).skipped == ()  # another band


def test_values_of_other_units_do_not_mix(tmp_path: Path) -> None:
    root = band_set(tmp_path / "set", {"a": 3})
    image = GeoImage(patch(), (None,) * 13, scales=(1e-4,) * 13, offsets=(-0.1,) * 13)
    write_geotiff(root / "a" / "x.tif", image)
    with pytest.raises(DataError, match=r"x\.tif: values of type uint16, scaled"):
        load(config_of(root, "B04"))
    for path in (root / "a").glob("a_*"):
        path.unlink()
    write_geotiff(root / "a" / "y.tif", image)
    dataset = load(config_of(root, "B02", range=(0, 1)))
    assert dataset.bands is not None
    shown = dataset.bands.values(dataset.images[0])[0, 0, 0]
    assert abs(shown - (LEVEL["B02"] * 1e-4 - 0.1)) < 1e-5


def test_pages_palettes_and_pictures_are_no_bands(tmp_path: Path) -> None:
    palette = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    for number, (content, words) in enumerate(
        (
            (tiff(np.zeros((13, 8, 8), np.uint8), photometric="minisblack"), "13 pages"),
            (encode(palette, "TIFF"), "palette"),
            (encode(palette.convert("L"), "PNG"), "cannot be read"),
            (b"II*\0", "cannot be read"),
        )
    ):
        path = tmp_path / str(number) / "a" / "a.tif"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        with pytest.raises(DataError) as refusal:
            load(config_of(path.parents[1], 1))
        assert words in str(refusal.value)


def test_jpeg_2000_and_bytes_need_no_range(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio.drivers")
    if "jp2" not in rasterio.raster_driver_extensions():
        pytest.skip("this GDAL reads no JPEG 2000")
    values = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    (tmp_path / "s" / "a").mkdir(parents=True)
    path = tmp_path / "s" / "a" / "a.jp2"
    path.write_bytes(encode(values, "JPEG2000", irreversible=False))
    with pytest.raises(DataError, match=r"\.jp2 with data\.bands"):
        load(DataConfig(root=str(tmp_path / "s")))
    dataset = load(config_of(tmp_path / "s", 3, 1, range=None))
    np.testing.assert_array_equal(dataset.images[0], 257 * values[:, :, [2, 0]].astype(np.uint16))


def test_images_are_cropped_and_resized_within_their_values(tmp_path: Path) -> None:
    values = np.zeros((20, 16, 1), np.int16)
    values[2:18, :8], values[:2], values[18:] = -300, 9000, 9000
    write_geotiff(tmp_path / "s" / "a" / "a.tif", GeoImage(values, (None,)))
    dataset = load(config_of(tmp_path / "s", 1, range=(-300, 0), test_fraction=0))
    assert dataset.images.shape == (1, 8, 8, 1)
    assert (dataset.images[0][:, :3] == 0).all()
    assert (dataset.images[0][:, 5:] == 65535).all()


def test_images_are_read_once_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qhdm.data import cache

    root = band_set(tmp_path / "set", {"a": 3})
    first = load(config_of(root, "B04"))
    reads, read = [], cache.read_raster
    monkeypatch.setattr(cache, "read_raster", lambda data: reads.append(1) or read(data))
    again = load(config_of(root, "B04", range=(0, 3000), test_fraction=0.5))
    assert not reads
    assert again.digest() != first.digest()
    write_geotiff(root / "a" / "a_1.tif", GeoImage(patch(500), (None,) * 13))
    changed = load(config_of(root, "B04"))
    assert reads
    assert changed.digest() != first.digest()


def test_a_set_is_indexed_without_being_in_memory(tmp_path: Path) -> None:
    dataset = load(config_of(band_set(tmp_path / "set", {"a": 6, "b": 4}), "B04", "B08"))
    chosen = np.array([7, 2])
    whole = np.asarray(dataset.images)
    assert (whole.shape, whole.dtype) == (dataset.images.shape, dataset.images.dtype)
    for key in (3, chosen, slice(2, 5), dataset.labels == 1):
        np.testing.assert_array_equal(dataset.images[key], whole[key])
    test = dataset.split("test")
    assert not isinstance(test.images, np.ndarray)
    np.testing.assert_array_equal(test.images[:], whole[dataset.is_test])
    copied = dataclasses.replace(dataset, images=whole)
    assert copied.digest() == dataset.digest()


@pytest.mark.slow
def test_a_killed_reader_leaves_nothing_behind(tmp_path: Path) -> None:
    root = band_set(tmp_path / "set", {"a": 8})
    script = f"""
import os, signal
import qhdm
from qhdm import data
from qhdm.config import DataConfig
from qhdm.data import cache, load
read = cache._resized
def slain(values, size, count=[]):
    count.append(1)
    if len(count) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(values, size)
cache._resized = slain
load(DataConfig(root={str(root)!r}, image_size=8, bands=("B04",), range=(0, 5000)))
"""
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ}, check=False)
    assert done.returncode == -signal.SIGKILL
    folder = cache_folder() / "bands"
    assert any(path.suffix == ".tmp" for path in folder.iterdir())
    assert len(load(config_of(root, "B04"))) == 8
    assert not any(path.suffix == ".tmp" for path in folder.iterdir())


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    config = config_of(band_set(tmp_path / "set", {"a": 3}), "B04")
    load(config)
    (values,) = (cache_folder() / "bands").glob("*/values.npy")
    values.write_bytes(values.read_bytes()[:-9])
    with pytest.raises(DataError, match="delete it"):
        load(config)


class Torchlike:
    """A data set of mappings, as torchgeo's `EuroSAT` is one."""

    classes = ("a", "b")
    bands = EUROSAT

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, Any]:
        image = torch.from_numpy(patch(i).astype(np.float32)).permute(2, 0, 1)
        return {"image": image, "label": torch.tensor(i % 2)}


def test_mappings_have_the_bands_of_their_names(tmp_path: Path) -> None:
    names = ("B8A", "B04")
    config = DataConfig(image_size=8, bands=names, percentile=(0, 100), test_fraction=0.25)
    dataset = data.given(data.from_torchgeo(Torchlike()), config)
    assert dataset.bands is not None
    assert dataset.bands.names == names
    assert dataset.class_names == ("a", "b")
    np.testing.assert_array_equal(dataset.labels, np.arange(8) % 2)
    expected = np.stack([patch(i)[:, :, [12, 3]] for i in range(8)])
    shown = dataset.bands.values(dataset.images[:])
    inside = np.clip(expected, dataset.bands.low, dataset.bands.high)
    np.testing.assert_allclose(shown, inside, atol=1e-2)
    few = dataclasses.replace(config, per_class=1)
    assert (~data.given(data.from_torchgeo(Torchlike()), few).is_test).sum() == 2
    # A run keeps the range, and goes on with it.
    network = qhdm.ModelConfig(kind="unet", widths=(8, 8), head_dim=8, emb_dim=8)
    train = qhdm.TrainConfig(steps=1, batch_size=2, device="cpu")
    whole = qhdm.Config(data=config, model=network, train=train)
    run = qhdm.train(whole, data.from_torchgeo(Torchlike()), out=tmp_path / "run", callbacks=[])
    assert run.bands == dataset.bands
    qhdm.resume(tmp_path / "run", data.from_torchgeo(Torchlike()), callbacks=[])
    with pytest.raises(DataError, match=r"data\.bands"):
        data.given(dataset, dataclasses.replace(config, bands=("B04", "B8A")))
    with pytest.raises(DataError):
        data.given(dataset, DataConfig(image_size=8, channels=2))


def test_items_that_are_no_images_with_bands() -> None:
    config = DataConfig(image_size=8, bands=(1,), range=(0, 9))
    for items in (
        [{"mask": np.zeros((1, 8, 8))}],
        [{"image": np.zeros((8, 8)), "label": 0}],
        [{"image": np.zeros((8, 8, 0)), "label": 0}],
        [{"image": np.full((8, 8, 1), np.nan), "label": 0}],
        [{"image": np.zeros((8, 8, 1), dtype), "label": 0} for dtype in (np.uint8, np.int16)],
    ):
        with pytest.raises(DataError):
            data.given(data.from_torchgeo(items), config)


def test_torchgeo_reads_the_same(tmp_path: Path) -> None:
    """torchgeo's `EuroSAT`, where it is installed."""
    try:
        from torchgeo.datasets import EuroSAT
    except (ImportError, RuntimeError) as error:  # of a torchvision of another build than torch
        pytest.skip(f"torchgeo cannot be imported: {error}")
    root = band_set(tmp_path / EuroSAT.base_dir, {"Forest": 3, "River": 3})
    (root / "River" / "River_84.tif").write_bytes(RIVER.read_bytes())
    for path in root.glob("*/*_[0-2].tif"):
        write_geotiff(path, GeoImage(patch(int(path.stem[-1]), size=64), (None,) * 13))
    files = [path.with_suffix(".jpg").name for path in root.glob("*/*.tif")]
    (tmp_path / "eurosat-train.txt").write_text("\n".join(files))
    own = load(DataConfig(root=str(root), bands=("B8A", "B04"), range=(0, 9000)))
    theirs = EuroSAT(tmp_path, split="train", bands=("B04", "B10", "B8A"))
    config = DataConfig(bands=("B8A", "B04"), range=(0, 9000))
    dataset = data.given(data.from_torchgeo(theirs), config)
    places = [own.names.index("/".join(Path(path).parts[-2:])) for path, _ in theirs.samples]
    np.testing.assert_array_equal(dataset.images[:], own.images[np.array(places)])
    np.testing.assert_array_equal(dataset.labels, own.labels[places])
