"""Fixtures: a tiny configuration, one run trained through the command line, sampling jobs."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from command_line import Cli, Done, call, succeeded

if TYPE_CHECKING:
    from hardware_jobs import Chain, Submit
    from runtime_server import RuntimeServer

TINY = {
    "name": "tiny",
    "seed": 1,
    "data": {"root": "bundled", "image_size": 16, "augment": True},
    "model": {
        "kind": "qcunet",
        "dim": 8,
        "dim_mults": [1, 2],
        "groups": 4,
        "heads": 2,
        "dim_head": 8,
        "label_dim": 6,
    },
    "quantum": {
        "vertex": {"ansatz": "fqconv", "layers": 1, "filters": 2},
        "encoder": {"levels": [1], "ansatz": "fqconv", "layers": 1},
    },
    "diffusion": {"timesteps": 100},
    "train": {
        "steps": 20,
        "batch_size": 8,
        "log_every": 5,
        "sample_every": 10,
        "checkpoint_every": 5,
        "ema": {"every": 2, "after": 4},
        "device": "cpu",
    },
    "sample": {"steps": 4, "num": 2},
}


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration file that trains in seconds."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """Run `qhdm ...` in this process: `cli("sample", run, cwd=folder)`."""
    home = tmp_path_factory.mktemp("home")

    def run(*arguments: object, cwd: Path | None = None) -> Done:
        with pytest.MonkeyPatch.context() as patch:
            # An empty cache: no test may find a EuroSAT that a developer has downloaded.
            patch.setenv("QHDM_DATA", str(home))
            patch.chdir(cwd or home)
            return call(*arguments)

    return run


@pytest.fixture(scope="session")
def trained_run(cli: Cli, tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a finished training, to be read alone: all tests share it."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    succeeded(cli("train", tiny_yaml, "--out", path))
    return path


@pytest.fixture
def tiny_run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `trained_run` of the test's own."""
    return shutil.copytree(trained_run, tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RuntimeServer]:
    """The service on 127.0.0.1, where the client of this process finds it; waits are short."""
    from runtime_server import RuntimeServer, environment, refuse_unless_loopback

    from qhdm.hardware import patience
    from qhdm.hardware.runtime import service

    server = RuntimeServer()
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in environment(server.port).items():
        monkeypatch.setenv(name, value)
    refuse_unless_loopback(os.environ)
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(service, "_LOGIN_PAUSE", 0.02)
    factory = logging.getLogRecordFactory()
    yield server
    logging.setLogRecordFactory(factory)
    server.shutdown()
    server.server_close()


@pytest.fixture
def spec(tiny_run: Path, tmp_path: Path) -> Path:
    """The file of a small sampling job."""
    from hardware_jobs import SPEC

    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"run": str(tiny_run), **SPEC}))
    return path


@pytest.fixture
def submit(server: RuntimeServer, spec: Path, tiny_run: Path) -> Submit:
    """Submit the small job with settings; returns the folder of the new job."""
    from qhdm.cli import main
    from qhdm.hardware.job_dir import JobDirectory

    def run(*settings: str, code: int = 0) -> JobDirectory:
        known = set(JobDirectory.all(tiny_run))
        sets = [part for setting in settings for part in ("--set", setting)]
        assert main(["submit", str(spec), "--yes", *sets]) == code
        (folder,) = set(JobDirectory.all(tiny_run)) - known
        return folder

    return run


@pytest.fixture
def chain(server: RuntimeServer, tmp_path: Path) -> Chain:
    """Three dependent requests without a model."""
    from hardware_jobs import SPEC, Chain

    from qhdm.hardware.job_dir import JobDirectory
    from qhdm.hardware.spec import JobSpec
    from qhdm.quantum.options import Limits

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    spec = JobSpec(run=str(tmp_path / "run"), backend=SPEC["backend"], shots=SPEC["shots"],
                   limits=Limits(**SPEC["limits"]))  # fmt: skip
    return Chain(JobDirectory.create(spec, "chain"))
