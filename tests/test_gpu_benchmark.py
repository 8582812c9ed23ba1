"""benchmarks/gpu.py in its small mode, which is the same code on the CPU."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


def test_everything_is_measured_and_kept(tmp_path: Path) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    main(
        [
            "--small",
            "--only",
            "steps",
            "training",
            "--train-minutes",
            "0.01",
            "--out",
            str(tmp_path),
        ]
    )
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["steps"]
    for row in results["steps"] + results["training"]:
        assert "not measured" not in row, row
    assert all(row["images/s"] > 0 and row["launches"] > 0 for row in results["steps"])
    assert [row["what"] for row in results["training"]] == ["timing", "run", "samples"]
    for name in ("gpu.png", "samples.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_what_does_not_fit_its_time_is_named(tmp_path: Path) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    main(["--small", "--only", "filters", "--seconds", "0.5", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "gpu.json").read_text())["filters"]
    assert all("not measured" in row and "ms" not in row for row in rows)
