"""Calibrations and shots through the real client over HTTP, against tests/runtime_server.

Circuits avoid what the service reports as broken, also when it breaks before a job is resumed; and
what the client executes is what the dry run says.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hardware_jobs import CODES, JOBS, Submit, images
from qiskit import qpy
from qiskit.circuit import QuantumCircuit
from qiskit_ibm_runtime.fake_provider import FakeHanoiV2
from qiskit_ibm_runtime.quantum_program.params_converters import QUANTUM_PROGRAM_PARAMS_CONVERTERS
from runtime_server import Job, RuntimeServer

from qhdm.cli import main
from qhdm.hardware.job_dir import JobDirectory
from qhdm.hardware.runtime.protocol import options_of
from qhdm.hardware.spec import JobSpec

pytestmark = pytest.mark.slow


def uses(circuit: QuantumCircuit) -> set[tuple[str, tuple[int, ...]]]:
    return {
        (entry.operation.name, tuple(circuit.find_bit(q).index for q in entry.qubits))
        for entry in circuit.data
        if entry.operation.name != "barrier"
    }


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


def kept_couplings(folder: JobDirectory) -> set[tuple[int, ...]]:
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
    [
        (1, "twirling.measure=true"),
        (65, "mitigation=trex"),
        (100, "twirling.gates=true"),
        (64, "mitigation=affine"),
    ],
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
    entries = ledger.requests()
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
        spec = JobSpec(run="x", backend="aer", shots=shots, mitigation="trex")
        own = options_of(spec, spec.executed_shots, ("tag",), max_seconds=1)
        programs = []
        for options in (own, own.model_copy(deep=True)):
            if programs:
                options.twirling.num_randomizations = "auto"
            programs.append(prepare([circuit], options, spec.executed_shots)[0])
        ours, clients = ((p.items[0].shape[0], p.shots) for p in programs)
        assert ours[0] == clients[0]
        assert ours[0] * ours[1] == spec.executed_shots <= clients[0] * clients[1]


def stop_before_the_second_job(server: RuntimeServer, submit: Submit, fault: str) -> JobDirectory:
    """A job whose first request is done, and whose second failed or was refused."""
    if fault == "failed":
        server.fates = [None, "failed"]
        return submit(code=CODES["failed"])
    original = server.make_job

    def last(payload: dict[str, Any]) -> Job:
        server.faults["POST /jobs"] = [429] * 99
        server.make_job = original
        return original(payload)

    server.make_job = last
    folder = submit(code=CODES["rate"])
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
    assert main(["jobs", "resume", str(folder.path)]) == CODES["limit"]
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
    assert main(["jobs", "resume", str(folder.path)]) == CODES["limit"]
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
    assert main(["jobs", "resume", str(folder.path)]) == CODES["limit"]
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


@pytest.mark.parametrize("again", [[], ["--relayout"]])
def test_jobs_that_an_older_ledger_lacks_stay_where_they_are(
    again: list[str], server: RuntimeServer, submit: Submit, tmp_path: Path, tiny_run: Path
) -> None:
    """The service has them: no calibration keeps them back, and no new layout is for them."""
    copies: dict[Path, bytes] = {}
    original = server.make_job

    def copying(payload: dict[str, Any]) -> Job:
        for path in tiny_run.glob("jobs/*/ledger.sqlite"):
            copies.setdefault(path, path.read_bytes())
        return original(payload)

    server.make_job = copying
    folder = submit()
    ledger, whole = folder.path / "ledger.sqlite", images(folder)
    ledger.write_bytes(copies[ledger])
    recalibrate(server, tmp_path / "new", losing(min(kept_couplings(folder)), "broken"))
    assert main(["jobs", "resume", str(folder.path), *again]) == 0
    assert len(server.jobs) == JOBS
    assert images(folder) == whole
