"""One 12-qubit filter, forward and backward in inputs and weights: qhdm and its peers.

    python benchmarks/filters.py                 # the table of docs/performance.md
    python benchmarks/filters.py --sweep         # time and memory against batch, qubits, layers
    python benchmarks/filters.py --against REV   # ratios to another revision
    python benchmarks/filters.py --profile hqconv 12 4 512   # shares of torch's operators
    python benchmarks/filters.py --stock         # one sample through stock EstimatorQNN (minutes)

Every peer runs the same gates on the same numbers; errors are relative to float64. All figures are
CPU time of one thread: medians of rounds in which the contestants take turns. Peers come with
`pip install 'qhdm[bench]'`; those that are absent are left out.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from pathlib import Path

# One thread each for torch, qulacs and JAX; read when they are loaded.
os.environ |= {"OMP_NUM_THREADS": "1", "NPROC": "1"}
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"

import qhdm  # noqa: F401 - before torch, whose threads it tells how to wait

# isort: split
import torch
from peers import PEERS, contestants, engine
from torch import Tensor

from qhdm.quantum import Filter, build_filter

HERE = Path(__file__).parents[1]
#: Ansatz, qubits, layers and batch: what `--against` measures.
CASES = [(ansatz, 12, 3, batch) for ansatz in ("fqconv", "hqconv") for batch in (512, 2048, 16384)]
CASES += [
    ("hqconv", 12, 3, 1),
    ("hqconv", 12, 4, 512),
    ("hqconv", 12, 5, 512),
    ("basic", 12, 3, 512),
]


def numbers(circuit_filter: Filter, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(batch, len(circuit_filter.inputs), generator=random)
    w = torch.rand(len(circuit_filter.weights), generator=random) * 6
    return x, w, torch.randn(batch, len(circuit_filter.observables), generator=random)


def compare(batch: int, rounds: int, peer_rounds: int) -> None:
    """Print the median time of each contestant, and how much longer its first call takes."""
    print(f"forward + backward, batch {batch}, 12 qubits, 3 layers, float32 (qulacs: float64)")
    print(f"{'':<8}{'':<20}{'CPU ms':>10}{'x':>8}{'compile, CPU s':>16}{'error':>8}")
    for ansatz in ("fqconv", "hqconv"):
        circuit_filter = build_filter(ansatz, qubits=12, layers=3)
        x, w, g = numbers(circuit_filter, batch)
        field = contestants(circuit_filter)
        exact = engine(circuit_filter, "exact:statevector")
        reference = exact(x.double(), w.double(), g.double())
        times: dict[str, list[float]] = {name: [] for name in field}
        errors = dict.fromkeys(field, 0.0)
        for round_ in range(1 + rounds):
            for name, run in field.items():
                if name in PEERS and round_ > peer_rounds:
                    continue
                start = time.process_time()
                result = run(x, w, g)
                times[name].append(time.process_time() - start)
                for a, b in zip(result, reference, strict=True):
                    error = float((a.double() - b).abs().max() / b.abs().max())
                    errors[name] = max(errors[name], error)
        best = statistics.median(times["exact"][1:])
        for name, (first, *later) in times.items():
            median = statistics.median(later)
            print(
                f"{ansatz:<8}{name:<20}{1e3 * median:>10.1f}{median / best:>8.1f}"
                f"{first - median:>16.1f}{errors[name]:>8.0e}",
                flush=True,
            )


def stock(layers: int = 3) -> None:
    """Qiskit's EstimatorQNN with the parameter-shift rule, for one sample."""
    from qhdm.quantum.connector import FilterQNN

    for ansatz in ("fqconv", "hqconv"):
        circuit_filter = build_filter(ansatz, qubits=12, layers=layers)
        network = FilterQNN(circuit_filter)
        x, w, _ = numbers(circuit_filter, 1)
        start = time.perf_counter()
        network.forward(x.numpy(), w.numpy())
        network.backward(x.numpy(), w.numpy())
        seconds = time.perf_counter() - start
        print(f"{ansatz:<10}stock EstimatorQNN, one sample: {seconds:.1f} s", flush=True)


def one(ansatz: str, qubits: int, layers: int, batch: int) -> None:
    """Print time and growth of this process, in s and MiB, once for each line on stdin."""
    circuit_filter = build_filter(ansatz, qubits=qubits, layers=layers)
    x, w, g = numbers(circuit_filter, batch)
    run = engine(circuit_filter, "exact")
    run(x[:1], w, g[:1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(x, w, g)
    for _ in sys.stdin:
        start = time.process_time()
        run(x, w, g)
        seconds = time.process_time() - start
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(seconds, grown / 1024, flush=True)


def profile(ansatz: str, qubits: int, layers: int, batch: int) -> None:
    """Print each operator's share of the time of calls, and its largest shapes."""
    circuit_filter = build_filter(ansatz, qubits=qubits, layers=layers)
    numbers_, run = numbers(circuit_filter, batch), engine(circuit_filter, "exact")
    for _ in range(3):
        run(*numbers_)
    with torch.profiler.profile(record_shapes=True) as profiler:
        for _ in range(5):
            run(*numbers_)
    for by_shape in (False, True):
        averages = profiler.key_averages(group_by_input_shape=by_shape)
        print(averages.table(sort_by="self_cpu_time_total", row_limit=16))


def measure(
    size: tuple[str, int, int, int], checkouts: list[Path], rounds: int
) -> list[list[tuple[float, float]]]:
    """What `one` prints, each round in turn for each checkout, in a process of its own."""
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--one", *map(str, size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(checkout)},
        )
        for checkout in checkouts
    ]
    measured: list[list[tuple[float, float]]] = [[] for _ in checkouts]
    for _ in range(rounds):
        for process, results in zip(processes, measured, strict=True):
            assert process.stdin is not None
            assert process.stdout is not None
            print(file=process.stdin, flush=True)
            seconds, mebibytes = process.stdout.readline().split()
            results.append((float(seconds), float(mebibytes)))
    for process in processes:
        process.communicate()
    return measured


def against(revision: str, rounds: int) -> None:
    """Print medians of another revision and of this tree, and of their ratios in each round."""
    archive = ["git", "-C", str(HERE), "archive", revision]
    files = subprocess.run(archive, check=True, stdout=subprocess.PIPE).stdout
    print(f"{'ansatz':<8}{'layers':>7}{'batch':>7}{'before':>10}{'now':>10}{'ratio':>7}  CPU ms")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(files)) as tree:
            tree.extractall(folder, filter="data")
        for size in CASES:
            then, now = (
                [seconds for seconds, _ in results]
                for results in measure(size, [Path(folder), HERE], rounds)
            )
            before, after = 1e3 * statistics.median(then), 1e3 * statistics.median(now)
            ratio = statistics.median(b / a for a, b in zip(then, now, strict=True))
            print(
                f"{size[0]:<8}{size[2]:>7}{size[3]:>7}{before:>10.1f}{after:>10.1f}{ratio:>7.2f}",
                flush=True,
            )


def sweep(picture: Path | None) -> None:
    """Time and memory against batch, qubits and layers."""
    print(f"{'ansatz':<8}{'qubits':>7}{'layers':>7}{'batch':>7}{'CPU ms':>10}{'MiB':>10}")
    sizes = [(a, 12, 3, b) for a in ("fqconv", "hqconv") for b in (1, 64, 512, 2048, 16384)]
    sizes += [("hqconv", n, 3, 512) for n in (4, 8, 16)]
    sizes += [("basic", n, 3, 512) for n in (4, 8, 12)]
    sizes += [("hqconv", 12, layers, 512) for layers in (1, 2, 4, 5, 6)]
    times = {}
    for size in sizes:
        (results,) = measure(size, [HERE], 7)
        times[size] = 1e3 * statistics.median(seconds for seconds, _ in results)
        ansatz, qubits, layers, batch = size
        print(
            f"{ansatz:<8}{qubits:>7}{layers:>7}{batch:>7}{times[size]:>10.1f}"
            f"{results[-1][1]:>10.0f}",
            flush=True,
        )
    if picture:
        plot(times, picture)


def plot(times: dict[tuple[str, int, int, int], float], picture: Path) -> None:
    """Time against batch, from a sweep."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for ansatz in ("fqconv", "hqconv"):
        points = [(size[3], ms) for size, ms in times.items() if size[:3] == (ansatz, 12, 3)]
        axes.loglog(*zip(*sorted(points), strict=True), "o-", label=ansatz)
    axes.set(
        xlabel="batch", ylabel="forward + backward, CPU ms", title="12 qubits, 3 layers, float32"
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peer-rounds", type=int, default=2)
    parser.add_argument("--against", metavar="REV", help="a git revision")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="with --sweep: also a picture")
    parser.add_argument("--stock", action="store_true", help="EstimatorQNN (takes minutes)")
    size = ("ANSATZ", "QUBITS", "LAYERS", "BATCH")
    parser.add_argument("--one", nargs=4, metavar=size)
    parser.add_argument("--profile", nargs=4, metavar=size)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.one:
        one(arguments.one[0], *map(int, arguments.one[1:]))
    elif arguments.profile:
        profile(arguments.profile[0], *map(int, arguments.profile[1:]))
    elif arguments.against:
        against(arguments.against, arguments.rounds)
    elif arguments.sweep:
        sweep(arguments.plot)
    elif arguments.stock:
        stock()
    else:
        compare(arguments.batch, arguments.rounds, arguments.peer_rounds)


if __name__ == "__main__":
    main()
