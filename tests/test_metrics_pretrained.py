"""Pretrained extractors from files of random weights, in the published formats."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qhdm.errors import EvaluationError
from qhdm.metrics.pretrained import load_dinov2, load_inception

CPU = torch.device("cpu")


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(3, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=[False, True], ids=["mlp", "swiglu"])
def dinov2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DINOv2, saved as the published ones are."""
    pytest.importorskip("transformers")
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        use_swiglu_ffn=request.param,
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder / "model.safetensors"


def test_dinov2_gives_the_class_token(dinov2: Path, images: np.ndarray) -> None:
    from transformers import Dinov2Model

    extractor = load_dinov2(dinov2, CPU)
    found = extractor.features(images)
    assert extractor.dim == 128
    assert found.shape == (3, 128)
    assert found.dtype == np.float64

    pixels = torch.as_tensor(images).permute(0, 3, 1, 2) / 255
    pixels = torch.nn.functional.interpolate(pixels, size=224, mode="bicubic", antialias=True)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels.clamp(0, 1) - mean[:, None, None]) / deviation[:, None, None]
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(dinov2.parent).eval()(pixels).last_hidden_state
    assert found == pytest.approx(expected[:, 0].double().numpy(), abs=1e-5)


def test_dinov2_of_other_weights_is_refused(dinov2: Path, tmp_path: Path) -> None:
    weights = load_file(dinov2)
    weights.pop("layernorm.bias")
    save_file(weights, tmp_path / "short.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name in ("short", "other"):
        with pytest.raises(EvaluationError, match=f"{name}.safetensors: .*DINOv2"):
            load_dinov2(tmp_path / f"{name}.safetensors", CPU)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple:
            return (ran.touch, ())

    torch.save({"a": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(EvaluationError, match=r"hostile\.pth: "):
        load_dinov2(tmp_path / "hostile.pth", CPU)
    assert not ran.exists()
    (tmp_path / "damaged.safetensors").write_bytes(b"no")
    for name in ("damaged", "absent"):
        with pytest.raises(EvaluationError, match=f"{name}.safetensors: "):
            load_dinov2(tmp_path / f"{name}.safetensors", CPU)


@pytest.fixture
def torch_fidelity() -> Iterator[None]:
    """The library; where torchvision is absent, without the parts of it that need it."""
    specification = find_spec("torch_fidelity")
    if specification is None:
        pytest.skip("torch-fidelity is not installed (extra `extractors`)")
    if find_spec("torchvision") is not None:
        yield
        return
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(specification.submodule_search_locations or ())
    sys.modules["torch_fidelity"] = package
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_fidelity"]:
        del sys.modules[name]


@pytest.mark.usefixtures("torch_fidelity")
def test_inception_is_the_network_of_fid(images: np.ndarray, tmp_path: Path) -> None:
    images = images[:1]  # of 299x299 pixels inside
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    network = module.FeatureExtractorInceptionV3.__new__(module.FeatureExtractorInceptionV3)
    with pytest.MonkeyPatch.context() as patch:  # random weights in the place of a download
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: network.state_dict())
        network.__init__("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    with torch.no_grad():
        expected = network(torch.as_tensor(images).permute(0, 3, 1, 2))[0].double().numpy()
    for name in ("weights.pth", "weights.safetensors"):
        extractor = load_inception(tmp_path / name, CPU)
        assert extractor.dim == 2048
        assert extractor.features(images) == pytest.approx(expected, abs=1e-6)
    grey = images[..., :1]
    assert load_inception(tmp_path / "weights.pth", CPU).features(grey).shape == (1, 2048)
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(EvaluationError, match=r"other\.pth: .*Inception"):
        load_inception(tmp_path / "other.pth", CPU)


@pytest.mark.parametrize(
    ("load", "library", "module"),
    [
        (load_inception, "torch-fidelity", "torch_fidelity.feature_extractor_inceptionv3"),
        (load_dinov2, "transformers", "transformers"),
    ],
)
def test_absent_libraries_are_named(
    load: object, library: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(EvaluationError, match=rf"{library} .*qhdm\[extractors\]"):
        load(Path("weights.pth"), CPU)
