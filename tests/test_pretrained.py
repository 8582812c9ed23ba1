"""The trained model that comes with the package: its images, its card, and where results go."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import call, refused, succeeded
from PIL import Image

import qhdm
from qhdm.config import load_config
from qhdm.data import EUROSAT_CLASSES
from qhdm.errors import RunError, SamplingError
from qhdm.hardware.job_dir import JobDirectory
from qhdm.hardware.spec import load_kept_spec, load_spec
from qhdm.run import load_model
from qhdm.runs.directory import RunDirectory
from qhdm.shipped import results_path, run_path, shipped_runs

REPOSITORY = Path(__file__).parent.parent
SHIPPED = REPOSITORY / "pretrained" / "eurosat"
RESULTS = Path("runs") / "pretrained-eurosat"


def listing() -> dict[str, tuple[int, int]]:
    """Sizes and times of all files and folders that come with the package."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in SHIPPED.rglob("*")
    }


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working directory and cache; nothing may be written into the shipped run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QHDM_DATA", str(tmp_path / "cache"))
    before = listing()
    yield
    assert listing() == before


def test_the_shipped_weights_make_the_stored_image() -> None:
    run = qhdm.Run.open("eurosat", device="cpu")
    assert run.class_names == EUROSAT_CLASSES
    (image,) = run.sample(qhdm.Sampling(classes=["River"], num=1))
    stored = np.asarray(Image.open(REPOSITORY / "tests" / "golden" / "eurosat_river.png"))
    assert image.shape == stored.shape == (64, 64, 3)
    assert stored.std() > 5
    assert np.abs(image.astype(int) - stored.astype(int)).max() <= 1


def test_the_shipped_run_is_small_and_of_no_machine() -> None:
    assert {name: path.name for name, path in shipped_runs().items()} == {"eurosat": "eurosat"}
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= 8_000_000
    run = RunDirectory.open("eurosat")
    assert run.config.data.root == load_config("eurosat").data.root == "eurosat"
    assert run.config.train.device == "auto"
    assert run.config.name == "eurosat"  # of the configuration that trains another
    files = {path.name for path in run.latest_checkpoint().iterdir()}
    assert files == {"ema.safetensors", "SHA256SUMS"}


def test_the_figures_of_the_readme_are_those_of_the_card() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    figures = re.search(r"<!-- release -->\n(.+?)\n<!-- end of release -->", readme, re.S)
    assert figures
    card = (SHIPPED / "MODEL_CARD.md").read_text().split("--extractor classifier")[0]
    values = re.findall(r"(?<= )\d*\.\d+(?= )", figures[1])
    assert len(values) == 10
    for value in values:
        assert f"| {value} |" in re.sub(r" +", " ", card)
    (digest,) = re.findall(r"\(([0-9a-f]{8})\)", figures[1])
    assert digest in card
    assert f"{RunDirectory.open('eurosat').last_step():,} steps" in card


def test_results_go_to_the_working_directory() -> None:
    out = succeeded(call("sample", "eurosat", "--class", "River", "--num", 2, "--steps", 1))
    grid = RESULTS / "samples" / "sample_River_2each_1steps_seed0.png"
    assert out == f"grid: {grid}\n"
    assert grid.is_file()
    succeeded(call("train-classifier", "--data", "bundled", "--steps", 1, "--out", "c"))
    request = ("--num", 10, "--steps", 1, "--metrics", "loss", "classes", "--set")
    weights = ("data.root=bundled", "--extractor-weights", "c")
    done = call("evaluate", "eurosat", *request, *weights)
    assert "10 generated images from eurosat;" in succeeded(done)
    (result,) = (RESULTS / "evaluations").glob("*.json")
    assert f"results: {result}" in done.stderr
    assert list((RESULTS / "evaluations" / "samples").glob("*/*.npy"))
    assert "6 files: filters" in succeeded(call("export", "eurosat", "--out", "filters"))


@pytest.mark.slow
def test_the_report_goes_to_the_working_directory() -> None:
    request = ("--num", 4, "--metrics", "loss", "--set", "data.root=bundled")
    succeeded(call("evaluate", "eurosat", *request))
    (result,) = (RESULTS / "evaluations").glob("*.json")
    assert f"report: {RESULTS / 'report.html'}" in succeeded(call("report", "eurosat"))
    assert result.stem in (RESULTS / "report.html").read_text()


def test_jobs_go_to_the_working_directory() -> None:
    Path("job.yaml").write_text("run: eurosat\nbackend: fake_fez\nclasses: [River]\nsteps: 2\n")
    spec = load_spec("job.yaml")
    assert RunDirectory.newest(spec.run) == Path("eurosat")
    qhdm.Run.open(spec.run).job(spec)
    directory = JobDirectory.create(spec, "job")
    assert directory.path.parent == RESULTS / "jobs"
    assert directory.spec().run == "eurosat"
    for runs in ("runs", "eurosat"):
        assert directory.name in succeeded(call("jobs", "--runs", runs, "list"))


@pytest.mark.parametrize("name", ["rehearsal", "aer", "boston", "sheet"])
def test_shipped_jobs_fit_the_shipped_run(name: str) -> None:
    run = qhdm.Run.open("eurosat", device="cpu")
    job = run.job(load_spec(name))
    assert job.stages


def test_jobs_of_earlier_versions_have_the_guidance_that_the_shipped_run_had(
    tmp_path: Path,
) -> None:
    path = tmp_path / "job.yaml"
    for words, guidance in (("", 1), ("guidance: run\n", 1), ("guidance: 2\n", 2)):
        path.write_text(f"run: eurosat\nbackend: aer\n{words}")
        spec = load_kept_spec(path)
        assert (spec.guidance, spec.guidance_interval) == (guidance, None)
    path.write_text("run: runs/eurosat\nbackend: aer\n")
    assert load_kept_spec(path).guidance == "run"


def test_circuits_of_the_shipped_run() -> None:
    assert "vertex and encoder" in succeeded(call("circuits", "inspect", "eurosat"))


def test_runs_of_the_user_come_first(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, "eurosat")
    assert RunDirectory.open("eurosat").config.name == "tiny"
    assert RunDirectory.newest("eurosat") == results_path("eurosat") == Path("eurosat")
    shutil.rmtree("eurosat")
    Path("eurosat").mkdir()  # their damaged run: no other may take its place
    refused(call("sample", "eurosat"), "eurosat: not a run directory", "rename it")
    # Also the folder of shipped ones is no folder for results.
    assert results_path(SHIPPED) == RESULTS
    assert run_path(SHIPPED) == SHIPPED


def test_unknown_names_are_refused_with_the_shipped_ones() -> None:
    for words in (("sample", "eurosta"), ("report", "eurosta"), ("train", "--resume", "eurosta")):
        refused(call(*words), "eurosta: ", "did you mean eurosat?")
    refused(call("sample", "runs/none"), "runs/none: ", "comes with eurosat")
    Path("job.yaml").write_text("run: eurosta\nbackend: fake_fez\n")
    refused(call("submit", "job.yaml"), "eurosta: ", "did you mean eurosat?")
    for name in ("", "x" * 5000, "a\0b", "\udcff"):
        with pytest.raises((RunError, OSError, ValueError)):
            RunDirectory.open(name)


def test_released_runs_are_not_resumed(tmp_path: Path) -> None:
    refused(call("train", "--resume", "eurosat"), "eurosat: ", "qhdm train eurosat")
    refused(call("train", "--resume", "eurosat", "--dry-run"), "eurosat: ", "qhdm train eurosat")
    with pytest.raises(RunError, match="cannot be resumed"):
        qhdm.resume("eurosat")
    copy = shutil.copytree(SHIPPED, "copy")
    with pytest.raises(RunError, match="cannot be resumed"):
        qhdm.resume(copy)
    assert not (Path(copy) / "lock").exists()


def test_released_runs_have_averaged_weights_alone() -> None:
    for weights in ("model", "ema:0.1"):
        with pytest.raises(SamplingError, match="it has ema, step:N"):
            load_model("eurosat", weights=weights)
    step = RunDirectory.open("eurosat").last_step()
    model, _ = load_model("eurosat", weights=f"step:{step}")
    averaged, _ = load_model("eurosat")
    for name, tensor in averaged.state_dict().items():
        assert tensor.equal(model.state_dict()[name])


def test_release_keeps_the_images_and_nothing_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import release

    (tmp_path / "configs").mkdir()
    shutil.copy(REPOSITORY / "configs" / "eurosat.yaml", tmp_path / "configs")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    small = ["data.image_size=16", "model.widths=[16,32]", "quantum.encoder.levels=[0]"]
    short = ["train.steps=2", "train.batch_size=2", "train.device=cpu", "data.root=bundled"]
    trained = qhdm.train(qhdm.load_config("eurosat", [*small, *short]), out="run", callbacks=[])
    for _ in range(2):  # the second takes the place of the first
        released = release.release(RunDirectory.open("run"))
    assert released.path == tmp_path / "pretrained" / "eurosat"
    assert released.config.data.root == "eurosat"
    assert released.config.train.device == "auto"
    request = qhdm.Sampling(classes=["River"], num=2, steps=2)
    images = qhdm.Run.open(released.path, device="cpu").sample(request)
    assert np.array_equal(images, trained.sample(request))
    with pytest.raises(RunError, match="cannot be resumed"):
        qhdm.resume(released.path)


def test_damage_of_released_runs_is_detected() -> None:
    copy = Path(shutil.copytree(SHIPPED, "copy"))
    (checkpoint,) = (copy / "checkpoints").iterdir()
    weights, sums = checkpoint / "ema.safetensors", checkpoint / "SHA256SUMS"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    refused(call("sample", copy), str(weights), "damaged")
    weights.unlink()
    refused(call("sample", copy), str(weights), "missing")
    shutil.copy(SHIPPED / checkpoint.relative_to(copy) / weights.name, weights)
    sums.write_bytes(sums.read_bytes()[:40])
    refused(call("sample", copy), "damaged")
    sums.write_bytes(b"")
    refused(call("sample", copy), "damaged")


def test_a_checkpoint_to_resume_from_is_never_taken_for_a_released_one(
    tiny_run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_run, "copy"))
    for checkpoint in (copy / "checkpoints").iterdir():
        (checkpoint / "training.pt").unlink()
    refused(call("sample", copy), "training.pt")
    for checkpoint in (copy / "checkpoints").iterdir():  # nor with checksums cut short
        sums = (checkpoint / "SHA256SUMS").read_text().splitlines(keepends=True)
        (checkpoint / "SHA256SUMS").write_text("".join(sums[:-1]))
    refused(call("sample", copy), "damaged")
