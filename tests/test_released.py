"""The published network: its parameter counts, its switches one by one, its outputs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from networks import RELEASED, inputs, small_released, total, trained_a_little

from qhdm.config import Config, load_config
from qhdm.data import EUROSAT_CLASSES
from qhdm.errors import ConfigError
from qhdm.models import build_model
from qhdm.reproduction.network.blocks import Attention
from qhdm.reproduction.network.released import TokenNormalisedAttention
from qhdm.training.estimate import describe_counts
from qhdm.training.trainer import Trainer

#: Parameters as the published code counts them.
COUNTS = {
    "unet": 1_280_843,
    "qvunet_hqconv_released": 1_268_531,
    "qvunet_fqconv": 1_268_483,
    "qcunet_hqconv_released": 1_260_939,
    "qcunet_fqconv": 1_260_843,
}


def output(config: Config, model: torch.nn.Module, *, t: int = 5, label: int = 3) -> torch.Tensor:
    x, _, _ = inputs(config)
    with torch.no_grad():
        return model(x, torch.full((2,), t), torch.full((2,), label))


@pytest.mark.parametrize("name", list(COUNTS))
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    config = load_config(RELEASED / f"{name}.yaml")
    assert total(config) == COUNTS[name]
    assert config.data.classes == EUROSAT_CLASSES


@pytest.mark.parametrize("name", list(COUNTS))
def test_dry_run_prints_the_published_count(name: str) -> None:
    config = load_config(RELEASED / f"{name}.yaml", ["train.batch_size=1"])
    text = describe_counts(config)
    (total_row,) = (line for line in text.splitlines() if line.startswith("total"))
    assert total_row.endswith(f"{COUNTS[name]:,}")
    # encoder: 4 patches, 2 passes in 2 blocks; vertex: 1 patch, the first pass of 2 blocks
    circuits = {"unet": 0, "qvunet": 2, "qcunet": 16 + 2}[config.model.kind]
    assert f"({circuits} per image x batch 1)" in text


def test_every_released_configuration_is_counted() -> None:
    assert {path.stem for path in RELEASED.glob("*.yaml")} == set(COUNTS)


@pytest.mark.parametrize("name", list(COUNTS))
def test_without_its_switches_a_released_configuration_is_the_corrected_one(name: str) -> None:
    released = load_config(RELEASED / f"{name}.yaml")
    changes = [
        "released={}", "quantum={}", "train={}", "sample={}",
        "data.test_fraction=0.1", "data.classes=null", "name=eurosat",
    ]  # fmt: skip
    corrected = load_config(RELEASED / f"{name}.yaml", changes)
    published = load_config(
        RELEASED.parent / "published.yaml", [f"model.kind={released.model.kind}"]
    )
    assert corrected == published
    train = dataclasses.replace(released.train, label_dropout=0.1, sample_every=2000)
    assert train == published.train
    assert released.quantum.engine == published.quantum.engine


# The switches, one by one.


def test_time_blind_networks_never_see_the_timestep() -> None:
    for name in ("unet", "qvunet_fqconv"):
        config = small_released(name)
        model = trained_a_little(build_model(config))
        assert torch.equal(output(config, model, t=5), output(config, model, t=900))
        assert not torch.equal(output(config, model, label=3), output(config, model, label=4))
        seeing = small_released(name, "released.time_blind=false")
        model = trained_a_little(build_model(seeing))
        assert float((output(seeing, model, t=5) - output(seeing, model, t=900)).abs().max()) > 1e-4
        assert total(seeing) == total(config) + 12 * 48  # dim x emb_dim


def test_attention_over_tokens_by_its_definition() -> None:
    attention = TokenNormalisedAttention(6, heads=2, dim_head=4)
    x = torch.randn(2, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    flat = attention.to_qkv(attention.norm(x)).flatten(2)
    q, k, v = ([p.mT for p in third.chunk(2, 1)] for third in flat.chunk(3, 1))
    heads = []
    for head in range(2):
        # (B, pixels, features): every feature has unit length over the pixels
        unit_q, unit_k = (z[head] / z[head].norm(dim=1, keepdim=True) for z in (q, k))
        heads.append(((10 * unit_q @ unit_k.mT).softmax(-1) @ v[head]).mT)
    expected = attention.to_out(torch.cat(heads, 1).reshape(2, 8, 2, 2)) + x
    torch.testing.assert_close(attention(x), expected, atol=1e-6, rtol=1e-5)
    cosine = Attention(6, heads=2, dim_head=4)
    cosine.load_state_dict(attention.state_dict())
    assert float((cosine(x) - attention(x)).detach().abs().max()) > 1e-3


def test_discarded_second_pass_has_weights_that_nothing_depends_on() -> None:
    config = small_released("qvunet_fqconv")
    model = trained_a_little(build_model(config))
    before = output(config, model)
    for name in ("block1", "block2"):
        with torch.no_grad():
            model.vertex[name].conv2.quantum.connector.theta.uniform_()
    assert torch.equal(output(config, model), before)
    with torch.no_grad():
        model.vertex["block2"].conv1.quantum.connector.theta.uniform_()
    assert not torch.equal(output(config, model), before)
    kept = small_released("qvunet_fqconv", "released.discard_second_pass=false")
    assert total(kept) == total(config)


def test_discarded_second_pass_repeats_the_values_of_the_first() -> None:
    block = build_model(small_released("qvunet_fqconv")).vertex["block1"]
    seen = []
    block.norm1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    block.norm2.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    width = block.norm1.num_channels
    block(torch.randn(2, width, 4, 4), torch.randn(2, 48))
    first, second = seen
    assert torch.equal(first[:, :6], second[:, :6])  # two filters of three channels
    assert not torch.equal(first[:, 6:], second[:, 6:])


def test_discarded_weights_survive_training_unmoved() -> None:
    """Gradients of zero leave Adam's weights where they are; the others move."""
    trainer = Trainer(small_released("qvunet_fqconv"), None, torch.device("cpu"))
    theta = [c.quantum.connector.theta for c in (trainer.model.vertex["block1"].conv1,
                                                 trainer.model.vertex["block1"].conv2)]  # fmt: skip
    before = [t.detach().clone() for t in theta]
    trainer.advance_on(torch.zeros(2, 3, 16, 16), torch.tensor([0, 1]))
    assert not torch.equal(theta[0], before[0])
    assert torch.equal(theta[1], before[1])
    assert trainer.ema.model.state_dict().keys() == trainer.model.state_dict().keys()


def test_second_encoder_pass_reads_the_blocks_input() -> None:
    blocks = {
        switch: build_model(
            small_released("qcunet_fqconv", f"released.second_pass_reads_input={switch}")
        ).encoder[1].block1
        for switch in ("true", "false")
    }  # fmt: skip
    x = torch.randn(2, 12, 8, 8)
    for switch, block in blocks.items():
        seen = []
        block.conv2.quantum.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args))
        block(x, torch.randn(2, 48))
        assert torch.equal(seen[0][0], x[:, :3]) == (switch == "true")


def test_swapped_embedding_has_a_row_per_channel_and_a_value_per_class() -> None:
    classes = ["data.classes=[Forest,River,SeaLake]", "model.label_dim=3"]
    swapped = build_model(small_released("unet", *classes))
    assert swapped.condition.label.weight.shape == (12, 3)
    plain = build_model(small_released("unet", *classes, "released.swapped_embedding=false"))
    assert plain.condition.label.weight.shape == (3, 3)


def test_p2_k_is_read_from_gamma() -> None:
    settings = ["diffusion.p2_gamma=0.5", "diffusion.p2_k=2.0"]
    for switch, k in (("true", 0.5), ("false", 2.0)):
        config = small_released("unet", *settings, f"released.p2_k_from_gamma={switch}")
        levels = Trainer(config, None, torch.device("cpu")).preconditioning.sampling(1000)
        torch.testing.assert_close(levels.weight, (k + levels.sigma**-2) ** -0.5)


@pytest.mark.parametrize(
    ("name", "setting", "keys"),
    [
        ("unet", "released.discard_second_pass=true", ["released.discard_second_pass: "]),
        (
            "qcunet_fqconv",
            "quantum.encoder.replace=first",
            ["released.second_pass_reads_input: ", "quantum.encoder.replace"],
        ),
        (
            "unet",
            "released.second_pass_reads_input=true",
            ["released.second_pass_reads_input: ", "model.kind qcunet"],
        ),
        ("unet", "data.classes=null", ["released.swapped_embedding: "]),
        ("unet", "data.classes=[Forest,River]", ["model.label_dim"]),
        ("unet", "released.time_blnd=true", ["released.time_blnd: ", "released.time_blind"]),
    ],
)
def test_contradictions_are_refused_by_name(name: str, setting: str, keys: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(RELEASED / f"{name}.yaml", [setting])
    assert all(key in str(caught.value) for key in keys)


def test_a_label_beyond_the_swapped_table_is_refused() -> None:
    classes = "data.classes=[a,b,c,d,e,f,g,h,i,j,k]"
    with pytest.raises(ConfigError, match=r"model\.dim.*11 classes"):
        load_config(RELEASED / "unet.yaml", [classes, "model.label_dim=11"])
