"""The command line on the bundled patches."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import Cli, refused
from conftest import TINY
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

import qhdm
from qhdm.config import Sampling
from qhdm.data import EUROSAT_CLASSES
from qhdm.errors import RunError, SamplingError

EUROSAT = Path(__file__).parent.parent / "configs" / "eurosat.yaml"


def test_help_imports_nothing_heavy() -> None:
    """So that it answers at once; benchmarks/startup.py measures the time."""
    code = (
        "import sys; from qhdm.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    usage, *_, modules = done.stdout.splitlines()
    assert usage.startswith("usage: qhdm")
    heavy = {"torch", "qiskit", "numpy", "pydantic", "PIL", "yaml", "requests"}
    assert not heavy & set(modules.split())


def test_usage_errors_are_one_line(cli: Cli) -> None:
    refused(cli("trane"), "invalid choice: 'trane'", code=2)
    refused(cli("sample"), "required: RUN", code=2)
    refused(cli("sample", "x", "--num", "0"), "0 is not a number from 1 to 1000000", code=2)
    refused(cli("sample", "x", "--steps", "abc"), "'abc' is not a whole number", code=2)
    refused(cli("data", "info", "bundled", "--test-fraction", "1"), "from 0 to below 1", code=2)
    refused(cli("data", "info", "bundled", "--size", "100000"), "from 2 to 4096", code=2)
    refused(cli("data", "info", ""), "root: string should have at least 1 character")
    refused(cli("data", "info", "bundled", "--classes", "../x"), "classes[0]: must be the plain")
    for limits in (("5", "2"), ("nan", "2"), ("0", "inf")):
        refused(cli("data", "info", "bundled", "--range", *limits), "range")
    refused(cli("sample", "x", "--guidance", "nan"), "not a number from 0 up", code=2)
    refused(cli("train"), "give either a configuration file or --resume RUN")


def test_training_leaves_a_run(tiny_run: Path) -> None:
    names = {path.name for path in tiny_run.iterdir()}
    assert names == {
        "config.yaml", "versions.json", "metrics.jsonl", "samples", "checkpoints", "lock"
    }  # fmt: skip
    with Image.open(tiny_run / "samples" / "step_0000020.png") as picture:
        assert picture.width > 200
        assert picture.height > 1000  # ten rows of 96 pixels
    resolved = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert resolved["data"]["classes"] == list(EUROSAT_CLASSES)
    assert load_file(tiny_run / "checkpoints" / "step_0000020" / "ema.safetensors")


def test_dry_run_changes_nothing(cli: Cli, tiny_yaml: Path, tmp_path: Path) -> None:
    done = cli("train", tiny_yaml, "--dry-run", "--set", "train.steps=1000", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "steps: 1000" in done.stdout
    assert "circuits per step: 1,280" in done.stdout
    assert "estimated time:" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_dry_run_needs_no_data(cli: Cli) -> None:
    small = ["--set", "train.batch_size=2", "--set", "quantum.encoder.ansatz=fqconv"]
    done = cli("train", EUROSAT, "--dry-run", *small, "--set", "quantum.vertex.ansatz=fqconv")
    assert done.returncode == 0, done.stderr
    assert "- SeaLake" in done.stdout


def test_interrupt_saves_and_resume_finishes(cli: Cli, tiny_yaml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def interrupt() -> None:
        while not list(run.glob("checkpoints/step_*")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    done = cli("train", tiny_yaml, "--out", run, "--set", "train.steps=2000",
               "--set", "train.sample_every=2000")  # fmt: skip
    assert done.returncode == 130
    assert f"`qhdm train --resume {run}`" in done.stderr.strip().splitlines()[-1]

    saved = int(max(run.glob("checkpoints/step_*")).name.removeprefix("step_"))
    changes = ["--set", f"train.steps={saved + 5}", "--set", "train.lr=1e-4"]
    done = cli("train", "--resume", run, *changes)
    assert done.returncode == 0, done.stderr
    assert (run / "checkpoints" / f"step_{saved + 5:07d}").is_dir()

    # Settings of a resumed run are kept: resuming it again needs none.
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["lr"] == 1e-4
    again = cli("train", "--resume", run)
    assert again.returncode == 0
    assert f"is trained to step {saved + 5} already" in again.stdout


def test_asking_about_a_run_does_not_change_it(cli: Cli, tiny_run: Path) -> None:
    before = (tiny_run / "config.yaml").read_text()
    for arguments in (["--dry-run", "--set", "train.steps=99"], ["--set", "train.steps=5"]):
        done = cli("train", "--resume", tiny_run, *arguments)
        assert done.returncode == 0, done.stderr
        assert (tiny_run / "config.yaml").read_text() == before


def test_resume_refusals(cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
    refused(cli("train", "--resume", tmp_path), "not a run directory")
    refused(
        cli("train", "--resume", tiny_run, "--set", "model.kind=unet"),
        "cannot be resumed with another model",
    )
    refused(cli("train", "--resume", tiny_run, "--out", "x"), "a resumed run stays")


def test_train_refusals(cli: Cli, tiny_yaml: Path, tiny_run: Path, tmp_path: Path) -> None:
    refused(
        cli("train", EUROSAT, cwd=tmp_path),
        "no EuroSAT RGB at", "qhdm data download eurosat", "data.root",
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    refused(cli("train", tiny_yaml, "--set", "model.knd=unet"), "did you mean model.kind?")
    refused(cli("train", "none.yaml"), "none.yaml: no such file")
    refused(cli("train", tiny_yaml, "--set", "data.classes=[Forrest]"), "did you mean Forest?")
    done = cli("train", tiny_yaml, "--out", tiny_run)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith(f"`qhdm train --resume {tiny_run}`")


@pytest.mark.parametrize("kind", ["unet", "qvunet", "fullqvunet"])
def test_every_kind_trains(cli: Cli, kind: str, tmp_path: Path) -> None:
    config = {**TINY, "model": {**TINY["model"], "kind": kind, "dim": 12}}
    path = tmp_path / "kind.yaml"
    path.write_text(yaml.safe_dump(config))
    done = cli("train", path, "--out", tmp_path / "run", "--set", "train.steps=3")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "samples" / "step_0000003.png").exists()


def test_sampling_writes_an_image_folder_and_a_grid(
    cli: Cli, tiny_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "images"
    arguments = ["--num", 3, "--steps", 3, "--sampler", "ddim", "--guidance", 2, "--seed", 5]
    done = cli("sample", tiny_run, "--class", "Forest", "River", *arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.png")) == [
        f"{name}/{name}_{i:05d}.png" for name in ("Forest", "River") for i in range(3)
    ]
    grid = Path(done.stdout.strip().splitlines()[-1].removeprefix("grid: "))
    assert grid.parent == tiny_run / "samples"
    with Image.open(grid) as picture:
        assert picture.height > 2 * 96

    # Image i of a class does not depend on what else is asked for.
    again = tmp_path / "again"
    fewer = ["--num", 2, *arguments[2:], "--batch", 1]
    assert cli("sample", tiny_run, "--class", "River", *fewer, "--out", again).returncode == 0
    for i in range(2):
        name = f"River/River_{i:05d}.png"
        with Image.open(out / name) as one, Image.open(again / name) as other:
            difference = np.asarray(one).astype(int) - np.asarray(other).astype(int)
            # Convolutions round differently at other batch sizes: at most one grey level.
            assert np.abs(difference).max() <= 1

    refused(
        cli("sample", tiny_run, "--class", "Forest", *arguments, "--out", out),
        "Forest_00000.png: exists already",
    )


def test_a_run_goes_on_from_anywhere_and_with_moved_data(
    cli: Cli, tiny_yaml: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    for name in ("a", "b"):
        (images / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (16, 16), (40 * i, 90, 120)).save(images / name / f"{i}.png")
    sets = ["--set", "data.root=images", "--set", "train.steps=2"]
    assert cli("train", tiny_yaml, "--out", "run", *sets, cwd=tmp_path).returncode == 0
    run = tmp_path / "run"
    done = cli("train", "--resume", run, "--set", "train.steps=3")  # from another directory
    assert done.returncode == 0, done.stderr
    images.rename(tmp_path / "moved")
    moved = ["--set", f"data.root={tmp_path / 'moved'}", "--set", "train.steps=4"]
    done = cli("train", "--resume", run, *moved)
    assert done.returncode == 0, done.stderr


def test_sampling_refusals(cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
    refused(
        cli("sample", tiny_run, "--class", "Forrest"),
        "class 'Forrest': unknown", "known are AnnualCrop, Forest", "did you mean Forest?",
    )  # fmt: skip
    out = tmp_path / "new" / "images"
    too_many = cli("sample", tiny_run, "--steps", 101, "--out", out)
    refused(too_many, "steps: 101 is not between 1 and")
    assert not out.parent.exists()
    refused(cli("sample", tmp_path), "not a run directory")
    eta = cli("sample", tiny_run, "--sampler", "ddim", "--eta", 1.5)
    refused(eta, "--eta: 1.5 is not a number from 0 to 1", code=2)
    file = tiny_run / "config.yaml"
    refused(cli("sample", tiny_run, "--out", file), "--out:", "not a folder that can be written")
    refused(cli("sample", tiny_run, "--grid", file / "x.png"), "--grid:", "not a folder")


def test_pipeline_in_python(tiny_run: Path) -> None:
    pipeline = qhdm.Run.open(tiny_run, device="cpu")
    images = pipeline.sample(Sampling(steps=2), labels=["Forest", 9])
    assert images.shape == (2, 16, 16, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, pipeline.sample(Sampling(steps=2), labels=[1, "SeaLake"]))
    raw = qhdm.Run.open(tiny_run, weights="model", device="cpu")
    assert (raw.sample(Sampling(steps=2, weights="model"), labels=["Forest"]) != images[:1]).any()
    with pytest.raises(SamplingError, match="class 10: unknown; known are AnnualCrop"):
        pipeline.sample(labels=[10])
    for use in (
        lambda name: pipeline.sample(labels=name),
        pipeline.trajectory,
        lambda name: pipeline.images_of(name, 1),
    ):
        with pytest.raises(SamplingError, match=r"labels: 'Forest' is no list; .* \['Forest'\]"):
            use("Forest")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sampler", "euler"),
        ("guidance", float("nan")),
        ("eta", -1.0),
        ("eta", 1.01),
        ("steps", 2.5),
        ("steps", 0),
        ("seed", -1),
        ("num", 0),
        ("weights", "last"),
        ("engine", "aar"),
        ("engine_steps", 2),  # of the run's own engine
    ],
)
def test_a_request_out_of_range_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        Sampling(**{key: value})  # type: ignore[arg-type]


def test_what_does_not_fit_the_run_is_refused(tiny_run: Path) -> None:
    run = qhdm.Run.open(tiny_run, device="cpu")
    for arguments, message in (
        ({"batch_size": 0}, "batch_size: 0 is not a number from 1 up"),
        ({"indices": [0, 1]}, "indices: 2 for 1 labels; give one each"),
    ):
        with pytest.raises(SamplingError, match=message):
            run.sample(Sampling(steps=2), labels=["Forest"], **arguments)  # type: ignore[arg-type]


def test_damaged_weights_are_named_and_older_ones_used(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    file = copy / "checkpoints" / "step_0000020" / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    qhdm.Run.open(copy, device="cpu")
    message = capsys.readouterr().err
    assert f"{file}: damaged" in message
    assert "step_0000015" in message
    (file.parent / "SHA256SUMS").unlink()  # as before there were checksums
    with pytest.raises(RunError, match=r"ema\.safetensors: damaged"):
        qhdm.Run.open(copy, device="cpu")


def test_guidance_without_label_dropout_is_refused(
    cli: Cli, tiny_yaml: Path, tmp_path: Path
) -> None:
    sets = ["--set", "train.label_dropout=0", "--set", "train.steps=2"]
    assert cli("train", tiny_yaml, "--out", tmp_path / "run", *sets).returncode == 0
    refused(
        cli("sample", tmp_path / "run", "--guidance", 2),
        "guidance: this model was trained with every label shown", "use guidance 1",
    )  # fmt: skip


def test_data_info_prints_a_table_and_draws_a_sheet(cli: Cli, tmp_path: Path) -> None:
    done = cli("data", "info", "bundled", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in EUROSAT_CLASSES:
        assert name in done.stdout
    assert "64x64" in done.stdout
    with Image.open(tmp_path / "bundled_contact_sheet.png") as sheet:
        assert sheet.height > 10 * 64
    refused(cli("data", "info", tmp_path / "none"), "none")
    broken = tmp_path / "set" / "broken"
    broken.mkdir(parents=True)
    (broken / "x.png").write_bytes(b"not an image")
    done = cli("data", "info", tmp_path / "set", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "broken images: 1" in done.stdout
    assert "contact sheet: none" in done.stdout


def test_broken_pipe_is_silent(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m qhdm data info bundled --sheet {tmp_path}/s.png | true",
        shell=True, capture_output=True, text=True, env={**os.environ}, cwd=tmp_path,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
