"""A hybrid of the recommended network through training, resuming, export, Aer and a device."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import Cli, refused, succeeded
from conftest import TINY
from PIL import Image
from qiskit import qasm3
from qiskit.quantum_info import SparsePauliOp, Statevector
from safetensors.torch import load_file, save_file

from qhdm.config import load_config
from qhdm.data import EUROSAT_CLASSES
from qhdm.models.hybrid import HybridActivation
from qhdm.run import load_model
from qhdm.training.estimate import describe_counts

HYBRID = {
    **TINY,
    "model": {"kind": "qcunet", "widths": [8, 16, 16], "head_dim": 8, "emb_dim": 16},
    "quantum": {
        "vertex": {"ansatz": "fqconv", "layers": 1, "filters": 2},
        "encoder": {"levels": [1], "ansatz": "fqconv", "layers": 1, "filters": 1},
    },
    "diffusion": {"prediction": "edm"},
    "train": {
        "steps": 4, "batch_size": 8, "checkpoint_every": 2, "sample_every": 9, "device": "cpu",
        "lr": 0.05,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("hybrid") / "hybrid.yaml"
    file.write_text(yaml.safe_dump(HYBRID))
    return file


@pytest.fixture(scope="module")
def run(cli: Cli, path: Path) -> Path:
    succeeded(cli("train", path, "--out", path.parent / "run"))
    return path.parent / "run"


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:07d}" / "model.safetensors")


def test_circuits_learn_and_a_resumed_run_is_the_same_to_the_bit(
    cli: Cli, run: Path, tmp_path: Path
) -> None:
    first, last = weights(run, 2), weights(run, 4)
    learned = [name for name in last if not torch.equal(last[name], first[name])]
    assert sum(name.endswith("theta") for name in learned) == 2
    assert sum("hybrid.shift" in name or "hybrid.gain" in name for name in learned) == 4
    assert not any(name.endswith(("mean", "spread", "frequencies")) for name in learned)
    resumed = tmp_path / "resumed"
    shutil.copytree(run, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step_0000004")
    succeeded(cli("train", "--resume", resumed))
    again = weights(resumed, 4)
    assert all(torch.equal(again[name], last[name]) for name in last)


def test_weights_of_another_network_are_refused_with_a_remedy(
    cli: Cli, run: Path, tmp_path: Path
) -> None:
    """Runs of an earlier version mixed the filters' values into those of the convolution."""
    older = tmp_path / "older"
    shutil.copytree(run, older)
    checkpoint = older / "checkpoints" / "step_0000004"
    (checkpoint / "SHA256SUMS").unlink()
    for name in ("model", "ema"):
        state = load_file(checkpoint / f"{name}.safetensors")
        state["vertex.block1.hybrid.mix.weight"] = torch.zeros(16, 6, 1, 1)
        save_file(state, checkpoint / f"{name}.safetensors")
    words = (str(checkpoint), "hybrid.mix.weight", "train it again")
    refused(cli("sample", older, "--num", 1), *words)
    refused(cli("train", "--resume", older, "--set", "train.steps=5"), *words)


def test_its_report_names_the_prediction(cli: Cli, run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    succeeded(cli("report", run, "--out", page))
    assert "<small>edm prediction</small>" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("setting", ["train.ema.update_every=2", "train.optimizer=sgd"])
def test_what_the_kept_state_depends_on_cannot_change(cli: Cli, run: Path, setting: str) -> None:
    key = setting.split("=")[0].removesuffix(".update_every")
    refused(cli("train", "--resume", run, "--set", setting), f"--set {key}: ")


def test_exported_circuits_give_what_the_activation_computes(
    cli: Cli, run: Path, tmp_path: Path
) -> None:
    """The transform of the angles is in front of the circuits, which stay plain."""
    succeeded(cli("export", run, "--out", tmp_path / "out"))
    model, _ = load_model(run)
    hybrid = model.get_submodule("vertex.block1.hybrid")
    assert isinstance(hybrid, HybridActivation)
    x = torch.randn(1, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = hybrid(x)
        angles = (hybrid.gain * x[:, :6] + hybrid.shift)[0]
    z = torch.empty(6, 2, 2)
    for f in range(2):
        name = f"vertex_block1_hybrid_filter{f}"
        sidecar = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        circuit = qasm3.loads((tmp_path / "out" / f"{name}.qasm").read_text())
        patch = angles[3 * f : 3 * f + 3].permute(1, 2, 0).flatten().tolist()
        state = Statevector(
            circuit.assign_parameters(dict(zip(sidecar["inputs"], patch, strict=True)))
        )
        values = [
            state.expectation_value(SparsePauliOp.from_sparse_list([("Z", [q], 1)], 12)).real
            for q in range(12)
        ]
        z[3 * f : 3 * f + 3] = torch.tensor(values).reshape(2, 2, 3).permute(2, 0, 1)
    with torch.no_grad():
        expected = (z - hybrid.mean) / hybrid.spread * hybrid.quantum_scale
    torch.testing.assert_close(ours[0, :6], expected, atol=1e-5, rtol=1e-4)
    assert len(list((tmp_path / "out").glob("*.json"))) >= 3


@pytest.mark.slow
def test_a_device_rehearses_both_places(cli: Cli, run: Path, tmp_path: Path) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text(
        yaml.safe_dump(
            {
                "run": str(run), "backend": "fake_fez", "classes": ["Forest"], "steps": 2,
                "images": 1, "hardware_steps": 1, "places": ["encoder", "vertex"], "shots": 256,
            }
        )
    )  # fmt: skip
    assert "runtime jobs: 2" in succeeded(cli("submit", spec, "--dry-run"))
    succeeded(cli("submit", spec))
    (folder,) = (run / "jobs").glob("job-*")
    report = json.loads((folder / "report.json").read_text())
    assert report["correlation"] > 0.8
    assert 0 < report["error"]["rms"] < 0.4


def test_it_trains_and_samples_on_aer(cli: Cli, path: Path, run: Path, tmp_path: Path) -> None:
    """Without shots, Aer computes what the exact engine does; with few, something else."""
    aer = ["--set", "quantum.engine=aer", "--set", "train.steps=1", "--set", "train.batch_size=1"]
    succeeded(cli("train", path, "--out", tmp_path / "aer", *aer))
    images = {}
    for name, engine in (("exact", []), ("aer", []), ("shots", ["aer", "--shots", "2"])):
        request = ["--class", "Forest", "--num", "1", "--steps", "4", "--seed", "1"]
        chosen = ["--engine", *(engine or [name])]
        succeeded(cli("sample", run, *request, *chosen, "--out", tmp_path / name))
        file = tmp_path / name / "Forest" / "Forest_00000.png"
        images[name] = np.asarray(Image.open(file)).astype(int)
    assert np.abs(images["aer"] - images["exact"]).max() <= 1
    assert np.abs(images["shots"] - images["exact"]).max() > 1


def test_published_weights_need_the_published_network(cli: Cli, path: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(b"")
    done = cli("import-flax", tmp_path / "checkpoint", "--config", path, "--out", tmp_path / "x")
    refused(done, "model: ", "configs/released/")
    assert not (tmp_path / "x").exists()


def test_circuits_of_a_step_are_counted(path: Path) -> None:
    config = load_config(path, [f"data.classes=[{','.join(EUROSAT_CLASSES)}]"])
    # 8x8 map: 16 patches, one filter; vertex 4x4: 4 patches, two filters
    assert "192 (24 per image x batch 8)" in describe_counts(config)
