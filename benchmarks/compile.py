"""Two-qubit gates and errors of filters under gate noise, compiled and not.

    python benchmarks/compile.py --run RUN --devices fake_fez fake_boston fake_miami

For trained filters of a run and for random ones: two-qubit gates and depth of a component, the
noiseless root-mean-square error of <Z>, and the errors of <Z> that the gate errors of the devices
cause (density matrices, without readout and shots) on each component's best qubits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from qiskit.circuit import QuantumCircuit

from qhdm.hardware.compilation import Compiler
from qhdm.hardware.runtime import snapshot
from qhdm.models.named_filters import named_filters
from qhdm.quantum import build_filter
from qhdm.run import load_model

MODES = ("off", "exact", "approximate")


def random_filters(count: int) -> Iterator[QuantumCircuit]:
    fqconv, random = build_filter("fqconv"), np.random.default_rng(0)
    for _ in range(count):
        weights = random.uniform(0, 2 * np.pi, len(fqconv.weights))
        yield fqconv.circuit.assign_parameters(dict(zip(fqconv.weights, weights, strict=True)))


def trained_filters(run: Path, count: int) -> Iterator[QuantumCircuit]:
    model, _ = load_model(run, weights="ema")
    placed = named_filters(model)
    for item in placed[:: max(1, len(placed) // count)][:count]:
        values = dict(zip(item.filter.weights, item.weights, strict=True))
        yield item.filter.circuit.assign_parameters(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a run with trained filters")
    parser.add_argument("--devices", nargs="+", default=["fake_fez", "fake_boston", "fake_miami"])
    parser.add_argument("--trained", type=int, default=5)
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--shots", type=int, default=4096)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    arguments = parser.parse_args()
    sets = {"random": list(random_filters(arguments.random))}
    if arguments.run:
        sets = {"trained": list(trained_filters(arguments.run, arguments.trained)), **sets}
    print(
        f"{'device':<14}{'filters':<9}{'compile':<13}{'2q gates':>9}{'largest':>8}{'bias':>10}"
        f"{'rms error':>11}{'of off':>8}{'CPU s':>8}"
    )
    for device in arguments.devices:
        target = snapshot(device).target
        for kind, circuits in sets.items():
            plain = None
            for mode in arguments.modes:
                compiler = Compiler(target, seed=0, compilation=mode, shots=arguments.shots)
                began = time.process_time()
                parts = [part for circuit in circuits for part in compiler.lay_out(circuit)]
                seconds = (time.process_time() - began) / len(parts)
                gates = [part.figures.gates for part in parts]
                bias = np.sqrt(np.mean([part.bias**2 for part in parts]))
                error = np.sqrt(np.mean([part.figures.error**2 for part in parts]))
                plain = error if plain is None else plain
                print(
                    f"{device:<14}{kind:<9}{mode:<13}{np.mean(gates):>9.1f}{max(gates):>8}"
                    f"{bias:>10.1e}{error:>11.4f}{error / plain:>8.2f}{seconds:>8.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
