"""Drawings of circuits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from qhdm.files import atomic_path

if TYPE_CHECKING:
    from qiskit.circuit import QuantumCircuit


def draw_png(circuit: QuantumCircuit, path: Path) -> None:
    """Draw `circuit` to a PNG file."""
    with atomic_path(path) as temporary:
        draw(circuit, temporary, "png")


def draw(circuit: QuantumCircuit, target: Path | IO[bytes], fmt: Literal["png", "svg"]) -> None:
    """Draw `circuit` to a path or an open file."""
    import matplotlib
    import matplotlib.pyplot as plt

    figure = circuit.draw("mpl", fold=30, idle_wires=False, scale=0.7)
    # Without a date and with fixed identifiers, a circuit always gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "qhdm"}):
        metadata = {"Date": None} if fmt == "svg" else None
        figure.savefig(target, format=fmt, dpi=100, bbox_inches="tight", metadata=metadata)
    plt.close(figure)


def draw_text(circuit: QuantumCircuit) -> str:
    """`circuit` as text, as wide as the terminal."""
    return str(circuit.draw("text", fold=shutil.get_terminal_size().columns, idle_wires=False))
