"""Circuits compiled to what is measured of them: same <Z>, fewer gates; predicted errors; jobs."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp, Statevector, random_unitary
from qiskit_aer import AerSimulator

from qhdm import Sampling
from qhdm.cli import main
from qhdm.errors import ConfigError
from qhdm.hardware.compilation import Compiler
from qhdm.hardware.isa import IsaCache
from qhdm.hardware.job_dir import JobDirectory
from qhdm.hardware.job_runner import connect, isa_cache, run_job
from qhdm.hardware.packing import regions_of
from qhdm.hardware.runtime import snapshot
from qhdm.hardware.spec import JobSpec, load_spec, spec_to_yaml
from qhdm.quantum import build_filter
from qhdm.quantum.compile.component import InputForm, approximate, compiled, exact
from qhdm.quantum.compile.line import Line, measured
from qhdm.quantum.compile.search import exact_fit, fit, gates_needed
from qhdm.quantum.devices.calibration import unitary_part
from qhdm.quantum.devices.noise import noise_of
from qhdm.quantum.ir.connectivity import components, on_qubits
from qhdm.quantum.options import Hardware
from qhdm.run import Run

FEZ = snapshot("fake_fez").target


def bound(layers: int = 3, seed: int = 0, ansatz: str = "fqconv") -> QuantumCircuit:
    filter = build_filter(ansatz, layers=layers)
    weights = np.random.default_rng(seed).uniform(0, 2 * np.pi, len(filter.weights))
    return filter.circuit.assign_parameters(dict(zip(filter.weights, weights, strict=True)))


def component(layers: int = 3, seed: int = 0) -> QuantumCircuit:
    circuit = bound(layers, seed)
    return on_qubits(circuit, components(circuit)[0])


def z_values(circuit: QuantumCircuit, outputs: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
    """<Z> by Statevector at rows of inputs, by the parameters' order in `rows`."""
    strings = [
        SparsePauliOp.from_sparse_list([("Z", [q], 1)], num_qubits=circuit.num_qubits)
        for q in outputs
    ]
    states = [Statevector(circuit.assign_parameters(list(row))) for row in rows]
    return np.array([[state.expectation_value(z).real for z in strings] for state in states])


@pytest.mark.parametrize("fractional", [False, True])
def test_derivatives_are_those_of_differences(fractional: bool) -> None:
    line, random = Line((2, 0, 1), 4, (1, 0, 2), fractional), np.random.default_rng(0)
    wanted = measured(random_unitary(8, seed=1).data)
    angles = random.uniform(-3, 3, (2, line.angles))
    J = line.jacobian(line.residuals(angles, wanted)[1])
    for a in range(line.angles):
        step = np.eye(line.angles)[a] * 1e-6
        up, down = (line.residuals(angles + s, wanted)[0] for s in (step, -step))
        np.testing.assert_allclose(J[:, a], (up - down) / 2e-6, atol=1e-8)


def test_counts_of_gates() -> None:
    assert [gates_needed(n) for n in (1, 2, 3)] == [0, 2, 13]
    assert gates_needed(3, fractional=True) == 10


def test_the_map_to_what_is_measured_has_rank_56() -> None:
    """So many angles are needed: 13 CZ, and 12 are not enough in general."""
    line = Line((0, 1, 2), 16, (0, 1, 2))
    angles = np.random.default_rng(0).uniform(-3, 3, (1, line.angles))
    J = line.jacobian(line.residuals(angles, np.zeros((3, 26)))[1])
    assert np.linalg.matrix_rank(J[0], tol=1e-9) == 4**3 - 2**3 == 56


@pytest.mark.parametrize("seed", [0, 1])
def test_exact_circuits_of_three_qubits_have_the_same_values(seed: int) -> None:
    circuit = component(seed=seed)
    form = InputForm.of(circuit)
    assert form is not None
    shorter = exact(form, most=29)
    assert shorter is not None
    assert shorter.circuit.num_nonlocal_gates() == 13
    rows = np.random.default_rng(7).uniform(-np.pi, np.pi, (20, 3))
    before = z_values(circuit, (0, 1, 2), rows)
    np.testing.assert_allclose(z_values(shorter.circuit, shorter.outputs, rows), before, atol=1e-8)
    twelve = fit(form.unitary, 12, tries=1)
    assert twelve.error > 1e-4


def test_components_near_the_identity_have_exact_circuits_too() -> None:
    """Where training begins, and where T alone has local minima in the way of nearly all starts."""
    filter = build_filter("fqconv", layers=3)
    weights = np.random.default_rng(0).uniform(-0.5, 0.5, len(filter.weights))
    circuit = filter.circuit.assign_parameters(dict(zip(filter.weights, weights, strict=True)))
    form = InputForm.of(on_qubits(circuit, components(circuit)[0]))
    assert form is not None
    best = exact_fit(form.unitary, most=14)
    assert best is not None
    assert best.line.gates <= 14


@pytest.mark.parametrize(("n", "gates"), [(1, 0), (2, 2)])
def test_exact_circuits_of_fewer_qubits(n: int, gates: int) -> None:
    circuit = QuantumCircuit(n)
    for q in range(n):
        circuit.rx(Parameter(f"x{q}"), q)
    circuit.unitary(random_unitary(2**n, seed=n), range(n))
    form = InputForm.of(circuit)
    assert form is not None
    shorter = exact(form, most=3)
    assert shorter is not None
    assert shorter.circuit.num_nonlocal_gates() == gates
    rows = np.random.default_rng(0).uniform(-np.pi, np.pi, (20, n))
    np.testing.assert_allclose(
        z_values(shorter.circuit, shorter.outputs, rows),
        z_values(circuit, tuple(range(n)), rows),
        atol=1e-8,
    )


def test_special_circuits_take_fewer_gates() -> None:
    circuit = QuantumCircuit(3)
    for q in range(3):
        circuit.rx(Parameter(f"x{q}"), q)
    circuit.crx(0.7, 0, 1)
    circuit.crx(1.1, 1, 2)
    form = InputForm.of(circuit)
    assert form is not None
    best = exact_fit(form.unitary, most=13)
    assert best is not None
    assert best.line.gates <= 6


def test_the_grid_gives_the_mean_over_all_inputs() -> None:
    """And the error of a fit is the root of the mean squared error of <Z> over them."""
    circuit = component()
    form = InputForm.of(circuit)
    assert form is not None
    np.testing.assert_allclose(form.values(), z_values(circuit, (0, 1, 2), form.grid), atol=1e-12)
    short = approximate(form, gates=4)
    errors = [
        z_values(short.circuit, short.outputs, rows) - z_values(circuit, (0, 1, 2), rows)
        for rows in (form.grid, np.random.default_rng(0).uniform(0, 2 * np.pi, (400, 3)))
    ]
    assert np.sqrt(np.mean(errors[0] ** 2)) == pytest.approx(short.bias, rel=1e-6)
    assert np.sqrt(np.mean(errors[1] ** 2)) == pytest.approx(short.bias, rel=0.15)


def _forms() -> dict[str, QuantumCircuit]:
    x, y = Parameter("x"), Parameter("y")
    late, shared, scaled, other = (QuantumCircuit(2) for _ in range(4))
    late.rx(x, 0)
    late.cx(0, 1)
    late.rx(y, 1)
    for circuit, angles in ((shared, (x, x)), (scaled, (2 * x, y))):
        circuit.rx(angles[0], 0)
        circuit.rx(angles[1], 1)
    other.ry(x, 0)
    other.rx(y, 1)
    without = QuantumCircuit(2)
    without.rx(x, 0)
    without.cx(0, 1)
    large = QuantumCircuit(4)
    for q in range(4):
        large.rx(Parameter(f"z{q}"), q)
    return {"late": late, "shared": shared, "scaled": scaled, "RY": other, "without": without,
            "large": large}  # fmt: skip


@pytest.mark.parametrize("name", _forms())
def test_components_of_another_form_stay_as_they_are(name: str) -> None:
    circuit = _forms()[name]
    assert InputForm.of(circuit) is None
    (laid_out,) = Compiler(FEZ, seed=0, compilation="exact").lay_out(_joined(circuit))
    assert laid_out.figures == laid_out.before
    assert laid_out.figures.error is None


def _joined(circuit: QuantumCircuit) -> QuantumCircuit:
    for q in range(circuit.num_qubits - 1):
        circuit.cx(q, q + 1)
    return circuit


@pytest.mark.parametrize("compilation", ["off", "exact", "approximate"])
def test_predicted_errors_are_those_of_aer(compilation: str) -> None:
    circuit = component()
    form = InputForm.of(circuit)
    assert form is not None
    compiler = Compiler(FEZ, seed=0, compilation=compilation)  # type: ignore[arg-type]
    (laid_out,) = compiler.lay_out(circuit)
    physical = regions_of(laid_out.circuit, FEZ)[0].qubits
    simulator = AerSimulator(
        method="density_matrix", noise_model=noise_of(unitary_part(FEZ), physical)
    )
    run = laid_out.circuit.circuit.copy()
    run.save_density_matrix()
    columns = [form.inputs.index(p) for p in run.parameters]
    strings = [
        SparsePauliOp.from_sparse_list([("Z", [end], 1)], num_qubits=3)
        for end in laid_out.circuit.ends
    ]
    values = []
    for row in form.grid:
        result = simulator.run(run.assign_parameters(list(row[columns]))).result()
        state = result.data()["density_matrix"]
        values.append([state.expectation_value(z).real for z in strings])
    measured_error = np.sqrt(np.mean((np.array(values) - form.values()) ** 2))
    assert laid_out.figures.error == pytest.approx(measured_error, rel=1e-6)


def test_compiling_takes_fewer_gates_and_errs_less() -> None:
    circuit = component()
    off, short, shorter = (
        Compiler(FEZ, seed=0, compilation=mode).lay_out(circuit)[0]  # type: ignore[arg-type]
        for mode in ("off", "exact", "approximate")
    )
    assert (off.figures.gates, short.figures.gates) == (30, 13)
    assert off.figures == off.before == short.before == shorter.before
    assert shorter.figures.gates < 13
    assert short.bias < 1e-9 < shorter.bias < 0.02
    assert off.figures.error > short.figures.error > shorter.figures.error  # type: ignore[operator]
    assert short.figures.error < 0.75 * off.figures.error  # type: ignore[operator]


def test_circuits_that_take_no_fewer_gates_stay_as_they_are() -> None:
    circuit = QuantumCircuit(2)
    for q in range(2):
        circuit.rx(Parameter(f"x{q}"), q)
    circuit.cx(0, 1)
    (laid_out,) = Compiler(FEZ, seed=0, compilation="exact").lay_out(circuit)
    assert laid_out.figures.gates <= 1
    assert laid_out.figures.depth == laid_out.figures.gates


def test_shots_decide_how_exact_a_circuit_is() -> None:
    """With few shots, their error hides what fewer gates would gain."""
    circuit = component()
    few, many = (
        Compiler(FEZ, seed=0, compilation="approximate", shots=shots).lay_out(circuit)[0]
        for shots in (4, 100_000)
    )
    assert few.bias <= many.bias
    assert few.figures.gates >= many.figures.gates


def test_whole_filters_keep_their_outputs() -> None:
    circuit = bound(layers=1)
    shorter, outputs = compiled(circuit)
    assert shorter.num_nonlocal_gates() < 2 * circuit.num_nonlocal_gates()  # CZ of a CRX
    rows = np.random.default_rng(0).uniform(0, 2 * np.pi, (2, 12))
    assert [p.name for p in shorter.parameters] == [p.name for p in circuit.parameters]
    np.testing.assert_allclose(
        z_values(shorter, outputs, rows), z_values(circuit, tuple(range(12)), rows), atol=1e-8
    )


def test_compiled_circuits_are_read_back_from_their_files(tmp_path: Path) -> None:
    circuit = component()
    inputs = list(circuit.parameters)

    def cache(compilation: str) -> IsaCache:
        return IsaCache(tmp_path, FEZ, device="fake_fez", packing=1, seed=0,
                        compilation=compilation)  # type: ignore[arg-type]  # fmt: skip

    first = cache("exact").get(circuit, inputs, rows=4)
    (path,) = tmp_path.glob("*.qpy")
    again = cache("exact").get(circuit, inputs, rows=4)
    assert again.circuit == first.circuit
    assert (again.before, again.figures, again.bias) == (first.before, first.figures, first.bias)
    assert again.before is not None
    assert again.figures.gates < again.before.gates
    off = cache("off").get(circuit, inputs, rows=4)
    assert off.figures.gates == again.before.gates
    assert len(list(tmp_path.glob("*.qpy"))) == 2
    assert path.exists()


def test_jobs_of_versions_without_the_key_keep_their_circuits(tmp_path: Path) -> None:
    spec = JobSpec(run="x", backend="fake_fez")
    assert spec.compile == "exact"
    text = spec_to_yaml(spec)
    (tmp_path / "job.yaml").write_text(text)
    assert JobDirectory(tmp_path).spec().compile == "exact"
    older = "".join(line for line in text.splitlines(True) if not line.startswith("compile"))
    (tmp_path / "job.yaml").write_text(older)
    assert JobDirectory(tmp_path).spec(["limits.max_jobs=5"]).compile == "off"
    assert load_spec(tmp_path / "job.yaml").compile == "exact"  # as a new job


def test_unknown_modes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("run: x\nbackend: fake_fez\ncompile: off\n")  # which YAML reads as false
    assert load_spec(path).compile == "off"
    path.write_text("run: x\nbackend: fake_fez\ncompile: fast\n")
    with pytest.raises(ConfigError, match=r":3: compile: "):
        load_spec(path)


def small_job(run: Path, **settings: object) -> JobSpec:
    return JobSpec(
        run=str(run), backend="fake_fez", classes=("Forest",), steps=2, hardware_steps=1,
        places=("encoder",), shots=64, packing=1, **settings,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_compiled_job_resumes_with_its_circuits(tiny_run: Path, tmp_path: Path) -> None:
    """The circuits are read from the files of the job, whatever a search would find now."""
    spec = small_job(tiny_run)
    job = Run.open(tiny_run, device="cpu").job(spec)
    directory = JobDirectory(tmp_path / "job")
    directory.make(spec)
    service = connect(spec)

    def run() -> dict[str, Any]:
        cache = isa_cache(spec, service.device, directory)
        return run_job(directory, job, service, cache, progress=False)

    report = run()
    kept = {path.name: path.read_bytes() for path in directory.isa.glob("*.qpy")}
    images = {path: path.read_bytes() for path in directory.path.rglob("Forest*.png")}
    assert kept
    assert images
    for figures in report["circuits"].values():
        assert figures["after"]["gates"] <= figures["before"]["gates"]
        assert figures["after"]["error"] <= figures["before"]["error"]
        assert figures["bias"] < 1e-9
    with sqlite3.connect(directory.path / "ledger.sqlite") as ledger:
        ledger.execute("DELETE FROM states")  # as after a kill: all requests are done
    assert run() == report
    assert kept == {path.name: path.read_bytes() for path in directory.isa.glob("*.qpy")}
    assert images == {path: path.read_bytes() for path in directory.path.rglob("Forest*.png")}


def test_requests_of_versions_that_did_not_compile_keep_their_circuits(tiny_run: Path) -> None:
    """Names of jobs leave out defaults: the same request finds the job that it began."""
    run = Run.open(tiny_run, device="cpu")
    engine = Hardware("fake_fez", shots=64, places=("encoder",), packing=1)
    request = Sampling(classes=["Forest"], num=1, steps=2, seed=11, engine=engine, engine_steps=1)
    known = set((tiny_run / "jobs").glob("*"))
    images = run.sample(request)
    (path,) = set((tiny_run / "jobs").glob("*")) - known
    compiled_files = {file.name for file in (path / "isa").glob("*.qpy")}
    text = (path / "job.yaml").read_text()
    assert "compile: exact" in text
    shutil.rmtree(path / "isa")
    (path / "job.yaml").write_text(text.replace("compile: exact\n", ""))
    with sqlite3.connect(path / "ledger.sqlite") as ledger:
        ledger.execute("DELETE FROM states")
        ledger.execute("UPDATE facts SET value = '\"running\"' WHERE key = 'state'")
    assert np.array_equal(run.sample(request), images)  # all results are in the ledger
    assert JobDirectory(path).spec().compile == "off"
    assert compiled_files.isdisjoint(file.name for file in (path / "isa").glob("*.qpy"))


def test_devices_are_compared(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(spec_to_yaml(small_job(tiny_run, compile="off")))
    assert main(["submit", str(path), "--compare", "fake_fez", "fake_boston"]) == 0
    fez, boston = capsys.readouterr().out.splitlines()[2:4]
    assert fez.startswith("fake_fez")
    assert boston.startswith("fake_boston")
    assert float(boston.split()[2]) < float(fez.split()[2])
