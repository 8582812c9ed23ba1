"""The recommended network: unit magnitude everywhere, counts, conditioning, precision, filters."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from networks import total
from torch import nn

import qhdm
from qhdm.config import Config, load_config
from qhdm.errors import ConfigError
from qhdm.models import UNet, build_model, frozen
from qhdm.models.counts import count_parameters, filter_evaluations, quantum_parameters
from qhdm.models.hybrid import HybridActivation
from qhdm.models.layers import SILU_SCALE, Fourier, MPConv2d, MPLinear, pixel_norm, sum_weights
from qhdm.models.named_filters import named_filters
from qhdm.models.unet import Attention, Block, DownLevel, UpLevel
from qhdm.quantum.connector import FilterConnector

EUROSAT = Path(__file__).parent.parent / "configs" / "eurosat.yaml"
KINDS = ["unet", "qvunet", "fullqvunet", "qcunet"]
#: Three levels on 16x16 images.
SMALL = [
    "data.image_size=16", "model.widths=[8,16,24]", "model.head_dim=8", "model.emb_dim=16",
    "quantum.vertex={ansatz: fqconv, layers: 1, filters: 2}",
    "quantum.encoder={ansatz: fqconv, layers: 1, filters: 1, levels: [1]}",
]  # fmt: skip


def small(kind: str = "qcunet", *settings: str) -> Config:
    return load_config(EUROSAT, [*SMALL, f"model.kind={kind}", *settings])


def at(config: Config, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs of unit magnitude, noise levels and labels."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(batch, *config.data.shape, generator=random)
    return x, torch.randn(batch, generator=random) / 2, torch.arange(batch) % 10


def opened(model: UNet) -> UNet:
    """The network with its gains, which are 0 at the start, at other values."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, MPConv2d | MPLinear) and module.gain is not None:
                module.gain.fill_(0.8)
    return model


def network(kind: str = "qcunet", *settings: str) -> tuple[Config, UNet]:
    config = small(kind, *settings)
    model = build_model(config)
    assert isinstance(model, UNet)
    return config, opened(model)


def magnitude(x: torch.Tensor) -> float:
    return float(x.detach().float().square().mean().sqrt())


# Unit magnitude.


@pytest.mark.parametrize("kind", ["unet", "qcunet"])
def test_every_map_has_unit_magnitude_at_the_start(kind: str) -> None:
    model = build_model(load_config(EUROSAT, [f"model.kind={kind}"]))
    seen: dict[str, float] = {}
    for name, module in model.named_modules():
        if isinstance(module, Block | Attention):
            module.register_forward_hook(
                lambda _, args, out, name=name: seen.update({name: magnitude(out)})
            )
    config = load_config(EUROSAT)
    with torch.no_grad():
        assert magnitude(model(*at(config, 16))) == 0
        model.conv_out.gain.fill_(1.0)
        seen["output"] = magnitude(model(*at(config, 16)))
    assert len(seen) == 4 + 3 + 4 + 1
    for name, value in seen.items():
        assert value == pytest.approx(1, abs=0.15), name


def test_layers_keep_the_magnitude() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 32, 8, 8)
    inner = nn.functional.silu(x)
    conv = MPConv2d(32, 48, 3, scale=1 / 0.596)
    assert magnitude(conv(inner)[:, :, 1:-1, 1:-1]) == pytest.approx(1, rel=0.1)
    assert magnitude(MPLinear(32, 64)(torch.randn(999, 32))) == pytest.approx(1, rel=0.05)
    assert magnitude(Fourier(512)(torch.randn(64))) == pytest.approx(1, rel=0.05)
    assert magnitude(pixel_norm(3 * x)) == pytest.approx(1, rel=1e-3)
    for t in (0.3, 0.5):
        keep, add = sum_weights(t)
        assert keep**2 + add**2 == pytest.approx(1)
        assert add / keep == pytest.approx(t / (1 - t))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pixel_norm_is_rms_norm_over_channels(dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 3, 4, dtype=dtype).to(memory_format=torch.channels_last)
    x[0, :, 0, 0] = 0  # stays 0
    x.requires_grad_()
    weight = torch.randn(x.shape, dtype=dtype)
    expected = nn.functional.rms_norm(x.permute(0, 2, 3, 1), (5,), eps=1e-8).permute(0, 3, 1, 2)
    results = [(y, *torch.autograd.grad((y * weight).sum(), x)) for y in (pixel_norm(x), expected)]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def weights(model: nn.Module) -> list[torch.Tensor]:
    kinds = (MPConv2d, MPLinear)
    return [
        module.weight.detach().flatten(1) for module in model.modules() if isinstance(module, kinds)
    ]


def test_kernels_have_unit_rows_whatever_the_weights() -> None:
    """Averaged weights have shorter rows; the function is that of the direction alone."""
    config, model = network("qcunet")
    inputs = at(config)
    expected = model(*inputs)
    for weight in weights(model):
        torch.testing.assert_close(weight.square().mean(1), torch.ones(len(weight)))
        weight.mul_(0.3 + torch.rand(len(weight), 1))
    torch.testing.assert_close(model(*inputs), expected, atol=1e-5, rtol=1e-4)
    model.normalize()
    for weight in weights(model):
        torch.testing.assert_close(weight.square().mean(1), torch.ones(len(weight)))
    torch.testing.assert_close(model(*inputs), expected, atol=1e-5, rtol=1e-4)


# Counts and places.

#: With the 64 weights of the log-variance.
UNET = 1_882_363 + 64


#: Weights of a filter, with a gain and a shift for each of its channels.
FILTER = 72 + 2 * 3


@pytest.mark.parametrize(
    ("kind", "filters"),
    [("unet", 0), ("qvunet", 4), ("fullqvunet", 42), ("qcunet", 4 + 4 + 4)],
)
def test_parameter_counts_at_the_default_widths(kind: str, filters: int) -> None:
    assert total(load_config(EUROSAT, [f"model.kind={kind}"])) == UNET + FILTER * filters


def test_counts_are_given_per_part_with_quantum_weights_apart() -> None:
    rows = count_parameters(build_model(small()))
    assert {row.part: row.quantum for row in rows} == {
        "condition": 0, "encoder": 24, "vertex": 48, "decoder": 0, "total": 72
    }  # fmt: skip
    *parts, whole = rows
    assert sum(row.classical for row in parts) == whole.classical == total(small()) - 72


def test_filters_are_at_the_vertex_and_in_the_first_block_of_their_levels() -> None:
    _, model = network("qcunet", "model.blocks=2")
    names = {name for name, m in model.named_modules() if isinstance(m, HybridActivation)}
    assert names == {"vertex.block1.hybrid", "encoder.1.blocks.0.hybrid"}
    assert [f.name for f in named_filters(model)] == [
        "encoder1_blocks0_hybrid_filter0",
        "vertex_block1_hybrid_filter0", "vertex_block1_hybrid_filter1",
    ]  # fmt: skip
    # 8x8 map: 16 patches, one filter; vertex 4x4: 4 patches, two filters
    evaluations = filter_evaluations(model, channels=3, image_size=16)
    assert sum(evaluations.values()) == 16 + 2 * 4


def test_all_kinds_of_a_seed_have_the_same_classical_weights() -> None:
    states = [build_model(small(kind)).state_dict() for kind in KINDS]
    for state in states[1:]:
        for name, value in states[0].items():
            assert torch.equal(state[name], value), name


def test_weights_come_from_the_seed_and_leave_the_global_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same = build_model(small()).state_dict(), build_model(small()).state_dict()
    other = build_model(small("qcunet", "seed=43")).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    for name in ("conv_in.weight", "vertex.block1.hybrid.quantum.connector.theta"):
        assert not torch.equal(one[name], other[name])


# The function.


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_gradient(kind: str) -> None:
    config, model = network(kind)
    x, time, label = at(config, batch=10)
    loss = (model(x, time, label) - x.flip(3)).square().mean(dim=(1, 2, 3))
    log_variance = model.log_variance(time)
    assert torch.equal(log_variance, torch.zeros(10))
    (loss * (-log_variance).exp() + log_variance).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name
    for theta in quantum_parameters(model):
        assert bool((theta.grad != 0).all())


def test_gradients_of_circuits_are_as_large_as_those_of_convolutions() -> None:
    """Their norms; in the published block they are thousands of times smaller."""
    config = load_config(EUROSAT)
    model = build_model(config)
    with torch.no_grad():
        model.conv_out.gain.fill_(1.0)
    x, time, label = at(config, batch=8)
    (model(x, time, label) - x).square().mean().backward()
    blocks = [module for module in model.modules() if isinstance(module, Block) and module.hybrid]
    assert len(blocks) == 3
    for block in blocks:
        theta = block.hybrid.quantum.connector.theta.grad
        ratio = float(theta.norm() / block.conv1.weight.grad.norm())
        assert 1 / 30 < ratio < 30


@pytest.mark.parametrize(
    "kind", ["circuit", "cosine", "linear", "perceptron", "identity", "frozen"]
)
def test_filters_and_baselines_start_at_half_of_the_activation(kind: str) -> None:
    """In mean square; together they have the magnitude of SiLU."""
    _, model = network("qcunet", f"quantum.filter={kind}")
    for block in model.modules():
        if isinstance(block, Block) and block.hybrid is not None:
            x = pixel_norm(torch.randn(256, block.conv1.weight.shape[1], 8, 8))
            q = len(block.hybrid.gain)
            with torch.no_grad():
                values = block.hybrid(x).square().mean(dim=(0, 2, 3))
            assert values[:q].sum() == pytest.approx(float(values[q:].sum()), rel=0.3)
            silu = nn.functional.silu(x).square().mean()
            assert values.mean() == pytest.approx(float(silu), rel=0.15)


def test_where_all_channels_are_quantum_each_counts_alike() -> None:
    config, model = network("fullqvunet")
    hybrid = model.vertex["block1"].hybrid
    assert len(hybrid.gain) == 24
    with torch.no_grad():
        values = hybrid(pixel_norm(torch.randn(256, 24, 4, 4)))
    assert magnitude(values) == pytest.approx(1 / SILU_SCALE, rel=0.1)
    inputs = at(config)
    assert model(*inputs).shape == inputs[0].shape


@pytest.mark.parametrize("kind", ["circuit", "linear", "perceptron"])
def test_filters_and_baselines_start_near_the_identity(kind: str) -> None:
    """Each value is much the same function of its own input, at all pixels of a patch."""
    _, model = network("qvunet", f"quantum.filter={kind}", "quantum.vertex.layers=3")
    hybrid = model.vertex["block1"].hybrid
    x = hybrid._angles(torch.randn(512, 6, 2, 2))
    of_one = {"circuit": torch.cos, "linear": torch.clone, "perceptron": nn.functional.silu}[kind]
    with torch.no_grad():
        values = [(y - y.mean(dim=0)).flatten() for y in (hybrid.quantum(x), of_one(x))]
    assert 0.85 < float(torch.corrcoef(torch.stack(values))[0, 1]) < 0.97


def test_the_activation_by_its_definition() -> None:
    _, model = network("qvunet")
    hybrid = model.vertex["block1"].hybrid
    with torch.no_grad():
        hybrid.gain.normal_(generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 24, 4, 4)
    z = hybrid.quantum(hybrid.gain * x[:, :6] + hybrid.shift)
    z = z.reshape(2, 6, 2, 2, 2, 2).transpose(3, 4)
    z = (z - hybrid.mean[:, None, None]) / hybrid.spread
    z = z.transpose(3, 4).reshape(2, 6, 4, 4) * 0.596
    # Equal (Karras et al. 2024, eq. 103): sqrt(N / 0.5) 0.5 / sqrt(N_a) of N = 24 channels.
    expected = torch.cat([math.sqrt(2) * z, math.sqrt(2 / 3) * nn.functional.silu(x[:, 6:])], dim=1)
    torch.testing.assert_close(hybrid(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_output_depends_on_noise_level_label_and_null_label(kind: str) -> None:
    config, model = network(kind)
    x, _, _ = at(config, batch=1)
    with torch.no_grad():
        outputs = [
            model(x, torch.tensor([time]), torch.tensor([label]))
            for time, label in [(0.5, 3), (0.6, 3), (0.5, 4), (0.5, -1)]
        ]
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert float((one - other).abs().max()) > 1e-4


def test_output_depends_on_every_input_pixel() -> None:
    config, model = network()
    x, time, label = at(config)
    x.requires_grad_()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (model(x, time, label) * weights).sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).all())


@pytest.mark.parametrize(
    "settings",
    [
        ["data.image_size=24", "data.channels=1"],
        ["data.image_size=32", "model.blocks=2", "quantum.vertex.rho=0.3"],
        [
            "data.image_size=8",
            "data.channels=13",
            "model.widths=[6,32]",
            "quantum.encoder.levels=[0]",
        ],
        ["quantum.encoder.levels=[0,1]", "quantum.encoder.filters=[2,3]"],
    ],
)
def test_any_size_that_fits(settings: list[str]) -> None:
    config, model = network("qcunet", *settings)
    x, time, label = at(config)
    assert model(x, time, label).shape == x.shape


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (["data.image_size=18"], "data.image_size: "),
        (["data.image_size=4"], "data.image_size: "),  # one pixel at the vertex
        (["model.head_dim=7"], "model.head_dim: "),
        (["model.widths=[16]"], "model.widths: "),
        (["model.kind=fullqvunet", "model.widths=[4,2]", "model.head_dim=2"], "model.kind: "),
        (["quantum.encoder.levels=[2]"], "quantum.encoder.levels: "),
        (["quantum.encoder.filters=[1,1]"], "quantum.encoder.filters: "),
        (["quantum.encoder.filters=[6]"], "quantum.encoder.filters: "),
        (["quantum.encoder.replace=both"], "quantum.encoder.replace: "),
        (["released.time_blind=true"], "released.time_blind: "),
        (["model.dim=12"], "model.dim: cannot be combined with model.widths"),
    ],
)
def test_what_does_not_fit_is_refused_by_key(settings: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        small("qcunet", *settings)
    assert key in str(caught.value)


def test_bf16_is_close_to_float32_and_filters_stay_float32() -> None:
    config, model = network()
    inputs = at(config)
    seen = []
    model.get_submodule("vertex.block1.hybrid.quantum").register_forward_hook(
        lambda _, args, out: seen.extend([args[0].dtype, out.dtype])
    )
    with torch.no_grad():
        exact = model(*inputs)
        model.compute_dtype = torch.bfloat16
        rounded = model(*inputs)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert magnitude(rounded - exact) < 0.03 * magnitude(exact)
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_network_is_the_same_function(dtype: torch.dtype) -> None:
    config, model = network()
    model.compute_dtype = dtype
    inputs = at(config)
    with torch.no_grad():
        expected = model(*inputs)
        with frozen(model):
            assert torch.equal(model(*inputs), expected)
            model.conv_out.gain.fill_(0.5)
            assert torch.equal(model(*inputs), expected)
        assert not torch.equal(model(*inputs), expected)


def test_networks_thaw_when_sampling_fails() -> None:
    config, model = network()
    with pytest.raises(RuntimeError), frozen(model):
        raise RuntimeError
    model(*at(config)).square().sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "variance" not in n)


@pytest.mark.slow
def test_the_network_compiles_as_one_graph_with_the_same_gradients() -> None:
    config, model = network("unet")
    x, time, label = at(config)
    results = []
    for function in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        loss = (function(x, time, label) - x).square().mean()
        parameters = [p for name, p in model.named_parameters() if "log_variance" not in name]
        results.append((loss, *torch.autograd.grad(loss, parameters)))
    for compiled, plain in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, atol=1e-6, rtol=1e-5)


def test_levels_have_the_shapes_of_the_table() -> None:
    config = load_config(EUROSAT, ["model.kind=unet"])
    model = build_model(config)
    shapes = {}
    for name, module in model.named_modules():
        if isinstance(module, DownLevel | UpLevel):
            module.blocks[0].register_forward_hook(
                lambda _, args, out, name=name: shapes.update({name: tuple(out.shape[1:])})
            )
    with torch.no_grad():
        model(*at(config, 1))
    table = [(16, 64, 64), (48, 32, 32), (96, 16, 16), (128, 8, 8)]
    assert [shapes[f"encoder.{i}"] for i in range(4)] == table
    assert [shapes[f"decoder.{i}"] for i in range(4)] == table[::-1]


def test_top_level_names() -> None:
    assert isinstance(qhdm.build_model(small("unet")), nn.Module)
    with pytest.raises(AttributeError, match="no attribute 'bild_model'"):
        qhdm.bild_model  # noqa: B018
    assert sum(isinstance(m, FilterConnector) for m in build_model(small()).modules()) == 2
