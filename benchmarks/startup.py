"""CPU seconds until a command is ready, compared with its unavoidable imports.

    python benchmarks/startup.py                      # the table of docs/performance.md
    python benchmarks/startup.py --against CHECKOUT   # alternating with another version

Every command runs in a separate process with one thread; medians over rounds are printed. CPU
seconds depend less on a busy machine than seconds do.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parents[1]
#: The smallest work that the bundled patches allow.
SMALL = ["train.steps=1", "sample.num=1", "sample.steps=1", "train.batch_size=1"]

IMPORTS = ["numpy", "torch", "torch, qiskit", "torch, torch._dynamo", "qhdm.training.loop"]
COMMANDS = [
    "--help",
    "sample --help",
    "train quickstart.yaml --dry-run",
    "sample RUN --num 1 --steps 1 --out images",
    "train quickstart.yaml --out trained",
]


def cpu_seconds(command: list[str], checkout: Path, folder: Path) -> float:
    """User and system time of a process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *command],
        check=True,
        capture_output=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def processes(checkout: Path) -> dict[str, list[str]]:
    """Labels and interpreter arguments of the measured processes."""
    settings = [word for setting in SMALL for word in ("--set", setting)]
    measured = {f"import {names}": ["-c", f"import {names}"] for names in IMPORTS}
    for text in COMMANDS:
        words = text.replace("quickstart.yaml", str(checkout / "configs/quickstart.yaml")).split()
        extra = settings if words[0] == "train" else []
        measured[f"qhdm {text}"] = ["-m", "qhdm", *words, *extra]
    return measured


def prepare(checkout: Path, folder: Path) -> None:
    """A run to sample from."""
    command = processes(checkout)["qhdm train quickstart.yaml --out trained"]
    cpu_seconds(command, checkout, folder)
    (folder / "trained").rename(folder / "RUN")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--against", type=Path, help="a checkout of another version")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    checkouts = [HERE] if arguments.against is None else [arguments.against.resolve(), HERE]

    times: dict[str, list[list[float]]] = {
        label: [[] for _ in checkouts] for label in processes(HERE)
    }
    with tempfile.TemporaryDirectory() as folder:
        homes = [Path(folder) / str(number) for number in range(len(checkouts))]
        for home, checkout in zip(homes, checkouts, strict=True):
            home.mkdir()
            prepare(checkout, home)
        for _ in range(arguments.rounds):
            for label, columns in times.items():
                for column, home, checkout in zip(columns, homes, checkouts, strict=True):
                    command = processes(checkout)[label]
                    column.append(cpu_seconds(command, checkout, home))
                    for made in ("trained", "images"):
                        shutil.rmtree(home / made, ignore_errors=True)
    heads = ["CPU s"] if len(checkouts) == 1 else ["before, CPU s", "now, CPU s"]
    print(f"| | {' | '.join(heads)} |")
    print(f"|---|{'---|' * len(heads)}")
    for label, columns in times.items():
        print(f"| `{label}` | {' | '.join(f'{statistics.median(t):.2f}' for t in columns)} |")


if __name__ == "__main__":
    main()
