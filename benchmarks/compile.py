"""Two-qubit gates and errors of filters under gate noise, compiled and not.

    python benchmarks/compile.py --run RUN --devices fake_fez fake_boston fake_miami

For trained filters of a run and for random ones: two-qubit gates and depth of a component, the
noiseless root-mean-square error of <Z>, and the errors of <Z> that the gate errors of the devices
cause (density matrices, without readout and shots) on each component's best qubits. `measured` is
the error of the first filter on the simulated device, with shots and readout, which is divided out.
Rows of `rzz` are of fractional gates, which are assumed to err as the device's CZ and SX do.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import torch
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.circuit.library import RXGate, RZZGate

from qhdm.hardware.compilation import Compiler
from qhdm.hardware.isa import IsaCache
from qhdm.hardware.runtime import Device, find_backend, snapshot
from qhdm.hardware.runtime.device import device_of
from qhdm.hardware.simulator import DeviceSimulator
from qhdm.models.named_filters import named_filters
from qhdm.quantum import Filter, build_filter, expectation
from qhdm.quantum.options import Compile
from qhdm.run import load_model

#: Random inputs of the simulated filter.
_ROWS = 64
MODES: tuple[Compile, ...] = ("off", "exact", "approximate")


Bound = tuple[Filter, np.ndarray]


def random_filters(count: int) -> list[Bound]:
    fqconv, random = build_filter("fqconv"), np.random.default_rng(0)
    return [(fqconv, random.uniform(0, 2 * np.pi, len(fqconv.weights))) for _ in range(count)]


def trained_filters(run: Path, count: int) -> list[Bound]:
    model, _ = load_model(run, weights="ema")
    placed = named_filters(model)
    return [(item.filter, item.weights) for item in placed[:: max(1, len(placed) // count)][:count]]


def fractional(name: str) -> Device:
    """A fake device with fractional gates instead of its own two-qubit gates."""
    backend, angle = find_backend(name), Parameter("angle")
    target = backend.target
    if "rzz" not in target.operation_names:
        target.add_instruction(RZZGate(angle), dict.fromkeys(target["cz"]))
        target.add_instruction(RXGate(angle), dict.fromkeys(target["sx"]))
    return device_of(name, backend, "snapshot", True)


def bound(circuit_filter: Filter, weights: np.ndarray) -> QuantumCircuit:
    return circuit_filter.circuit.assign_parameters(
        dict(zip(circuit_filter.weights, weights, strict=True))
    )


def measured_error(device: Device, item: Bound, mode: Compile, shots: int) -> float:
    """Of a filter on the simulated device, at random inputs."""
    circuit_filter, w = item
    cache = IsaCache(None, device.target, device=device.name, packing=1, seed=0,
                     compilation=mode, shots=shots)  # fmt: skip
    x = np.random.default_rng(0).uniform(0, 2 * np.pi, (_ROWS, len(circuit_filter.inputs)))
    isa = cache.get(bound(*item), circuit_filter.inputs, rows=_ROWS)
    simulator = DeviceSimulator(device.target, noisy=True)
    z = 1 - 2 * simulator.run(isa.circuit, isa.values(x), shots=shots, seed=1).mean(axis=1)
    empty = simulator.run(isa.readout(), np.empty((1, 0)), shots=16 * shots, seed=2)
    values = isa.rows(z, _ROWS) / (1 - 2 * empty.mean(axis=1))
    exact = expectation(circuit_filter, torch.as_tensor(x), torch.as_tensor(w)).numpy()
    return float(np.sqrt(np.mean((values - exact) ** 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a run with trained filters")
    parser.add_argument("--devices", nargs="+", default=["fake_fez", "fake_boston", "fake_miami"])
    parser.add_argument("--trained", type=int, default=5)
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--shots", type=int, default=4096)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    arguments = parser.parse_args()
    sets = {"random": random_filters(arguments.random)}
    if arguments.run:
        sets = {"trained": trained_filters(arguments.run, arguments.trained), **sets}
    print(
        f"{'device':<14}{'filters':<9}{'compile':<17}{'2q gates':>9}{'largest':>8}{'bias':>10}"
        f"{'rms error':>11}{'of off':>8}{'measured':>10}{'CPU s':>8}"
    )
    for name in arguments.devices:
        devices = {"": snapshot(name), " rzz": fractional(name)}
        for kind, filters in sets.items():
            plain = None
            for (gates_of, device), mode in itertools.product(devices.items(), arguments.modes):
                compiler = Compiler(device.target, seed=0, compilation=mode, shots=arguments.shots)
                began = time.process_time()
                parts = [part for item in filters for part in compiler.lay_out(bound(*item))]
                seconds = (time.process_time() - began) / len(parts)
                gates = [part.figures.gates for part in parts]
                bias = np.sqrt(np.mean([part.bias**2 for part in parts]))
                error = np.sqrt(np.mean([part.figures.error**2 for part in parts]))
                plain = error if plain is None else plain
                measured = measured_error(device, filters[0], mode, arguments.shots)
                print(
                    f"{name:<14}{kind:<9}{mode + gates_of:<17}{np.mean(gates):>9.1f}{max(gates):>8}"
                    f"{bias:>10.1e}{error:>11.4f}{error / plain:>8.2f}{measured:>10.4f}"
                    f"{seconds:>8.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
