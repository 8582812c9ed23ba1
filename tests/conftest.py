"""Fixtures: a tiny configuration, and one run trained through the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

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


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """Run `qhdm ...` as a process of its own."""
    home = tmp_path_factory.mktemp("home")
    # An empty cache: no test may find a EuroSAT that a developer has downloaded.
    environment = {**os.environ, "QHDM_DATA": str(home), "NO_PROXY": "127.0.0.1"}

    def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "qhdm", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd or home,
            env=environment,
            timeout=300,
        )

    return run


@pytest.fixture(scope="session")
def tiny_run(cli: Cli, tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a finished training."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    done = cli("train", tiny_yaml, "--out", path)
    assert done.returncode == 0, done.stderr
    return path
