"""Circuits on Aer: what binds correctly, one run per batch, shots, noise, calibration files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit.circuit import Parameter, ParameterVector, QuantumCircuit
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.quantum_info import Pauli, SparsePauliOp, Statevector
from qiskit.transpiler import CouplingMap, InstructionProperties, QubitProperties, Target
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel
from tolerances import FLOAT64, SIGMAS

from qhdm.errors import CircuitError, EngineError
from qhdm.quantum import Filter, build_filter, expectation
from qhdm.quantum.aer import run as execution
from qhdm.quantum.aer.bases import bases_of, parities
from qhdm.quantum.aer.engine import AerEngine
from qhdm.quantum.aer.estimator import AerEstimator
from qhdm.quantum.aer.rebase import BINDABLE, make_bindable
from qhdm.quantum.connector import FilterConnector, FilterQNN
from qhdm.quantum.devices.calibration import Calibration, find_calibration, save_calibration
from qhdm.quantum.devices.noise import _Described, place
from qhdm.quantum.engines import make_engine
from qhdm.quantum.options import Aer
from qhdm.seeds import Draws, Stream, drawing


def draw(filter: Filter, batch: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, len(filter.inputs), generator=random, dtype=torch.float64)
    w = torch.rand(len(filter.weights), generator=random, dtype=torch.float64) * 2 * math.pi
    return x, w


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
    with pytest.raises(CircuitError, match="not known to bind a parameterised crx"):
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
    with pytest.raises(
        EngineError, match=r"needs 16,384 GiB for 40 connected qubits, this machine"
    ):
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
            basis_x, basis_z = group.basis
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


# Devices: a line of five qubits, described by hand.


def line_device(*, t1: float = 100e-6) -> Calibration:
    qubits = [QubitProperties(t1=t1, t2=80e-6) for _ in range(5)]
    target = Target(num_qubits=5, dt=4e-9, qubit_properties=qubits)
    gates = get_standard_gate_name_mapping()
    for name, error in (("rz", 0.0), ("sx", 4e-4), ("x", 4e-4), ("id", 4e-4)):
        time = 0.0 if name == "rz" else 32e-9
        places = {(q,): InstructionProperties(time, error * (1 + q)) for q in range(5)}
        target.add_instruction(gates[name], places)
    pairs = {
        pair: InstructionProperties(70e-9, 0.004 * (1 + min(pair)))
        for pair in CouplingMap.from_line(5).get_edges()
    }
    target.add_instruction(gates["cz"], pairs)
    reads = {(q,): InstructionProperties(1e-6, 0.02 + 0.01 * q) for q in range(5)}
    target.add_instruction(gates["measure"], reads)
    return Calibration("line", target)


@pytest.fixture(scope="module")
def line_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("devices") / "line.json"
    save_calibration(line_device(), path)
    return path


def test_device_noise_is_that_of_the_whole_device(line_file: Path) -> None:
    """The circuit as it is laid out, under Aer's noise model of all five qubits, by counts."""
    filter = build_filter("basic", qubits=4, layers=1)
    x, w = draw(filter, 2)
    engine = AerEngine(Aer(noise=str(line_file)))
    values = expectation(filter, x, w, engine=engine)
    assert (values - expectation(filter, x, w)).abs().max() > 0.05

    device, shots = line_device(), 20_000
    placed, _ = place(filter.circuit, device)
    gates = {entry.operation.name for entry in placed.circuit.data}
    assert gates <= {"rz", "sx", "x", "cz"}
    whole = QuantumCircuit(5, 4)
    whole.compose(placed.circuit, placed.physical, inplace=True)
    couplings = set(device.target["cz"])
    for entry in whole.data:
        pair = tuple(whole.find_bit(q).index for q in entry.qubits)
        assert len(pair) == 1 or pair in couplings
    whole.measure([placed.physical[q] for q in placed.ends], range(4))
    noise = NoiseModel.from_backend(_Described(device.target))
    simulator = AerSimulator(noise_model=noise, method="density_matrix")
    rows = []
    for sample in x:
        bound = dict(zip(filter.parameters, [*sample.tolist(), *w.tolist()], strict=True))
        circuit = whole.assign_parameters(bound)
        counts = simulator.run(circuit, shots=shots, seed_simulator=3).result().data().get("counts")
        rows.append(parities(counts, [1, 2, 4, 8]))
    reference = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(values, reference, atol=SIGMAS / math.sqrt(shots), rtol=0)


def test_shift_gradients_under_noise_are_those_of_the_noisy_values(line_file: Path) -> None:
    filter = build_filter("hqconv", qubits=4, layers=1)
    x, w = draw(filter, 1)
    engine = AerEngine(Aer(noise=str(line_file), gradient="shift"))

    def value(w: torch.Tensor) -> torch.Tensor:
        return expectation(filter, x, w, engine=engine)[0, 2]

    (gradient,) = torch.autograd.grad(value(w.requires_grad_()), w)
    h = 1e-3
    for i, step in enumerate(h * torch.eye(len(w), dtype=torch.float64)):
        slope = (value(w.detach() + step) - value(w.detach() - step)) / (2 * h)
        assert abs(slope - gradient[i]) < h**2
    (ideal,) = torch.autograd.grad(expectation(filter, x, w)[0, 2], w)
    assert (ideal - gradient).abs().max() > 0.01


def test_trajectories_and_density_matrices_agree(line_file: Path) -> None:
    filter = build_filter("basic", qubits=4, layers=1)
    x, w = draw(filter, 2)
    noise = str(line_file)
    exact = expectation(filter, x, w, engine=AerEngine(Aer(noise=noise)))
    for method, shots in (("density_matrix", 4000), ("statevector", 500)):
        engine = AerEngine(Aer(noise=noise, shots=shots, method=method))
        (found,) = engine.prepare(filter).executions[0]
        outcomes = method == "statevector"
        assert (found.reading is execution.Reading.OUTCOMES) == outcomes
        sampled = expectation(filter, x, w, engine=engine)
        torch.testing.assert_close(sampled, exact, atol=SIGMAS / math.sqrt(shots), rtol=0)


def test_readout_errors_alone_are_a_shrunken_value() -> None:
    """No gates: |0> is read wrongly with the probability of the qubit that is used."""
    circuit = QuantumCircuit(1)
    placed, _ = place(circuit, line_device())
    (physical,) = placed.physical
    expected = 1 - 2 * (0.02 + 0.01 * physical)
    device = line_device()
    estimator = AerEstimator()
    estimator.executor.device = device
    value = estimator.run([(circuit, "Z")]).result()[0].data.evs
    assert abs(float(value) - expected) < 1e-9


def test_components_need_less_of_a_device_than_the_whole(line_file: Path) -> None:
    """Twelve qubits on a device of five: fqconv is four circuits of three, hqconv is too large."""
    fits = build_filter("fqconv", qubits=12, layers=1)
    x, w = draw(fits, 1)
    engine = AerEngine(Aer(noise=str(line_file)))
    assert expectation(fits, x, w, engine=engine).shape == (1, 12)
    with pytest.raises(EngineError, match="line has 5 qubits, too few for a circuit of 12"):
        engine.prepare(build_filter("hqconv", qubits=12, layers=1))


def test_named_devices_and_their_calibration_files(tmp_path: Path) -> None:
    pytest.importorskip("qiskit_ibm_runtime")
    named = find_calibration("fake_manila")
    assert named.target.num_qubits == 5
    file = tmp_path / "manila.json"
    save_calibration(named, file)
    filter = build_filter("basic", qubits=4, layers=1)
    x, w = draw(filter, 2)
    values = [
        expectation(filter, x, w, engine=AerEngine(Aer(noise=noise)))
        for noise in ("fake_manila", str(file))
    ]
    torch.testing.assert_close(*values, atol=FLOAT64, rtol=0)
    with pytest.raises(EngineError, match=r"fake_manilla.*fake_manila"):
        find_calibration("fake_manilla")


def edited(file: Path, place: str, value: object) -> str:
    """The JSON of `file`, where `place` (dots between keys) is another value."""
    document = json.loads(file.read_text())
    *parents, last = [int(k) if k.isdigit() else k for k in place.split(".")]
    at = document
    for key in parents:
        at = at[key]
    at[last] = value
    return json.dumps(document)


#: Of `line_device`: rz on qubit 0 is the first instruction, cz on qubits 0 and 1 the 21st.
@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("format", "other", "format is 'other'"),
        ("dt", 10**400, "not a calibration file"),
        ("dt", 0, r"dt: 0 is not a number above 0"),
        ("qubits", [], "it has no qubits"),
        ("qubits.1", 3, r"qubits\[1\]: 't1' is missing"),
        ("qubits.1.t1", 0, r"qubits\[1\].t1: 0 is not a number above 0"),
        ("qubits.2.t2", -1e-6, r"qubits\[2\].t2: -1e-06 is not a number above 0"),
        ("qubits.2.t2", math.nan, r"qubits\[2\].t2: nan is not a number or null"),
        ("instructions.0", "rz", r"instructions\[0\]: 'name' is missing"),
        ("instructions.0.name", "magic", r"instructions\[0\]: 'magic' is not a gate"),
        ("instructions.0.name", "reset", r"instructions\[0\]: 'reset' is not a gate"),
        ("instructions.0.name", ["rz"], r"instructions\[0\]: \['rz'\] is not a gate"),
        ("instructions.0.qubits", [9], r"instructions\[0\]: rz on qubits \[9\]; it takes 1 "),
        ("instructions.0.qubits", [0, 1], r"instructions\[0\]: rz on qubits \[0, 1\]; it takes 1"),
        ("instructions.0.qubits", 0, r"instructions\[0\]: rz on qubits 0; it takes 1"),
        ("instructions.1.qubits", [0], r"instructions\[1\]: rz on qubits \[0\] for the second"),
        ("instructions.0.error", "small", r"instructions\[0\].error: 'small' is not a number"),
        ("instructions.0.error", 1.5, r"instructions\[0\].error: 1.5 is not a number from 0 to 1"),
        (
            "instructions.0.duration",
            -1,
            r"instructions\[0\].duration: -1 is not a number from 0 up",
        ),
        (
            "instructions.20.qubits",
            [0, 0],
            r"instructions\[20\]: cz on qubits \[0, 0\]; it takes 2",
        ),
        ("instructions.20.qubits", [1], r"instructions\[20\]: cz on qubits \[1\]; it takes 2 diff"),
    ],
)
def test_damaged_entries_of_calibration_files_are_named(
    place: str, value: object, words: str, line_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "device.json"
    file.write_text(edited(line_file, place, value))
    with pytest.raises(EngineError, match=r"noise: .*device.json: .*" + words):
        find_calibration(str(file))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "not a calibration file"),
        ("{", "cannot be read as JSON"),
        (json.dumps({"format": "qhdm-calibration/1"}), "'name' is missing"),
    ],
)
def test_damaged_calibration_files_are_named(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "device.json"
    file.write_text(text)
    with pytest.raises(EngineError, match=words):
        find_calibration(str(file))
    with pytest.raises(EngineError, match="no such calibration file"):
        find_calibration(str(tmp_path / "none.json"))


@pytest.mark.parametrize("kept", [["rz", "sx", "measure"], ["measure"], ["cz", "measure"]])
def test_a_device_without_the_gates_of_a_circuit_is_refused(
    kept: list[str], line_file: Path, tmp_path: Path
) -> None:
    document = json.loads(line_file.read_text())
    gates = [entry for entry in document["instructions"] if entry["name"] in kept]
    file = tmp_path / "poor.json"
    file.write_text(json.dumps({**document, "instructions": gates}))
    filter = build_filter("basic", qubits=4, layers=1)
    with pytest.raises(EngineError, match=r"noise: .*poor.json: line \(gates .*measure.*\) cannot"):
        AerEngine(Aer(noise=str(file))).prepare(filter)


def test_t2_above_twice_t1_counts_as_twice_t1(line_file: Path, tmp_path: Path) -> None:
    filter = build_filter("basic", qubits=4, layers=1)
    x, w = draw(filter, 1)
    values = []
    for factor in (2, 3):
        document = json.loads(line_file.read_text())
        for qubit in document["qubits"]:
            qubit["t2"] = factor * qubit["t1"]
        file = tmp_path / f"t2_{factor}.json"
        file.write_text(json.dumps(document))
        values.append(expectation(filter, x, w, engine=AerEngine(Aer(noise=str(file)))))
    torch.testing.assert_close(*values, atol=FLOAT64, rtol=0)


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
    with pytest.raises(
        EngineError, match="aer device: GPU asked for, but this qiskit-aer has none"
    ):
        make_engine(Aer(device="GPU"))
