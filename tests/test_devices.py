"""Devices: calibration files, noise models, and circuits under the noise of a device."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from filters import draw
from qiskit.circuit import QuantumCircuit
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.transpiler import CouplingMap, InstructionProperties, QubitProperties, Target
from qiskit_aer import AerSimulator
from tolerances import FLOAT64, SIGMAS

from qhdm.cli import main
from qhdm.errors import EngineError
from qhdm.quantum import build_filter, expectation
from qhdm.quantum.aer import run as execution
from qhdm.quantum.aer.bases import parities
from qhdm.quantum.aer.engine import AerEngine
from qhdm.quantum.aer.estimator import AerEstimator
from qhdm.quantum.devices.calibration import Calibration, find_calibration, save_calibration
from qhdm.quantum.devices.noise import noise_of, place
from qhdm.quantum.options import Aer


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
    simulator = AerSimulator(noise_model=noise_of(device.target, range(5)), method="density_matrix")
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
    estimator.runner.device = device
    value = estimator.run([(circuit, "Z")]).result()[0].data.evs
    assert abs(float(value) - expected) < 1e-9


def test_components_need_less_of_a_device_than_the_whole(line_file: Path) -> None:
    """Twelve qubits on a device of five: fqconv is four circuits of three, hqconv is too large."""
    fits = build_filter("fqconv", qubits=12, layers=1)
    x, w = draw(fits, 1)
    engine = AerEngine(Aer(noise=str(line_file)))
    assert expectation(fits, x, w, engine=engine).shape == (1, 12)
    with pytest.raises(EngineError, match=r"line .*5.*12"):
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


def edited(file: Path, keys: str, value: object) -> str:
    """The JSON of `file`, where the value at `keys` (with dots between) is another one."""
    document = json.loads(file.read_text())
    *parents, last = [int(k) if k.isdigit() else k for k in keys.split(".")]
    at = document
    for key in parents:
        at = at[key]
    at[last] = value
    return json.dumps(document)


#: Of `line_device`: rz on qubit 0 is the first instruction, cz on qubits 0 and 1 the 21st.
@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ("format", "other"),
        ("dt", 10**400),
        ("dt", 0),
        ("qubits", []),
        ("qubits.1", 3),
        ("qubits.1.t1", 0),
        ("qubits.2.t2", -1e-6),
        ("qubits.2.t2", math.nan),
        ("instructions", []),  # nothing is measured
        ("instructions.0", "rz"),
        ("instructions.0.name", "magic"),
        ("instructions.0.name", "reset"),
        ("instructions.0.name", ["rz"]),
        ("instructions.0.qubits", [9]),
        ("instructions.0.qubits", [0, 1]),
        ("instructions.0.qubits", 0),
        ("instructions.1.qubits", [0]),  # for the second time
        ("instructions.0.error", "small"),
        ("instructions.0.error", 1.5),
        ("instructions.0.duration", -1),
        ("instructions.20.qubits", [0, 0]),
        ("instructions.20.qubits", [1]),
    ],
)
def test_damaged_entries_of_calibration_files_are_named(
    keys: str, value: object, line_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "device.json"
    file.write_text(edited(line_file, keys, value))
    place = re.sub(r"\.(\d+)", r"[\1]", keys)
    with pytest.raises(EngineError, match=rf"noise: .*device.json: {re.escape(place)}: "):
        find_calibration(str(file))


@pytest.mark.parametrize("text", ["[]", "{", json.dumps({"format": "qhdm-calibration/1"}), None])
def test_damaged_calibration_files_are_named(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "device.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(EngineError, match=r"noise: .*device\.json: "):
        find_calibration(str(file))


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


def test_noise_command_describes_and_saves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("qiskit_ibm_runtime")
    file = tmp_path / "manila.json"
    assert main(["noise", "fake_manila", "--save", str(file)]) == 0
    named = capsys.readouterr().out
    assert "fake_manila: 5 qubits" in named
    assert main(["noise", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == named.splitlines()[:-1]
    before = file.stat().st_mtime_ns
    assert main(["noise", "fake_manila", "--save", str(file)]) == 1
    assert "exists already; name another file, or give --force" in capsys.readouterr().err
    assert file.stat().st_mtime_ns == before
    assert main(["noise", "fake_manila", "--save", str(file), "--force"]) == 0
    assert file.stat().st_mtime_ns > before
    assert main(["noise", "fake_manila", "--save", str(tmp_path / "x.txt")]) == 1
    assert "is named *.json" in capsys.readouterr().err
