"""Configuration files: what is read, what is refused, and how the refusal reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qhdm.config import Config, load_config, to_yaml
from qhdm.errors import ConfigError

ROOT = Path(__file__).parent.parent
EUROSAT = ROOT / "configs" / "eurosat.yaml"


#: Comparisons lie beside the configurations they start from (tests/test_comparison.py).
SHIPPED = [
    path for path in sorted((ROOT / "configs").rglob("*.yaml")) if "ablation" not in path.name
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_configurations_load_and_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(copy) == config


def test_eurosat_is_the_default() -> None:
    assert load_config(EUROSAT) == Config()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.knd=unet", "model.knd: unknown key; did you mean model.kind?"),
        ("batch_size=3", "batch_size: unknown key; did you mean train.batch_size?"),
        ("model.kind=unt", "model.kind: 'unt' is not one of unet, qvunet, fullqvunet, qcunet; did"),
        ("quantum.vertex.ansatz=hqcnv", "did you mean hqconv?"),
        ("train.steps=many", "train.steps: must be a valid integer, got 'many'"),
        ("train.steps=true", "train.steps: must be a valid integer, got True"),
        ("train.steps=0", "train.steps: must be greater than or equal to 1, got 0"),
        ("train.lr=.inf", "train.lr: must be a finite number"),
        ("train=3", "train: must be a mapping of keys, got 3"),
        ("model.dim_mults=[1, 0]", "model.dim_mults[1]: must be greater than or equal to 1"),
        ("model.dim=12", "model.groups: 10 does not divide model.dim (12)"),
        ("data.image_size=48", "data.image_size: 48 is not divisible by 32"),
        ("data.image_size=32", "the vertex has 1x1 pixels at image size 32"),
        ("quantum.encoder.levels=[6]", "quantum.encoder.levels: there is no level 6"),
        ("quantum.encoder.levels=[]", "quantum.encoder.levels: qcunet needs one"),
        ("quantum.encoder.levels=[4, 4]", "quantum.encoder.levels: a level is given twice"),
        ("quantum.vertex.filters=21", "quantum.vertex.filters: gives 21 filters of 3 channels"),
        ("quantum.vertex.rho=0.01", "quantum.vertex.rho: gives 0 filters"),
        ("data.range=[1]", "data.range[1]: is required"),
        ("data.range=[2750, 0]", "data.range: must be [low, high], low being less than high"),
        ("data.range=[1, 1]", "data.range: must be [low, high], low being less than high"),
        ("data.range=[0, .inf]", "data.range[1]: must be a finite number"),
        ("data.range=2750", "data.range: must be a list, got 2750"),
        ("data.classes=[a, a]", "data.classes: must name at least one class, each once"),
        ("data.classes=[]", "data.classes: must name at least one class, each once"),
        ("sample.steps=2000", "sample.steps: 2000 exceeds diffusion.timesteps (1000)"),
        ("name=../up", "name: string should match"),
        ("train.steps", "--set train.steps: expected key=value"),
        ("train.steps.x=1", "--set train.steps.x: train.steps has no keys"),
        ("train.steps={", "--set train.steps={:1: not valid YAML"),
    ],
)
def test_bad_settings_are_refused_by_name(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(EUROSAT, [setting])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ranges_are_kept(tmp_path: Path) -> None:
    config = load_config(EUROSAT, ["data.range=[-0.5, 2750]"])
    assert config.data.range == (-0.5, 2750)
    (tmp_path / "copy.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "copy.yaml") == config


def test_the_place_of_a_bad_setting_is_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"^--set train\.lr: must be a valid number, got 'abc'"):
        load_config(EUROSAT, ["train={lr: abc}"])
    with pytest.raises(ConfigError, match=r"^--set model\.dim_mults: must have at least 1 item"):
        load_config(EUROSAT, ["model.dim_mults=[]"])


def test_guidance_needs_label_dropout() -> None:
    with pytest.raises(ConfigError, match=r"sample.guidance: .* set train.label_dropout above 0"):
        load_config(EUROSAT, ["train.label_dropout=0", "sample.guidance=2"])


def test_fullqvunet_needs_whole_filters() -> None:
    sets = ["model.kind=fullqvunet", "model.dim=8", "model.groups=8", "model.dim_mults=[1,2,3,4,5]"]
    with pytest.raises(ConfigError, match="fullqvunet needs vertex channels in multiples of 3"):
        load_config(EUROSAT, sets)


def test_rho_sets_the_number_of_filters() -> None:
    assert load_config(EUROSAT, ["quantum.vertex.rho=0.5"]).vertex_filters == 10
    assert load_config(EUROSAT, ["quantum.vertex.rho=0.05"]).vertex_filters == 1
    assert load_config(EUROSAT, ["model.kind=fullqvunet"]).vertex_filters == 20
    assert load_config(EUROSAT, ["model.kind=unet"]).vertex_filters == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  steps: 1\n  steps: 2\n", ":3: train.steps: given twice"),
        ("train:\n  stepz: 1\n", ":2: train.stepz: unknown key; did you mean train.steps?"),
        ("train: {steps: 1\n", ":2: not valid YAML"),
        ("- a\n- b\n", "must be a mapping of keys, got ['a', 'b']"),
        ("just text", "must be a mapping of keys, got 'just text'"),
        ("a: !!python/object/apply:os.system ['true']\n", ":1: not valid YAML"),
    ],
)
def test_bad_files_are_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load_config(tmp_path / "none.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="not a UTF-8 text file"):
        load_config(binary)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


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
