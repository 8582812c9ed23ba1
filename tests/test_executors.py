"""Where cells run: processes of this machine, and of a Ray cluster on it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from comparisons import cells, write_specification

from qhdm import data
from qhdm.comparison.cluster import RayExecutor
from qhdm.comparison.execution import BUSY, Executor, Job, LocalExecutor
from qhdm.comparison.results import read_results
from qhdm.errors import ComparisonError
from qhdm.metrics.resnet import ResNetSettings
from qhdm.metrics.trained import trained_classifier
from qhdm.runs.directory import RunDirectory

pytestmark = pytest.mark.slow

#: Engine, and cells at a time.
MakeExecutor = Callable[[int], Executor]


#: Of a machine of the cluster.
NODE = {"include_dashboard": False, "object_store_memory": 80 * 2**20}

#: So that the loss of one is noticed within seconds, not minutes.
NOTICE = {
    "health_check_initial_delay_ms": 0, "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000, "health_check_failure_threshold": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of one machine with two cores, and room for more."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    # Its sockets need short paths.
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)
        head = {**NODE, "num_cpus": 2, "_system_config": NOTICE}
        found = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        patch.setenv("RAY_ADDRESS", found.address)
        yield found
        found.shutdown()


@pytest.fixture(params=["local", "ray"])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "ray":
        request.getfixturevalue("cluster")
    return request.param


@contextmanager
def ended(executor: Executor) -> Iterator[Executor]:
    """Leave nothing running behind, whatever happens within."""
    try:
        yield executor
    finally:
        executor.stop(kill=True)
        executor.close()


@pytest.fixture
def executor(engine: str) -> Iterator[Executor]:
    """For two jobs at a time."""
    with ended(LocalExecutor(2) if engine == "local" else RayExecutor(2, gpu=True)) as made:
        yield made


def python(code: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *map(str, arguments))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


WAIT = "import pathlib, sys, time\npathlib.Path(sys.argv[1]).touch()\ntime.sleep(300)"
MEET = "import pathlib, sys, time\npathlib.Path(sys.argv[1]).touch()\n"
MEET += "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.01)"


# It ends only where it is started for the second time.
ONCE = "import pathlib, sys, time\nmark = pathlib.Path(sys.argv[1])\n"
ONCE += "if not mark.exists():\n    mark.touch()\n    time.sleep(300)"


def test_jobs_run_side_by_side_and_failures_are_told(executor: Executor, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    jobs = {
        # Each waits for the other: this ends only if both run at the same time.
        "one": (python(MEET, a, b), python("print('done')")),
        "two": (python(MEET, b, a),),
        "bad": (python("raise SystemExit('qhdm: error: no such thing')"), python("1")),
        "killed": (python("import os; os.kill(os.getpid(), 9)"),),
    }
    logs = tmp_path / "logs"
    futures = {
        name: executor.submit(Job(name, commands, logs / f"{name}.log"))
        for name, commands in jobs.items()
    }
    outcome = {name: future.result(timeout=300) for name, future in futures.items()}
    assert outcome == {
        "one": None,
        "two": None,
        "bad": "no such thing",
        "killed": "ended by SIGKILL (out of memory?)",
    }
    assert str(executor).startswith("2 at a time on ")


def test_processes_work_where_the_command_was_given(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = python("import os, sys; sys.exit(os.getcwd() + ' ' + os.environ['OMP_NUM_THREADS'])")
    said = executor.submit(Job("say", (say,), tmp_path / "say.log")).result(timeout=300)
    assert said is not None
    directory, threads = said.split(" ")
    assert directory == os.getcwd()
    assert int(threads) >= 1


def test_a_log_that_cannot_be_written_is_an_error(executor: Executor, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    job = Job("cell", (python("1"),), tmp_path / "file" / "cell.log")
    with pytest.raises(OSError, match="file"):
        executor.submit(job).result(timeout=300)


def test_stopping_ends_what_runs_and_starts_nothing_more(
    executor: Executor, tmp_path: Path
) -> None:
    marks = [tmp_path / str(number) for number in range(3)]
    running, other, waiting = (
        executor.submit(Job(f"cell{n}", (python(WAIT, mark),), tmp_path / f"{n}.log"))
        for n, mark in enumerate(marks)
    )
    until(lambda: marks[0].exists() and marks[1].exists())
    assert running.running()
    assert not waiting.running()
    executor.stop()
    assert running.result(timeout=300) == other.result(timeout=60) == "ended by SIGTERM"
    with pytest.raises(CancelledError):
        waiting.result(timeout=300)
    assert not marks[2].exists()


def test_a_cell_that_another_process_works_on_is_left_alone(
    executor: Executor, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    job = Job("cell", (python(WAIT, begun),), tmp_path / "cell.log")
    first = LocalExecutor(1)
    running: Future[str | None] = first.submit(job)
    until(begun.exists)
    assert executor.submit(job).result(timeout=300) == BUSY
    first.stop()
    assert running.result(timeout=300) == "ended by SIGTERM"
    first.close()


def process_of(mark: Path) -> psutil.Process:
    """The one that has made `mark`."""
    (found,) = (
        process
        for process in psutil.process_iter(["cmdline"])
        if str(mark) in (process.info["cmdline"] or ())
    )
    return found


def test_a_cell_goes_on_when_its_machine_is_lost(cluster: Any, tmp_path: Path) -> None:
    # The head's two cores are taken, so that the third job has to wait for a machine.
    blocks = [tmp_path / f"block{number}" for number in range(2)]
    mark = tmp_path / "mark"
    with ended(RayExecutor(None, gpu=False)) as executor:
        for block in blocks:
            executor.submit(Job(block.name, (python(WAIT, block),), tmp_path / f"{block.name}.log"))
        until(lambda: all(block.exists() for block in blocks))
        job = Job("cell", (python(ONCE, mark),), tmp_path / "cell.log")
        future = executor.submit(job)
        assert not future.running()
        first = cluster.add_node(num_cpus=1, **NODE)
        until(mark.exists)
        assert future.running()
        # All at once: an actor that outlives its process would tell of it.
        process = process_of(mark)
        actor = process.parent()
        actor.suspend()
        until(lambda: actor.status() == psutil.STATUS_STOPPED)
        process.kill()
        cluster.remove_node(first, allow_graceful=False)
        actor.kill()
        second = cluster.add_node(num_cpus=1, **NODE)
        assert future.result(timeout=120) is None
    cluster.remove_node(second)


def test_a_process_whose_actor_is_lost_is_waited_for(cluster: object, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with ended(RayExecutor(None, gpu=False)) as executor:
        future = executor.submit(Job("cell", (python(ONCE, mark),), tmp_path / "cell.log"))
        until(mark.exists)
        process = process_of(mark)
        actor = process.parent()
        actor.kill()
        with pytest.raises(TimeoutError):
            future.result(timeout=5)
        assert process.is_running()
        process.kill()
        assert future.result(timeout=300) is None


def test_clusters_that_are_too_small_are_refused(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    with pytest.raises(ComparisonError, match="64 CPU"):
        RayExecutor(None, gpu=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    with pytest.raises(ComparisonError, match="OMP_NUM_THREADS: 'many'"):
        RayExecutor(None, gpu=False)


def test_a_cluster_that_does_not_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr("qhdm.comparison.cluster._PATIENCE", 5)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ComparisonError, match=r"RAY_ADDRESS=127\.0\.0\.1:1"):
        RayExecutor(None, gpu=False)


@contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[None]:
    """Leave no process behind when a test fails."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=300)


@pytest.fixture
def quick(tmp_path: Path) -> tuple[Path, list[str]]:
    """A comparison of one seed, and settings with which its evaluations take no training."""
    specification = write_specification(tmp_path)
    classifier = tmp_path / "classifier.safetensors"
    images = data.load(cells(specification)[0].config.data).split("train")
    settings = ResNetSettings(steps=1)
    trained_classifier(images, settings, device=torch.device("cpu"), path=classifier)
    return specification, [
        "seeds=[0]", "inference=[]", "evaluate.metrics=[classes]",
        f"evaluate.extractor_weights={classifier}",
    ]  # fmt: skip


def compare(engine: str, specification: Path, *settings: str) -> list[str]:
    """The command, of one cell at a time; its directory is given relative to that of SPEC."""
    words = [sys.executable, "-m", "qhdm", "compare", str(specification), "--out", "out"]
    for setting in settings:
        words += ["--set", setting]
    return [*words, "--jobs", "1", *(["--executor", engine] if engine != "local" else [])]


def test_an_interrupt_saves_cells_and_tells_how_to_go_on(
    engine: str, quick: tuple[Path, list[str]], tmp_path: Path
) -> None:
    specification, settings = quick
    settings += ["train.steps=9000"]
    command = compare(engine, specification, *settings)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    out = tmp_path / "out"
    cell = out / "cells" / "unet-seed0"
    with ending(process):
        until(lambda: list(cell.glob("checkpoints/step_*")) or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    last = err.strip().splitlines()[-1]
    assert "0 of 3 cells" in last
    assert f"`{shlex.join(['qhdm', *command[3:]])}`" in last
    # The cell's own process has saved and ended by itself.
    assert "interrupted" in (out / "logs" / "unet-seed0.log").read_text()
    saved = RunDirectory.open(cell).last_step()
    assert 0 < saved < 9000
    left = cells(specification, *settings)
    assert [c.step() for c in left] == [saved, 0, 0]
    for c in left:
        assert c.job(tmp_path / "log").commands[0][3:] == ("train", "--resume", str(c.path))


def test_a_comparison_on_a_cluster(
    cluster: object, quick: tuple[Path, list[str]], tmp_path: Path
) -> None:
    specification, settings = quick
    command = [*compare("ray", specification, *settings), "--only", "cosine"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "(1 of 1 cells to do, 1 at a time on a Ray cluster of " in done.stdout
    results = read_results(tmp_path / "out" / "results.json")
    assert [cell.variant for cell in results.cells if cell.evaluation] == ["cosine"]
