"""Imports have one direction, and commands import only what they need."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "qhdm"

#: What each part may import, besides itself.
BASE = {"_version", "console", "errors", "files", "retries", "seeds", "shipped", "tables"}
FILTER = BASE | {"quantum.filter", "quantum.unroll", "quantum.options"}
MODELS = BASE | {"config", "data", "device", "models", "quantum", "runs"}
ALLOWED = {
    "_version": set(),
    "console": set(),
    "errors": set(),
    "files": set(),
    "retries": set(),
    "seeds": set(),
    "tables": set(),
    "shipped": {"errors"},
    "distributed": {"errors"},
    "schema": BASE,
    "config": BASE | {"schema", "quantum.ansatz", "quantum.options"},
    "data": BASE | {"config"},
    "diffusion": BASE | {"config"},
    # Subpackages of quantum.
    "quantum.options": BASE,
    "quantum.unroll": BASE,
    "quantum.ansatz": BASE,
    "quantum.filter": BASE | {"quantum.ansatz", "quantum.unroll"},
    "quantum.ir": FILTER,
    "quantum.pubs": FILTER,
    "quantum.files": FILTER | {"quantum.ansatz", "quantum.ir"},
    "quantum.devices": BASE | {"quantum.ir"},
    "quantum.compile": BASE | {"quantum.ir", "quantum.devices"},
    "quantum.exact": FILTER | {"quantum.ir"},
    "quantum.aer": FILTER | {"quantum.ir", "quantum.pubs", "quantum.exact", "quantum.devices"},
    "quantum.engines": FILTER | {"quantum.exact", "quantum.aer"},
    "quantum.connector": FILTER | {"quantum.engines", "quantum.aer"},
    "quantum.layer": FILTER | {"quantum.engines", "quantum.connector", "quantum.files"},
    "quantum": BASE,
    "device": {"errors"},
    "pictures": {"files", "data"},
    "runs": BASE | {"config", "schema"},
    # What both networks share; the published one is built on it, and built by models.
    "models.network": BASE,
    "models.baselines": BASE | {"quantum"},
    "models.filters": BASE | {"config", "quantum", "models.baselines"},
    "reproduction.network": BASE | {"config", "quantum", "models.network", "models.filters"},
    "models": BASE | {"config", "quantum", "reproduction.network"},
    "hardware": MODELS | {"schema", "diffusion", "pictures"},
    "run": MODELS | {"diffusion", "hardware"},
    "training": MODELS | {"diffusion", "distributed", "pictures", "run"},
    "metrics": MODELS | {"schema", "diffusion", "training", "run", "pictures"},
    "augmentation": MODELS | {"schema", "diffusion", "run", "metrics", "pictures"},
    "comparison": MODELS | {"schema", "training", "run", "metrics"},
    "reproduction": MODELS | {"training"},
    "export": BASE | {"models", "quantum"},
    # Only the command line may import the pages, which show everything.
    "report": MODELS | {"training", "run", "metrics", "comparison", "pictures"},
}
#: The entrances may see everything.
ENTRANCES = {"__init__", "__main__", "cli", "commands"}


def part_of(names: Sequence[str]) -> str:
    """The part that a module belongs to, by the names of its path below `qhdm`."""
    inner = ".".join(names[:2])
    return inner if inner in ALLOWED else names[0]


def imported_parts(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("qhdm."):
                part, *rest = name.split(".")[1:]
                known = (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").exists()
                parts.add(part_of([part, *rest]) if known else "__init__")
    return parts


def test_no_import_goes_backwards() -> None:
    for path in PACKAGE.rglob("*.py"):
        part = part_of(path.relative_to(PACKAGE).with_suffix("").parts)
        if part in ENTRANCES:
            continue
        backwards = imported_parts(path) - ALLOWED[part] - {part}
        if not part.startswith("quantum."):  # others may import all rooms of quantum
            backwards = {p for p in backwards if p.split(".")[0] not in ALLOWED[part] | {part}}
        assert not backwards, f"{path.relative_to(PACKAGE)} imports {sorted(backwards)}"


def test_training_and_sampling_import_only_what_they_need(tiny_run: Path, tmp_path: Path) -> None:
    """No package whose import takes noticeably long and that the command does not use."""
    unneeded = {
        "jinja2", "matplotlib", "openqasm3", "qiskit_aer", "qiskit_ibm_runtime", "ray", "requests",
        "scipy.linalg", "scipy.optimize", "scipy.stats", "sklearn", "sympy", "tensorboard",
        "torch._dynamo", "torch.distributed.tensor", "torchmetrics", "transformers",
    }  # fmt: skip
    sample = ["sample", str(tiny_run), "--num", "1", "--steps", "1", "--out", str(tmp_path / "out")]
    code = (
        "import sys, qhdm.training.loop, qhdm.metrics.evaluation\n"
        f"from qhdm.cli import main; assert main({sample}) == 0\n"
        "print(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert {"torch", "qiskit", "qhdm.training.loop", "qhdm.metrics.evaluation"} <= loaded
    assert not unneeded & loaded


def test_quantum_knows_nothing_of_images() -> None:
    for path in (PACKAGE / "quantum").rglob("*.py"):
        assert not {"data", "diffusion", "models"} & imported_parts(path)


def test_one_place_imports_the_client_of_the_service() -> None:
    """The fake devices' data, which noise models need, are all that others may read of it."""
    owner, calibration = (
        PACKAGE / "hardware" / "runtime",
        PACKAGE / "quantum/devices/calibration.py",
    )
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if owner not in path.parents and path != calibration:
            assert not re.search(r"(import|from) qiskit_ibm_runtime", text), path
    text = calibration.read_text(encoding="utf-8")
    assert set(re.findall(r"from (qiskit_ibm_runtime.*)", text)) == {
        "qiskit_ibm_runtime import fake_provider",
        "qiskit_ibm_runtime.fake_provider.fake_backend import FakeBackendV2",
    }
