"""Configuration files: reading, refusals and their places."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qhdm.config import (
    Config,
    EncoderConfig,
    PowerEmaConfig,
    PublishedModelConfig,
    QuantumConfig,
    SampleConfig,
    load_config,
    to_yaml,
)
from qhdm.errors import ConfigError

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "configs" / "published.yaml"


#: Comparisons are in the same folder (tests/test_comparison.py).
SHIPPED = [
    path for path in sorted((ROOT / "configs").rglob("*.yaml")) if "ablation" not in path.name
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_configurations_load_and_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(copy) == config


def test_eurosat_is_the_default_with_filters_at_finer_levels_and_guidance() -> None:
    config = load_config(ROOT / "configs" / "eurosat.yaml")
    assert config == Config(
        quantum=QuantumConfig(encoder=EncoderConfig(levels=(1, 2))),
        sample=SampleConfig(guidance=1.5, guidance_interval=(0.2, 2.0)),
    )


def test_keys_that_a_published_configuration_leaves_out_are_the_published_ones(
    tmp_path: Path,
) -> None:
    path = tmp_path / "partial.yaml"
    path.write_text("model: {dim: 10}\nquantum: {vertex: {layers: 2}}\n")
    partial, published = load_config(path), load_config(PUBLISHED)
    assert partial.model == PublishedModelConfig() == published.model
    assert partial.quantum.encoder == published.quantum.encoder
    assert partial.quantum.vertex == replace(published.quantum.vertex, layers=2)
    for section in ("data", "diffusion", "train"):
        assert getattr(partial, section) == getattr(published, section)
    path.write_text("model: {dim: 10}\ntrain: {ema: {std: [0.1]}}\n")
    assert load_config(path).train == replace(published.train, ema=PowerEmaConfig(std=(0.1,)))


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        ("train.steps=many", "--set train.steps"),
        ("train.steps=true", "--set train.steps"),
        ("train.steps=0", "--set train.steps"),
        ("train.lr=.inf", "--set train.lr"),
        ("train={lr: abc}", "--set train.lr"),
        ("train=3", "--set train"),
        ("model.dim_mults=[]", "--set model.dim_mults"),
        ("model.dim_mults=[1, 0]", "--set model.dim_mults[1]"),
        ("quantum.encoder.levels=[4, 4]", "--set quantum.encoder.levels"),
        ("data.range=[1]", "--set data.range[1]"),
        ("data.range=[2750, 0]", "--set data.range"),
        ("data.range=[1, 1]", "--set data.range"),
        ("data.range=[0, .inf]", "--set data.range[1]"),
        ("data.range=2750", "--set data.range"),
        ("data.classes=[a, a]", "--set data.classes"),
        ("data.classes=[]", "--set data.classes"),
        ("name=../up", "--set name"),
        ("train.steps", "--set train.steps"),
        ("train.steps.x=1", "--set train.steps.x"),
        ("train.steps={", "--set train.steps={:1"),
        # Contradictions between keys are the document's.
        ("model.dim=12", f"{PUBLISHED}: model.groups"),
        ("data.image_size=48", f"{PUBLISHED}: data.image_size"),
        ("data.image_size=32", f"{PUBLISHED}: data.image_size"),
        ("quantum.encoder.levels=[6]", f"{PUBLISHED}: quantum.encoder.levels"),
        ("quantum.encoder.levels=[]", f"{PUBLISHED}: quantum.encoder.levels"),
        ("quantum.vertex.filters=21", f"{PUBLISHED}: quantum.vertex.filters"),
        ("quantum.vertex.rho=0.01", f"{PUBLISHED}: quantum.vertex.rho"),
        ("sample.steps=2000", f"{PUBLISHED}: sample.steps"),
    ],
)
def test_bad_settings_are_refused_by_place(setting: str, place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(PUBLISHED, [setting])
    assert str(caught.value).startswith(f"{place}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "near"),
    [
        ("model.knd=unet", "model.kind"),
        ("batch_size=3", "train.batch_size"),
        ("model.kind=unt", "unet"),
        ("quantum.vertex.ansatz=hqcnv", "hqconv"),
    ],
)
def test_misspelt_settings_get_a_suggestion(setting: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(PUBLISHED, [setting])
    assert str(caught.value).startswith(f"--set {setting.partition('=')[0]}: ")
    assert str(caught.value).endswith(f"did you mean {near}?")


def test_ranges_are_kept(tmp_path: Path) -> None:
    config = load_config(PUBLISHED, ["data.range=[-0.5, 2750]"])
    assert config.data.range == (-0.5, 2750)
    (tmp_path / "copy.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "copy.yaml") == config


def test_guidance_needs_label_dropout() -> None:
    with pytest.raises(ConfigError, match=r"sample\.guidance: .* train\.label_dropout"):
        load_config(PUBLISHED, ["train.label_dropout=0", "sample.guidance=2"])


def test_fullqvunet_needs_whole_filters() -> None:
    sets = ["model.kind=fullqvunet", "model.dim=8", "model.groups=8", "model.dim_mults=[1,2,3,4,5]"]
    with pytest.raises(ConfigError, match=r"model\.kind: "):
        load_config(PUBLISHED, sets)


def test_rho_sets_the_number_of_filters() -> None:
    assert load_config(PUBLISHED, ["quantum.vertex.rho=0.5"]).vertex_filters == 10
    assert load_config(PUBLISHED, ["quantum.vertex.rho=0.05"]).vertex_filters == 1
    assert load_config(PUBLISHED, ["model.kind=fullqvunet"]).vertex_filters == 20
    assert load_config(PUBLISHED, ["model.kind=unet"]).vertex_filters == 0


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("train:\n  steps: 1\n  steps: 2\n", ":3: train.steps: "),
        ("train:\n  stepz: 1\n", ":2: train.stepz: "),
        ("train: {steps: 1\n", ":2: "),
        ("- a\n- b\n", ": "),
        ("just text", ": "),
        ("a: !!python/object/apply:os.system ['true']\n", ":1: "),
    ],
)
def test_bad_files_are_refused_with_the_line(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}{place}")


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    for path in (tmp_path / "none.yaml", binary, tmp_path):
        with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: "):
            load_config(path)


def test_empty_file_gives_the_defaults_and_exponents_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert load_config(path) == Config()
    path.write_text("train: {lr: 5e-4}\n")
    assert load_config(path).train.lr == 5e-4


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["train", "model", "steps", "kind", "dim", "data", "root"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(plain)
def test_any_document_is_read_or_refused_in_one_line(tmp_path: Path, document: object) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    try:
        config = load_config(path)
    except ConfigError as error:
        message = str(error)
    else:
        message = str(path)
        assert isinstance(config, Config)
    assert str(path) in message
    assert "\n" not in message
