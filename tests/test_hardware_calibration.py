"""Calibrations that are incomplete, broken, or change: where circuits stand, and on resuming."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from qiskit import qpy
from qiskit.circuit import QuantumCircuit
from qiskit.transpiler import InstructionProperties, QubitProperties, Target
from qiskit_ibm_runtime.fake_provider import FakeHanoiV2
from qiskit_ibm_runtime.quantum_program.params_converters import QUANTUM_PROGRAM_PARAMS_CONVERTERS
from runtime_server import BACKEND, Job, RuntimeServer, environment, refuse_unless_loopback

from qhdm import errors
from qhdm.cli import main
from qhdm.hardware import submission
from qhdm.hardware.folder import JobFolder
from qhdm.hardware.isa import IsaCircuit, make_isa
from qhdm.hardware.packing import rate
from qhdm.hardware.runtime import Request, snapshot
from qhdm.hardware.runtime.request import options_of
from qhdm.hardware.spec import JobSpec
from qhdm.quantum import build_filter
from qhdm.quantum.aer.calibration import Calibration, find_calibration, left_out, working_part
from qhdm.quantum.aer.noise import place
from qhdm.quantum.isa import to_isa

#: What is missing of a device, or broken.
KINDS = (
    "coupling unknown", "coupling broken", "readout unknown", "readout broken", "gate unknown",
    "t1", "t2",
)  # fmt: skip


def changed(target: Target, errors: dict[tuple[str, tuple[int, ...]], float | None]) -> Target:
    """A copy of a target with other errors."""
    other = copy.deepcopy(target)
    for (name, qubits), error in errors.items():
        time = target[name][qubits].duration
        other.update_instruction_properties(name, qubits, InstructionProperties(time, error))
    return other


def without_time(target: Target, times: dict[int, str]) -> Target:
    """A copy of a target whose qubits lack a T1 or T2."""
    other = copy.deepcopy(target)
    qubits = list(target.qubit_properties)
    for qubit, key in times.items():
        known = {"t1": qubits[qubit].t1, "t2": qubits[qubit].t2, key: None}
        qubits[qubit] = QubitProperties(**known)
    other.qubit_properties = qubits
    return other


def uses(circuit: QuantumCircuit) -> set[tuple[str, tuple[int, ...]]]:
    return {
        (entry.operation.name, tuple(circuit.find_bit(q).index for q in entry.qubits))
        for entry in circuit.data
        if entry.operation.name != "barrier"
    }


def bound(name: str) -> tuple[QuantumCircuit, Any]:
    filter = build_filter(name, layers=1)
    w = np.random.default_rng(0).uniform(0, 2 * np.pi, len(filter.weights))
    return filter.circuit.assign_parameters(dict(zip(filter.weights, w, strict=True))), filter


def laid_out(name: str, target: Target, *, packing: int = len(KINDS)) -> IsaCircuit:
    circuit, filter = bound(name)
    return make_isa(circuit, filter.inputs, target, packing=packing, most=packing, seed=0)


@pytest.mark.parametrize("name", ["fqconv", "hqconv"])
def test_circuits_stand_on_nothing_that_is_broken_or_unknown(name: str) -> None:
    """Each copy, where it would stand, loses a figure of another kind."""
    target = snapshot("fake_fez").target
    before = laid_out(name, target)
    stands = uses(before.circuit)
    figures: dict[tuple[str, tuple[int, ...]], float | None] = {}
    times: dict[int, str] = {}
    for region, kind in zip(before.regions, KINDS, strict=True):
        qubit = min(region)
        pair = min(q for n, q in stands if n == "cz" and set(q) <= set(region))
        figures |= {
            "coupling unknown": {("cz", p): None for p in (pair, pair[::-1])},
            "coupling broken": {("cz", p): 1.0 for p in (pair, pair[::-1])},
            "readout unknown": {("measure", (qubit,)): None},
            "readout broken": {("measure", (qubit,)): 1.0},
            "gate unknown": {("sx", (qubit,)): None},
        }.get(kind, {})
        if kind in ("t1", "t2"):
            times[qubit] = kind
    target = without_time(changed(target, figures), times)
    after = laid_out(name, target)
    assert figures.keys() <= stands | {("cz", pair[::-1]) for n, pair in stands if n == "cz"}
    assert not uses(after.circuit) & figures.keys()
    lost = {q for _, qubits in figures if len(qubits) == 1 for q in qubits} | times.keys()
    assert not lost & {q for _, qubits in uses(after.circuit) for q in qubits}
    # By the new figures every copy of the old circuit is broken, and none of the new one.
    rating = rate(before.circuit, before.regions, target)
    assert rating.costs == (math.inf,) * len(KINDS)
    assert rate(after.circuit, after.regions, target).broken == ()
    assert rate(after.circuit, after.regions, target).costs == pytest.approx(after.cost)


def test_the_transpiler_does_not_route_through_what_is_broken() -> None:
    """A chain of four on a line of five whose middle couplings lose their figures has no place."""
    manila = find_calibration("fake_manila").target
    circuit = QuantumCircuit(2)
    circuit.cx(0, 1)
    free = set(map(frozenset, ((0, 1), (1, 2), (2, 3), (3, 4))))
    for pair in ((0, 1), (1, 2), (2, 3), (3, 4)):  # whichever is the best: all but one are lost
        figures = {
            ("cx", qubits): None
            for other in free - {frozenset(pair)}
            for qubits in (tuple(other), tuple(other)[::-1])
        }
        device = Calibration("line", changed(manila, figures))
        assert place(circuit, device).physical == pair
    chain = build_filter("basic", qubits=4, layers=1).circuit
    broken = Calibration("line", changed(manila, {("cx", (1, 2)): None, ("cx", (2, 1)): None}))
    with pytest.raises(errors.EngineError, match="without figures: 2 of 8 cx"):
        place(chain.assign_parameters(np.ones(chain.num_parameters)), broken)

    backend = FakeHanoiV2()
    circuit = bound("hqconv")[0]
    edges = {(n, q) for n, q in uses(to_isa(circuit, backend).circuit) if n == "cx"}
    name, pair = min(edges)
    for qubits in (pair, pair[::-1]):
        backend.target.update_instruction_properties(name, qubits, InstructionProperties(1e-7, 1.0))
    again = uses(to_isa(circuit, backend).circuit)
    assert not again & {(name, pair), (name, pair[::-1])}


def test_devices_without_any_figures_are_ideal() -> None:
    target = snapshot("aer").target
    assert left_out(target) == ""
    assert uses_of_target(working_part(target)) == uses_of_target(target)
    assert laid_out("fqconv", target, packing=1).cost == (0.0,)


def uses_of_target(target: Target) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, qubits) for name in target.operation_names for qubits in target[name]}


def test_a_gate_without_a_time_takes_as_long_as_others() -> None:
    """A missing duration would be QPU seconds that no estimate knows of."""
    target = snapshot("fake_fez").target
    before = laid_out("fqconv", target, packing=1)
    other = copy.deepcopy(target)
    timeless = {(name, qubits) for name, qubits in uses(before.circuit) if name == "measure"}
    for name, qubits in timeless:
        error = target[name][qubits].error
        other.update_instruction_properties(name, qubits, InstructionProperties(None, error))
    after = laid_out("fqconv", other, packing=1)
    assert timeless <= uses(after.circuit)
    assert after.duration >= before.duration


@pytest.mark.parametrize(
    ("words", "code", "shown"),
    [
        (["noise", "fake_torino"], 0, "not used, as broken or without figures: 22 of 300 cz"),
        (["noise", "fake_kingston"], 0, "qubits 96, 112, 113, 131, 146; 24 of 352 cz"),
        (["circuits", "inspect", "fqconv", "--backend", "fake_kyoto"], 1, "144 of 144 ecr"),
        (["circuits", "inspect", "hqconv", "--backend", "fake_manila"], 1, "5 qubits"),
    ],
)
def test_commands_say_what_is_not_used(
    words: list[str], code: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == code
    out, error = capsys.readouterr()
    assert shown in (error if code else out)
    assert error.count("\n") == (code != 0)


# What follows runs the real client over HTTP against tests/runtime_server.

SPEC = {
    "backend": BACKEND, "classes": ["Forest"], "steps": 2, "hardware_steps": 1,
    "places": ["encoder"], "shots": 64, "packing": 1, "limits": {"jobs_per_minute": 100_000},
}  # fmt: skip
JOBS = 2


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RuntimeServer]:
    server = RuntimeServer()
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in environment(server.port).items():
        monkeypatch.setenv(name, value)
    refuse_unless_loopback(os.environ)
    monkeypatch.setattr(submission, "_FIRST_WAIT", 0.02)
    monkeypatch.setattr(submission, "SETTLE_SECONDS", 0.2)
    factory = logging.getLogRecordFactory()
    yield server
    logging.setLogRecordFactory(factory)
    server.shutdown()
    server.server_close()


Submit = Callable[..., JobFolder]


@pytest.fixture
def submit(server: RuntimeServer, tiny_run: Path, tmp_path: Path) -> Submit:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"run": str(tiny_run), **SPEC}))

    def run(*settings: str, code: int = 0) -> JobFolder:
        known = set(JobFolder.all(tiny_run))
        sets = [part for setting in settings for part in ("--set", setting)]
        assert main(["submit", str(path), "--yes", *sets]) == code
        (folder,) = set(JobFolder.all(tiny_run)) - known
        return folder

    return run


def program_of(job: Job) -> Any:
    """What the client sent."""
    converter = QUANTUM_PROGRAM_PARAMS_CONVERTERS[job.params["schema_version"]]
    program, _ = converter.decoder(converter.model.model_validate(job.params))
    return program


def executions_of(job: Job) -> int:
    program = program_of(job)
    return sum(program.shots * math.prod(item.shape) for item in program.items)


def sent_on(job: Job) -> set[tuple[int, ...]]:
    """The couplings that a job's circuits use."""
    found = (uses(item.circuit) for item in program_of(job).items)
    return {qubits for one in found for name, qubits in one if name == "cx"}


def kept_couplings(folder: JobFolder) -> set[tuple[int, ...]]:
    """Those that all circuits use which are kept in a job's folder."""
    found = []
    for path in folder.isa.glob("*.qpy"):
        with path.open("rb") as file:
            (circuit,) = qpy.load(file)
        found.append({qubits for name, qubits in uses(circuit) if name == "cx"})
    return set.intersection(*found)


def recalibrate(
    server: RuntimeServer, folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    """Let the service answer other properties: those of the device, after `change` of a gate."""
    own = FakeHanoiV2()
    folder.mkdir()
    for name in (own.conf_filename, own.props_filename):
        shutil.copy(Path(own.dirname) / name, folder)
    path = folder / own.props_filename
    properties = json.loads(path.read_text())
    for gate in properties["gates"]:
        change(gate)
    path.write_text(json.dumps(properties))
    own.dirname = str(folder)
    server.backend = own


def parameter(gate: dict[str, Any], name: str) -> dict[str, Any]:
    for found in gate["parameters"]:
        if found["name"] == name:
            return found
    gate["parameters"].append({"name": name, "unit": "", "date": gate["parameters"][0]["date"]})
    return gate["parameters"][-1]


def losing(pair: tuple[int, ...], how: str) -> Callable[[dict[str, Any]], object]:
    """A change of properties: the coupling of a pair is lost."""

    def change(gate: dict[str, Any]) -> None:
        if gate["gate"] == "cx" and sorted(gate["qubits"]) == sorted(pair):
            if how == "faulty":
                parameter(gate, "operational")["value"] = 0
            elif how == "broken":
                parameter(gate, "gate_error")["value"] = 1
            else:
                gate["parameters"].remove(parameter(gate, "gate_error"))

    return change


@pytest.mark.parametrize("how", ["faulty", "unknown"])
def test_submitted_circuits_avoid_what_the_service_reports(
    how: str, server: RuntimeServer, submit: Submit, tmp_path: Path
) -> None:
    submit()
    pair = min(sent_on(server.jobs["job0000"]))
    recalibrate(server, tmp_path / "new", losing(pair, how))
    submit()
    assert len(server.jobs) == 2 * JOBS
    for job in list(server.jobs.values())[JOBS:]:
        assert sent_on(job)
        assert not sent_on(job) & {pair, pair[::-1]}


@pytest.mark.parametrize(
    ("shots", "setting"),
    [(1, "twirling.measure=true"), (65, "resilience_level=1"), (100, "twirling.gates=true")],
)
def test_the_client_executes_what_the_dry_run_says(
    shots: int,
    setting: str,
    server: RuntimeServer,
    submit: Submit,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = submit(setting, f"shots={shots}")
    sent = [executions_of(job) for job in server.jobs.values()]
    out = capsys.readouterr().out
    assert f"executions: {sum(sent):,}\n" in out
    ledger = folder.ledger()
    entries = ledger.entries()
    results = [ledger.result(entry.tag) for entry in entries]
    ledger.close()
    assert [entry.executions for entry in entries] == sent
    # The shots that came back, of which the noise in the report is.
    report = json.loads((folder.path / "report.json").read_text())
    executed = report["executed_shots"]
    assert {int(r[key]) for r in results for key in r if key.startswith("shots")} == {executed}
    assert shots <= executed <= max(shots, 1.016 * shots)


def test_randomizations_are_those_that_the_client_would_choose() -> None:
    """The number of random circuits; their shots are in equal parts instead of 64 or more each."""
    from qiskit_ibm_runtime.executor_sampler.prepare import prepare

    circuit = QuantumCircuit(1, 1)
    circuit.measure(0, 0)
    for shots in (1, 63, 64, 65, 100, 1024, 2048, 2049, 99_999):
        spec = JobSpec(run="x", backend="aer", shots=shots, resilience_level=1)
        own = options_of(spec, Request([], spec.executed_shots, ("tag",), 1))
        programs = []
        for options in (own, own.model_copy(deep=True)):
            if programs:
                options.twirling.num_randomizations = "auto"
            programs.append(prepare([circuit], options, spec.executed_shots)[0])
        ours, clients = ((p.items[0].shape[0], p.shots) for p in programs)
        assert ours[0] == clients[0]
        assert ours[0] * ours[1] == spec.executed_shots <= clients[0] * clients[1]


def stop_before_the_second_job(server: RuntimeServer, submit: Submit, fault: str) -> JobFolder:
    """A job whose first request is done, and whose second failed or was refused."""
    if fault == "failed":
        server.fates = [None, "failed"]
        return submit(code=errors.JobFailedError.exit_code)
    original = server.make_job

    def last(payload: dict[str, Any]) -> Job:
        server.faults["POST /jobs"] = [429] * 99
        server.make_job = original
        return original(payload)

    server.make_job = last
    folder = submit(code=errors.RateLimitError.exit_code)
    server.faults.clear()
    return folder


@pytest.mark.parametrize(("how", "fault"), [("faulty", "failed"), ("unknown", "refused")])
def test_resuming_after_a_coupling_broke(
    how: str, fault: str, server: RuntimeServer, submit: Submit, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = stop_before_the_second_job(server, submit, fault)
    made = len(server.jobs)
    pair = min(kept_couplings(folder))
    recalibrate(server, tmp_path / "new", losing(pair, how))
    capsys.readouterr()
    assert main(["jobs", "resume", str(folder.path)]) == errors.BudgetError.exit_code
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("qhdm:"))
    assert f"cx on {pair[0]}-{pair[1]}" in line
    assert "--relayout" in line
    assert len(server.jobs) == made  # nothing was sent

    # What is done stays done; what is not goes to other qubits, and to the same on resuming again.
    assert main(["jobs", "resume", str(folder.path), "--relayout"]) == 0
    assert len(server.jobs) == made + 1
    new = sent_on(list(server.jobs.values())[-1])
    assert new
    assert not new & {pair, pair[::-1]}
    report = json.loads((folder.path / "report.json").read_text())
    assert report["correlation"] > 0.9
    assert main(["jobs", "resume", str(folder.path)]) == 0
    assert len(server.jobs) == made + 1


def test_resuming_when_the_device_is_well_again(
    server: RuntimeServer, submit: Submit, tmp_path: Path
) -> None:
    folder = stop_before_the_second_job(server, submit, "refused")
    recalibrate(server, tmp_path / "new", losing(min(kept_couplings(folder)), "broken"))
    assert main(["jobs", "resume", str(folder.path)]) == errors.BudgetError.exit_code
    server.backend = FakeHanoiV2()
    assert main(["jobs", "resume", str(folder.path)]) == 0
    assert len(server.jobs) == JOBS


def test_resuming_when_errors_have_grown(
    server: RuntimeServer, submit: Submit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stop_before_the_second_job(server, submit, "failed")
    couplings = kept_couplings(folder)

    def worse(times: float) -> Callable[[dict[str, Any]], object]:
        def change(gate: dict[str, Any]) -> None:
            if tuple(gate["qubits"]) in couplings:
                error = parameter(gate, "gate_error")
                error["value"] = min(0.9, times * error["value"])

        return change

    made = len(server.jobs)
    recalibrate(server, tmp_path / "worse", worse(30))
    capsys.readouterr()
    assert main(["jobs", "resume", str(folder.path)]) == errors.BudgetError.exit_code
    error = capsys.readouterr().err
    assert "times as much" in error
    assert "max_error_growth" in error
    assert len(server.jobs) == made
    # Accepted: on the qubits of before. Once accepted, it stays so.
    accept = ["--set", "limits.max_error_growth=null"]
    assert main(["jobs", "resume", str(folder.path), *accept]) == 0
    assert len(server.jobs) == made + 1
    assert sent_on(list(server.jobs.values())[-1]) >= couplings


def test_small_changes_of_a_calibration_are_no_reason_to_stop(
    server: RuntimeServer, submit: Submit, tmp_path: Path
) -> None:
    folder = stop_before_the_second_job(server, submit, "failed")

    def change(gate: dict[str, Any]) -> None:
        if gate["gate"] == "cx":
            parameter(gate, "gate_error")["value"] *= 1.3

    recalibrate(server, tmp_path / "new", change)
    assert main(["jobs", "resume", str(folder.path)]) == 0
    assert len(server.jobs) == JOBS + 1
