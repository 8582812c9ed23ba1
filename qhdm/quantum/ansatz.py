"""Ansatz families of the quantum filters, as Qiskit circuits.

A builder appends the layers of one family to a circuit. `w` is the whole weight vector, in radians;
layer l reads its own slice. The gate orders follow the published circuits (arXiv 2512.20448 and
2402.16147) gate by gate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qhdm.errors import CircuitError

if TYPE_CHECKING:  # configurations read the names of the families without loading Qiskit
    from qiskit.circuit import ParameterVector, QuantumCircuit


@dataclass(frozen=True)
class Ansatz:
    """One family of trainable circuits.

    Attributes:
        name: in configurations.
        divisor: the number of qubits must be a multiple of it.
        weights_per_layer: number of weights (radians) of a layer on n qubits.
        append_layer: appends one layer, given (circuit, w, index of its first weight).
    """

    name: str
    divisor: int
    weights_per_layer: Callable[[int], int]
    append_layer: Callable[[QuantumCircuit, ParameterVector, int], None]

    def check(self, qubits: int, layers: int) -> None:
        """Raise `CircuitError` unless the family exists at this size."""
        if qubits < self.divisor or qubits % self.divisor:
            raise CircuitError(
                f"ansatz {self.name}: needs a multiple of {self.divisor} qubits, got {qubits}"
            )
        if layers < 1:
            raise CircuitError(f"ansatz {self.name}: needs at least one layer, got {layers}")


def _crz_crx(
    circuit: QuantumCircuit, w: ParameterVector, at: int, control: int, target: int
) -> None:
    circuit.crz(w[at], control, target)
    circuit.crx(w[at + 1], control, target)


def _hqconv_rings(circuit: QuantumCircuit, w: ParameterVector, first: int) -> None:
    """Each block of four qubits is a ring of CRZ + CRX, the last block first."""
    blocks = range(circuit.num_qubits // 4 - 1, -1, -1)
    for j, block in enumerate(blocks):
        wires = range(4 * block, 4 * block + 4)
        for k in range(4):
            _crz_crx(circuit, w, first + 8 * j + 2 * k, wires[(4 - k) % 4], wires[3 - k])


def _hqconv_links(circuit: QuantumCircuit, w: ParameterVector, first: int) -> None:
    """The first qubit of each block controls the first qubit of the next, the last pair first."""
    for j, block in enumerate(range(circuit.num_qubits // 4 - 1, 0, -1)):
        _crz_crx(circuit, w, first + 2 * j, 4 * (block - 1), 4 * block)


def _hqconv_layer(circuit: QuantumCircuit, w: ParameterVector, first: int) -> None:
    _hqconv_rings(circuit, w, first)
    _hqconv_links(circuit, w, first + 2 * circuit.num_qubits)


def _fqconv_layer(circuit: QuantumCircuit, w: ParameterVector, first: int) -> None:
    """Each block of four is controlled, qubit by qubit, by the next block (cyclically)."""
    blocks = circuit.num_qubits // 4
    for j, block in enumerate(range(blocks - 1, -1, -1)):
        pairs = [(4 * ((block + 1) % blocks) + 3 - k, 4 * block + 3 - k) for k in range(4)]
        for k, (control, target) in enumerate(pairs):
            circuit.crz(w[first + 8 * j + k], control, target)
        for k, (control, target) in enumerate(pairs):
            circuit.crx(w[first + 8 * j + 4 + k], control, target)


def _basic_layer(circuit: QuantumCircuit, w: ParameterVector, first: int) -> None:
    n = circuit.num_qubits
    for qubit in range(n):
        circuit.rx(w[first + qubit], qubit)
    for qubit in range(n):
        circuit.cx(qubit, (qubit + 1) % n)


def _product_layer(circuit: QuantumCircuit, w: ParameterVector, first: int) -> None:
    """`basic` without its CNOTs: nothing is entangled, and <Z_i> = cos(x_i + sum of w_i)."""
    for qubit in range(circuit.num_qubits):
        circuit.rx(w[first + qubit], qubit)


def _hqconv_weights(n: int) -> int:
    return 2 * n + 2 * (n // 4 - 1)


#: The built-in families by name. `hqconv_released` is what the published code really runs: an
#: empty loop drops the rings, so that a layer has only its links, which read its first weights.
ANSATZE = {
    ansatz.name: ansatz
    for ansatz in (
        Ansatz("hqconv", 4, _hqconv_weights, _hqconv_layer),
        Ansatz("fqconv", 12, lambda n: 2 * n, _fqconv_layer),
        # A ring of one qubit would be a CNOT of a qubit with itself.
        Ansatz("basic", 2, lambda n: n, _basic_layer),
        Ansatz("product", 1, lambda n: n, _product_layer),
        Ansatz("hqconv_released", 4, _hqconv_weights, _hqconv_links),
    )
}
