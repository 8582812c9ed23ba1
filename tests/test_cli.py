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
from command_line import Cli, refused, sets, succeeded
from PIL import Image
from safetensors.torch import load_file

import qhdm
from qhdm.config import Sampling
from qhdm.data import EUROSAT_CLASSES
from qhdm.errors import ConfigError, RunError, SamplingError

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


@pytest.mark.parametrize(
    ("arguments", "place", "code"),
    [
        ("trane", "'trane'", 2),
        ("sample", "RUN", 2),
        ("sample x --num 0", "--num", 2),
        ("sample x --steps abc", "--steps", 2),
        ("sample x --guidance nan", "--guidance", 2),
        ("sample x --eta 1.5", "--eta", 2),
        ("data info bundled --test-fraction 1", "--test-fraction", 2),
        ("data info bundled --size 100000", "--size", 2),
        ("data info bundled --classes ../x", "classes[0]: ", 1),
        ("data info bundled --range 5 2", "range: ", 1),
        ("data info bundled --range nan 2", "range[0]: ", 1),
        ("data info bundled --range 0 inf", "range[1]: ", 1),
        ("train", "train: ", 1),
        ("train none.yaml", "none.yaml: ", 1),
    ],
)
def test_wrong_usage_is_one_line(cli: Cli, arguments: str, place: str, code: int) -> None:
    refused(cli(*arguments.split()), place, code=code)


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
    out = succeeded(cli("train", tiny_yaml, "--dry-run", *sets("train.steps=1000"), cwd=tmp_path))
    assert "steps: 1000" in out
    assert "circuits per step: 1,280" in out
    assert "estimated time:" in out
    assert list(tmp_path.iterdir()) == []


def test_dry_run_needs_no_data(cli: Cli) -> None:
    small = sets(
        "train.batch_size=2", "quantum.encoder.ansatz=fqconv", "quantum.vertex.ansatz=fqconv"
    )
    assert "- SeaLake" in succeeded(cli("train", EUROSAT, "--dry-run", *small))


def test_interrupt_saves_and_resume_finishes(cli: Cli, tiny_yaml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def interrupt() -> None:
        while not list(run.glob("checkpoints/step_*")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    long = sets("train.steps=2000", "train.sample_every=2000")
    done = cli("train", tiny_yaml, "--out", run, *long)
    assert done.returncode == 130
    assert f"`qhdm train --resume {run}`" in done.stderr.strip().splitlines()[-1]

    saved = int(max(run.glob("checkpoints/step_*")).name.removeprefix("step_"))
    changes = sets(f"train.steps={saved + 5}", "train.lr=1e-4")
    succeeded(cli("train", "--resume", run, *changes))
    assert (run / "checkpoints" / f"step_{saved + 5:07d}").is_dir()
    # Settings of a resumed run are kept: resuming it again needs none.
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["lr"] == 1e-4
    assert f"step {saved + 5} already" in succeeded(cli("train", "--resume", run))


def test_training_names_the_images_that_it_skips(cli: Cli, tiny_yaml: Path, tmp_path: Path) -> None:
    for label in ("Forest", "River"):
        (tmp_path / "mine" / label).mkdir(parents=True)
        for i in range(9):
            Image.new("RGB", (16, 16), (9 * i, 99, 9)).save(tmp_path / "mine" / label / f"{i}.png")
    (tmp_path / "mine" / "River" / "bad.jpg").write_bytes(b"not an image")
    few = sets("data.root=mine", "data.skip_broken=true", "train.steps=1", "train.batch_size=2")
    done = cli("train", tiny_yaml, *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "skipped: 1 (River/bad.jpg)" in done.stderr


def test_asking_about_a_run_does_not_change_it(cli: Cli, tiny_run: Path) -> None:
    before = (tiny_run / "config.yaml").read_text()
    for arguments in (["--dry-run", *sets("train.steps=99")], sets("train.steps=5")):
        succeeded(cli("train", "--resume", tiny_run, *arguments))
        assert (tiny_run / "config.yaml").read_text() == before


def test_train_refusals(cli: Cli, tiny_yaml: Path, tiny_run: Path, tmp_path: Path) -> None:
    refused(cli("train", EUROSAT, cwd=tmp_path), "qhdm data download eurosat", "data.root")
    assert list(tmp_path.iterdir()) == []
    refused(cli("train", tiny_yaml, *sets("model.knd=unet")), "did you mean model.kind?")
    refused(cli("train", tiny_yaml, *sets("data.classes=[Forrest]")), "did you mean Forest?")
    refused(cli("train", tiny_yaml, "--out", tiny_run), f"`qhdm train --resume {tiny_run}`")
    refused(cli("train", "--resume", tmp_path), f"{tmp_path}: ")
    refused(cli("train", "--resume", tiny_run, *sets("model.kind=unet")), "--set model: ")
    refused(cli("train", "--resume", tiny_run, "--out", "x"), "--out: ")


@pytest.mark.parametrize("kind", ["unet", "qvunet", "fullqvunet"])
def test_every_kind_trains(cli: Cli, tiny_yaml: Path, kind: str, tmp_path: Path) -> None:
    settings = sets(f"model.kind={kind}", "model.dim=12", "train.steps=3")
    succeeded(cli("train", tiny_yaml, "--out", tmp_path / "run", *settings))
    assert (tmp_path / "run" / "samples" / "step_0000003.png").exists()


def test_sampling_writes_an_image_folder_and_a_grid(
    cli: Cli, tiny_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "images"
    arguments = ["--num", 3, "--steps", 3, "--sampler", "ddim", "--guidance", 2, "--seed", 5]
    done = cli("sample", tiny_run, "--class", "Forest", "River", *arguments, "--out", out)
    last = succeeded(done).splitlines()[-1]
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.png")) == [
        f"{name}/{name}_{i:05d}.png" for name in ("Forest", "River") for i in range(3)
    ]
    grid = Path(last.removeprefix("grid: "))
    assert grid.parent == tiny_run / "samples"
    with Image.open(grid) as picture:
        assert picture.height > 2 * 96

    # Image i of a class does not depend on what else is asked for.
    again = tmp_path / "again"
    fewer = ["--num", 2, *arguments[2:], "--batch", 1]
    succeeded(cli("sample", tiny_run, "--class", "River", *fewer, "--out", again))
    for i in range(2):
        name = f"River/River_{i:05d}.png"
        with Image.open(out / name) as one, Image.open(again / name) as other:
            difference = np.asarray(one).astype(int) - np.asarray(other).astype(int)
            # Convolutions round differently at other batch sizes: at most one grey level.
            assert np.abs(difference).max() <= 1
    refused(cli("sample", tiny_run, "--class", "Forest", *arguments, "--out", out), "_00000.png: ")


def test_a_run_is_resumed_from_anywhere_and_with_moved_data(
    cli: Cli, tiny_yaml: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    for name in ("a", "b"):
        (images / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (16, 16), (40 * i, 90, 120)).save(images / name / f"{i}.png")
    relative = sets("data.root=images", "train.steps=2")
    succeeded(cli("train", tiny_yaml, "--out", "run", *relative, cwd=tmp_path))
    run = tmp_path / "run"
    succeeded(cli("train", "--resume", run, *sets("train.steps=3")))  # from another folder
    images.rename(tmp_path / "moved")
    moved = sets(f"data.root={tmp_path / 'moved'}", "train.steps=4")
    succeeded(cli("train", "--resume", run, *moved))


def test_sampling_refusals(cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
    refused(cli("sample", tiny_run, "--class", "Forrest"), "did you mean Forest?")
    out = tmp_path / "new" / "images"
    refused(cli("sample", tiny_run, "--steps", 101, "--out", out), "steps: 101")
    assert not out.parent.exists()
    refused(cli("sample", tmp_path), f"{tmp_path}: ")
    file = tiny_run / "config.yaml"
    refused(cli("sample", tiny_run, "--out", file), f"--out: {file}")
    refused(cli("sample", tiny_run, "--grid", file / "x.png"), f"--grid: {file}")


def test_pipeline_in_python(tiny_run: Path) -> None:
    pipeline = qhdm.Run.open(tiny_run, device="cpu")
    images = pipeline.sample(Sampling(steps=2), labels=["Forest", 9])
    assert images.shape == (2, 16, 16, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, pipeline.sample(Sampling(steps=2), labels=[1, "SeaLake"]))
    last = pipeline.sample(Sampling(steps=2, weights="model"), labels=["Forest"])
    assert (last != images[:1]).any()
    with pytest.raises(SamplingError, match=r"^class 10: .*AnnualCrop"):
        pipeline.sample(labels=[10])
    for use in (
        lambda name: pipeline.sample(labels=name),
        lambda name: pipeline.trajectory(labels=name),
        lambda name: pipeline.images_of(name, 1),
    ):
        with pytest.raises(SamplingError, match=r"^labels: 'Forest' .*\['Forest'\]"):
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
    with pytest.raises(ConfigError, match=key):
        Sampling(**{key: value})  # type: ignore[arg-type]


def test_what_does_not_fit_the_run_is_refused(tiny_run: Path) -> None:
    run = qhdm.Run.open(tiny_run, device="cpu")
    for arguments, message in (
        ({"batch_size": 0}, "^batch_size: "),
        ({"indices": [0, 1]}, "^indices: "),
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
    settings = sets("train.label_dropout=0", "train.steps=2")
    succeeded(cli("train", tiny_yaml, "--out", tmp_path / "run", *settings))
    refused(cli("sample", tmp_path / "run", "--guidance", 2), "guidance: ", "train.label_dropout")


def test_data_info_prints_a_table_and_draws_a_sheet(cli: Cli, tmp_path: Path) -> None:
    out = succeeded(cli("data", "info", "bundled", cwd=tmp_path))
    for text in (*EUROSAT_CLASSES, "64x64"):
        assert text in out
    with Image.open(tmp_path / "bundled_contact_sheet.png") as sheet:
        assert sheet.height > 10 * 64
    refused(cli("data", "info", tmp_path / "none"), f"{tmp_path / 'none'}")
    broken = tmp_path / "set" / "broken"
    broken.mkdir(parents=True)
    (broken / "x.png").write_bytes(b"not an image")
    out = succeeded(cli("data", "info", tmp_path / "set", cwd=tmp_path))
    assert "broken images: 1" in out
    assert "contact sheet: none" in out


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_broken_pipe_is_silent(unbuffered: str, tmp_path: Path) -> None:
    command = f"{sys.executable} -m qhdm data info bundled --sheet {tmp_path}/s.png"
    done = subprocess.run(
        ["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
