"""Commands in several processes, which torchrun starts on this machine."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis
import numpy as np
import psutil
import pytest
import torch
import yaml
from command_line import Cli, Done, call, refused
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tolerances import LOSS_CURVE

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

needs_torchrun = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without it")
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
    """A run of one process, in this one, with all its checkpoints."""
    kept = load_config_with(config, keep_checkpoints=99)
    run = RunDirectory.create(kept, tmp_path_factory.mktemp("alone") / "run")
    fit(run, images, device=CPU)
    return run


def load_config_with(config: Config, **changed: int) -> Config:
    from dataclasses import replace

    return replace(config, train=replace(config.train, **changed))


def torchrun(*arguments: object, restarts: int = 0) -> list[str]:
    """The command of two processes; `--standalone` finds a free port."""
    launcher = ["--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}", "-m", "--"]
    command = [*launcher, "qhdm", *map(str, arguments)]
    return [sys.executable, "-m", "torch.distributed.run", *command]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        torchrun(*arguments), capture_output=True, text=True, env=environment(), timeout=300
    )


class Launched:
    """A command in two processes, with their output in a file."""

    def __init__(self, output: Path, *arguments: object, restarts: int = 0) -> None:
        self._output = output
        with output.open("w") as file:
            self.launcher = subprocess.Popen(
                torchrun(*arguments, restarts=restarts), stdout=file, stderr=file, env=environment()
            )

    def rank(self, number: int) -> psutil.Process:
        """The running process of a rank."""
        for child in psutil.Process(self.launcher.pid).children():
            if child.environ().get("RANK") == str(number):
                return child
        raise AssertionError(f"no process {number}: {self._output.read_text()}")

    def end(self) -> list[str]:
        self.launcher.wait(300)
        return self._output.read_text().splitlines()


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not any(record["step"] >= step for record in read_metrics(run / "metrics.jsonl")):
        assert process.poll() is None, "ended too early"
        assert time.monotonic() < deadline, "too slow"
        time.sleep(0.02)


def losses(run: Path) -> list[float]:
    records = read_metrics(run / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records]


@pytest.fixture(scope="module")
def two(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes."""
    path = tmp_path_factory.mktemp("two") / "run"
    done = launch("train", settings, "--out", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run directory:") == done.stdout.count("done: loss") == 1
    return path


@slow
@needs_torchrun
def test_two_processes_have_the_loss_curve_of_one(two: Path, alone: RunDirectory) -> None:
    """Every step is of the same batch, noise, timesteps and hidden labels, in unequal shares."""
    np.testing.assert_allclose(losses(two), losses(alone.path), rtol=LOSS_CURVE, atol=0)
    norms = [
        [r["grad_norm_quantum"] for r in read_metrics(run / "metrics.jsonl")][:5]
        for run in (two, alone.path)
    ]
    np.testing.assert_allclose(norms[0], norms[1], rtol=LOSS_CURVE, atol=0)


@slow
@needs_torchrun
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
@needs_torchrun
def test_a_lost_process_costs_the_steps_since_the_last_checkpoint(
    two: Path, settings: Path, tmp_path: Path
) -> None:
    """After kill -9 of one process, torchrun restarts both; the weights are as without it."""
    path = tmp_path / "run"
    launched = Launched(tmp_path / "log", "train", settings, "--out", path, restarts=1)
    wait_for_step(path, 7, launched.launcher)
    launched.rank(1).kill()
    lines = launched.end()
    assert launched.launcher.returncode == 0, lines
    assert sum("done: loss" in line for line in lines) == 1
    assert losses(path) == losses(two)
    for name in ("model", "ema"):
        expected = load_file(two / "checkpoints" / "step_0000040" / f"{name}.safetensors")
        resumed_weights = load_file(path / "checkpoints" / "step_0000040" / f"{name}.safetensors")
        for key in expected:
            assert torch.equal(expected[key], resumed_weights[key]), key


@slow
@needs_torchrun
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
    wait_for_resumed(path, launched.launcher)
    launched.rank(1).send_signal(signal.SIGTERM)
    lines = launched.end()
    assert launched.launcher.returncode != 0
    (line,) = [line for line in lines if "qhdm: " in line]
    stopped = RunDirectory.open(path).last_step()
    assert f"step {stopped} of {STEPS}" in line
    assert 10 < stopped < STEPS
    assert not any("Traceback" in line for line in lines[: lines.index(line)])

    run = RunDirectory.open(path)
    fit(resumed(run, run.config), images, device=CPU)
    np.testing.assert_allclose(losses(path), losses(alone.path), rtol=LOSS_CURVE, atol=0)


def wait_for_resumed(path: Path, process: subprocess.Popen) -> None:
    """Wait until a step after the tenth is logged."""
    deadline = time.monotonic() + 300
    while not 10 < len(read_metrics(path / "metrics.jsonl")) < STEPS:
        assert process.poll() is None, "ended too early"
        assert time.monotonic() < deadline, "too slow"
        time.sleep(0.02)


@needs_torchrun
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
            time.sleep(0.2)  # these find the name of the start before
            assert not any(other.done() for other in others)
            agreed = {pool.submit(name, 0).result(60), *(other.result(60) for other in others)}
        assert len(agreed) == 1
        names |= agreed
    assert len(names) == 3


@slow
@needs_torchrun
def test_images_do_not_depend_on_the_number_of_processes(
    two: Path, cli: Cli, tmp_path: Path
) -> None:
    request = ["sample", two, "--num", "2", "--steps", "3", "--batch", "6"]  # 20 in 4 batches
    done = launch(*request, "--out", tmp_path / "two", "--grid", tmp_path / "two.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("20 images:") == done.stdout.count("grid:") == 1
    done = cli(*request, "--out", tmp_path / "one", "--grid", tmp_path / "one.png")
    assert done.returncode == 0, done.stderr
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.png")]
    assert len(files) == 20
    pairs = [(tmp_path / "one" / file, tmp_path / "two" / file) for file in files]
    for one, other in [*pairs, (tmp_path / "one.png", tmp_path / "two.png")]:
        assert one.read_bytes() == other.read_bytes()


@slow
@needs_torchrun
def test_a_refusal_is_printed_once(settings: Path, tmp_path: Path) -> None:
    done = launch("train", settings, "--out", tmp_path / "run", "--set", "train.batch_size=1")
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if "qhdm: " in line]
    assert "train.batch_size: " in line
    assert not list(tmp_path.iterdir())


WORKERS = {
    "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1",
}  # fmt: skip


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of one of two processes; returned to be changed."""
    for name, value in WORKERS.items():
        monkeypatch.setenv(name, value)
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
