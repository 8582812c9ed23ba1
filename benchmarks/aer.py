"""One filter on Aer: the batched engine against the ways of the stock interfaces.

    python benchmarks/aer.py             # forward passes, in turns
    python benchmarks/aer.py --settings  # what makes both cores busy

All evaluate the same circuits, in rotations and CNOTs (Aer binds controlled rotations wrongly), on
the same numbers, without shots, and are checked against the exact engine.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import Pauli
from qiskit_aer import AerSimulator
from qiskit_aer.primitives import EstimatorV2

from qhdm.quantum import Filter, build_filter, expectation
from qhdm.quantum.aer.engine import AerEngine
from qhdm.quantum.aer.rebase import make_bindable, rebased

Contestant = Callable[[torch.Tensor, torch.Tensor], np.ndarray]


def batched(filter: Filter) -> Contestant:
    engine = AerEngine()
    return lambda x, w: expectation(filter, x, w, engine=engine).numpy()


def pub_per_observable(filter: Filter) -> Contestant:
    """How `EstimatorQNN` asks: one PUB for each observable, on Aer's own estimator."""
    circuit = rebased(filter.circuit)
    estimator = EstimatorV2(options={"default_precision": 0.0})

    def run(x: torch.Tensor, w: torch.Tensor) -> np.ndarray:
        values = {filter.inputs: x.numpy(), filter.weights: np.tile(w.numpy(), (len(x), 1))}
        bound = {
            tuple(p for p in parameters if p in circuit.parameters): array
            for parameters, array in values.items()
        }
        result = estimator.run([(circuit, o, bound) for o in filter.observables]).result()
        return np.stack([r.data.evs for r in result], axis=1)

    return run


def run_per_sample(filter: Filter) -> Contestant:
    """One run for each sample, all observables saved."""
    circuit = measured(rebased(filter.circuit))
    simulator = AerSimulator(method="statevector")

    def run(x: torch.Tensor, w: torch.Tensor) -> np.ndarray:
        rows = []
        for sample in x.tolist():
            values = dict(zip(filter.inputs, sample, strict=True))
            values |= dict(zip(filter.weights, w.tolist(), strict=True))
            bound = circuit.assign_parameters({p: values[p] for p in circuit.parameters})
            data = simulator.run(bound).result().data()
            rows.append([data[str(q)] for q in range(circuit.num_qubits)])
        return np.array(rows)

    return run


def measured(circuit: QuantumCircuit) -> QuantumCircuit:
    for qubit in range(circuit.num_qubits):
        circuit.save_expectation_value(Pauli("Z"), [qubit], label=str(qubit))
    return circuit


CONTESTANTS = {
    "qhdm, batched": batched,
    "one PUB per observable": pub_per_observable,
    "one run per sample": run_per_sample,
}


def compare(name: str, batch: int, rounds: int) -> None:
    filter = build_filter(name, qubits=12, layers=3)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 12, generator=random, dtype=torch.float64)
    w = torch.rand(len(filter.weights), generator=random, dtype=torch.float64) * 6
    exact = expectation(filter, x, w).numpy()
    contestants = {label: make(filter) for label, make in CONTESTANTS.items()}
    errors = {label: np.abs(run(x, w) - exact).max() for label, run in contestants.items()}
    times: dict[str, list[float]] = {label: [] for label in contestants}
    for _ in range(rounds):
        for label, run in contestants.items():
            start = time.perf_counter()
            run(x, w)
            times[label].append(time.perf_counter() - start)
    floor = statistics.median(times["qhdm, batched"])
    print(f"{filter.name}, batch {batch}, 12 observables, forward, {rounds} rounds")
    for label, seconds in times.items():
        median = statistics.median(seconds)
        print(f"  {label:<26}{1e3 * median:>10.0f} ms{median / floor:>8.1f} x  {errors[label]:.0e}")


def settings(rows: int, rounds: int) -> None:
    """The same bindings under different settings of Aer."""
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
            print(f"  {label:<42}{median:>8.2f}{statistics.median(busy):>8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if arguments.settings:
        settings(1000, arguments.rounds)
        return
    for name in ("fqconv", "hqconv"):
        compare(name, arguments.batch, arguments.rounds)


if __name__ == "__main__":
    main()
