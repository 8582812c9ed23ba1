"""Pictures of a filter's measures over random angles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qhdm.files import atomic_path
from qhdm.quantum.analysis.expressibility import BINS, GradientVariance, Measures, haar_quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOUR, _HAAR = "#2a5d8f", "#c0562f"


def plot_measures(
    path: Path,
    name: str,
    measures: Measures,
    *,
    by_layers: Mapping[int, GradientVariance],
    by_qubits: Mapping[int, GradientVariance],
) -> None:
    """Fidelities against Haar, entanglement, and gradient variance against layers and qubits.

    Args:
        path: the PNG file.
        name: of the filter, for the title.
        measures: of the filter.
        by_layers, by_qubits: gradient variance of its family at other sizes; of the filter alone,
            where it has no family.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    figure.suptitle(f"{name}: {measures.pairs} pairs of random states of {measures.qubits} qubits")
    fidelity, entanglement, layers, qubits = axes
    fidelity.hist(
        haar_quantile(measures.fidelities, measures.qubits),
        np.linspace(0, 1, BINS + 1),
        density=True,
        color=_COLOUR,
    )
    fidelity.axhline(1, color=_HAAR, label="Haar-random states")
    fidelity.set(
        title=f"expressibility: KL {measures.expressibility_equal.value:.3g}",
        xlabel="fidelity, as quantile of Haar (equal-weight bins)",
        ylabel="density",
    )
    fidelity.legend()
    entanglement.hist(measures.entanglement, np.linspace(0, 1, 51), density=True, color=_COLOUR)
    entanglement.set(
        title=f"entangling capability {measures.capability.value:.3g}",
        xlabel="Meyer-Wallach Q",
        ylabel="density",
    )
    _gradients(layers, by_layers, "layers")
    _gradients(qubits, by_qubits, "qubits")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    plt.close(figure)


def _gradients(axes: Axes, found: Mapping[int, GradientVariance], label: str) -> None:
    sizes = sorted(found)
    estimates = [found[size].variance for size in sizes]
    values = np.array([estimate.value for estimate in estimates])
    low = values - [estimate.low for estimate in estimates]
    high = [estimate.high for estimate in estimates] - values
    axes.errorbar(sizes, values, yerr=[low, high], fmt="o-", capsize=3, color=_COLOUR)
    axes.set(
        title=f"gradient variance against {label}",
        xlabel=label,
        ylabel="variance of d<Z>/dw",
        yscale="log",
        xticks=sizes,
    )
