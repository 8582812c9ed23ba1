"""A quantum filter: embedding, ansatz layers and observables as one Qiskit circuit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qiskit.circuit import Parameter, ParameterVector, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from qhdm.errors import CircuitError
from qhdm.quantum.ansatz import ANSATZE
from qhdm.quantum.unroll import unroll


@dataclass(frozen=True, eq=False)
class Filter:
    """A parameterised circuit that maps n inputs and P weights to m expectation values.

    Immutable, and compared by identity: copies of a model share their filters.

    Attributes:
        name: for messages and files.
        circuit: free in `inputs` and `weights`. Gates whose type is not in Qiskit's library are
            written out when a filter is made (`qhdm.quantum.unroll`).
        inputs: the n input parameters, radians, in order.
        weights: the P weights, radians, in order. Some may be absent from the circuit (dead).
        observables: m Hermitian operators on the circuit's qubits.

    Example:
        >>> fqconv = qhdm.build_filter("fqconv", layers=1)
        >>> fqconv.circuit.num_qubits, len(fqconv.weights), len(fqconv.observables)
        (12, 24, 12)
    """

    name: str
    circuit: QuantumCircuit
    inputs: Sequence[Parameter]
    weights: Sequence[Parameter]
    observables: tuple[SparsePauliOp, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "circuit", unroll(self.circuit))

    def __deepcopy__(self, memo: dict[int, Any]) -> Filter:
        return self

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The inputs, then the weights."""
        return (*self.inputs, *self.weights)

    @cached_property
    def columns(self) -> list[int]:
        """For each parameter of the circuit, in the circuit's order, its index in `parameters`."""
        index = {parameter: i for i, parameter in enumerate(self.parameters)}
        return [index[parameter] for parameter in self.circuit.parameters]

    @cached_property
    def present_weights(self) -> list[int]:
        """The indices of the weights that the circuit contains."""
        present = set(self.circuit.parameters)
        return [i for i, weight in enumerate(self.weights) if weight in present]

    def assign(self, values: Iterable[float | Parameter]) -> QuantumCircuit:
        """The circuit with a value (radians) or parameter for each of `parameters`."""
        mapping = dict(zip(self.parameters, values, strict=True))
        return self.circuit.assign_parameters(mapping, strict=False)


def build_filter(ansatz: str, *, qubits: int = 12, layers: int = 3) -> Filter:
    """Build a filter of a built-in family: RX(x_i) on qubit i, L layers, <Z_i> of every qubit.

    Args:
        ansatz: `hqconv`, `fqconv`, `basic`, `product` or `hqconv_released`.
        qubits: n; a multiple of 4 for hqconv, of 12 for fqconv, of 2 for basic.
        layers: L >= 1.

    Returns:
        The filter: n inputs, P = L x (weights per layer) weights, n observables.

    Raises:
        CircuitError: the family is unknown or does not exist at this size.

    Example:
        >>> hqconv = build_filter("hqconv", qubits=12, layers=3)
        >>> len(hqconv.inputs), len(hqconv.weights), len(hqconv.observables)
        (12, 84, 12)
    """
    if ansatz not in ANSATZE:
        raise CircuitError(f"ansatz {ansatz!r}: unknown; known are {', '.join(ANSATZE)}")
    family = ANSATZE[ansatz]
    family.check(qubits, layers)
    per_layer = family.weights_per_layer(qubits)
    inputs = ParameterVector("x", qubits)
    weights = ParameterVector("w", layers * per_layer)
    circuit = QuantumCircuit(qubits, name=f"{ansatz}_{qubits}x{layers}")
    for qubit in range(qubits):
        circuit.rx(inputs[qubit], qubit)
    for layer in range(layers):
        family.append_layer(circuit, weights, layer * per_layer)
    return Filter(circuit.name, circuit, tuple(inputs), tuple(weights), z_of_each(qubits))


def z_of_each(qubits: int) -> tuple[SparsePauliOp, ...]:
    """The observables <Z_i> of n qubits."""
    return tuple(
        SparsePauliOp.from_sparse_list([("Z", [i], 1.0)], num_qubits=qubits) for i in range(qubits)
    )
