"""One filter on Aer: qhdm's engine against stock calls.

    OMP_NUM_THREADS=1 python benchmarks/aer.py   # forward passes: the table of docs/performance.md
    python benchmarks/aer.py --settings          # settings that use both cores

All evaluate the same circuits, in rotations and CNOTs (Aer binds controlled rotations wrongly), on
the same numbers, without shots, and are checked against the exact engine. Rounds alternate between
the contestants, so that a busy machine slows all of them; ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import Pauli
from qiskit_aer import AerSimulator
from qiskit_aer.primitives import EstimatorV2

from qhdm.quantum import Filter, build_filter, expectation
from qhdm.quantum.aer.engine import AerEngine
from qhdm.quantum.aer.rebase import make_bindable, rebased
from qhdm.quantum.aer.run import results_of
from qhdm.quantum.ir.connectivity import components
from qhdm.quantum.pubs import parameter_sets

Contestant = Callable[[torch.Tensor, torch.Tensor], np.ndarray]

#: The option of Aer that saves most here: no copy of the circuit for each parameter set.
QUICKEST = {"method": "statevector", "runtime_parameter_bind_enable": True}


def batched(filter: Filter) -> Contestant:
    engine = AerEngine()
    return lambda x, w: expectation(filter, x, w, engine=engine).numpy()


def _binding(
    filter: Filter, circuit: QuantumCircuit, x: torch.Tensor, w: torch.Tensor
) -> dict[tuple[Parameter, ...], np.ndarray]:
    """Parameter sets (B, P) of a stock PUB."""
    return {tuple(circuit.parameters): parameter_sets(filter, x[None], w[None])[0]}


def pub_for_all(options: dict[str, Any]) -> Callable[[Filter], Contestant]:
    """The usual call of Aer's own estimator: observables (m, 1), parameter sets (B,)."""

    def make(filter: Filter) -> Contestant:
        circuit = rebased(filter.circuit)
        estimator = EstimatorV2(options={"backend_options": options})
        observables = [[observable] for observable in filter.observables]

        def run(x: torch.Tensor, w: torch.Tensor) -> np.ndarray:
            pub = (circuit, observables, _binding(filter, circuit, x, w))
            return estimator.run([pub]).result()[0].data.evs.T

        return run

    return make


def pub_per_observable(filter: Filter) -> Contestant:
    """One PUB per observable, as in the stock `EstimatorQNN`."""
    circuit = rebased(filter.circuit)
    estimator = EstimatorV2()

    def run(x: torch.Tensor, w: torch.Tensor) -> np.ndarray:
        values = _binding(filter, circuit, x, w)
        result = estimator.run([(circuit, o, values) for o in filter.observables]).result()
        return np.stack([r.data.evs for r in result], axis=1)

    return run


def run_with_binds(filter: Filter) -> Contestant:
    """One run of the simulator for all parameter sets, saving all observables."""
    circuit = measured(rebased(filter.circuit))
    simulator = AerSimulator(**QUICKEST)

    def run(x: torch.Tensor, w: torch.Tensor) -> np.ndarray:
        ((parameters, values),) = _binding(filter, circuit, x, w).items()
        binds = [dict(zip(parameters, values.T.tolist(), strict=True))]
        results = simulator.run(circuit, parameter_binds=binds).result().results
        qubits = range(circuit.num_qubits)
        return np.array([[getattr(r.data, str(q)) for q in qubits] for r in results])

    return run


def run_per_sample(filter: Filter) -> Contestant:
    """One run per sample, saving all observables."""
    circuit = measured(rebased(filter.circuit))
    simulator = AerSimulator(method="statevector")

    def run(x: torch.Tensor, w: torch.Tensor) -> np.ndarray:
        ((parameters, values),) = _binding(filter, circuit, x, w).items()
        rows = []
        for row in values.tolist():
            bound = circuit.assign_parameters(dict(zip(parameters, row, strict=True)))
            data = simulator.run(bound).result().data()
            rows.append([data[str(q)] for q in range(circuit.num_qubits)])
        return np.array(rows)

    return run


def undivided(filter: Filter) -> Contestant:
    """The engine's run, on the whole circuit instead of its components."""
    bindable = make_bindable(rebased(filter.circuit), filter.circuit.parameters)
    n = bindable.circuit.num_qubits
    bindable.circuit.save_probabilities(range(n))
    simulator = AerSimulator(**QUICKEST)
    signs = 1 - 2 * (np.arange(1 << n)[:, None] >> np.arange(n) & 1)

    def run(x: torch.Tensor, w: torch.Tensor) -> np.ndarray:
        sets = parameter_sets(filter, x[None], w[None])[0]
        results = results_of(simulator, bindable, sets, {})
        return np.array([result.data.probabilities for result in results]) @ signs

    return run


def measured(circuit: QuantumCircuit) -> QuantumCircuit:
    for qubit in range(circuit.num_qubits):
        circuit.save_expectation_value(Pauli("Z"), [qubit], label=str(qubit))
    return circuit


OURS = "qhdm"
#: Stock calls, the reasonable ones first; the fastest of those is named in the output.
STOCK = {
    "EstimatorV2, one PUB for all observables": pub_for_all({}),
    "EstimatorV2, one PUB, its binds at run time": pub_for_all(QUICKEST),
    "AerSimulator.run, parameter_binds": run_with_binds,
    "AerSimulator.run for each sample": run_per_sample,
    "EstimatorV2, one PUB per observable": pub_per_observable,
}
CONTESTANTS = {OURS: batched, "qhdm's run, of the whole circuit": undivided, **STOCK}


def compare(name: str, batch: int, rounds: int) -> None:
    filter = build_filter(name, qubits=12, layers=3)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 12, generator=random, dtype=torch.float64)
    w = torch.rand(len(filter.weights), generator=random, dtype=torch.float64) * 6
    exact = expectation(filter, x, w).numpy()
    contestants = {label: make(filter) for label, make in CONTESTANTS.items()}
    errors = {label: np.abs(run(x, w) - exact).max() for label, run in contestants.items()}
    wall: dict[str, list[float]] = {label: [] for label in contestants}
    cpu: dict[str, list[float]] = {label: [] for label in contestants}
    for _ in range(rounds):
        for label, run in contestants.items():
            start, used = time.perf_counter(), time.process_time()
            run(x, w)
            wall[label].append(time.perf_counter() - start)
            cpu[label].append(time.process_time() - used)

    def ratio(times: dict[str, list[float]], label: str) -> float:
        pairs = zip(times[label], times[OURS], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    sizes = [len(qubits) for qubits in components(filter.circuit)]
    print(f"{filter.name}: components of {sizes} qubits; batch {batch}, {rounds} rounds")
    print(f"  {'':<44}{'CPU s':>8}{'times':>8}{'wall s':>8}{'times':>8}{'error':>8}")
    for label in contestants:
        print(
            f"  {label:<44}{statistics.median(cpu[label]):>8.3f}{ratio(cpu, label):>8.2f}"
            f"{statistics.median(wall[label]):>8.3f}{ratio(wall, label):>8.2f}"
            f"{errors[label]:>8.0e}"
        )
    best = min(STOCK, key=lambda label: ratio(cpu, label))
    print(f"  fastest stock call, CPU: {best}, {ratio(cpu, best):.2f} times", flush=True)


def settings(rows: int, rounds: int) -> None:
    """The same bindings with different settings of Aer."""
    for name, qubits, layers, count in (("hqconv", 4, 3, rows), ("hqconv", 12, 3, rows // 20)):
        filter = build_filter(name, qubits=qubits, layers=layers)
        bindable = make_bindable(rebased(filter.circuit), filter.circuit.parameters)
        circuit = measured(bindable.circuit)
        values = np.random.default_rng(0).uniform(-3, 3, (count, len(bindable.slots)))
        binds = [dict(zip(bindable.slots, values.T.tolist(), strict=True))]
        print(f"{filter.name}, {count} parameter sets in one run: ms per set, cores busy")
        for label, options in {
            "defaults": {},
            "max_parallel_experiments=2": {"max_parallel_experiments": 2},
            "runtime_parameter_bind_enable, 1 thread": {
                "runtime_parameter_bind_enable": True,
                "max_parallel_threads": 1,
            },
            "runtime_parameter_bind_enable": {"runtime_parameter_bind_enable": True},
        }.items():
            simulator = AerSimulator(method="statevector", **options)
            times, busy = [], []
            for _ in range(rounds):
                start, used = time.perf_counter(), time.process_time()
                simulator.run(circuit, parameter_binds=binds).result()
                seconds = time.perf_counter() - start
                times.append(seconds / count)
                busy.append((time.process_time() - used) / seconds)
            median = 1e3 * statistics.median(times)
            print(f"  {label:<44}{median:>8.2f}{statistics.median(busy):>8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--settings", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if arguments.settings:
        settings(1000, arguments.rounds)
        return
    print(f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '(all cores)')}")
    for name in ("fqconv", "hqconv"):
        compare(name, arguments.batch, arguments.rounds)


if __name__ == "__main__":
    main()
