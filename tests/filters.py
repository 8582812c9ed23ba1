"""Filters from circuit files, and their values by Qiskit itself."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from qiskit import qpy
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import Statevector
from tolerances import FLOAT64

from qhdm.quantum import Filter, expectation, load_filter

HEADER = 'OPENQASM 3.0;\ninclude "stdgates.inc";\n'


def draw(filter: Filter, batch: int = 1, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random inputs (batch, n) and weights (P,), float64."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, len(filter.inputs), generator=random, dtype=torch.float64)
    w = torch.rand(len(filter.weights), generator=random, dtype=torch.float64) * 2 * math.pi
    return x, w


def read(folder: Path, body: str, *, header: str = HEADER) -> Filter:
    """The filter of OpenQASM 3 text."""
    path = folder / "mine.qasm"
    path.write_text(header + body)
    return load_filter(path)


def read_qpy(folder: Path, *circuits: QuantumCircuit, version: int | None = None) -> Filter:
    """The filter of circuits as QPY."""
    path = folder / "mine.qpy"
    with path.open("wb") as file:
        qpy.dump(circuits, file, **({} if version is None else {"version": version}))
    return load_filter(path)


def qiskit_values(filter: Filter, x: torch.Tensor, w: torch.Tensor) -> list[float]:
    """Values at one input (n,), by Qiskit's Statevector."""
    state = Statevector(filter.assign([*x.tolist(), *w.tolist()]))
    return [float(np.real(state.expectation_value(o))) for o in filter.observables]


def assert_same(one: Filter, other: Filter) -> None:
    """Equal values for equal inputs and weights, by number."""
    x, w = draw(one)
    values = expectation(other, x, w)
    torch.testing.assert_close(expectation(one, x, w), values, atol=FLOAT64, rtol=0)
