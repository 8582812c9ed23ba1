"""Circuits of one's own in a configuration: trained, kept with the run, refused when unfit."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY

from qhdm.cli import main
from qhdm.config import Config, Sampling, VertexConfig, load_config, to_yaml, with_circuit_files
from qhdm.errors import CircuitError, ConfigError, RunError
from qhdm.models import build_model
from qhdm.models.filters import build_filters
from qhdm.models.named_filters import named_filters
from qhdm.run import Run
from qhdm.runs.config import load_run_config
from qhdm.runs.directory import RunDirectory
from qhdm.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "circuits" / "reuploading.qasm"
#: A filter of <Z_i> = cos(x_i + w_i), small enough to train in no time.
MINE = (
    'OPENQASM 3.0;\ninclude "stdgates.inc";\n'
    + "".join(f"input float x{i:02d};\ninput float w{i:03d};\n" for i in range(12))
    + "qubit[12] q;\n"
    + "".join(f"rx(x{i:02d} + w{i:03d}) q[{i}];\n" for i in range(12))
)


def tiny(ansatz: object, *overrides: str, path: Path) -> Config:
    file = path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    settings = [f"quantum.{place}.ansatz={ansatz}" for place in ("vertex", "encoder")]
    layers = [f"quantum.{place}.layers=null" for place in ("vertex", "encoder")]
    return load_config(file, [*settings, *layers, *overrides])


def test_the_shipped_circuit_trains_and_every_weight_learns(tmp_path: Path) -> None:
    config = tiny(SHIPPED, "data.classes=[Forest, River]", "train.batch_size=2", path=tmp_path)
    trainer = Trainer(config, None, torch.device("cpu"))
    before = [item.weights for item in named_filters(trainer.model)]
    assert {item.filter.name for item in named_filters(trainer.model)} == {"reuploading"}
    assert {len(weights) for weights in before} == {60}
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    losses = [float(trainer.advance_on(images, torch.tensor([0, 1]))) for _ in range(3)]
    assert np.isfinite(losses).all()
    for name, parameter in trainer.model.named_parameters():
        if "theta" in name:
            assert parameter.grad is not None
            assert (parameter.grad != 0).all(), name
    for old, item in zip(before, named_filters(trainer.model), strict=True):
        assert (old != item.weights).all()


def test_a_circuit_of_constant_values_is_refused(tmp_path: Path) -> None:
    """<Z> of RX(x), H is 0: their spread cannot be 1, and all images would be NaN."""
    constant = "".join(f"h q[{i}];\n" for i in range(12))
    (tmp_path / "constant.qasm").write_text(MINE + constant)
    settings = ["model.kind=qvunet", "model.widths=[8,16]", "model.head_dim=8", "data.classes=[a]"]
    own = f"quantum.vertex={{ansatz: {tmp_path}/constant.qasm, layers: null, filters: 2}}"
    config = load_config(ROOT / "configs" / "quickstart.yaml", [*settings, own])
    with pytest.raises(CircuitError, match="constant: "):
        build_model(config)


def train(tmp_path: Path, *more: str) -> int:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    places = ("vertex", "encoder")
    settings = [
        f"quantum.{p}.{k}" for p in places for k in ("ansatz=circuits/mine.qasm", "layers=null")
    ]
    settings += ["train.steps=2", "train.checkpoint_every=1", *more]
    return main(
        ["train", "tiny.yaml", "--out", "run", *(a for s in settings for a in ("--set", s))]
    )


def test_a_run_keeps_its_circuits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "circuits" / "mine.qasm"
    mine.parent.mkdir()
    mine.write_text(MINE)
    assert train(tmp_path) == 0
    kept = list((tmp_path / "run" / "circuits").iterdir())
    assert len(kept) == 1
    assert kept[0].read_text() == MINE
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["quantum"]["vertex"]["ansatz"] == f"circuits/{kept[0].name}"
    images = Run.open("run", device="cpu").sample(Sampling(steps=2), labels=["Forest"])

    # The file changes, then vanishes; the run moves: it stays what it was.
    mine.write_text(MINE.replace("rx(", "ry("))
    shutil.rmtree(mine.parent)
    shutil.move("run", "moved")
    assert (
        Run.open("moved", device="cpu").sample(Sampling(steps=2), labels=["Forest"]) == images
    ).all()
    assert main(["train", "--resume", "moved", "--set", "train.steps=3"]) == 0
    assert RunDirectory.open("moved").last_step() == 3
    written = yaml.safe_load((tmp_path / "moved" / "config.yaml").read_text())
    assert written["quantum"]["vertex"]["ansatz"] == f"circuits/{kept[0].name}"
    assert main(["circuits", "inspect", "moved"]) == 0
    assert "12 qubits, depth 1" in capsys.readouterr().out

    # Its own copy changes: it says so instead of sampling another circuit.
    copy = tmp_path / "moved" / "circuits" / kept[0].name
    copy.write_text(MINE.replace("rx(", "ry("))
    with pytest.raises(RunError, match=f"{copy.name}: changed"):
        load_run_config(Path("moved"))
    copy.unlink()
    with pytest.raises(RunError, match=f"{copy.name}: missing"):
        RunDirectory.open("moved")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINE.replace("rx(x05", "rx(x04"), "mine.qasm:13: parameter x05 is used by no gate"),
        (MINE.replace("rx(x03 + w003) q[3];", "reset q[3];"), "mine.qasm:31: reset"),
        (MINE.replace("input float x11;\n", "").replace("x11 +", "1 +"), "needs 12 inputs"),
        (None, "circuits/mine.qasm: no such file"),
    ],
)
def test_a_circuit_that_does_not_fit_leaves_no_run(
    text: str | None,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circuits").mkdir()
    if text:
        (tmp_path / "circuits" / "mine.qasm").write_text(text)
    assert train(tmp_path) == 1
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1
    assert words in err[0]
    assert not (tmp_path / "run").exists()


def test_a_configuration_with_layers_takes_a_file_by_settings_alone() -> None:
    settings = [f"quantum.{p}.{k}" for p in ("vertex", "encoder")
                for k in (f"ansatz={SHIPPED}", "layers=null")]  # fmt: skip
    config = load_config(SHIPPED.parent.parent / "configs" / "aer_quickstart.yaml", settings)
    assert {filter.name for filter in build_filters(config).values()} == {"reuploading"}


@pytest.mark.parametrize("name", ["quickstart", "eurosat", "eurosat32", "eurosat_ms"])
def test_a_recommended_configuration_takes_a_file_by_one_setting(name: str) -> None:
    config = load_config(name, ["quantum.vertex.ansatz=reuploading"])
    assert config.quantum.vertex.layers is None
    assert config.quantum.encoder.layers == 3


def test_files_take_no_layers_and_names_are_still_checked(tmp_path: Path) -> None:
    for layers in (2, 3):
        with pytest.raises(ConfigError, match=r"vertex\.layers: .*quantum\.vertex\.layers=null\)"):
            tiny("mine.qasm", f"quantum.vertex.layers={layers}", path=tmp_path)
    config = tiny("mine.qasm", path=tmp_path)
    assert config.quantum.vertex.layers is None
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config
    # Of a family, null is 3; a section that says nothing of layers takes either.
    assert tiny("hqconv", path=tmp_path).quantum.vertex.layers == 3
    assert VertexConfig() == VertexConfig(layers=3)
    assert VertexConfig(ansatz="mine.qasm").layers is None
    with pytest.raises(ConfigError, match=r"\bhqconv\b"):
        tiny("hqconvv", path=tmp_path)
    with pytest.raises(ConfigError, match=r"quantum\.vertex\.ansatz"):
        tiny("3", path=tmp_path)


def test_two_files_of_one_name_are_both_kept(tmp_path: Path) -> None:
    for folder, text in (("a", MINE), ("b", MINE.replace("rx(", "ry("))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.qasm").write_text(text)
    config = tiny(tmp_path / "a" / "mine.qasm", "data.classes=[Forest]", path=tmp_path)
    other = str(tmp_path / "b" / "mine.qasm")
    vertex = dataclasses.replace(config.quantum.vertex, ansatz=other)
    config = dataclasses.replace(config, quantum=dataclasses.replace(config.quantum, vertex=vertex))
    run = RunDirectory.create(config, tmp_path / "run")
    assert len(list((tmp_path / "run" / "circuits").iterdir())) == 2
    assert RunDirectory.open(run.path).config == run.config
    assert with_circuit_files(run.config, lambda name: name) == run.config
