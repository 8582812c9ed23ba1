"""Commands in several processes, which torchrun starts on this machine."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import psutil
import pytest
import torch
import yaml
from command_line import Cli, Done, call, refused, succeeded
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tolerances import LOSS_CURVE

import qhdm
from qhdm import data
from qhdm.config import Config, load_config
from qhdm.distributed import World, _agree_on_name
from qhdm.errors import ConfigError, RunError
from qhdm.runs.directory import RunDirectory
from qhdm.training.log import read_metrics
from qhdm.training.loop import fit, resumed
from qhdm.training.trainer import Trainer

CPU = torch.device("cpu")
#: Odd, so that two processes have unequal shares.
BATCH = 7
STEPS = 40

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny configuration with an odd batch, every step logged."""
    path = tmp_path_factory.mktemp("config") / "odd.yaml"
    changed = {"batch_size": BATCH, "steps": STEPS, "log_every": 1, "sample_every": STEPS}
    path.write_text(yaml.safe_dump({**TINY, "train": {**TINY["train"], **changed}}))
    return path


@pytest.fixture(scope="module")
def config(settings: Path) -> Config:
    return data.resolved(load_config(settings))


@pytest.fixture(scope="module")
def images(config: Config) -> data.Dataset:
    return data.load(config.data).split("train")


@pytest.fixture(scope="module")
def alone(
    config: Config, images: data.Dataset, tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    """A run of one process, this one, with all its checkpoints."""
    kept = replace(config, train=replace(config.train, keep_checkpoints=99))
    run = RunDirectory.create(kept, tmp_path_factory.mktemp("alone") / "run")
    fit(run, images, device=CPU)
    return run


class Launched:
    """A command in two processes under torchrun; `--standalone` finds a free port."""

    def __init__(self, output: Path, *arguments: object, restarts: int = 0) -> None:
        command = ["--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}", "-m", "--"]
        self._output = output
        with output.open("w") as file:
            self.launcher = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *command, "qhdm",
                 *map(str, arguments)],
                stdout=file, stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            )  # fmt: skip

    def rank(self, number: int) -> psutil.Process:
        """The running process of a rank."""
        for child in psutil.Process(self.launcher.pid).children():
            if child.environ().get("RANK") == str(number):
                return child
        raise AssertionError(f"no process {number}: {self._output.read_text()}")

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            assert self.launcher.poll() is None, "ended too early"
            assert time.monotonic() < deadline, "too slow"
            time.sleep(0.02)

    def end(self, *, succeeds: bool = True) -> list[str]:
        """Wait for the end; the lines of stdout and stderr."""
        self.launcher.wait(300)
        lines = self._output.read_text().splitlines()
        assert (self.launcher.returncode == 0) == succeeds, lines
        return lines


def count(lines: list[str], text: str) -> int:
    return sum(text in line for line in lines)


def logged(run: Path, key: str = "loss") -> list[float]:
    """Values of all steps so far."""
    records = read_metrics(run / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record[key] for record in records]


@pytest.fixture(scope="module")
def two(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes."""
    folder = tmp_path_factory.mktemp("two")
    lines = Launched(folder / "log", "train", settings, "--out", folder / "run").end()
    assert count(lines, "run directory:") == count(lines, "done: loss") == 1
    return folder / "run"


@slow
def test_two_processes_have_the_loss_curve_of_one(two: Path, alone: RunDirectory) -> None:
    """Every step has the same batch, noise, timesteps and hidden labels, in unequal shares."""
    np.testing.assert_allclose(logged(two), logged(alone.path), rtol=LOSS_CURVE, atol=0)
    norms = [logged(run, "grad_norm_quantum")[:5] for run in (two, alone.path)]
    np.testing.assert_allclose(*norms, rtol=LOSS_CURVE, atol=0)


@slow
def test_one_process_alone_writes(two: Path) -> None:
    names = {path.name for path in two.iterdir()}
    assert names == {
        "config.yaml", "versions.json", "metrics.jsonl", "samples", "checkpoints", "launch.txt",
        "lock",
    }  # fmt: skip
    assert [path.name for path in (two / "samples").iterdir()] == ["step_0000040.png"]
    assert sorted(path.name for path in (two / "checkpoints").iterdir()) == [
        "step_0000035", "step_0000040"
    ]  # fmt: skip


@slow
def test_a_lost_process_costs_the_steps_since_the_last_checkpoint(
    two: Path, settings: Path, tmp_path: Path
) -> None:
    """After kill -9 of one process, torchrun restarts both; the weights are as without it."""
    path = tmp_path / "run"
    launched = Launched(tmp_path / "log", "train", settings, "--out", path, restarts=1)
    launched.wait_for(lambda: len(logged(path)) >= 7)
    launched.rank(1).kill()
    assert count(launched.end(), "done: loss") == 1
    assert logged(path) == logged(two)
    for name in ("model", "ema"):
        file = f"checkpoints/step_0000040/{name}.safetensors"
        weights = load_file(path / file)
        for key, expected in load_file(two / file).items():
            assert torch.equal(weights[key], expected), key


@slow
def test_a_run_moves_between_process_counts_and_one_interrupt_stops_all(
    alone: RunDirectory, config: Config, images: data.Dataset, tmp_path: Path
) -> None:
    """Ten steps in one process, some in two until one is interrupted, the rest in one."""
    path = tmp_path / "run"
    shutil.copytree(alone.path, path)
    for checkpoint in RunDirectory.open(path).checkpoints():
        if checkpoint.name > "step_0000010":
            shutil.rmtree(checkpoint)
    launched = Launched(tmp_path / "log", "train", "--resume", path)
    launched.wait_for(lambda: 10 < len(logged(path)) < STEPS)
    launched.rank(1).send_signal(signal.SIGTERM)
    lines = launched.end(succeeds=False)
    (line,) = [line for line in lines if "qhdm: " in line]
    stopped = RunDirectory.open(path).last_step()
    assert f"step {stopped} of {STEPS}" in line
    assert 10 < stopped < STEPS
    assert not count(lines[: lines.index(line)], "Traceback")

    run = RunDirectory.open(path)
    fit(resumed(run, run.config), images, device=CPU)
    np.testing.assert_allclose(logged(path), logged(alone.path), rtol=LOSS_CURVE, atol=0)


def test_each_start_has_a_name_of_its_own_that_all_know() -> None:
    """Also if the store still holds the keys of an earlier start."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def name(rank: int) -> str:
        client = torch.distributed.TCPStore("127.0.0.1", store.port, wait_for_workers=False)
        return _agree_on_name(client, rank, 3)

    names = set()
    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            others = [pool.submit(name, rank) for rank in (1, 2)]
            time.sleep(0.2)  # these read the name of the earlier start
            assert not any(other.done() for other in others)
            agreed = {pool.submit(name, 0).result(60), *(other.result(60) for other in others)}
        assert len(agreed) == 1
        names |= agreed
    assert len(names) == 3


@slow
def test_images_do_not_depend_on_the_number_of_processes(
    two: Path, cli: Cli, tmp_path: Path
) -> None:
    request = ["sample", two, "--num", "2", "--steps", "3", "--batch", "6"]  # 20 in 4 batches
    folders = one, other = tmp_path / "one", tmp_path / "two"
    where = [["--out", folder, "--grid", folder / "grid.png"] for folder in folders]
    succeeded(cli(*request, *where[0]))
    lines = Launched(tmp_path / "log", *request, *where[1]).end()
    assert count(lines, "20 images:") == count(lines, "grid:") == 1
    files = [path.relative_to(one) for path in one.rglob("*.png")]
    assert len(files) == 21
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes()


@slow
def test_a_refusal_is_printed_once(settings: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ["--set", "train.batch_size=1"]
    lines = Launched(tmp_path / "log", "train", settings, "--out", run, *small).end(succeeds=False)
    (line,) = [line for line in lines if "qhdm: " in line]
    assert "train.batch_size: " in line
    assert not run.exists()


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of one of two processes; returned to be changed."""
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr("qhdm.cli._GRACE_SECONDS", 0)
    return monkeypatch


def test_usage_errors_and_other_commands_are_refused_by_the_first_process(
    worker: pytest.MonkeyPatch,
) -> None:
    for arguments, code in ((["trane"], 2), (["noise", "fake_torino"], 1)):
        worker.setenv("RANK", "0")
        refused(call(*arguments), code=code)
        worker.setenv("RANK", "1")
        assert call(*arguments) == Done(code, "", "")
    worker.setenv("RANK", "two")
    refused(call("noise", "fake_torino"), "RANK: 'two'")


def test_the_environment_says_who_this_is(worker: pytest.MonkeyPatch) -> None:
    assert World.from_environment() == World(0, 2, 0, 2)
    worker.setenv("RANK", "1")
    worker.setenv("TORCHELASTIC_RUN_ID", "job7")
    worker.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert World.from_environment() == World(1, 2, 0, 2, "job7", 3)
    worker.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun without --rdzv-id
    launch = World.from_environment().launch
    assert launch is not None
    assert str(os.getppid()) in launch
    worker.setenv("RANK", "2")
    with pytest.raises(ConfigError, match=r"^RANK: "):
        World.from_environment()
    worker.delenv("MASTER_PORT")
    assert World.from_environment() == World()


def test_a_launch_knows_its_run_again_and_no_other(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "launch.txt").write_text("job7\n")  # ended while it was making the run
    assert not RunDirectory.made_by("job7", path)
    with pytest.raises(RunError, match="exists already"):
        RunDirectory.create(config, path, launch="job8")
    RunDirectory.create(config, path, launch="job7")
    assert RunDirectory.made_by("job7", path)
    assert not RunDirectory.made_by("job8", path)
    assert not RunDirectory.made_by(None, path)
    with pytest.raises(RunError, match="exists already"):
        RunDirectory.create(config, path, launch="job7")


@hypothesis.settings(deadline=None)
@given(count=st.integers(0, 200), size=st.integers(1, 17), whole=st.integers(1, 70))
def test_shares_are_even_and_whole(count: int, size: int, whole: int) -> None:
    shares = [World(rank, size).share(count, whole=whole) for rank in range(size)]
    things = [list(range(count))[share] for share in shares]
    assert list(itertools.chain(*things)) == list(range(count))
    pieces = [-(-len(thing) // whole) for thing in things]
    assert max(pieces) - min(pieces) <= 1
    assert all(thing[0] % whole == 0 for thing in things if thing)


def test_shares_of_a_batch_are_those_of_the_whole(images: data.Dataset) -> None:
    batches = data.Batches(images, batch_size=BATCH, seed=1, augment=True)
    whole = batches.batch(3)
    shares = [batches.batch(3, World(rank, 3).share(BATCH)) for rank in range(3)]
    for number in range(2):
        joined = np.concatenate([share[number] for share in shares])
        np.testing.assert_array_equal(joined, whole[number])


@pytest.mark.parametrize("prediction", ["edm", "eps"])
def test_noise_of_processes_is_their_share_of_one_draw(
    prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = qhdm.ModelConfig(kind="unet", widths=(16, 16), emb_dim=32, head_dim=8)
    diffusion = qhdm.EdmConfig() if prediction == "edm" else qhdm.DiscreteConfig()
    config = Config(model=model, diffusion=diffusion, data=qhdm.DataConfig(image_size=16))
    monkeypatch.setattr(World, "add_up", lambda self, tensor: None)  # what the others would add
    given: list[tuple[torch.Tensor, ...]] = []
    for world in (World(0, 2), World(1, 2), World()):
        trainer = Trainer(config, None, CPU, world)
        network = trainer.model
        trainer._network = lambda *inputs, network=network: given.append(inputs) or network(*inputs)
        trainer.advance_on(torch.zeros(5, 3, 16, 16), torch.arange(5))
    first, second, whole = given
    assert len(first[0]) == 2
    for parts in zip(first, second, whole, strict=True):
        assert torch.equal(torch.cat(parts[:2]), parts[2])


def test_shots_of_processes_are_independent(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draws that an engine with shots would make inside the network."""
    from qhdm.seeds import current_draws

    drawn = []
    for world in (World(0, 2), World(1, 2), World()):
        trainer = Trainer(config, None, CPU, world)
        # Alone in this process: what the others would add is left out.
        monkeypatch.setattr(World, "add_up", lambda self, tensor: None)
        network = trainer.model
        trainer._network = lambda *inputs, network=network: (
            drawn.append(current_draws().next()) or network(*inputs)
        )
        trainer.advance_on(torch.zeros(4, 3, 16, 16), torch.zeros(4, dtype=torch.long))
    assert len(set(drawn)) == 3
