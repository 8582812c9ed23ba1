"""Gates of files keep their meaning whatever their names, on every path from file to hardware."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openqasm_spec import Call, Definition, Program
from qiskit import qasm2, qpy
from qiskit.circuit import Gate, ParameterVector, QuantumCircuit
from qiskit.circuit.library import (
    PauliEvolutionGate,
    XGate,
    get_standard_gate_name_mapping,
)
from qiskit.quantum_info import SparsePauliOp, Statevector
from qiskit_aer import AerSimulator
from tolerances import FLOAT64

from qhdm.errors import CircuitError
from qhdm.hardware.isa import make_isa
from qhdm.hardware.runtime import find_backend
from qhdm.quantum import Filter, expectation
from qhdm.quantum.analysis.cross_check import verify
from qhdm.quantum.analysis.transpile import to_isa
from qhdm.quantum.files.load import load_filter
from qhdm.quantum.files.save import named_circuit, to_openqasm2, to_openqasm3

ONCE = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
#: What a transpiler or simulator may look up.
NAMES = sorted(
    {
        *get_standard_gate_name_mapping(),
        *AerSimulator().configuration().basis_gates,
        *AerSimulator().target.operation_names,
        *("snapshot", "barrier", "box", "clifford", "permutation", "qft", "fredkin", "toffoli"),
        *("c3x", "c4x", "rcccx", "mcx_vchain", "u0", "noise", "kraus", "ctrl_u", "circuit"),
    }
)
#: Words of the language, which no gate can be called.
KEYWORDS = {"measure", "reset", "delay", "barrier", "box", "U"}
PLAIN = "OPENQASM 3.0;\n"
VALUES = {"x0": 0.7, "x1": -0.4, "w0": 1.1}
DEVICE = find_backend("fake_manila")

numbers = st.floats(-3, 3).map(lambda v: round(v, 3))


@st.composite
def definitions(draw: st.DrawFn, name: str) -> Definition:
    """A gate with any number of angles and qubits; not the identity, and not symmetric."""
    angles, qubits = draw(st.integers(0, 4)), draw(st.integers(1, 4))
    parameters = [(draw(numbers), f"a{i}") for i in range(angles)]
    body = []
    for angle in (*parameters, 0.9, draw(numbers)):
        q = draw(st.integers(0, qubits - 1))
        body.append(Call("U", (angle, draw(numbers), draw(numbers)), (q,)))
        if qubits > 1:
            pair = draw(st.permutations(range(qubits)))[:2]
            body.append(Call("U", (draw(numbers), 0.3, angle), tuple(pair), ("ctrl",)))
    return Definition(name, angles, qubits, tuple(body))


def program_of(gate: Definition) -> Program:
    """Two inputs, a weight, the gate with that weight among its angles, and more."""
    qubits = max(2, gate.qubits)
    start = (Call("U", ((1.0, "x0"), 0.0, 0.0), (0,)), Call("U", ((1.0, "x1"), 0.0, 0.0), (1,)))
    angles = ((0.5, "w0"), 0.8, (2.0, "w0"), -0.4)[: gate.angles]
    own = Call(gate.name, angles, tuple(range(gate.qubits))[::-1])
    end = (Call("U", ((1.0, "w0"), 0.2, 0.5), (0,)), Call("U", (0.6, 0.0, 0.0), (0, 1), ("ctrl",)))
    return Program((gate,), qubits, (*start, own, *end), ("x0", "x1", "w0"), PLAIN)


def load(tmp_path: Path, text: str) -> Filter:
    path = tmp_path / "own.qasm"
    path.write_text(text)
    return load_filter(path)


def on_every_path(filter: Filter) -> dict[str, np.ndarray]:
    """<Z_0> and <Z_1> at VALUES from everything that makes something of a filter."""
    x = torch.tensor([[VALUES["x0"], VALUES["x1"]]], dtype=torch.float64)
    w = torch.tensor([VALUES["w0"]], dtype=torch.float64)
    values = {e: expectation(filter, x, w, engine=e)[0].numpy() for e in ("exact", "aer")}
    bound = filter.assign(VALUES.values())
    values["openqasm2"] = _read_out(qasm2.loads(to_openqasm2(bound)), (0, 1))
    isa = to_isa(bound, DEVICE)
    values["inspect --backend"] = _read_out(isa.circuit, isa.physical_qubits[:2])
    free = named_circuit(filter).assign_parameters({"w000": VALUES["w0"]})
    inputs = sorted(free.parameters, key=lambda p: p.name)
    job = make_isa(free, inputs, DEVICE.target, packing=1, most=1, seed=0)
    circuit = job.circuit.remove_final_measurements(inplace=False)
    rows = job.values(x.numpy())[0]
    values["submit"] = _read_out(circuit.assign_parameters(rows), job.regions[0][:2])
    return values


def _read_out(circuit: QuantumCircuit, places: tuple[int, ...]) -> np.ndarray:
    """<Z> of qubits, each gate by the matrix that its *type* has."""
    state = Statevector(circuit)
    z = [state.probabilities([q]) for q in places]
    return np.array([p[0] - p[1] for p in z])


def assert_everywhere(filter: Filter, right: np.ndarray) -> None:
    for path, values in on_every_path(filter).items():
        np.testing.assert_allclose(values, right[:2], atol=FLOAT64, err_msg=path)


@ONCE
@given(st.sampled_from([n for n in NAMES if n not in KEYWORDS]).flatmap(definitions))
def test_a_gate_of_any_name_is_what_its_file_says(tmp_path: Path, gate: Definition) -> None:
    program = program_of(gate)
    filter = load(tmp_path, program.text())
    assert_everywhere(filter, program.values(VALUES))
    # And when it comes back: the export is in gates that are what they are called.
    again = load(tmp_path, to_openqasm3(named_circuit(filter)))
    x = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    w = torch.tensor([1.1], dtype=torch.float64)
    torch.testing.assert_close(
        expectation(again, x, w), expectation(filter, x, w), atol=FLOAT64, rtol=0
    )


def test_after_reading_all_gates_are_what_they_are_called(tmp_path: Path) -> None:
    """The sweep over all names; values of a sample of them are compared above."""
    library = {name: type(gate) for name, gate in get_standard_gate_name_mapping().items()}
    for i, name in enumerate(n for n in NAMES if n not in KEYWORDS):
        angles, qubits = i % 5, 1 + i // 5 % 4
        parameters = [(1.0, f"a{k}") for k in range(angles)]
        body = tuple(Call("U", (angle, 0.1, 0.2), (0,)) for angle in (*parameters, 0.9))
        program = program_of(Definition(name, angles, qubits, body))
        for entry in load(tmp_path, program.text()).circuit.data:
            assert isinstance(entry.operation, library[entry.operation.name])


@ONCE  # Qiskit itself cannot build a gate called store
@given(st.sampled_from([n for n in NAMES if n != "store"]), st.integers(0, 3), st.integers(1, 3))
def test_the_same_in_qpy_where_gates_hold_gates(
    tmp_path: Path, name: str, angles: int, qubits: int
) -> None:
    x, w = ParameterVector("x", 2), ParameterVector("w", 1)
    inner = QuantumCircuit(qubits)
    for i, angle in enumerate([0.5 * w[0], 0.8, 2 * w[0]][:angles]):
        inner.ry(angle, i % qubits)
    for i in range(qubits):
        inner.u(0.3 + i, 0.1, 0.9, i)
        inner.crz(0.7, i, (i + 1) % qubits) if qubits > 1 else inner.sx(i)
    own = Gate(name, qubits, [0.5 * w[0], 0.8, 2 * w[0]][:angles])
    own.definition = inner
    outer = QuantumCircuit(qubits, name=name)  # the same name, and another gate
    outer.append(own, range(qubits))
    outer.h(0)
    circuit, written = QuantumCircuit(3), QuantumCircuit(3)
    for each in (circuit, written):
        each.ry(x[0], 0)
        each.ry(x[1] + w[0], 1)
    circuit.append(outer.to_gate(), range(qubits))
    circuit.append(XGate(label=name), [0])  # a label is a name to Aer's noise
    written.compose(inner, range(qubits), inplace=True)
    written.h(0)
    written.x(0)
    path = tmp_path / "own.qpy"
    with path.open("wb") as file:
        qpy.dump(circuit, file)
    right = _read_out(written.assign_parameters({x: [0.7, -0.4], w: [1.1]}), (0, 1))
    filter = load_filter(path)
    assert_everywhere(filter, right)
    assert all(entry.operation.label is None for entry in filter.circuit.data)


def test_filters_made_in_python_are_written_out_too() -> None:
    x = ParameterVector("x", 1)
    own = Gate("rxx", 2, [0.8])
    own.definition = QuantumCircuit(2)
    own.definition.crx(0.8, 0, 1)
    circuit = QuantumCircuit(2)
    circuit.h([0, 1])
    circuit.ry(x[0], 1)
    circuit.append(own, [0, 1])
    z = SparsePauliOp.from_sparse_list([("Z", [1], 1.0)], num_qubits=2)
    filter = Filter("mine", circuit, tuple(x), (), (z,))
    assert [entry.operation.name for entry in filter.circuit.data][-1] == "crx"
    assert max(d.largest for d in verify(filter, ["exact", "aer", "statevector"])) < FLOAT64
    # What needs no writing out stays the very object.
    assert Filter("again", filter.circuit, tuple(x), (), (z,)).circuit is filter.circuit


def test_a_gate_that_its_definition_only_approximates_is_refused() -> None:
    x = ParameterVector("x", 1)
    commuting = SparsePauliOp(["XX", "ZZ"])
    circuit = QuantumCircuit(2)
    circuit.ry(x[0], 0)
    circuit.append(PauliEvolutionGate(commuting, time=x[0]), [0, 1])
    z = SparsePauliOp("IZ")
    right = Statevector(circuit.assign_parameters([0.3])).expectation_value(z).real
    filter = Filter("evolved", circuit, tuple(x), (), (z,))
    assert float(expectation(filter, torch.tensor([[0.3]]), torch.zeros(0))) == pytest.approx(right)
    circuit.append(PauliEvolutionGate(SparsePauliOp(["XX", "ZI"]), time=x[0]), [0, 1])
    with pytest.raises(CircuitError, match="decompose"):
        Filter("evolved", circuit, tuple(x), (), (z,))


modifiers = st.sampled_from(
    ["ctrl", "negctrl", "inv", "pow(2)", "pow(-1)", "pow(3)", "pow(0)", "pow(0.5)", "pow(-0.25)"]
)
#: Gate: angles, qubits.
STANDARD = {
    "U": (3, 1),
    "u2": (2, 1),
    "u3": (3, 1),
    "p": (1, 1),
    "rx": (1, 1),
    "rz": (1, 1),
    "h": (0, 1),
}
STANDARD |= {"sx": (0, 1), "cx": (0, 2), "crx": (1, 2), "swap": (0, 2), "cu": (4, 2)}
OWN = ("v", "cv", "sxdg", "rzz", "x_dg")
#: Without stdgates.inc, its names are free for a file's own gates.
TAKEN = ("x", "cx", "rz", "u3", "h", "ccx", "p", "rx")


@st.composite
def modified_programs(draw: st.DrawFn) -> Program:
    """Definitions within definitions, with modifiers upon modifiers."""
    included = draw(st.booleans())
    known, gates = (dict(STANDARD) if included else {"U": (3, 1)}), []

    def call(qubits: int, free: list[str]) -> Call:
        gate = draw(st.sampled_from([g for g, (_, n) in known.items() if n <= qubits]))
        angles, size = known[gate]
        chosen = draw(st.lists(modifiers, max_size=4))
        spare = qubits - size
        kept: list[str] = []
        fraction = False
        for modifier in chosen:
            spare -= modifier.endswith("ctrl")
            if spare >= 0:
                kept.append(modifier)
                fraction |= "." in modifier
        size += sum(m.endswith("ctrl") for m in kept)
        value = (
            numbers
            if fraction or not free
            else st.one_of(numbers, st.tuples(numbers, st.sampled_from(free)))
        )
        places = draw(st.permutations(range(qubits)))[:size]
        return Call(gate, tuple(draw(value) for _ in range(angles)), tuple(places), tuple(kept))

    for name in draw(st.permutations(OWN if included else TAKEN))[: draw(st.integers(0, 3))]:
        angles, qubits = draw(st.integers(0, 2)), draw(st.integers(1, 3))
        parameters = [f"a{i}" for i in range(angles)]
        body = [call(qubits, parameters) for _ in range(draw(st.integers(1, 3)))]
        body += [Call("U", ((1.0, a), 0.1, (0.5, a)), (0,)) for a in parameters]
        gates.append(Definition(name, angles, qubits, tuple(body)))
        known[name] = (angles, qubits)
    free = ["x0", "w0"]
    start = [Call("U", ((1.0, "x0"), 0.3, (0.2, "w0")), (q,)) for q in range(3)]
    calls = [call(3, free) for _ in range(draw(st.integers(1, 4)))]
    end = [Call("U", (1.3, 0.0, 2.9), (q,)) for q in range(3)]  # phases show
    header = {} if included else {"header": PLAIN}
    return Program(tuple(gates), 3, (*start, *calls, *end), **header)


@settings(ONCE, max_examples=100)
@given(modified_programs())
def test_modifiers_have_the_values_of_the_specification(tmp_path: Path, program: Program) -> None:
    filter = load(tmp_path, program.text())
    x, w = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([1.1], dtype=torch.float64)
    values = expectation(filter, x, w)[0].numpy()
    right = program.values({"x0": 0.7, "w0": 1.1})
    np.testing.assert_allclose(values, right[:1], atol=FLOAT64)
