"""Job specifications, ISA circuits and their packing, estimates, local execution, rehearsal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from qiskit.circuit import Parameter
from qiskit.primitives import StatevectorEstimator
from tolerances import SIGMAS

from qhdm.config import SampleConfig
from qhdm.errors import AccessError, ConfigError, HardwareError
from qhdm.hardware.estimate import qpu_seconds
from qhdm.hardware.estimator import HardwareEstimator, StageRunner, requests_of, stage_circuits
from qhdm.hardware.isa import IsaCache, make_isa
from qhdm.hardware.job_dir import JobDirectory
from qhdm.hardware.ledger import Ledger
from qhdm.hardware.runtime import LocalService, snapshot
from qhdm.hardware.simulator import DeviceSimulator
from qhdm.hardware.spec import JobSpec, load_spec, spec_to_yaml
from qhdm.hardware.submission import Submitter
from qhdm.quantum import build_filter, expectation
from qhdm.quantum.connector import FilterQNN
from qhdm.quantum.options import Limits
from qhdm.runs.directory import RunDirectory

ROOT = Path(__file__).parent.parent


def bound(name: str = "fqconv", layers: int = 1):  # type: ignore[no-untyped-def]
    filter = build_filter(name, layers=layers)
    w = np.random.default_rng(0).uniform(0, 2 * np.pi, len(filter.weights))
    return filter, w, filter.circuit.assign_parameters(dict(zip(filter.weights, w, strict=True)))


@pytest.mark.parametrize("name", ["rehearsal", "aer", "boston", "sheet"])
def test_shipped_specifications_are_read_and_written_back(name: str, tmp_path: Path) -> None:
    spec = load_spec(ROOT / "jobs" / f"{name}.yaml")
    path = tmp_path / "again.yaml"
    path.write_text(spec_to_yaml(spec))
    assert load_spec(path) == spec
    assert spec.local == (name not in ("boston", "sheet"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shot": 5}, "did you mean shots"),
        ({"shots": 0}, "shots"),
        ({"places": ["decoder"]}, "decoder"),
        ({"hardware_steps": "some"}, r":\d+: hardware_steps: must be .* or all, got 'some'$"),
        ({"hardware_steps": 0}, r":\d+: hardware_steps: must be .* or all, got 0$"),
        ({"mode": "session"}, "mode"),
        ({"mitigation": "zne"}, "mitigation"),
        ({"dynamical_decoupling": "XX", "twirling": {"gates": True}}, "dynamical_decoupling"),
        ({"backend": "aer", "dynamical_decoupling": "XX"}, "dynamical_decoupling"),
        ({"limits": {"max_qpu_seconds": -1}}, "max_qpu_seconds"),
        ({"packing": 0}, r":\d+: packing: must be .* or auto, got 0$"),
    ],
)
def test_bad_specifications_are_one_line(change: dict, words: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"run": "x", "backend": "fake_fez", **change}))
    with pytest.raises(ConfigError, match=words) as caught:
        load_spec(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["fqconv", "hqconv"])
def test_packed_copies_are_disjoint_and_right(name: str) -> None:
    filter, w, circuit = bound(name)
    device = snapshot("fake_fez")
    isa = make_isa(circuit, filter.inputs, device.target, packing=3, most=9, seed=0)
    assert isa.copies == 3
    used = [qubit for region in isa.regions for qubit in region]
    assert len(set(used)) == len(used) == 36
    for entry in isa.circuit.data:
        qubits = tuple(isa.circuit.find_bit(q).index for q in entry.qubits)
        if entry.operation.name != "barrier":
            assert qubits in device.target[entry.operation.name]

    x = np.random.default_rng(1).uniform(0, 2 * np.pi, (7, 12))  # not a multiple of the copies
    shots = 4000
    ideal = DeviceSimulator(device.target, noisy=False)
    bits = ideal.run(isa.circuit, isa.values(x), shots=shots, seed=1)
    measured = isa.rows(1 - 2 * bits.mean(axis=1), len(x))
    exact = expectation(filter, torch.tensor(x), torch.tensor(w)).numpy()
    errors = np.sqrt((1 - exact**2).clip(1e-4) / shots)
    assert (np.abs(measured - exact) < SIGMAS * errors).all()
    again = ideal.run(isa.circuit, isa.values(x), shots=shots, seed=1)
    assert np.array_equal(bits, again)


def test_values_agree_with_and_without_packing_under_noise() -> None:
    filter, _, circuit = bound()
    device = snapshot("fake_fez")
    noisy = DeviceSimulator(device.target, noisy=True)
    x = np.random.default_rng(1).uniform(0, 2 * np.pi, (6, 12))
    found = []
    for packing in (1, 3):
        isa = make_isa(circuit, filter.inputs, device.target, packing=packing, most=6, seed=0)
        bits = noisy.run(isa.circuit, isa.values(x), shots=4000, seed=1)
        found.append(isa.rows(1 - 2 * bits.mean(axis=1), len(x)))
    difference = found[0] - found[1]
    # Shot noise of both, and regions that differ in quality by some percent.
    assert np.sqrt(np.mean(difference**2)) < 2 * np.sqrt(2 / 4000)


def test_a_chip_holds_twelve_copies_of_fqconv_and_no_thirty() -> None:
    filter, _, circuit = bound()
    target = snapshot("fake_fez").target
    isa = make_isa(circuit, filter.inputs, target, packing=12, most=12, seed=0)
    assert isa.copies == 12
    with pytest.raises(HardwareError, match="packing: 30"):
        make_isa(circuit, filter.inputs, target, packing=30, most=30, seed=0)
    best = make_isa(circuit, filter.inputs, target, packing=1, most=1, seed=0)
    auto = make_isa(circuit, filter.inputs, target, packing="auto", most=100, seed=0)
    assert 1 < auto.copies <= 13
    assert best.cost[0] <= min(auto.cost) + 1e-12


def test_circuits_are_kept_as_qpy(tmp_path: Path) -> None:
    filter, _, circuit = bound()
    target = snapshot("fake_fez").target

    def cache() -> IsaCache:
        return IsaCache(tmp_path, target, device="fake_fez", packing=2, seed=0)

    first = cache().get(circuit, filter.inputs, rows=4)
    (path,) = tmp_path.glob("*.qpy")
    before = path.read_bytes()
    again = cache().get(circuit, filter.inputs, rows=4)
    assert path.read_bytes() == before
    assert again.circuit == first.circuit
    assert (again.regions, again.cost) == (first.regions, first.cost)
    path.write_bytes(before[:100])
    with pytest.raises(HardwareError, match="damaged"):
        cache().get(circuit, filter.inputs, rows=4)


def test_jobs_are_split_at_the_limits_of_the_service() -> None:
    _, _, circuit = bound()
    cache = IsaCache(None, snapshot("aer").target, device="aer", packing=1, seed=0)
    (one,) = stage_circuits(circuit, np.zeros((250, 12)), frozenset(), cache)
    requests = requests_of([one], 100_000, 250e-6, mitigation="none")
    assert [len(request.circuits[0][1]) for request in requests] == [100, 100, 50]
    expected = qpu_seconds(100 * 100_000, one.isa.duration, 250e-6)
    assert requests[0].seconds == pytest.approx(expected)


def test_the_formula_of_qpu_seconds() -> None:
    # IBM's short form is 2 + 0.00035 x executions, with 100 us for the circuit.
    assert qpu_seconds(10_000, 100e-6, 250e-6) == pytest.approx(2 + 0.00035 * 10_000)


def local_estimator(
    folder: Path, backend: str, *, weights: Iterable[Parameter] = (), **settings: object
) -> HardwareEstimator:
    spec = JobSpec(run="none", backend=backend, packing=2, **settings)  # type: ignore[arg-type]
    service = LocalService(spec)
    submitter = Submitter(
        Ledger(folder / "ledger.sqlite", create=True), service, name="test", limits=Limits(),
    )  # fmt: skip
    cache = IsaCache(folder, service.device.target, device=backend, packing=1, seed=0)
    runner = StageRunner(submitter, cache, service.device.rep_delay, spec.shots, spec.mitigation)
    return HardwareEstimator(runner, weights=weights)


def test_an_estimator_for_estimator_networks(tmp_path: Path) -> None:
    filter, w, _ = bound()
    estimator = local_estimator(tmp_path, "aer", weights=filter.weights, shots=4000)
    x = np.random.default_rng(1).uniform(0, 2 * np.pi, (3, 12))
    measured = FilterQNN(filter, estimator=estimator).forward(x, w)
    exact = FilterQNN(filter, estimator=StatevectorEstimator()).forward(x, w)
    assert np.abs(measured - exact).max() < SIGMAS / np.sqrt(4000)


def test_errors_are_mitigated(tmp_path: Path) -> None:
    filter, w, _ = bound()
    circuit = filter.circuit
    x = np.zeros((1, 12))  # all values far from 0 where the circuit leaves |0...0> alone
    sets = np.concatenate([x, w[None]], axis=1)
    place = {p: i for i, p in enumerate((*filter.inputs, *filter.weights))}
    sets = sets[:, [place[p] for p in circuit.parameters]]
    exact = expectation(filter, torch.tensor(x), torch.tensor(w)[None][0]).numpy()[0]
    errors = []
    for mitigation in ("none", "trex", "affine"):
        folder = tmp_path / mitigation
        folder.mkdir()
        estimator = local_estimator(
            folder, "fake_fez", weights=filter.weights, shots=8000, mitigation=mitigation
        )
        pub = (circuit, [[o] for o in filter.observables], sets)
        values = estimator.run([pub]).result()[0].data.evs[:, 0]
        errors.append(np.abs(values - exact).mean())
    assert errors[2] < errors[1] < errors[0]


def test_observables_that_are_not_measured_are_refused(tmp_path: Path) -> None:
    _, _, circuit = bound()
    estimator = local_estimator(tmp_path, "aer", shots=16)
    with pytest.raises(HardwareError, match="observable X"):
        estimator.run([(circuit, "X" + "I" * 11, np.zeros((1, 12)))]).result()


def test_devices_that_nobody_knows() -> None:
    with pytest.raises(AccessError, match="--device"):
        snapshot("ibm_atlantis")
    assert snapshot("ibm_torino").target.num_qubits == 133


def test_a_dry_run_and_a_rehearsal(cli, tiny_run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    spec = tmp_path / "small.yaml"
    spec.write_text(
        yaml.safe_dump(
            {
                "run": str(tiny_run), "backend": "fake_fez", "classes": ["Forest"], "steps": 2,
                "hardware_steps": 1, "places": ["encoder"], "shots": 256, "packing": 2,
                "estimate": {"price_per_second": 2.0, "currency": "EUR"},
            }
        )
    )  # fmt: skip
    dry = cli("submit", spec, "--dry-run", "--set", "backend=ibm_fez", "--set", "mode=session")
    assert dry.returncode == 0, dry.stderr
    for words in ("2q gates", "runtime jobs: 2", "QPU seconds", "free plan", "EUR", "10,000,000"):
        assert words in dry.stdout
    done = cli("submit", spec)
    assert done.returncode == 0, done.stderr
    (folder,) = (tiny_run / "jobs").glob("small-*")
    report = json.loads((folder / "report.json").read_text())
    # The device errs, and the report tells how much.
    assert report["shot_noise"] < report["error"]["rms"] < 0.3
    assert report["correlation"] > 0.9
    assert 0 < report["image_change"] < 0.1
    for verb in ("cancel", "fetch"):
        done = cli("jobs", "--runs", tiny_run, verb, folder.name)
        assert done.stdout == f"job {folder.name}: is done; samples: {folder / 'samples.png'}\n"
    assert JobDirectory(folder).is_done()
    # A job in progress does not follow changes of the run's own sampling options.
    kept, config = JobDirectory(folder).spec(), RunDirectory.open(tiny_run).config
    other = SampleConfig(sampler="ddim", steps=9, guidance=3.0, guidance_interval=(0.5, 9.0))
    assert kept.resolved(replace(config, sample=other)) == kept
    assert kept.guidance == config.sample.guidance
    refused = cli("submit", spec, "--set", "hardware_steps=9")
    assert refused.returncode == 1
    assert "hardware_steps" in refused.stderr
