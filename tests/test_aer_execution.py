"""Circuits on Aer: what binds correctly, one run per batch, shots, noise, calibration files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from filters import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit.circuit import Parameter, ParameterVector, QuantumCircuit
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.quantum_info import Pauli, SparsePauliOp, Statevector
from qiskit_aer import AerSimulator
from tolerances import FLOAT64, SIGMAS

from qhdm.errors import CircuitError, EngineError
from qhdm.quantum import Filter, build_filter, expectation
from qhdm.quantum.aer.bases import bases_of, parities
from qhdm.quantum.aer.engine import AerEngine
from qhdm.quantum.aer.estimator import AerEstimator
from qhdm.quantum.aer.rebase import BINDABLE, make_bindable
from qhdm.quantum.connector import FilterConnector, FilterQNN
from qhdm.quantum.engines import make_engine
from qhdm.quantum.options import Aer
from qhdm.seeds import Draws, Stream, drawing


def bound_and_run(circuit: QuantumCircuit, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """<Z> of every qubit by `parameter_binds`, and by Statevector; rows that Aer omits are nan."""
    measured = circuit.copy()
    for qubit in range(circuit.num_qubits):
        measured.save_expectation_value(Pauli("Z"), [qubit], label=str(qubit))
    simulator = AerSimulator(method="statevector", runtime_parameter_bind_enable=True)
    columns = dict(zip(circuit.parameters, rows.T.tolist(), strict=True))
    result = simulator.run(measured, parameter_binds=[columns]).result()
    found = np.full((len(rows), circuit.num_qubits), np.nan)
    for row, one in zip(found, result.results, strict=False):
        row[:] = [getattr(one.data, str(q), math.nan) for q in range(circuit.num_qubits)]
    states = [Statevector(circuit.assign_parameters(row)) for row in rows]
    expected = [
        [state.expectation_value(Pauli("Z"), [q]).real for q in range(circuit.num_qubits)]
        for state in states
    ]
    return found, np.array(expected)


def around(name: str) -> QuantumCircuit:
    """A gate with a free angle between rotations that let all of it be seen."""
    gate = get_standard_gate_name_mapping()[name].base_class(Parameter("angle"))
    circuit = QuantumCircuit(gate.num_qubits)
    for q in range(gate.num_qubits):
        circuit.ry(0.4 + 0.5 * q, q)
        circuit.rz(0.3 + 0.2 * q, q)
    circuit.append(gate, range(gate.num_qubits))
    for q in range(gate.num_qubits):
        circuit.rz(0.2, q)
        circuit.ry(0.9 + 0.3 * q, q)
    return circuit


@pytest.mark.parametrize("name", sorted(BINDABLE))
def test_gates_that_are_sent_are_bound_correctly(name: str) -> None:
    found, expected = bound_and_run(around(name), np.array([[0.3], [1.9], [-2.5]]))
    np.testing.assert_allclose(found, expected, atol=FLOAT64)


@pytest.mark.parametrize("name", ["crx", "cry", "crz", "cp"])
def test_canary_aer_binds_controlled_rotations_wrongly(name: str) -> None:
    """Passes while Aer has the bug (qiskit-aer issues 2323, 2391, 2403).

    When it fails, Aer has been mended: then let `qhdm.quantum.aer.rebase.BASIS` keep these gates
    and add them to `BINDABLE`, which shortens circuits, provided that the oldest Aer that setup.py
    allows is mended too. Delete this test with that.
    """
    found, expected = bound_and_run(around(name), np.array([[0.3], [1.9], [-2.5]]))
    assert not np.allclose(found, expected, atol=1e-3), f"Aer binds {name} correctly by now"


def test_a_gate_that_is_not_known_to_bind_is_refused() -> None:
    circuit = around("crx")
    with pytest.raises(CircuitError, match="crx"):
        make_bindable(circuit, circuit.parameters)


@pytest.mark.parametrize(
    ("ansatz", "qubits", "method"),
    [
        ("hqconv", 4, "auto"),
        ("hqconv", 12, "auto"),
        ("fqconv", 12, "statevector"),
        ("fqconv", 12, "density_matrix"),
        ("basic", 4, "matrix_product_state"),
        ("hqconv_released", 12, "auto"),
    ],
)
def test_values_without_shots_agree_with_the_exact_engine(
    ansatz: str, qubits: int, method: str
) -> None:
    filter = build_filter(ansatz, qubits=qubits, layers=2)
    x, w = draw(filter, 3)
    values = expectation(filter, x, w, engine=make_engine(Aer(method=method)))
    torch.testing.assert_close(values, expectation(filter, x, w), atol=FLOAT64, rtol=0)


def test_wide_circuits_run_as_matrix_product_states() -> None:
    """40 qubits, more than any state vector holds; whose value is a product of cosines."""
    x = ParameterVector("x", 40)
    circuit = QuantumCircuit(40)
    for q in range(40):
        circuit.rx(x[q], q)
    for q in range(39):
        circuit.cz(q, q + 1)
    string = SparsePauliOp.from_sparse_list([("ZZZ", [0, 20, 39], 1.0)], num_qubits=40)
    filter = Filter("wide", circuit, tuple(x), (), (string,))
    angles = torch.linspace(0.1, 3, 40, dtype=torch.float64)[None]
    exact = angles[0, [0, 20, 39]].cos().prod()
    values = expectation(filter, angles, torch.zeros(0).double(), engine="aer")
    torch.testing.assert_close(values[0, 0], exact, atol=1e-8, rtol=0)
    engine = AerEngine(Aer(method="matrix_product_state", shots=200))
    sampled = expectation(filter, angles, torch.zeros(0).double(), engine=engine)
    assert abs(sampled[0, 0] - exact) < SIGMAS / math.sqrt(200)
    with pytest.raises(EngineError, match=r"16,384 GiB .* 40 "):
        expectation(
            filter, angles, torch.zeros(0).double(),
            engine=AerEngine(Aer(method="statevector")),
        )  # fmt: skip


class Runs:
    """Counts the runs of Aer and their parameter sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sets: list[int] = []
        original = AerSimulator.run

        def run(simulator, circuits, parameter_binds=None, **options):
            self.sets.append(len(next(iter(parameter_binds[0].values()))))
            return original(simulator, circuits, parameter_binds=parameter_binds, **options)

        monkeypatch.setattr(AerSimulator, "run", run)


def test_one_run_for_a_whole_batch_and_all_shifts(monkeypatch: pytest.MonkeyPatch) -> None:
    filter = build_filter("fqconv", qubits=12, layers=1)
    bank = FilterConnector(filter, count=2, engine=AerEngine(Aer(gradient="shift")))
    x = torch.randn(2, 5, 12, requires_grad=True)
    runs = Runs(monkeypatch)
    bank(x).sum().backward()
    cost = bank.engine.cost(filter)
    assert (cost.components, cost.forward) == (4, 4)
    # Four equal components, two filters and five samples in one run; all shifts in another.
    assert runs.sets == [4 * 2 * 5, cost.backward * 2 * 5]


def test_the_engine_goes_through_the_network_and_its_estimator() -> None:
    filter = build_filter("hqconv", qubits=4, layers=1)
    bank = FilterConnector(filter, engine="aer")
    assert isinstance(bank.neural_network, FilterQNN)
    assert isinstance(bank.neural_network.estimator, AerEstimator)
    x, w = draw(filter, 3)
    network = FilterQNN(filter, estimator=AerEstimator())
    values = torch.as_tensor(network.forward(x.numpy(), w[filter.present_weights].numpy()))
    torch.testing.assert_close(values, expectation(filter, x, w), atol=FLOAT64, rtol=0)


def test_estimator_broadcasts_as_every_estimator_does() -> None:
    from qiskit.primitives import StatevectorEstimator

    circuit = QuantumCircuit(3)
    a, b = Parameter("a"), Parameter("b")
    circuit.rx(a, 0)
    circuit.crz(b, 0, 1)
    circuit.h(1)
    circuit.cp(a + 2 * b, 0, 1)
    observables = [["ZII", {"XXI": 0.5, "YIZ": -1.0}], ["IYX", "III"]]
    values = np.random.default_rng(0).uniform(-3, 3, (4, 1, 2, 2))
    pub = (circuit, observables, values)
    ours = AerEstimator().run([pub]).result()[0].data
    theirs = StatevectorEstimator().run([pub]).result()[0].data
    assert ours.evs.shape == theirs.evs.shape == (4, 2, 2)
    np.testing.assert_allclose(ours.evs, theirs.evs, atol=FLOAT64)
    fixed = AerEstimator().run([(circuit.assign_parameters([0.1, 0.2]), "ZZI")]).result()[0].data
    assert fixed.evs.shape == ()
    sampled = AerEstimator().run([pub], precision=0.05).result()[0].data
    assert np.abs(sampled.evs - theirs.evs).max() < 1.5 * SIGMAS * 0.05
    assert 0.02 < sampled.stds.max() < 0.1
    with pytest.raises(CircuitError, match="only Pauli strings"):
        AerEstimator().run([(circuit, "0ZZ", values)]).result()


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_settings_measure_every_string_once_and_only_what_commutes(paulis) -> None:
    groups = bases_of(paulis, 4)
    assert sorted(i for g in groups for i in g.members) == list(range(len(paulis)))
    for group in groups:
        for index, mask in zip(group.members, group.masks, strict=True):
            x, z = paulis[index]
            assert mask == x | z
            basis_x, basis_z = group.pauli
            for qubit in (1 << q for q in range(4) if mask >> q & 1):
                assert (x & qubit, z & qubit) == (basis_x & qubit, basis_z & qubit)


def test_parities_of_counts() -> None:
    assert parities({"0x0": 1, "0x1": 3, "0x3": 4}, [1, 2, 3]) == [-0.75, 0.0, 0.25]


# Random circuits of all standard gates, with angles anywhere and any Pauli observable.
GATES = {
    name: gate
    for name, gate in get_standard_gate_name_mapping().items()
    if hasattr(gate, "to_matrix") and gate.num_qubits <= 3 and name != "delay"
}


@st.composite
def random_filters(draw) -> Filter:
    n = draw(st.integers(2, 4))
    p = ParameterVector("p", 4)
    circuit = QuantumCircuit(n)
    for _ in range(draw(st.integers(1, 8))):
        gate = GATES[draw(st.sampled_from(sorted(GATES)))]
        if gate.num_qubits > n or gate.num_qubits == 0:
            continue
        places = draw(st.permutations(range(n)))[: gate.num_qubits]
        angles = [
            draw(st.sampled_from([p[0], 2 * p[1], p[2] - p[3] / 2, 0.7])) for _ in gate.params
        ]
        copied = gate.to_mutable()
        copied.params = angles
        circuit.append(copied, places)
    strings = draw(st.lists(st.text("IXYZ", min_size=n, max_size=n), min_size=1, max_size=3))
    observables = tuple(SparsePauliOp(string) for string in strings)
    return Filter("random", circuit, tuple(p), (), observables)


@given(random_filters(), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_any_circuit_agrees_with_the_exact_engine(filter: Filter, seed: int) -> None:
    x, w = draw(filter, 2, seed=seed)
    values = expectation(filter, x, w, engine="aer")
    torch.testing.assert_close(values, expectation(filter, x, w), atol=FLOAT64, rtol=0)


@pytest.mark.parametrize("method", ["statevector", "matrix_product_state"])
def test_shots_scatter_as_shots_do(method: str) -> None:
    """Mean within SIGMAS standard errors, variance that of (1 - v^2) / shots, outcomes whole."""
    filter = build_filter("basic", qubits=2, layers=1)
    x, w = draw(filter, 1)
    shots, repeats = 64, 400
    engine = AerEngine(Aer(method=method, shots=shots))
    exact = expectation(filter, x, w)[0]
    values = expectation(filter, x.expand(repeats, -1), w, engine=engine)
    counts = (values + 1) / 2 * shots
    torch.testing.assert_close(counts, counts.round(), atol=1e-9, rtol=0)
    variance = (1 - exact**2) / shots
    assert bool(((values.mean(0) - exact).abs() < SIGMAS * (variance / repeats).sqrt()).all())
    # The sample variance of `repeats` values scatters by about sqrt(2 / repeats) of itself.
    assert bool(((values.var(0) / variance - 1).abs() < SIGMAS * math.sqrt(2 / repeats)).all())


def test_observables_of_one_execution_are_jointly_sampled() -> None:
    """A Bell pair: both values come from the same outcomes, and are equal shot by shot."""
    angle = ParameterVector("x", 1)
    circuit = QuantumCircuit(2)
    circuit.ry(angle[0], 0)
    circuit.cx(0, 1)
    strings = (SparsePauliOp("IZ"), SparsePauliOp("ZI"), SparsePauliOp("XX"))
    filter = Filter("bell", circuit, tuple(angle), (), strings)
    engine = AerEngine(Aer(shots=100))
    values = expectation(filter, torch.full((20, 1), math.pi / 2), torch.zeros(0), engine=engine)
    assert torch.equal(values[:, 0], values[:, 1])
    assert len(values[:, 0].unique()) > 3
    assert bool((values[:, 2] == 1).all())
    assert engine.cost(filter).forward == 2


def test_draws_are_repeatable_and_of_each_sample_alone() -> None:
    filter = build_filter("fqconv", qubits=12, layers=1)
    x, w = draw(filter, 8)
    for method in ("statevector", "matrix_product_state"):
        engine = AerEngine(Aer(method=method, shots=50))

        def values(samples: list[int], engine: AerEngine = engine) -> torch.Tensor:
            with drawing(Draws(1, Stream.IMAGE_CALL, [(i,) for i in samples])):
                # Two patches of each sample.
                rows = torch.cat([x[2 * i : 2 * i + 2] for i in samples])
                first = expectation(filter, rows, w, engine=engine)
                return torch.stack([first, expectation(filter, rows, w, engine=engine)])

        together = values([0, 1, 2, 3])
        assert torch.equal(together, values([0, 1, 2, 3]))
        assert not torch.equal(together[0], together[1])  # another call, other draws
        assert torch.equal(together[:, 4:6], values([2]))
        assert torch.equal(together[:, 2:4], values([3, 1])[:, 2:4])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Aer(shots=0), "aer shots: 0 is not between 1 and 1,000,000"),
        (Aer(noise="x.json", method="matrix_product_state"), "aer method: matrix_product"),
        (Aer(noise="x.json", method="statevector"), "aer shots: noise on state vectors"),
        (Aer(threads=-1), "aer threads: -1"),
    ],
)
def test_options_that_cannot_be_are_refused(options: Aer, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        make_engine(options)


def test_gpu_asked_for_and_absent() -> None:
    if "GPU" in AerSimulator().available_devices():
        pytest.skip("this Aer has a GPU")
    with pytest.raises(EngineError, match="GPU"):
        make_engine(Aer(device="GPU"))
