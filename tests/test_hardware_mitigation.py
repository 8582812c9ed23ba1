"""Affine corrections: their fit, calibration rows, and specifications of earlier versions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from qiskit.circuit import Parameter, QuantumCircuit

from qhdm.errors import ConfigError, HardwareError
from qhdm.hardware.estimator import HardwareEstimator, StageRunner, requests_of, stage_circuits
from qhdm.hardware.isa import IsaCache
from qhdm.hardware.ledger import Ledger
from qhdm.hardware.mitigation import affine, calibration_inputs, calibration_rows
from qhdm.hardware.runtime import LocalService
from qhdm.hardware.spec import JobSpec, load_kept_spec, load_spec
from qhdm.hardware.submission import Submitter
from qhdm.quantum import build_filter, expectation
from qhdm.quantum.options import Limits, Mitigation

SLOPES, OFFSETS = np.array([[0.9, 0.7, 0.5], [0.95, 0.8, 0.85]]), np.array([[0.0, 0.05, -0.1]] * 2)


def measured(
    exact: np.ndarray, shots: int, slopes: np.ndarray = SLOPES, seed: int = 0
) -> np.ndarray:
    """Of two copies of three qubits with errors, (K, 2, 3)."""
    means = slopes * exact[:, None] + OFFSETS
    return 1 - 2 * np.random.default_rng(seed).binomial(shots, (1 - means) / 2) / shots


def exact_values(rows: int) -> np.ndarray:
    return np.cos(calibration_inputs(rows, 3)) * 0.8


def test_slopes_and_offsets_are_those_of_the_device() -> None:
    exact = exact_values(64)
    correction = affine(measured(exact, 100_000), exact, 100_000)
    assert correction.slope == pytest.approx(SLOPES.ravel(), abs=0.005)
    assert correction.offset == pytest.approx(OFFSETS.ravel(), abs=0.005)
    again = measured(exact_values(7), 100_000)
    values = correction.values(again.reshape(7, -1))
    assert values == pytest.approx(np.tile(exact_values(7), 2), abs=0.02)


def test_few_shots_give_the_mean_slope_and_no_wild_one() -> None:
    exact, slopes = exact_values(4), 0.8 + 0.1 * (SLOPES - SLOPES.mean())
    shrunk, fitted = [], []
    for seed in range(20):
        few = measured(exact, 16, slopes, seed)
        shrunk.append(affine(few, exact, 16).slope - slopes.ravel())
        lines = [np.polyfit(exact[:, q], few[:, c, q], 1)[0] for c in (0, 1) for q in range(3)]
        fitted.append(lines - slopes.ravel())
    assert np.square(shrunk).mean() < np.square(fitted).mean() / 2
    # A qubit whose values do not vary takes the slope of the others.
    exact[:, 1] = 0.3
    correction = affine(measured(exact, 100_000), exact, 100_000)
    others = correction.slope.reshape(2, 3)[:, [0, 2]]
    assert others.min() < correction.slope[1] < others.max()


def test_a_device_that_does_not_follow_is_refused() -> None:
    exact = exact_values(16)
    with pytest.raises(HardwareError, match="at random"):
        affine(0.01 * exact[:, None].repeat(2, axis=1), exact, 1000)


def test_calibration_inputs_are_spread_over_the_circle_and_always_the_same() -> None:
    angles = calibration_inputs(64, 12)
    assert np.array_equal(calibration_inputs(4, 12), angles[:4])
    for column in angles.T:
        counts, _ = np.histogram(column, bins=8, range=(0, 2 * np.pi))
        assert counts.min() >= 6
    assert np.abs(np.corrcoef(np.cos(angles).T) - np.eye(12)).max() < 0.3
    assert [calibration_rows(rows) for rows in (1, 16, 17, 1639)] == [4, 4, 5, 41]


def estimator(folder: Path, *, mitigation: Mitigation, packing: int = 2) -> HardwareEstimator:
    spec = JobSpec(run="none", backend="fake_fez", shots=8000, mitigation=mitigation)
    service = LocalService(spec)
    ledger = Ledger(folder / "ledger.sqlite", create=True)
    submitter = Submitter(ledger, service, name="test", limits=Limits())
    cache = IsaCache(folder, service.device.target, device="fake_fez", packing=packing, seed=0)
    runner = StageRunner(submitter, cache, 0.0, spec.shots, mitigation)
    return HardwareEstimator(runner, weights=build.weights)


build = build_filter("fqconv", layers=1)


def test_an_affine_correction_at_least_halves_the_error_and_a_new_process_the_same(
    tmp_path: Path,
) -> None:
    random = np.random.default_rng(0)
    x = random.uniform(0, 2 * np.pi, (9, 12))  # the last of the two copies has a row less
    w = random.uniform(0, 2 * np.pi, len(build.weights))
    sets = np.concatenate([x, np.tile(w, (len(x), 1))], axis=1)[:, build.columns]
    exact = expectation(build, torch.tensor(x), torch.tensor(w)).numpy()
    pub = (build.circuit, [[o] for o in build.observables], sets)
    errors, results = {}, []
    for name in ("none", "affine", "again"):
        (tmp_path / name).mkdir()
        kind: Mitigation = "none" if name == "none" else "affine"
        result = estimator(tmp_path / name, mitigation=kind).run([pub]).result()[0]
        results.append(result.data.evs)
        shots = np.mean(result.data.stds**2)
        errors[name] = np.sqrt(np.mean((result.data.evs.T - exact) ** 2) - shots)
    assert errors["affine"] < errors["none"] / 2
    assert np.array_equal(results[1], results[2])


def test_calibration_rows_are_further_rows_of_each_circuit(tmp_path: Path) -> None:
    device = LocalService(JobSpec(run="none", backend="aer")).device
    cache = IsaCache(None, device.target, device="aer", packing=1, seed=0)
    w = np.zeros(len(build.weights))
    circuit = build.circuit.assign_parameters(dict(zip(build.weights, w, strict=True)))
    (one,) = stage_circuits(circuit, np.zeros((250, 12)), frozenset(), cache)
    requests = requests_of([one], 100_000, 0.0, mitigation="affine")
    assert [len(request.circuits[0][1]) for request in requests] == [100, 100, 50 + 16]
    assert np.array_equal(requests[-1].circuits[0][1][50:], calibration_inputs(16, 12))


@pytest.mark.parametrize("free", [False, True])
def test_values_that_do_not_vary_are_refused_before_anything_is_sent(
    free: bool, tmp_path: Path
) -> None:
    circuit = QuantumCircuit(1)
    circuit.h(0)
    if free:
        circuit.rx(Parameter("x"), 0)
    own = estimator(tmp_path, mitigation="affine", packing=1)
    with pytest.raises(HardwareError, match="vary"):
        own.run([(circuit, "Z", np.zeros((1, int(free))))]).result()
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert ledger.requests() == []
    ledger.close()


@pytest.mark.parametrize("load", [load_spec, load_kept_spec])
def test_resilience_levels_of_earlier_versions_are_read(load, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "job.yaml"

    def text(**keys: object) -> None:
        path.write_text(yaml.safe_dump({"run": "x", "backend": "fake_fez", **keys}))

    for level, mitigation in ((0, "none"), (1, "trex")):
        text(resilience_level=level)
        assert load(path).mitigation == mitigation
        text()
        assert load(path, [f"resilience_level={level}"]).mitigation == mitigation
    text(resilience_level=2)
    with pytest.raises(ConfigError, match=r":\d+: mitigation: "):
        load(path)
    text(resilience_level=1, mitigation="affine")
    with pytest.raises(ConfigError, match="resilience_level"):
        load(path)
