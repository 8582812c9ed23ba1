"""ISA circuits: transpiled to the gates and qubits of a device."""

from __future__ import annotations

from dataclasses import dataclass

from qiskit.circuit import CircuitInstruction, QuantumCircuit
from qiskit.providers import BackendV2
from qiskit.transpiler import TranspilerError, generate_preset_pass_manager

from qhdm.errors import CircuitError
from qhdm.quantum.devices.calibration import left_out, working_part


@dataclass(frozen=True, eq=False)
class IsaCircuit:
    """An ISA circuit (instruction set architecture) of a backend.

    Attributes:
        backend: its name.
        circuit: on all qubits of the device, in its gates.
        physical_qubits: for each qubit of the original circuit, the physical one that holds it at
            the end: <Z_i> is read there.
    """

    backend: str
    circuit: QuantumCircuit
    physical_qubits: tuple[int, ...]

    @property
    def two_qubit_gates(self) -> int:
        """Gates on two qubits, which make most of a device's errors."""
        return sum(_on_two(entry) for entry in self.circuit.data)

    @property
    def depth(self) -> int:
        """Layers of gates."""
        return int(self.circuit.depth())

    @property
    def two_qubit_depth(self) -> int:
        """Layers of gates on two qubits."""
        return int(self.circuit.depth(_on_two))


def _on_two(entry: CircuitInstruction) -> bool:
    return len(entry.qubits) == 2 and entry.operation.name != "barrier"


def to_isa(circuit: QuantumCircuit, backend: BackendV2, *, seed: int = 0) -> IsaCircuit:
    """Transpile for `backend` (preset pass manager, optimisation level 2).

    Free parameters stay free, so that circuits that differ in bound values alone are transpiled
    once. Qubits and couplings that are broken or have no error figures are not used.

    Args:
        circuit: of gates only.
        backend: real or fake.
        seed: of the transpiler: equal seeds give equal circuits.

    Raises:
        CircuitError: what works of the device cannot hold the circuit.
    """
    try:
        manager = generate_preset_pass_manager(
            optimization_level=2, target=working_part(backend.target), seed_transpiler=seed
        )
        isa = manager.run(circuit)
    except TranspilerError as error:
        facts = [f"{backend.target.num_qubits} qubits", left_out(backend.target)]
        raise CircuitError(
            f"backend {backend.name} ({'; '.join(filter(None, facts))}) cannot run a circuit of "
            f"{circuit.num_qubits} qubits: {error.message.split('. ')[0]}; name another"
        ) from None
    layout = isa.layout.final_index_layout() if isa.layout else range(circuit.num_qubits)
    return IsaCircuit(str(backend.name), isa, tuple(layout))
