"""The published network: blocks against plain formulas, counts, conditioning and reach."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from networks import SMALL, inputs, total, trained_a_little
from torch import nn

import qhdm
from qhdm.config import Config, load_config
from qhdm.errors import ConfigError
from qhdm.models import build_model, frozen
from qhdm.models.counts import count_parameters, filter_evaluations
from qhdm.quantum.connector import FilterConnector
from qhdm.quantum.exact.engine import BoundFilter
from qhdm.reproduction.network.blocks import (
    Attention,
    ChannelNorm,
    Condition,
    HybridConv2d,
    LinearAttention,
    WeightStandardizedConv2d,
)

PUBLISHED = Path(__file__).parent.parent / "configs" / "published.yaml"
KINDS = ["unet", "qvunet", "fullqvunet", "qcunet"]
#: Every operation of the full network at a small part of its cost.
SMALL_SETTINGS = [
    *SMALL, "quantum.encoder.levels=[1]", "quantum.vertex.ansatz=fqconv",
    "quantum.encoder.ansatz=fqconv",
]  # fmt: skip


def small(kind: str, *settings: str) -> Config:
    return load_config(PUBLISHED, [f"model.kind={kind}", *SMALL_SETTINGS, *settings])


# Parameter counts at the EuroSAT configuration. The published code has 1,280,843 (unet),
# 1,268,531 (qvunet, HQConv) and 1,260,939 (qcunet, HQConv). Differences:
#   unet, qvunet: + 10 x 40, the time embedding into the first dense layer, which there sees the
#       label alone (the published qcunet sees both)
#   qcunet: the published code replaces both convolutions of its two encoder blocks, this one the
#       first; the second has 40 x 40 x 9 weights instead of 37 x 37 x 9, 3 more biases, and no
#       filter of 84 weights
COUNTS = {
    "unet": 1_280_843 + 400,
    "qvunet": 1_268_531 + 400,
    "qcunet": 1_260_939 + 2 * ((40 * 40 - 37 * 37) * 9 + 3 - 84),
}


@pytest.mark.parametrize("kind", list(COUNTS))
def test_parameter_counts_at_the_eurosat_configuration(kind: str) -> None:
    assert total(load_config(PUBLISHED, [f"model.kind={kind}"])) == COUNTS[kind]


def test_published_qcunet_count_with_both_convolutions_replaced() -> None:
    both = ["quantum.encoder.replace=both"]
    assert total(load_config(PUBLISHED, both)) == 1_260_939
    fqconv = ["quantum.vertex.ansatz=fqconv", "quantum.encoder.ansatz=fqconv"]
    assert total(load_config(PUBLISHED, both + fqconv)) == 1_260_843


def test_fullqvunet_count() -> None:
    """Four convolutions of 60 -> 60 channels become four times 20 filters of 84 weights."""
    config = load_config(PUBLISHED, ["model.kind=fullqvunet"])
    assert total(config) == COUNTS["unet"] - 4 * (60 * 60 * 9 + 60) + 4 * 20 * 84


def test_counts_are_given_per_part_with_quantum_weights_apart() -> None:
    rows = count_parameters(build_model(load_config(PUBLISHED)))
    assert [row.part for row in rows] == ["condition", "encoder", "vertex", "decoder", "total"]
    assert {row.part: row.quantum for row in rows} == {
        "condition": 0, "encoder": 2 * 84, "vertex": 4 * 84, "decoder": 0, "total": 6 * 84
    }  # fmt: skip
    *parts, whole = rows
    assert whole.classical + whole.quantum == COUNTS["qcunet"]
    assert sum(row.classical for row in parts) == whole.classical


def test_circuits_per_image_at_the_eurosat_configuration() -> None:
    model = build_model(load_config(PUBLISHED, ["quantum.encoder.ansatz=fqconv"]))
    # encoder: 4x4 maps are 4 patches, one convolution in 2 blocks; vertex: 1 patch, 2 in 2 blocks
    evaluations = filter_evaluations(model, channels=3, image_size=64)
    assert sum(evaluations.values()) == 2 * 4 + 4 * 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_gradient(kind: str) -> None:
    """Above all the circuit weights: the published code discards some circuits' outputs."""
    config = small(kind)
    model = trained_a_little(build_model(config))
    x, t, label = inputs(config, batch=10)
    model(x, t, label).square().mean().backward()
    connectors = [m for m in model.modules() if isinstance(m, FilterConnector)]
    assert len(connectors) == {"unet": 0, "qvunet": 4, "fullqvunet": 4, "qcunet": 6}[kind]
    for connector in connectors:
        assert connector.theta.grad is not None
        assert bool((connector.theta.grad != 0).all())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("kind", KINDS)
def test_output_depends_on_time_label_and_null_label(kind: str) -> None:
    config = small(kind)
    model = trained_a_little(build_model(config)).eval()
    x, _, _ = inputs(config, batch=1)
    with torch.no_grad():
        outputs = [
            model(x, torch.tensor([t]), torch.tensor([label]))
            for t, label in [(5, 3), (6, 3), (5, 4), (5, -1)]
        ]
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert float((one - other).abs().max()) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_output_depends_on_every_input_pixel(kind: str) -> None:
    config = small(kind)
    model = trained_a_little(build_model(config))
    x, t, label = inputs(config)
    x.requires_grad_()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (model(x, t, label) * weights).sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).all())


def test_time_reaches_the_encoder() -> None:
    """In the published classical baseline it does not: the U-Net never sees t."""
    config = small("unet")
    model = trained_a_little(build_model(config))
    seen = []
    model.encoder[0].register_forward_hook(lambda module, args, out: seen.append(out[0]))
    x, _, label = inputs(config)
    with torch.no_grad():
        for t in (1, 900):
            model(x, torch.full((2,), t), label)
    assert float((seen[0] - seen[1]).abs().max()) > 1e-4


def hybrid_convolutions(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, HybridConv2d)}


def test_kinds_put_hybrid_convolutions_where_they_say() -> None:
    vertex = {f"vertex.block{b}.conv{c}" for b in (1, 2) for c in (1, 2)}
    encoder = {f"encoder.1.block{b}.conv1" for b in (1, 2)}
    both = encoder | {f"encoder.1.block{b}.conv2" for b in (1, 2)}
    assert hybrid_convolutions(build_model(small("unet"))) == set()
    assert hybrid_convolutions(build_model(small("qvunet"))) == vertex
    assert hybrid_convolutions(build_model(small("qcunet"))) == vertex | encoder
    replaced = build_model(small("qcunet", "quantum.encoder.replace=both"))
    assert hybrid_convolutions(replaced) == vertex | both
    full = build_model(small("fullqvunet"))
    assert hybrid_convolutions(full) == vertex
    assert full.vertex["block1"].conv1.conv is None
    assert full.vertex["block1"].conv1.quantum.count == 8


@pytest.mark.parametrize(
    "settings",
    [
        ["data.image_size=24", "data.channels=1"],
        ["data.image_size=8", "data.channels=13", "model.dim_mults=[1,2]"],
        ["data.image_size=32", "model.dim=20", "model.groups=5", "quantum.vertex.rho=0.3"],
        ["quantum.encoder.levels=[0,1,2]", "quantum.encoder.filters=2"],
        ["model.dim_mults=[3]", "quantum.encoder.levels=[0]"],
    ],
)
def test_any_size_that_fits(settings: list[str]) -> None:
    config = small("qcunet", *settings)
    x, t, label = inputs(config)
    assert build_model(config)(x, t, label).shape == x.shape


def test_weights_come_from_the_seed_and_leave_the_global_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same = build_model(small("qcunet")), build_model(small("qcunet"))
    other = build_model(small("qcunet", "seed=43"))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.init_conv.weight, other.init_conv.weight)


@pytest.mark.slow
def test_compiled_network_is_the_same_function() -> None:
    config = small("qcunet")
    model = build_model(config)
    inputs_ = inputs(config)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(*inputs_), model(*inputs_), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("engine", ["exact", "exact:statevector"])
def test_frozen_network_is_the_same_function_and_binds_weights_once(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("qcunet", f"quantum.engine={engine}")
    model = build_model(config)
    x, t, label = inputs(config)
    filters = sum(isinstance(module, FilterConnector) for module in model.modules())
    bindings = []
    bind = BoundFilter.__init__
    monkeypatch.setattr(
        BoundFilter, "__init__", lambda *a, **k: (bindings.append(1), bind(*a, **k))[1]
    )
    with torch.no_grad():
        expected = model(x, t, label)
        assert len(bindings) == filters
        with frozen(model):
            for _ in range(3):
                torch.testing.assert_close(model(x, t, label), expected)
        assert len(bindings) == 2 * filters
        for parameter in model.parameters():
            parameter.mul_(0.5)
        assert not torch.allclose(model(x, t, label), expected)  # nothing of it is left


def test_the_number_of_classes_is_the_configurations(tmp_path: Path) -> None:
    """No data set is opened: a folder that is absent is enough, if the classes are named."""
    for root, classes, expected in (
        ("eurosat", None, 10), ("bundled", None, 10), ("bundled", ("Forest", "River"), 2),
        (str(tmp_path / "absent"), ("a", "b", "c"), 3),
    ):  # fmt: skip
        config = small("unet")
        data = dataclasses.replace(config.data, root=root, classes=classes)
        model = build_model(dataclasses.replace(config, data=data))
        assert model.condition.label.num_embeddings == expected
    with pytest.raises(ConfigError, match=r"^data\.classes: "):
        build_model(small("unet", f"data.root={tmp_path}"))


def test_networks_thaw_when_sampling_fails() -> None:
    config = small("qcunet")
    model = build_model(config)
    with pytest.raises(RuntimeError), frozen(model):
        raise RuntimeError
    model(*inputs(config)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_top_level_names() -> None:
    config = qhdm.load_config(PUBLISHED, ["model.kind=unet", *SMALL])
    assert isinstance(qhdm.build_model(config), nn.Module)
    with pytest.raises(AttributeError, match="no attribute 'bild_model'"):
        qhdm.bild_model  # noqa: B018


# Blocks against plain formulas.


def test_standardised_kernels_have_zero_mean_and_unit_variance() -> None:
    conv = WeightStandardizedConv2d(3, 5).double()
    x = torch.randn(1, 3, 6, 6).double()
    kernel = conv.weight.detach().clone()
    for o in range(5):
        kernel[o] -= kernel[o].mean()
        kernel[o] /= (kernel[o].square().mean() + 1e-5).sqrt()
    expected = nn.functional.conv2d(x, kernel, conv.bias, padding=1)
    torch.testing.assert_close(conv(x), expected)


def test_channel_norm_is_layer_norm_over_channels() -> None:
    norm = ChannelNorm(7)
    nn.init.normal_(norm.scale)
    x = torch.randn(2, 7, 3, 4)
    expected = nn.functional.layer_norm(x.permute(0, 2, 3, 1), (7,), norm.scale)
    torch.testing.assert_close(norm(x), expected.permute(0, 3, 1, 2))


def qkv_of(attention: nn.Module, x: torch.Tensor, heads: int) -> list[torch.Tensor]:
    """q, k, v as (B, heads, pixels, features), by explicit loops over heads."""
    flat = attention.to_qkv(attention.norm(x)).flatten(2)
    return [
        torch.stack([part.mT for part in third.chunk(heads, 1)], 1) for third in flat.chunk(3, 1)
    ]


def test_linear_attention_by_its_definition() -> None:
    attention = LinearAttention(6, heads=2, dim_head=4)
    x = torch.randn(2, 6, 3, 5)
    q, k, v = qkv_of(attention, x, 2)
    q, k = q.softmax(-1) / 2, k.softmax(-2)
    out = torch.einsum("bhid,bhjd,bhje->bhie", q, k, v / 15)
    expected = attention.to_out(out.mT.reshape(2, 8, 3, 5)) + x
    torch.testing.assert_close(attention(x), expected, atol=1e-6, rtol=1e-5)


def test_linear_attention_in_pieces_has_the_gradients_of_the_whole() -> None:
    attention = LinearAttention(6, heads=2, dim_head=4).double()
    x = torch.randn(5, 6, 3, 5, dtype=torch.double, requires_grad=True)
    parameters = [x, *attention.parameters()]
    weight = torch.randn(x.shape, dtype=torch.double)
    results = []
    for cache in (1, 2**30):  # one row a piece, and all rows in one
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("qhdm.reproduction.network.chunks.CACHE", cache)
            value = attention(x)
        results.append((value, *torch.autograd.grad((value * weight).sum(), parameters)))
    q, k, v = qkv_of(attention, x, 2)
    q, k = q.softmax(-1) / 2, k.softmax(-2)
    out = torch.einsum("bhid,bhjd,bhje->bhie", q, k, v / 15)
    value = attention.to_out(out.mT.reshape(5, 8, 3, 5)) + x
    plain = (value, *torch.autograd.grad((value * weight).sum(), parameters))
    for pieces, whole, expected in zip(*results, plain, strict=True):
        torch.testing.assert_close(pieces, whole)
        torch.testing.assert_close(whole, expected)


def test_full_attention_compares_unit_vectors() -> None:
    attention = Attention(6, heads=2, dim_head=4)
    x = torch.randn(2, 6, 2, 2)
    q, k, v = qkv_of(attention, x, 2)
    q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    out = (10 * q @ k.mT).softmax(-1) @ v
    expected = attention.to_out(out.mT.reshape(2, 8, 2, 2)) + x
    torch.testing.assert_close(attention(x), expected, atol=1e-6, rtol=1e-5)


def test_condition_embeds_time_by_sines() -> None:
    condition = Condition(time_dim=4, label_dim=3, num_classes=2, emb_dim=8)
    condition.dense1, condition.dense2 = nn.Identity(), nn.Identity()
    emb = condition(torch.tensor([7, 7]), torch.tensor([1, -1]))
    phases = [7.0, 7.0 / 10_000]
    sines = [math.sin(p) for p in phases] + [math.cos(p) for p in phases]
    raw = torch.tensor([sines + condition.label.weight[1].tolist(), sines + [0.0] * 3])
    torch.testing.assert_close(emb, nn.functional.gelu(raw, approximate="tanh"))
