"""Packing copies of a filter on a chip: mixed-integer programme against best first.

    python benchmarks/packing.py

Best first takes, copy by copy, the best free region for each component of a filter. The number of
copies and their expected error are compared over the fake devices of at least 27 qubits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from qhdm.errors import HardwareError
from qhdm.hardware.compilation import Compiler
from qhdm.hardware.packing import Region, pack, regions_of
from qhdm.quantum import build_filter
from qhdm.quantum.devices.calibration import named_devices

Copies = Sequence[Sequence[Region]]
COUNTS = ("auto", 2, 4, 8)


def best_first(places: Sequence[Sequence[Region]], most: int) -> Copies:
    taken: set[int] = set()
    copies: list[list[Region]] = []
    while len(copies) < most:
        copy: list[Region] = []
        for regions in places:
            region = next((r for r in regions if taken.isdisjoint(r.qubits)), None)
            if region is None:
                return copies
            copy.append(region)
            taken.update(region.qubits)
        copies.append(copy)
    return copies


def error(copies: Copies) -> float:
    """Error of one copy: minus the logarithm of the probability that nothing fails."""
    return sum(region.cost for copy in copies for region in copy) / len(copies)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    fit = {count: [0, 0] for count in COUNTS}
    ratios: dict[object, list[float]] = {count: [] for count in COUNTS}
    cases = dict.fromkeys(COUNTS, 0)
    for kind in named_devices().values():
        target = kind().target
        if target.num_qubits < 27:
            continue
        for name in ("hqconv", "fqconv", "basic"):
            filter = build_filter(name, layers=1)
            weights = np.linspace(0.1, 2, len(filter.weights))
            values = dict(zip(filter.weights, weights, strict=True))
            try:
                laid_out = Compiler(target, seed=0).lay_out(
                    filter.circuit.assign_parameters(values)
                )
                circuits = [one.circuit for one in laid_out]
                places = [regions_of(circuit, target) for circuit in circuits]
                for count in COUNTS:
                    most = 1000 if count == "auto" else count
                    exact = pack(circuits, target, packing=count, most=most)
                    good = places
                    if count == "auto":  # as `pack` does
                        good = [[r for r in p if r.cost <= 2 * p[0].cost] for p in places]
                    greedy = best_first(good, most)
                    cases[count] += 1
                    fit[count][0] += len(exact)
                    fit[count][1] += len(greedy)
                    if len(greedy) == len(exact):
                        ratios[count].append(error(greedy) / error(exact))
            except HardwareError:
                continue  # the filter, or so many copies, do not fit this device
    print(
        f"{'copies':<8}{'cases':>6}{'programme':>11}{'best first':>12}{'fewer in':>10}{'error':>8}"
    )
    for count in COUNTS:
        fewer, mean = cases[count] - len(ratios[count]), np.mean(ratios[count])
        print(
            f"{count!s:<8}{cases[count]:>6}{fit[count][0]:>11}{fit[count][1]:>12}{fewer:>10}"
            f"{100 * (mean - 1):>+7.1f}%"
        )


if __name__ == "__main__":
    main()
