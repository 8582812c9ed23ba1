"""Images of more than 8 bits, signed and floating-point values: never black without a word."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from image_sets import MAKERS, fill, pack, tiff
from imagecodecs import png_encode
from PIL import Image

from qhdm.cli import main
from qhdm.config import DataConfig
from qhdm.data import decode, load
from qhdm.data.info import describe
from qhdm.errors import DataError

#: Reflectance times 10,000, as Sentinel-2 products have it, and the grey levels that EuroSAT's
#: makers gave it: times 255 / 2750, clipped.
REFLECTANCE = np.random.default_rng(0).integers(0, 3000, size=(16, 16, 3)).astype(np.uint16)
RANGE = (0.0, 2750.0)
LEVELS = np.rint(np.minimum(REFLECTANCE / 2750, 1) * 255).astype(np.uint8)
GREY, GREY_LEVELS = REFLECTANCE[..., 0], np.repeat(LEVELS[..., :1], 3, axis=2)


def pixels(data: bytes, **options: Any) -> np.ndarray:
    options = {"size": 16, "channels": 3, "name": "Forest/a.tif", **options}
    decoded = decode(data, **options).pixels
    assert decoded is not None
    return decoded


def grey(values: np.ndarray, **options: Any) -> bytes:
    return tiff(values, photometric="minisblack", **options)


def png(values: np.ndarray) -> bytes:
    data: bytes = png_encode(np.ascontiguousarray(values))
    return data


def bands_first(values: np.ndarray) -> np.ndarray:
    return np.moveaxis(values, -1, 0)


def of_12_bits(values: np.ndarray) -> bytes:
    """Two values in three bytes, as cameras write them."""
    first, second = values.reshape(-1, 2).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1)
    content = packed.astype(np.uint8).tobytes()
    file = io.BytesIO(grey(values))
    with tifffile.TiffFile(file) as opened:
        (start,) = opened.pages.first.dataoffsets
        opened.pages.first.tags["BitsPerSample"].overwrite(12)
        opened.pages.first.tags["StripByteCounts"].overwrite(len(content))
    return file.getvalue()[:start] + content


def with_overview(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for step, kind in ((1, 0), (2, 1)):
            part = values[::step, ::step]
            writer.write(part, photometric="rgb", subfiletype=kind, metadata=None)
    return file.getvalue()


ALPHA = np.dstack([REFLECTANCE, GREY])
DEEP = {
    "RGB": (tiff(REFLECTANCE), LEVELS),
    "RGB, LZW and predictor": (tiff(REFLECTANCE, compression="lzw", predictor=True), LEVELS),
    "RGB, deflate": (tiff(REFLECTANCE, compression="zlib"), LEVELS),
    "RGB, zstd": (tiff(REFLECTANCE, compression="zstd"), LEVELS),
    "RGB, big-endian": (tiff(REFLECTANCE, byteorder=">"), LEVELS),
    "RGB, BigTIFF": (tiff(REFLECTANCE, bigtiff=True), LEVELS),
    "RGB, tiles": (tiff(REFLECTANCE, tile=(16, 16)), LEVELS),
    "RGB, band after band": (tiff(bands_first(REFLECTANCE), planarconfig="separate"), LEVELS),
    "RGB with alpha": (tiff(ALPHA, extrasamples=["unassalpha"]), LEVELS),
    "RGB with an overview": (with_overview(REFLECTANCE), LEVELS),
    # What rasterio and GDAL write unless told of colours.
    "three bands": (grey(REFLECTANCE, planarconfig="contig"), LEVELS),
    "three bands after another": (
        grey(bands_first(REFLECTANCE), planarconfig="separate"),
        LEVELS,
    ),
    "three bands of 8 bits": (grey(LEVELS, planarconfig="contig"), LEVELS),
    "grey with alpha": (
        grey(REFLECTANCE[..., :2], planarconfig="contig", extrasamples=["unassalpha"]),
        GREY_LEVELS,
    ),
    "12 bits": (of_12_bits(GREY), GREY_LEVELS),
    "PNG RGB": (png(REFLECTANCE), LEVELS),
    "PNG RGBA": (png(ALPHA), LEVELS),
    "PNG grey": (png(GREY), GREY_LEVELS),
    "PNG grey with alpha": (png(REFLECTANCE[..., :2]), GREY_LEVELS),
    **{
        name: (grey(GREY.astype(name)), GREY_LEVELS)
        for name in ("uint16", "int16", "uint32", "int32", "int64", "float32", "float64")
    },
}


@pytest.mark.parametrize("kind", DEEP)
def test_the_range_becomes_black_and_white(kind: str) -> None:
    data, expected = DEEP[kind]
    np.testing.assert_array_equal(pixels(data, value_range=RANGE), expected)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.float32])
def test_values_below_zero_have_grey_levels_too(dtype: type) -> None:
    values = np.linspace(-100, 100, 256).reshape(16, 16).astype(dtype)
    expected = np.rint(np.clip((values.astype(float) + 50) / 100, 0, 1) * 255)
    decoded = pixels(grey(values), channels=1, value_range=(-50, 50))
    np.testing.assert_array_equal(decoded[..., 0], expected)


DEEP_RAMP = np.arange(0, 2**16, 256, dtype=np.uint16).reshape(16, 16) + 37


@pytest.mark.parametrize(
    "data",
    [grey(DEEP_RAMP), png(DEEP_RAMP), grey(DEEP_RAMP, byteorder=">"), of_12_bits(DEEP_RAMP >> 4)],
    ids=["TIFF", "PNG", "big-endian", "12 bits"],
)
def test_the_upper_8_bits_are_kept_without_a_range(data: bytes) -> None:
    np.testing.assert_array_equal(pixels(data, channels=1).ravel(), np.arange(256))


def test_large_images_are_scaled_in_blocks() -> None:
    count = 1500 * 1500
    values = np.arange(count, dtype=np.uint32).reshape(1500, 1500)
    decoded = pixels(grey(values), size=1500, channels=1, value_range=(0, count - 1))
    np.testing.assert_array_equal(decoded[..., 0], np.rint(values / (count - 1) * 255))


def animation(form: str) -> bytes:
    file = io.BytesIO()
    frames = [Image.fromarray(LEVELS), Image.fromarray(LEVELS[::-1])]
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    return file.getvalue()


def gappy() -> np.ndarray:
    values = GREY.astype(np.float32)
    values[3, 4:6] = np.nan, np.inf
    return values


#: Files that are not one grey or RGB image, and what the refusal has to name.
REFUSED = {
    "13 bands": (grey(np.zeros((16, 16, 13), np.uint16), planarconfig="contig"), "13 bands"),
    "13 bands of 8 bits": (
        grey(np.zeros((13, 16, 16), np.uint8), planarconfig="separate"),
        "13 bands",
    ),
    "4 bands": (grey(ALPHA, planarconfig="contig"), "4 bands"),
    "RGB and infrared": (tiff(ALPHA, extrasamples=["unspecified"]), "4 bands"),
    "RGB and infrared of 8 bits": (
        tiff(np.dstack([LEVELS, LEVELS[..., 0]]), extrasamples=["unspecified"]),
        "4 bands",
    ),
    "2 bands": (grey(LEVELS[..., :2], planarconfig="contig"), "2 bands"),
    "13 pages": (grey(np.zeros((13, 16, 16), np.uint8)), "13 pages"),
    "equal pages": (tiff(np.stack([LEVELS, LEVELS])), "2 pages"),
    "pages of ImageJ": (grey(np.stack([GREY] * 3), imagej=True), "3 pages"),
    "pages without directories": (grey(np.stack([GREY] * 3), truncate=True), "2 pages"),
    "animated GIF": (animation("GIF"), "2 frames"),
    "animated PNG": (animation("PNG"), "2 frames"),
    "animated WebP": (animation("WEBP"), "2 frames"),
    "complex": (grey(GREY.astype(np.complex64)), "complex64"),
    "gaps": (grey(gappy()), "2 of 256 values"),
    "white is zero": (tiff(GREY, photometric="miniswhite"), "white"),
    "CMYK of 16 bits": (tiff(ALPHA, photometric="separated"), "uint16"),
    "truncated": (tiff(REFLECTANCE)[:-900], ""),
    "truncated PNG": (png(REFLECTANCE)[:-900], ""),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_one_image_is_refused_quietly(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data, what = REFUSED[kind]
    with pytest.raises(DataError, match=rf"^Forest/a\.tif: .*{what}.*data\.skip_broken"):
        pixels(data, value_range=RANGE)
    assert capfd.readouterr() == ("", "")  # of libtiff, Pillow and tifffile


@pytest.mark.parametrize(
    ("limit", "data"),
    [
        (255, tiff(REFLECTANCE)),
        (256, tiff(REFLECTANCE, compression="zlib")),  # 3 bytes each, of 6
        (256, png(REFLECTANCE)),
    ],
)
def test_decompression_bombs_are_refused(
    limit: int, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match="bomb"):
        pixels(data, value_range=RANGE)


def named(images: Sequence[bytes], suffix: str = ".tif") -> dict[str, bytes]:
    """The images as files of the classes A and B, in turn."""
    return {f"{'AB'[number % 2]}/{number}{suffix}": data for number, data in enumerate(images)}


def saturated(count: int) -> list[bytes]:
    """Reflectances, but one image that fills all of 16 bits."""
    full = np.random.default_rng(1).integers(0, 2**16, size=(16, 16, 3)).astype(np.uint16)
    return [tiff(REFLECTANCE)] * (count - 1) + [tiff(full)]


def with_gaps() -> np.ndarray:
    values = REFLECTANCE.copy()
    values[:6] = 2**16 - 1  # what fills the parts of a scene that were not seen
    return values


NEED_A_RANGE = {
    "reflectance": [tiff(REFLECTANCE)] * 6,
    "reflectance in PNG": [png(REFLECTANCE)] * 6,
    "12 bits in 16": [grey(GREY + 1000)] * 6,
    "one saturated image": saturated(6),
    "gaps of the largest number": [tiff(with_gaps())] * 6,
    "surface reflectance of Landsat": [tiff(REFLECTANCE * 2 + 7300)] * 6,
    "among images of 8 bits": [tiff(LEVELS)] * 4 + [tiff(REFLECTANCE)] * 2,
    "signed": [grey(GREY.astype(np.int16) - 200)] * 6,
    "32 bits": [grey(GREY.astype(np.uint32))] * 6,
    "floating point": [grey((GREY / 10_000).astype(np.float32))] * 6,
}


@pytest.mark.parametrize("kind", NEED_A_RANGE)
@pytest.mark.parametrize("maker", MAKERS)
def test_sets_that_would_be_black_ask_for_a_range(kind: str, maker: str, tmp_path: Path) -> None:
    root = MAKERS[maker](tmp_path / "set", named(NEED_A_RANGE[kind]))
    config = DataConfig(root=str(root), image_size=16)
    for skip_broken in (False, True):
        with pytest.raises(DataError) as refused:
            load(replace(config, skip_broken=skip_broken))
        message = str(refused.value)
        assert message.startswith(f"data.range: {root}: ")
        # What is suggested is no range that would make the set black again.
        assert ("[0.00159999996, " if kind == "floating point" else "[0, 2750]") in message
        assert "\n" not in message
    assert message in describe(config)
    assert len(load(replace(config, range=(-200, 14_000)))) == 6


@pytest.fixture(scope="module")
def reflectances(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Six images that need a range."""
    root = fill(tmp_path_factory.mktemp("deep") / "set", named([tiff(REFLECTANCE)] * 6))
    return DataConfig(root=str(root), image_size=16)


def test_the_whole_range_of_16_bits_can_be_asked_for(reflectances: DataConfig) -> None:
    assert load(replace(reflectances, range=(0, 65535))).images.max() == 12


@pytest.mark.parametrize("limits", [(0.0, 1.0), (5000.0, 6000.0)])
def test_a_range_of_another_scale_is_refused(
    limits: tuple[float, float], reflectances: DataConfig
) -> None:
    with pytest.raises(DataError, match=r"^data\.range: "):
        load(replace(reflectances, range=limits))


def test_sets_that_fill_16_bits_need_no_range(tmp_path: Path) -> None:
    patches = load(DataConfig(root="bundled", classes=("Forest", "SeaLake"))).images
    deep = fill(tmp_path / "deep", named([png(patch * np.uint16(257)) for patch in patches]))
    plain = fill(tmp_path / "plain", named([tiff(patch) for patch in patches]))
    images = [load(DataConfig(root=str(root))).images for root in (deep, plain)]
    np.testing.assert_array_equal(*images)
    assert "values: uint16 from " in describe(DataConfig(root=str(deep)))


def test_images_of_8_bits_are_taken_as_they_are(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", named([tiff(LEVELS), tiff(REFLECTANCE)] * 3))
    mixed = load(DataConfig(root=str(root), image_size=16, range=RANGE))
    np.testing.assert_array_equal(mixed.images, np.stack([LEVELS] * 6))


def test_info_shows_types_and_values(tmp_path: Path) -> None:
    images = [grey(GREY.astype(np.int16) - 200)] * 2 + [tiff(LEVELS)] * 2
    root = fill(tmp_path / "set", named(images))
    text = describe(DataConfig(root=str(root), image_size=16, range=(0, 2000)))
    assert "stored as: 16x16 int16 grey: 2, 16x16 RGB: 2" in text
    low, high = int(GREY.min()) - 200, int(GREY.max()) - 200
    outside = ((GREY < 200) | (GREY > 2200)).mean()
    assert f"values: int16 from {low} to {high} ({outside:.1%} clipped), uint8 from 0 to" in text
    assert "data.range: 0 becomes black, 2000 white" in text


def test_every_command_that_reads_images_knows_the_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QHDM_DATA", str(tmp_path / "cache"))
    root = str(pack(tmp_path / "set.zip", named([tiff(REFLECTANCE)] * 6)))

    def run(*arguments: str) -> tuple[int, str]:
        code = main(arguments)
        printed = capsys.readouterr()
        return code, printed.err if code else printed.out

    tiny = ["data.image_size=16", "model.kind=unet", "model.widths=[16,32]", "train.steps=1"]
    tiny += ["train.device=cpu", f"data.root={root}", "data.classes=null"]
    settings = [word for setting in tiny for word in ("--set", setting)]
    config = str(Path(__file__).parent.parent / "configs" / "quickstart.yaml")
    for command in (
        ["train", config, *settings, "--out", "run"],
        ["train-classifier", "--data", root, "--size", "16"],
        ["evaluate", "--images", root, "--data", root, "--size", "16"],
    ):
        code, printed = run(*command)
        assert code == 1
        assert printed.startswith("qhdm: error: ")
        assert f"data.range: {root}" in printed
        assert printed.count("\n") == 1
    assert not (tmp_path / "run").exists()

    code, printed = run("data", "info", root, "--size", "16")
    assert code == 0
    assert "contact sheet: none (see above)" in printed
    code, printed = run("data", "info", root, "--size", "16", "--range", "0", "2750")
    assert code == 0
    assert "contact sheet: set_contact_sheet.png" in printed

    ranged = ["--set", "data.range=[0, 2750]"]
    assert run("train", config, *settings, *ranged, "--out", "run")[0] == 0
    assert "range:\n  - 0.0\n  - 2750.0" in (tmp_path / "run" / "config.yaml").read_text()
    assert run("train", "--resume", "run", "--set", "train.steps=2")[0] == 0
    given = ["--data", root, "--size", "16", "--range", "0", "2750"]
    classifier = ["--out", "classifier.safetensors", "--steps", "2"]
    code, printed = run("train-classifier", *given, *classifier)
    assert code == 0, printed
    judged = ["--images", root, "--metrics", "classes", "--extractor-weights", classifier[1]]
    for real in (["run"], given):
        code, printed = run("evaluate", *real, *judged)
        assert code == 0, printed
