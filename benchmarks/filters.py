"""One 12-qubit filter, forward and backward in inputs and weights: qhdm and its peers.

    python benchmarks/filters.py                 # the table of docs/performance.md
    python benchmarks/filters.py --sweep         # time and memory against batch, qubits, layers
    python benchmarks/filters.py --stock         # one sample through stock EstimatorQNN (minutes)

Every peer runs the same gates on the same numbers and is checked against this engine first. Rounds
alternate between the contestants, so that a busy machine slows all of them; medians are printed.
Peers come with `pip install 'qhdm[bench]'`; those that are absent are left out.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import qhdm  # noqa: F401 - before torch, whose threads it tells how to wait

# isort: split
import torch
from torch import Tensor

from qhdm.quantum import Filter, build_filter, expectation

#: Values and both gradients of sum(g * f(x, w)).
Result = tuple[Tensor, Tensor, Tensor]
Contestant = Callable[[Tensor, Tensor, Tensor], Result]


def gates(filter: Filter) -> list[tuple[str, list[int], str | None]]:
    """(name, qubits, name of the parameter or None) of each gate."""
    index = {qubit: i for i, qubit in enumerate(filter.circuit.qubits)}
    return [
        (
            entry.operation.name,
            [index[q] for q in entry.qubits],
            entry.operation.params[0].name if entry.operation.params else None,
        )
        for entry in filter.circuit.data
    ]


def differentiated(function: Callable[[Tensor, Tensor], Tensor]) -> Contestant:
    """A contestant made from a function that torch differentiates."""

    def run(x: Tensor, w: Tensor, g: Tensor) -> Result:
        x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
        values = function(x, w)
        values.backward(g.to(values))
        assert x.grad is not None
        assert w.grad is not None
        return values.detach(), x.grad, w.grad

    return run


def engine(filter: Filter, name: str) -> Contestant:
    return differentiated(lambda x, w: expectation(filter, x, w, engine=name))


def pennylane(filter: Filter) -> Contestant:
    import pennylane as qml

    kinds = {"rx": qml.RX, "crz": qml.CRZ, "crx": qml.CRX}
    n = filter.circuit.num_qubits

    @qml.qnode(qml.device("default.qubit", wires=n), interface="torch", diff_method="backprop")
    def circuit(values):  # type: ignore[no-untyped-def]
        for name, qubits, parameter in gates(filter):
            if parameter is None:
                qml.CNOT(wires=qubits)
            else:
                kinds[name](values[parameter], wires=qubits)
        return [qml.expval(qml.PauliZ(i)) for i in range(n)]

    return differentiated(lambda x, w: torch.stack(circuit(named(filter, x, w)), dim=1))


def pyqtorch(filter: Filter) -> Contestant:
    import pyqtorch as pyq

    n = filter.circuit.num_qubits
    kinds = {"crz": pyq.CRZ, "crx": pyq.CRX}
    operations = []
    for name, qubits, parameter in gates(filter):
        if name == "rx":
            operations.append(pyq.RX(qubits[0], parameter))
        elif name == "cx":
            operations.append(pyq.CNOT(*qubits))
        else:
            operations.append(kinds[name](*qubits, parameter))
    circuit = pyq.QuantumCircuit(n, operations).to(dtype=torch.complex64)
    signs = torch.tensor([[1 - 2 * (k >> (n - 1 - i) & 1) for k in range(2**n)] for i in range(n)])

    def run(x: Tensor, w: Tensor) -> Tensor:
        state = pyq.zero_state(n, batch_size=len(x), dtype=torch.complex64)
        state = circuit.run(state, named(filter, x, w)).reshape(2**n, len(x))
        return (signs.float() @ state.abs().square()).T

    return differentiated(run)


def deepquantum(filter: Filter) -> Contestant:
    import deepquantum as dq

    n = filter.circuit.num_qubits

    def run(x: Tensor, w: Tensor) -> Tensor:
        # Inputs and weights are both passed as data, the only batched input.
        circuit = dq.QubitCircuit(n)
        columns = []
        values = named(filter, x, w)
        for name, qubits, parameter in gates(filter):
            if parameter is None:
                circuit.cnot(*qubits)
                continue
            getattr(circuit, name)(*qubits, encode=True)
            columns.append(values[parameter].expand(len(x)))
        for qubit in range(n):
            circuit.observable(wires=qubit, basis="z")
        circuit(data=torch.stack(columns, dim=1))
        return circuit.expectation()

    return differentiated(run)


def qulacs(filter: Filter) -> Contestant:
    from qulacs import GeneralQuantumOperator, ParametricQuantumCircuit, QuantumState

    n = filter.circuit.num_qubits
    circuit = ParametricQuantumCircuit(n)
    sources: list[tuple[str, float]] = []

    def rotation(axis: str, qubit: int, parameter: str, scale: float) -> None:
        getattr(circuit, f"add_parametric_{axis}_gate")(qubit, 0.0)
        # qulacs rotates the other way round: exp(+i angle P / 2).
        sources.append((parameter, -scale))

    for name, qubits, parameter in gates(filter):
        if name == "rx":
            rotation("RX", qubits[0], parameter or "", 1.0)
        elif name == "cx":
            circuit.add_CNOT_gate(*qubits)
        else:
            # A controlled rotation is two halves around a CNOT; for X, in the Hadamard frame.
            control, target = qubits
            if name == "crx":
                circuit.add_H_gate(target)
            rotation("RZ", target, parameter or "", 0.5)
            circuit.add_CNOT_gate(control, target)
            rotation("RZ", target, parameter or "", -0.5)
            circuit.add_CNOT_gate(control, target)
            if name == "crx":
                circuit.add_H_gate(target)
    position = {p.name: i for i, p in enumerate((*filter.inputs, *filter.weights))}
    columns = torch.tensor([position[name] for name, _ in sources])
    scales = torch.tensor([scale for _, scale in sources], dtype=torch.float64)

    def run(x: Tensor, w: Tensor, g: Tensor) -> Result:
        values, flat = [], torch.zeros(len(x), len(position), dtype=torch.float64)
        for b in range(len(x)):
            angles = torch.cat([x[b], w]).double()[columns] * scales
            for k, angle in enumerate(angles.tolist()):
                circuit.set_parameter(k, angle)
            observable = GeneralQuantumOperator(n)
            for i in range(n):
                observable.add_operator(float(g[b, i]), f"Z {i}")
            gradient = torch.tensor(circuit.backprop(observable), dtype=torch.float64)
            flat[b].index_add_(0, columns, gradient * scales)
            state = QuantumState(n)
            circuit.update_quantum_state(state)
            zeros = [state.get_zero_probability(i) for i in range(n)]
            values.append(torch.tensor([2 * p - 1 for p in zeros], dtype=torch.float64))
        split = len(filter.inputs)
        return torch.stack(values), flat[:, :split], flat[:, split:].sum(0)

    return run


def named(filter: Filter, x: Tensor, w: Tensor) -> dict[str, Tensor]:
    inputs = {p.name: x[:, i] for i, p in enumerate(filter.inputs)}
    return inputs | {p.name: w[i] for i, p in enumerate(filter.weights)}


PEERS = {"pennylane": pennylane, "pyqtorch": pyqtorch, "deepquantum": deepquantum, "qulacs": qulacs}


def numbers(filter: Filter, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(batch, len(filter.inputs), generator=random)
    w = torch.rand(len(filter.weights), generator=random) * 6
    return x, w, torch.randn(batch, len(filter.observables), generator=random)


def compare(batch: int, rounds: int, peer_rounds: int) -> None:
    """Print the median time of each contestant, and its multiple of the network method's."""
    print(f"forward + backward, batch {batch}, 12 qubits, 3 layers, float32 (qulacs: float64)")
    print(f"{'':<10}{'':<20}{'ms':>10}{'x':>10}{'error':>10}")
    for ansatz in ("fqconv", "hqconv"):
        filter = build_filter(ansatz, qubits=12, layers=3)
        x, w, g = numbers(filter, batch)
        field = {
            "exact": engine(filter, "exact"),
            "exact:statevector": engine(filter, "exact:statevector"),
        }
        field |= {name: make(filter) for name, make in PEERS.items() if find_spec(name)}
        reference = engine(filter, "exact:statevector")(x.double(), w.double(), g.double())
        times: dict[str, list[float]] = {name: [] for name in field}
        errors = {}
        for round_ in range(rounds):
            for name, run in field.items():
                if name in PEERS and round_ >= peer_rounds:
                    continue
                start = time.perf_counter()
                result = run(x, w, g)
                times[name].append(time.perf_counter() - start)
                errors[name] = max(
                    float((a.double() - b).abs().max() / b.abs().max())
                    for a, b in zip(result, reference, strict=True)
                )
        best = statistics.median(times["exact"][1:])
        for name, seconds in times.items():
            median = statistics.median(seconds[1:] or seconds)
            print(
                f"{ansatz:<10}{name:<20}{1e3 * median:>10.1f}{median / best:>10.1f}"
                f"{errors[name]:>10.0e}",
                flush=True,
            )


def stock(layers: int = 3) -> None:
    """Qiskit's EstimatorQNN with the parameter-shift rule, for one sample."""
    from qhdm.quantum.connector import FilterQNN

    for ansatz in ("fqconv", "hqconv"):
        filter = build_filter(ansatz, qubits=12, layers=layers)
        network = FilterQNN(filter)
        x, w, _ = numbers(filter, 1)
        start = time.perf_counter()
        network.forward(x.numpy(), w.numpy())
        network.backward(x.numpy(), w.numpy())
        seconds = time.perf_counter() - start
        print(f"{ansatz:<10}stock EstimatorQNN, one sample: {seconds:.1f} s", flush=True)


def one(ansatz: str, qubits: int, layers: int, batch: int) -> None:
    """Median time and peak memory of one size, in a separate process."""
    filter = build_filter(ansatz, qubits=qubits, layers=layers)
    x, w, g = numbers(filter, batch)
    run = engine(filter, "exact")
    run(x[:1], w, g[:1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(7):
        start = time.perf_counter()
        run(x, w, g)
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(
        f"{ansatz:<8}{qubits:>7}{layers:>7}{batch:>7}{1e3 * statistics.median(times[1:]):>10.1f}"
        f"{peak / 1024:>10.0f}",
        flush=True,
    )


def sweep(picture: Path | None) -> None:
    """Time and memory against batch, qubits and layers."""
    print(f"{'ansatz':<8}{'qubits':>7}{'layers':>7}{'batch':>7}{'ms':>10}{'MiB':>10}", flush=True)
    sizes = [(a, 12, 3, b) for a in ("fqconv", "hqconv") for b in (1, 64, 512, 2048, 16384)]
    sizes += [("hqconv", n, 3, 512) for n in (4, 8, 16)] + [
        ("basic", n, 3, 512) for n in (4, 8, 12)
    ]
    sizes += [("hqconv", 12, layers, 512) for layers in (1, 2, 4, 5, 6)]
    rows = []
    for size in sizes:
        command = [sys.executable, __file__, "--one", *map(str, size)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(done.stdout, end="", flush=True)
        rows.append(done.stdout.split())
    if picture:
        plot(rows, picture)


def plot(rows: list[list[str]], picture: Path) -> None:
    """Time against batch, from the rows of a sweep."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for ansatz in ("fqconv", "hqconv"):
        points = [
            (int(batch), float(ms))
            for name, qubits, layers, batch, ms, _ in rows
            if (name, qubits, layers) == (ansatz, "12", "3")
        ]
        axes.loglog(*zip(*sorted(points), strict=True), "o-", label=ansatz)
    axes.set(xlabel="batch", ylabel="forward + backward, ms", title="12 qubits, 3 layers, float32")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peer-rounds", type=int, default=2)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="with --sweep: also a picture")
    parser.add_argument("--stock", action="store_true", help="EstimatorQNN (takes minutes)")
    parser.add_argument("--one", nargs=4, metavar=("ANSATZ", "QUBITS", "LAYERS", "BATCH"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.one:
        one(arguments.one[0], *map(int, arguments.one[1:]))
    elif arguments.sweep:
        sweep(arguments.plot)
    elif arguments.stock:
        stock()
    else:
        compare(arguments.batch, arguments.rounds, arguments.peer_rounds)


if __name__ == "__main__":
    main()
