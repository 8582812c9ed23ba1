"""QPY files: what is read, with which meaning, and what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from filters import assert_same, draw, qiskit_values, read, read_qpy
from qiskit import qasm3, qpy, transpile
from qiskit.circuit import Gate, Parameter, ParameterVector, QuantumCircuit
from qiskit.circuit.library import (
    QFTGate,
    UnitaryGate,
    get_standard_gate_name_mapping,
    real_amplitudes,
    standard_gates,
)
from tolerances import FLOAT64

from qhdm.errors import CircuitError
from qhdm.quantum import build_filter, expectation, load_filter


def test_outputs_of_a_transpiled_circuit_are_in_the_order_of_its_qubits(tmp_path: Path) -> None:
    x, w = ParameterVector("x", 3), ParameterVector("w", 1)
    circuit = QuantumCircuit(3)
    for i in range(3):
        circuit.ry(x[i], i)
    circuit.ry(w[0], 0)
    circuit.cx(0, 1)
    circuit.crx(w[0], 2, 0)
    circuit.crx(0.4, 1, 2)
    layouts = set()
    for seed in range(4):
        for measured in (False, True):
            given = circuit.copy()
            if measured:
                given.measure_all()
            laid = transpile(
                given,
                basis_gates=["rz", "sx", "x", "cz"],
                coupling_map=[[2, 0], [0, 2], [0, 1], [1, 0], [3, 1], [1, 3]],
                initial_layout=np.random.default_rng(seed).permutation(4)[:3].tolist(),
                seed_transpiler=seed,
            )
            layouts.add(tuple(laid.layout.final_index_layout()))
            assert_same(read_qpy(tmp_path, circuit), read_qpy(tmp_path, laid))
    assert len(layouts) > 1


def test_an_own_gate_called_measure_is_a_gate(tmp_path: Path) -> None:
    x = ParameterVector("x", 1)
    own = Gate("measure", 1, [])
    own.definition = QuantumCircuit(1)
    own.definition.ry(0.4, 0)
    circuit = QuantumCircuit(1)
    circuit.ry(x[0], 0)
    circuit.append(own, [0])
    filter = read_qpy(tmp_path, circuit)
    value = float(expectation(filter, torch.tensor([[0.7]]), torch.zeros(0)))
    assert value == pytest.approx(np.cos(1.1), abs=1e-6)


def test_what_is_left_to_decompose_says_so(tmp_path: Path) -> None:
    x = ParameterVector("x", 2)
    circuit = QuantumCircuit(2)
    circuit.rx(x[0], 0)
    circuit.rx(x[1], 1)
    ansatz = real_amplitudes(2, reps=1, parameter_prefix="w")
    circuit.append(ansatz.to_instruction(), [0, 1])
    with pytest.raises(CircuitError, match=r"decompose\(\)"):
        read_qpy(tmp_path, circuit)
    assert len(read_qpy(tmp_path, circuit.decompose()).weights) == 4


def test_deep_definitions_in_qpy_are_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    circuit = QuantumCircuit(1)
    circuit.rx(Parameter("x0"), 0)
    for _ in range(3):
        outer = QuantumCircuit(1)
        outer.append(circuit.to_gate(), [0])
        circuit = outer
    monkeypatch.setattr("qhdm.quantum.unroll.MAX_DEPTH", 2)
    with pytest.raises(CircuitError, match=r"\b2\b"):
        read_qpy(tmp_path, circuit)


@pytest.mark.parametrize("version", range(13, qpy.common.QPY_VERSION + 1))
def test_qpy_of_all_safe_versions_is_read(version: int, tmp_path: Path) -> None:
    filter = build_filter("basic", qubits=4, layers=1)
    circuit = filter.circuit.copy()
    circuit.append(UnitaryGate(np.diag([1, 1, 1, 1j])), [0, 1])
    circuit.measure_all()
    loaded = read_qpy(tmp_path, circuit, version=version)
    assert len(loaded.weights) == 4
    circuit.append(QFTGate(3), [0, 1, 2])
    with pytest.raises(CircuitError, match="holds a QFTGate"):
        read_qpy(tmp_path, circuit, version=version)


def test_qpy_that_is_no_filter_is_refused(tmp_path: Path) -> None:
    filter = build_filter("basic", qubits=4, layers=1)
    with pytest.raises(CircuitError, match="holds 2 circuits"):
        read_qpy(tmp_path, filter.circuit, filter.circuit)
    with pytest.raises(CircuitError, match="declares 16384 qubits"):
        read_qpy(tmp_path, QuantumCircuit(2**14))
    conditional = QuantumCircuit(1, 1)
    with conditional.if_test((conditional.clbits[0], 1)):
        conditional.x(0)
    with pytest.raises(CircuitError, match="if_else on qubits"):
        read_qpy(tmp_path, conditional)
    path = tmp_path / "mine.qpy"
    read_qpy(tmp_path, filter.circuit)
    content = path.read_bytes()
    for bad, words in (
        (content[: len(content) // 2], "damaged"),
        (content[:12], "damaged"),
        (b"", "not a QPY file"),
        # These versions hold expressions as text that reading evaluates.
        (content[:6] + bytes([10]) + content[7:], "QPY version 10"),
        # From version 16 on, the place of the circuit is a number of 64 bits.
        (content[:6] + bytes([16]) + content[7:20] + b"\xff" * (len(content) - 20), "damaged"),
    ):
        path.write_bytes(bad)
        with pytest.raises(CircuitError, match=words):
            load_filter(path)


def _standard_gates() -> list[Gate]:
    """Every gate of Qiskit's standard library; those of no fixed size on four qubits."""
    gates = [gate for gate in get_standard_gate_name_mapping().values() if isinstance(gate, Gate)]
    for name, kind in vars(standard_gates).items():
        known = {gate.base_class for gate in gates}
        if isinstance(kind, type) and issubclass(kind, Gate) and kind not in known:
            if name.startswith("MCX"):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # of some, in Qiskit 2.1
                    gates.append(kind(3))
            elif name in ("MCPhaseGate", "MCU1Gate"):
                gates.append(kind(Parameter("a"), 3))
            else:
                gates.append(kind())
    return [gate for gate in gates if gate.num_qubits]


def test_qpy_of_gates_that_cannot_be_is_refused(tmp_path: Path) -> None:
    circuit = QuantumCircuit(2)
    circuit.ry(Parameter("x0"), 0)
    circuit.cz(0, 1)
    read_qpy(tmp_path, circuit)
    path = tmp_path / "mine.qpy"
    content = path.read_bytes()
    on_both, on_one = b"q\0\0\0\0q\0\0\0\1", b"q\0\0\0\0q\0\0\0\0"
    assert content.count(on_both) == 1
    path.write_bytes(content.replace(on_both, on_one))
    with pytest.raises(CircuitError, match=r"mine\.qpy: "):
        load_filter(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:qiskit.qpy")
@pytest.mark.parametrize("gate", _standard_gates(), ids=lambda gate: gate.base_class.__name__)
def test_every_standard_gate_is_simulated_and_read(gate: Gate, tmp_path: Path) -> None:
    n = gate.num_qubits
    inputs, weights = ParameterVector("x", n), ParameterVector("w", len(gate.params) + n)
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        circuit.rx(inputs[qubit], qubit)
        circuit.ry(0.3 + qubit, qubit)
    free = gate.copy()
    if gate.params:
        free.params = weights[: len(gate.params)]
    circuit.append(free, range(n))
    for qubit in range(n):
        circuit.rx(weights[len(gate.params) + qubit], qubit)
    by_qpy = read_qpy(tmp_path, circuit)
    x, w = draw(by_qpy)
    values = qiskit_values(by_qpy, x[0], w)
    assert expectation(by_qpy, x, w)[0].tolist() == pytest.approx(values, abs=FLOAT64)
    by_qasm = read(tmp_path, qasm3.dumps(circuit), header="")
    assert expectation(by_qasm, x, w)[0].tolist() == pytest.approx(values, abs=FLOAT64)


def test_a_large_gate_without_parameters_is_taken_apart(tmp_path: Path) -> None:
    """Its matrix would be 4096 x 4096."""
    ladder = QuantumCircuit(12, name="ladder")
    for qubit in range(11):
        ladder.cx(qubit, qubit + 1)
    ladder.cx(11, 0)
    circuit = QuantumCircuit(12)
    for qubit in range(12):
        circuit.rx(Parameter(f"x{qubit}"), qubit)
    circuit.append(ladder.to_gate(), range(12))
    loaded = read_qpy(tmp_path, circuit)
    x, w = draw(loaded)
    values = torch.cumprod(x.cos(), dim=1)  # <Z_i> after the ladder: products of all up to i
    values[0, 0] = x.cos()[0, 1:].prod()  # ... and the last CX takes the first to all others
    torch.testing.assert_close(expectation(loaded, x, w), values, atol=FLOAT64, rtol=0)
