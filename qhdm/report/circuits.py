"""Drawings of circuits."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from qhdm.errors import ExportError
from qhdm.files import atomic_path

if TYPE_CHECKING:
    from qiskit.circuit import QuantumCircuit


def check_plots(option: str) -> None:
    """Raise `ExportError` unless the packages that draw are installed (extra `plots`)."""
    missing = [name for name in ("matplotlib", "pylatexenc") if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"{option}: needs {' and '.join(missing)}; install them with pip install 'qhdm[plots]'"
        )


def draw_png(circuit: QuantumCircuit, path: Path) -> None:
    """Draw `circuit` to a PNG file."""
    import matplotlib.pyplot as plt

    figure = circuit.draw("mpl", fold=30, idle_wires=False, scale=0.7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100, bbox_inches="tight")
    plt.close(figure)


def draw_text(circuit: QuantumCircuit) -> str:
    """`circuit` as text, as wide as the terminal."""
    return str(circuit.draw("text", fold=shutil.get_terminal_size().columns, idle_wires=False))
