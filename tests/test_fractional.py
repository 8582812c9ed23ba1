"""Fractional gates: RZZ and RX of any angle, on devices that have them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.circuit.library import RXGate, RZZGate
from qiskit.quantum_info import SparsePauliOp, Statevector
from qiskit.transpiler import InstructionProperties, Target
from qiskit_ibm_runtime import fake_provider
from qiskit_ibm_runtime.fake_provider import FakeFez, FakeFractionalBackend

from qhdm.cli import main
from qhdm.errors import ConfigError
from qhdm.hardware.compilation import Compiler, LaidOut
from qhdm.hardware.isa import IsaCache
from qhdm.hardware.job_dir import JobDirectory
from qhdm.hardware.job_runner import connect, isa_cache, run_job
from qhdm.hardware.runtime import Device, snapshot
from qhdm.hardware.runtime.device import device_of
from qhdm.hardware.spec import JobSpec, load_spec, spec_to_yaml
from qhdm.quantum import build_filter
from qhdm.quantum.compile.component import InputForm
from qhdm.quantum.devices.calibration import working_part
from qhdm.quantum.ir.connectivity import components, on_qubits
from qhdm.quantum.options import Hardware, Twirling
from qhdm.run import Run

DEVICE = "fake_fractional_fez"


class FakeFractionalFez(FakeFez):
    """A Heron device with fractional gates, of which it reports no errors."""

    backend_name = DEVICE

    @property
    def target(self) -> Target:
        target = super().target
        if "rzz" not in target.operation_names:
            angle = Parameter("angle")
            pairs, qubits = (
                {place: InstructionProperties(duration=known.duration) for place, known in alike}
                for alike in (target["cz"].items(), target["sx"].items())
            )
            target.add_instruction(RZZGate(angle), pairs, angle_bounds=[(0, math.pi / 2)])
            target.add_instruction(RXGate(angle), qubits)
        return target


class FakeNoisyFractionalFez(FakeFractionalFez):
    """One whose RZZ err four times as much as its CZ."""

    backend_name = "fake_noisy_fractional_fez"

    @property
    def target(self) -> Target:
        target = super().target
        for pair, known in target["cz"].items():
            worse = InstructionProperties(known.duration, min(1.0, 4 * known.error))
            target.update_instruction_properties("rzz", pair, worse)
        return target


@pytest.fixture(autouse=True)
def _shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The devices are of qiskit-ibm-runtime's."""
    monkeypatch.setattr(fake_provider, "FakeFractionalFez", FakeFractionalFez, raising=False)
    name = "FakeNoisyFractionalFez"
    monkeypatch.setattr(fake_provider, name, FakeNoisyFractionalFez, raising=False)


def compiled(name: str, fractional: bool | Literal["auto"], circuit: QuantumCircuit) -> LaidOut:
    target = snapshot(name, fractional).target
    (laid_out,) = Compiler(target, seed=0, compilation="exact").lay_out(circuit)
    return laid_out


def component(seed: int = 0) -> QuantumCircuit:
    fqconv = build_filter("fqconv", layers=3)
    weights = np.random.default_rng(seed).uniform(-np.pi, np.pi, len(fqconv.weights))
    circuit = fqconv.circuit.assign_parameters(dict(zip(fqconv.weights, weights, strict=True)))
    return on_qubits(circuit, components(circuit)[0])


def values(laid_out: LaidOut, form: InputForm) -> np.ndarray:
    """<Z> at the grid of a form, by Statevector."""
    circuit = laid_out.circuit.circuit
    columns = [form.inputs.index(p) for p in circuit.parameters]
    strings = [
        SparsePauliOp.from_sparse_list([("Z", [end], 1)], num_qubits=circuit.num_qubits)
        for end in laid_out.circuit.ends
    ]
    states = [Statevector(circuit.assign_parameters(list(row[columns]))) for row in form.grid]
    return np.array([[state.expectation_value(z).real for z in strings] for state in states])


def angles(circuit: QuantumCircuit) -> list[float]:
    return [float(e.operation.params[0]) for e in circuit.data if e.operation.name == "rzz"]


@pytest.mark.parametrize("compilation", ["off", "exact"])
def test_circuits_keep_their_values_and_the_range_of_angles(compilation: str) -> None:
    circuit = component()
    form = InputForm.of(circuit)
    assert form is not None
    target = snapshot(DEVICE, fractional=True).target
    (laid_out,) = Compiler(target, seed=0, compilation=compilation).lay_out(circuit)  # type: ignore[arg-type]
    gates = laid_out.circuit.circuit.count_ops()
    assert not {"cz", "x"} & gates.keys() or compilation == "off"
    assert len(angles(laid_out.circuit.circuit)) == laid_out.figures.gates == gates["rzz"]
    assert all(0 <= angle <= math.pi / 2 for angle in angles(laid_out.circuit.circuit))
    np.testing.assert_allclose(values(laid_out, form), form.values(), atol=1e-8)


def test_auto_takes_them_where_the_expected_error_falls() -> None:
    circuit = component()
    plain, auto = compiled(DEVICE, False, circuit), compiled(DEVICE, "auto", circuit)
    assert plain.before == auto.before
    assert angles(auto.circuit.circuit)
    assert auto.figures.gates < plain.figures.gates
    assert auto.figures.error < 0.85 * plain.figures.error  # type: ignore[operator]
    auto = compiled(FakeNoisyFractionalFez.backend_name, "auto", circuit)
    assert not angles(auto.circuit.circuit)
    assert auto.figures == plain.figures


def test_the_fake_device_of_the_client_runs_them() -> None:
    circuit = component()
    form = InputForm.of(circuit)
    assert form is not None
    laid_out = compiled("fake_fractional", True, circuit)
    assert angles(laid_out.circuit.circuit)
    assert laid_out.figures.gates < laid_out.before.gates
    np.testing.assert_allclose(values(laid_out, form), form.values(), atol=1e-8)


def test_whole_filters_take_them_too() -> None:
    """Of components that are not compiled, the probability that nothing fails decides."""
    hqconv = build_filter("hqconv", layers=1)
    weights = np.random.default_rng(0).uniform(0, 2 * np.pi, len(hqconv.weights))
    circuit = hqconv.circuit.assign_parameters(dict(zip(hqconv.weights, weights, strict=True)))
    plain, auto = (
        Compiler(snapshot(DEVICE, fractional).target, seed=0).lay_out(circuit)[0]
        for fractional in (False, "auto")  # type: ignore[union-attr]
    )
    assert auto.figures.error is None
    assert auto.cost < plain.cost
    assert auto.figures.gates < plain.figures.gates


def test_errors_that_a_device_does_not_report_are_those_of_gates_alike() -> None:
    device = snapshot(DEVICE, "auto")
    assert "rzz has no error figures: those of cz are assumed" in device.source
    working = working_part(device.target)
    for name, alike in (("rzz", "cz"), ("rx", "sx")):
        errors = {place: known.error for place, known in working[name].items()}
        assert errors == {place: known.error for place, known in working[alike].items()}
    reported = device_of("five", FakeFractionalBackend(), "here", "auto")
    assert reported.source == "here"
    assert len(working_part(reported.target)["rzz"]) == 8
    without = snapshot(DEVICE).target
    assert not {"rx", "rzz"} & set(without.operation_names)
    assert uses(without) == uses(snapshot("fake_fez").target)


def uses(target: Target) -> dict[str, int]:
    return {name: len(places) for name, places in _places(working_part(target)).items()}


def _places(target: Target) -> dict[str, dict[object, object]]:
    return {name: dict(target[name]) for name in target.operation_names}


def test_what_cannot_be_is_refused(tmp_path: Path, tiny_run: Path) -> None:
    with pytest.raises(ConfigError, match="fractional_gates"):
        snapshot("fake_fez", fractional=True)
    with pytest.raises(ConfigError, match="fractional_gates"):
        snapshot("aer", fractional=True)
    path = tmp_path / "job.yaml"
    text = f"run: {tiny_run}\nbackend: {DEVICE}\n"
    path.write_text(text + "fractional_gates: true\ntwirling: {gates: true}\n")
    with pytest.raises(ConfigError, match="fractional_gates"):
        load_spec(path)
    path.write_text(text + "fractional_gates: auto\ntwirling: {gates: true}\n")
    assert load_spec(path).fractional is False
    path.write_text(text.replace(DEVICE, "fake_fez") + "fractional_gates: true\n")
    assert main(["submit", str(path), "--dry-run"]) == ConfigError.exit_code


def test_jobs_of_versions_without_the_key_take_none(tmp_path: Path) -> None:
    text = spec_to_yaml(JobSpec(run="x", backend=DEVICE))
    assert "fractional_gates: auto" in text
    older = "".join(line for line in text.splitlines(True) if not line.startswith("fractional"))
    (tmp_path / "job.yaml").write_text(older)
    assert JobDirectory(tmp_path).spec().fractional_gates is False


def test_circuits_of_each_choice_have_files_of_their_own(tmp_path: Path) -> None:
    circuit = component()
    inputs = list(circuit.parameters)
    for number, fractional in enumerate((False, "auto", True), start=1):
        target = snapshot(DEVICE, fractional).target  # type: ignore[arg-type]
        cache = IsaCache(tmp_path, target, device=DEVICE, packing=1, seed=0)
        isa = cache.get(circuit, inputs, rows=1)
        assert len(list(tmp_path.glob("*.qpy"))) == number
        assert cache.get(circuit, inputs, rows=1).circuit == isa.circuit
        assert not cache.rate(isa).broken


@pytest.mark.parametrize(
    "settings",
    [
        {"mitigation": "trex"},
        {"dynamical_decoupling": "XX"},
    ],
    ids=["twirled readout", "decoupled"],
)
def test_rehearsals(tiny_run: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    spec = JobSpec(
        run=str(tiny_run), backend=DEVICE, classes=("Forest",), steps=2, hardware_steps=1,
        places=("encoder",), shots=256, packing=1, **settings,  # type: ignore[arg-type]
    )  # fmt: skip
    job = Run.open(tiny_run, device="cpu").job(spec)
    directory = JobDirectory(tmp_path / "job")
    directory.make(spec)
    service = connect(spec)
    cache = isa_cache(spec, service.device, directory)
    report = run_job(directory, job, service, cache, progress=False)
    assert all(angles(c.isa.circuit) for stage in job.stages for c in stage.circuits(cache))
    assert report["error"]["rms"] < 0.25
    assert json.loads((directory.path / "report.json").read_text()) == report


def test_the_client_does_not_twirl_them() -> None:
    """Which is why `fractional` says no: if this changes, so may that."""
    from qiskit_ibm_runtime.executor_sampler.prepare import prepare
    from samplomatic.exceptions import BuildError

    from qhdm.hardware.runtime.protocol import options_of

    circuit = QuantumCircuit(2, 2)
    circuit.rzz(0.3, 0, 1)
    circuit.measure([0, 1], [0, 1])
    engine = Hardware(DEVICE, twirling=Twirling(gates=True))
    assert engine.fractional is False
    options = options_of(engine, 128, ("tag",), max_seconds=10)
    with pytest.raises(BuildError):
        prepare([(circuit,)], options, 128)


def test_devices_state_what_is_assumed_in_the_dry_run(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        f"run: {tiny_run}\nbackend: {DEVICE}\nclasses: [Forest]\nplaces: [encoder]\nsteps: 2\n"
    )
    assert main(["submit", str(path), "--dry-run"]) == 0
    assert "those of cz are assumed" in capsys.readouterr().out


def test_a_snapshot_is_a_device_without_them_unless_asked() -> None:
    device: Device = snapshot("fake_fractional")
    assert "rzz" not in device.target.operation_names
