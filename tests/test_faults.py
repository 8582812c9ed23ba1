"""Training reaches the same weights after kills, full disks and damaged files.

QHDM_FAULTS=50 pytest tests/test_faults.py -s runs more rounds and prints counts.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY
from forked import FORKED
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("QHDM_FAULTS", "2"))
STEPS, HALF = 12, 8
CONFIG = {
    **TINY,
    "data": {"root": "bundled", "image_size": 8, "classes": ["Forest", "River"]},
    "model": {
        "kind": "qvunet", "dim": 4, "dim_mults": [1, 2], "groups": 2, "heads": 1, "dim_head": 4,
        "label_dim": 4,
    },
    "quantum": {
        "vertex": {"ansatz": str(Path(__file__).parent.parent / "circuits" / "fqconv.qasm")}
    },
    "train": {**TINY["train"], "steps": STEPS, "batch_size": 4, "log_every": 2,
              "checkpoint_every": 2, "sample_every": 1000},
    "sample": {"steps": 2, "num": 1},
}  # fmt: skip


def _run(arguments: list[str], log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    from qhdm.cli import main

    sys.exit(main(arguments))


@dataclass
class Command:
    """`qhdm ...` in a process."""

    process: BaseProcess
    log: Path

    def finish(self) -> tuple[int | None, list[str]]:
        """Exit code, and the lines that qhdm wrote to stderr."""
        self.process.join(timeout=300)
        lines = self.log.read_text().replace("\r", "\n").splitlines()
        assert not any("Traceback" in line for line in lines), "\n".join(lines)
        return self.process.exitcode, [line for line in lines if line.startswith("qhdm: ")]


def start(folder: Path, *arguments: object) -> Command:
    log = folder / f"{time.monotonic_ns()}.log"
    process = FORKED.Process(target=_run, args=([str(a) for a in arguments], str(log)))
    process.start()
    return Command(process, log)


def begin(folder: Path, run: Path, config: Path) -> Command:
    """Resume a run, or start it again if it was killed before it was one."""
    if (run / "config.yaml").exists():
        return start(folder, "train", "--resume", run)
    shutil.rmtree(run, ignore_errors=True)
    return start(folder, "train", config, "--out", run)


def final(run: Path) -> dict[str, torch.Tensor]:
    """Weights and averages after the last step."""
    folder = run / "checkpoints" / f"step_{STEPS:07d}"
    return {
        f"{name}.{key}": value
        for name in ("model", "ema")
        for key, value in load_file(folder / f"{name}.safetensors").items()
    }


def assert_same(run: Path, expected: dict[str, torch.Tensor]) -> None:
    weights = final(run)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


@dataclass
class Reference:
    """An uninterrupted run, and a run of half its steps."""

    config: Path
    half: Path
    weights: dict[str, torch.Tensor]
    seconds: float


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("faults")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    code, lines = start(
        folder, "train", config, "--out", folder / "half", "--set", f"train.steps={HALF}"
    ).finish()
    assert code == 0, lines
    since = time.monotonic()
    code, lines = begin(folder, folder / "whole", config).finish()
    assert code == 0, lines
    return Reference(config, folder / "half", final(folder / "whole"), time.monotonic() - since)


def killed(command: Command, run: Path, moment: random.Random, seconds: float) -> bool:
    """Kill at a random moment, or while a checkpoint is written; False if it ended before."""
    deadline = time.monotonic() + moment.uniform(0, seconds)
    writing = moment.random() < 0.5
    while command.process.is_alive():
        if writing:
            if any((run / "checkpoints").glob(".step_*.tmp")):
                break
        elif time.monotonic() > deadline:
            break
        time.sleep(0.0005)
    time.sleep(moment.uniform(0, 0.003))
    if not command.process.is_alive():
        return False
    command.process.kill()
    command.process.join()
    return command.process.exitcode == -signal.SIGKILL


def test_killed_training_reaches_the_same_weights(reference: Reference, tmp_path: Path) -> None:
    moment = random.Random(0)
    kills = in_writes = runs = 0
    while kills < ROUNDS:
        run = tmp_path / f"run{runs}"
        command = begin(tmp_path, run, reference.config)
        while kills < ROUNDS and killed(command, run, moment, reference.seconds):
            kills += 1
            in_writes += any((run / "checkpoints").glob(".step_*.tmp"))
            command = begin(tmp_path, run, reference.config)
        code, lines = command.finish()
        assert (code, lines) == (0, [])
        assert_same(run, reference.weights)
        assert not list((run / "checkpoints").glob(".*"))  # partial files of killed processes
        runs += 1
    print(f"{kills} kills, {in_writes} while a checkpoint was written, {runs} runs: same weights")


@pytest.fixture
def small_disk(reference: Reference, tmp_path: Path) -> Iterator[Path]:
    """A file system that holds a run and little more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(file.stat().st_size for file in reference.half.rglob("*")) * 3
    try:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a tmpfs cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_named_and_nothing_is_lost(
    reference: Reference, small_disk: Path, tmp_path: Path
) -> None:
    moment = random.Random(1)
    refused = 0
    for _ in range(ROUNDS):
        run, ballast = small_disk / "run", small_disk / "ballast"
        shutil.rmtree(run, ignore_errors=True)
        free = shutil.disk_usage(small_disk).free
        needed = sum(file.stat().st_size for file in reference.half.rglob("*"))
        ballast.write_bytes(bytes(free - moment.randrange(needed * 2)))
        code, lines = begin(tmp_path, run, reference.config).finish()
        if code != 0:
            refused += 1
            assert code == 1
            (line,) = lines
            assert "No space left on device" in line
            assert "free some space" in line
            assert not list(run.rglob(".*.tmp"))
        ballast.unlink()
        code, lines = begin(tmp_path, run, reference.config).finish()
        assert (code, lines) == (0, [])
        assert_same(run, reference.weights)
    print(f"{ROUNDS} small disks, {refused} of them full in training: same weights")


def files_of(run: Path) -> list[Path]:
    """Files that resuming reads, newest checkpoint first."""
    checkpoints = sorted((run / "checkpoints").iterdir(), reverse=True)
    files = [file for folder in checkpoints for file in sorted(folder.iterdir())]
    files = [file for file in files if file.name != "config.yaml"]
    return [*files[:4], run / "config.yaml", run / "metrics.jsonl",
            *(run / "circuits").iterdir(), *files[4:]]  # fmt: skip


def damage(file: Path, moment: random.Random) -> str:
    content = bytearray(file.read_bytes())
    kind = moment.choice(["flipped", "flipped", "truncated", "deleted"])
    if kind == "deleted":
        file.unlink()
    elif kind == "truncated":
        file.write_bytes(content[: moment.randrange(len(content))])
    else:
        content[moment.randrange(len(content))] ^= 1 << moment.randrange(8)
        file.write_bytes(content)
    return kind


def test_damaged_files_are_named_and_passed_over(reference: Reference, tmp_path: Path) -> None:
    moment = random.Random(2)
    counts: dict[str, int] = {}
    for number in range(max(ROUNDS, 7)):
        run = tmp_path / f"run{number}"
        shutil.copytree(reference.half, run)
        files = files_of(run)
        file = files[number % len(files)]
        good = file.read_bytes()
        kind = damage(file, moment)
        resume = ("train", "--resume", run, "--set", f"train.steps={STEPS}")
        code, lines = start(tmp_path, *resume).finish()
        outcome = "unharmed"
        newest = file.parent.name == f"step_{HALF:07d}"
        if newest and not (file.name == "SHA256SUMS" and kind == "deleted"):
            outcome = "passed over"
            assert code == 0, (file, kind, lines)
            (line,) = lines
            assert file.name in line
            assert str(file.parent) in line
            assert f"resuming from {run}/checkpoints/step_{HALF - 2:07d}" in line
        elif code != 0:
            outcome = "named"
            assert file.name == "config.yaml" or file.parent.name == "circuits", (file, lines)
            (line,) = lines
            assert file.name in line
            if "cp " in line:  # run the suggested remedy
                subprocess.run(shlex.split(line[line.index("cp ") :]), check=True)
            else:
                file.write_bytes(good)
            code, lines = start(tmp_path, *resume).finish()
            assert code == 0, (file, kind, lines)
        elif lines:
            outcome = "line left out"
            assert file.name == "metrics.jsonl"
            assert "damaged, and left out" in lines[0]
        assert_same(run, reference.weights)
        counts[outcome] = counts.get(outcome, 0) + 1
        shutil.rmtree(run)
    print(f"{sum(counts.values())} damaged files, {counts}: same weights")


def test_without_a_good_checkpoint_there_is_an_error(reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference.half, run)
    for file in run.glob("checkpoints/*/training.pt"):
        file.write_bytes(b"")
    code, lines = start(
        tmp_path, "train", "--resume", run, "--set", f"train.steps={STEPS}"
    ).finish()
    assert code == 1
    (line,) = lines
    assert f"{run}/checkpoints/step_{HALF:07d}/training.pt: damaged" in line
    assert f"{run} has no undamaged checkpoint" in line


def test_sigterm_saves_and_a_second_process_is_refused(
    reference: Reference, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = start(tmp_path, "train", reference.config, "--out", run, "--set", "train.steps=1000000")
    while not list((run / "checkpoints").glob("step_*")):
        assert first.process.is_alive(), first.finish()
        time.sleep(0.01)
    before = (run / "config.yaml").read_bytes()
    code, lines = start(tmp_path, "train", "--resume", run, "--set", "train.steps=2000000").finish()
    assert code == 1
    (line,) = lines
    assert f"{run}: another process is training this run" in line
    assert (run / "config.yaml").read_bytes() == before
    first.process.terminate()
    code, lines = first.finish()
    assert code == 130
    saved = int(max(run.glob("checkpoints/step_*")).name.removeprefix("step_"))
    assert f"interrupted: saved at step {saved} of 1000000" in lines[-1]
