"""`qhdm circuits`: what a filter is, built in, from a file or of a run."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qhdm import console
from qhdm.commands import verify
from qhdm.commands.arguments import add_force, check_new, natural, positive, several

if TYPE_CHECKING:
    from qiskit.providers import BackendV2

    from qhdm.quantum.analysis.expressibility import GradientVariance
    from qhdm.quantum.filter import Filter

#: Gradients are measured at 1 to so many layers.
_MOST_LAYERS = 5


def add(commands: argparse._SubParsersAction) -> None:
    """Add the verb to the parser."""
    circuits = commands.add_parser(
        "circuits", help="look at quantum filters, compare and write them"
    )
    kinds = circuits.add_subparsers(title="commands", metavar="COMMAND", required=True)

    inspect = kinds.add_parser("inspect", help="what a filter connects, and what simulating costs")
    inspect.add_argument(
        "target",
        metavar="NAME|FILE|RUN",
        help="an ansatz (hqconv), a circuit file (.qasm, .qpy), the name of a shipped one "
        "(reuploading) or a run directory",
    )
    _add_size(inspect)
    _add_audit(inspect)
    inspect.add_argument(
        "--plot", type=Path, metavar="FILE", help="where the picture of --measure goes (PNG)"
    )
    inspect.set_defaults(command=_inspect)

    compare = kinds.add_parser("compare", help="filters side by side")
    compare.add_argument(
        "targets", nargs="+", metavar="NAME|FILE", help="ansatz names and circuit files"
    )
    _add_size(compare)
    _add_audit(compare)
    compare.set_defaults(command=_compare)

    export = kinds.add_parser("export", help="write a filter, weights free, as a circuit file")
    export.add_argument("target", metavar="NAME|FILE", help="an ansatz or a circuit file")
    _add_size(export)
    export.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="ends in .qasm (OpenQASM 3) or .qpy"
    )
    add_force(export)
    export.set_defaults(command=_export)

    verify.add(kinds)


def _add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--qubits", type=positive, metavar="N", help="of an ansatz (12)")
    parser.add_argument("--layers", type=positive, metavar="L", help="of an ansatz (3)")


def _add_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend", metavar="NAME", help="also two-qubit gates and depth on a device: fake_fez"
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="also expressibility, entangling capability and gradient variance over random angles",
    )
    parser.add_argument(
        "--pairs",
        type=several,
        default=2000,
        metavar="N",
        help="of random states (2000)",
    )
    parser.add_argument(
        "--gradients",
        type=several,
        default=200,
        metavar="N",
        help="random gradients (200)",
    )
    parser.add_argument("--seed", type=natural, default=0, metavar="N")


@dataclass(frozen=True)
class _Target:
    """A filter to look at.

    Attributes:
        label: the place of a run, or its name.
        filter: the filter.
        family: the ansatz that other sizes of it can be built of; None for a file.
        layers: of the family; a file counts as one.
    """

    label: str
    filter: Filter
    family: str | None
    layers: int


def _find(name: str, arguments: argparse.Namespace) -> _Target:
    from qhdm.quantum.ansatz import ANSATZE
    from qhdm.quantum.files.load import find_filter

    filter = find_filter(name, qubits=arguments.qubits, layers=arguments.layers)
    family = name if name in ANSATZE else None
    return _Target(filter.name, filter, family, (arguments.layers or 3) if family else 1)


def _of_run(run: Path, arguments: argparse.Namespace) -> list[_Target]:
    """The distinct filters of a run."""
    from qhdm.config import is_circuit_file
    from qhdm.errors import CircuitError
    from qhdm.models.build import build_filters
    from qhdm.runs.config import load_run_config

    config = load_run_config(run)
    if arguments.qubits or arguments.layers:
        raise CircuitError(f"{run}: a run has the filters it has; give neither qubits nor layers")
    places: dict[Filter, list[str]] = {}
    for place, filter in build_filters(config).items():
        places.setdefault(filter, []).append(place)
    if not places:
        raise CircuitError(f"{run}: a {config.model.kind} has no quantum filters")
    targets = []
    for filter, names in places.items():
        place = getattr(config.quantum, names[0])
        family = None if is_circuit_file(place.ansatz) else place.ansatz
        label = f"{' and '.join(names)}: "
        targets.append(_Target(label, filter, family, place.layers or 1))
    return targets


def _inspect(arguments: argparse.Namespace) -> None:
    from qhdm.errors import CircuitError
    from qhdm.quantum.analysis.audit import audit, device_costs
    from qhdm.quantum.analysis.text import describe, describe_device

    run = Path(arguments.target)
    targets = _of_run(run, arguments) if run.is_dir() else [_find(arguments.target, arguments)]
    if arguments.plot and not arguments.measure:
        raise CircuitError("--plot: draws what --measure finds; give both")
    if arguments.plot and len(targets) > 1:
        raise CircuitError(f"--plot: {run} has several filters; leave it out")
    backend = _backend(arguments)
    for number, target in enumerate(targets):
        if number:
            print()
        if run.is_dir():
            print(target.label.removesuffix(": "))
        facts = audit(target.filter)
        print(describe(facts))
        if backend:
            print(describe_device(str(backend.name), device_costs(facts, backend)))
        if arguments.measure:
            plot = arguments.plot or Path(f"{target.filter.name}_measures.png")
            _measure(target, arguments, plot)


def _measure(target: _Target, arguments: argparse.Namespace, plot: Path) -> None:
    from qhdm.quantum.analysis.expressibility import gradient_variance, measure
    from qhdm.quantum.analysis.text import describe_gradients, describe_measures
    from qhdm.report.charts import plot_measures

    filter = target.filter
    found = measure(filter, pairs=arguments.pairs, seed=arguments.seed, progress=True)
    print(describe_measures(found))
    sizes = _sizes(target)
    variances: dict[tuple[int, int], GradientVariance] = {}
    for size in console.bar(sizes, desc="gradients", unit="circuit", in_logs=False):
        at = sizes[size]
        variance = gradient_variance(at, samples=arguments.gradients, seed=arguments.seed)
        if variance.weights:  # a size at which no output sees a weight has no gradients
            variances[size] = variance
    n, layers = filter.circuit.num_qubits, target.layers
    print(f"gradients over {arguments.gradients} random inputs and weights:")
    for size, variance in variances.items():
        label = f"{size[0]} qubits, {size[1]} layers" if target.family else filter.name
        print(describe_gradients(label, variance))
    plot_measures(
        plot,
        filter.name,
        found,
        by_layers={depth: v for (q, depth), v in variances.items() if q == n},
        by_qubits={q: v for (q, depth), v in variances.items() if depth == layers},
    )
    print(f"picture: {plot}")


def _sizes(target: _Target) -> dict[tuple[int, int], Filter]:
    """Filters of a family by (qubits, layers): of fewer layers, and of other numbers of qubits."""
    from qhdm.quantum.ansatz import ANSATZE
    from qhdm.quantum.filter import build_filter

    n, layers = target.filter.circuit.num_qubits, target.layers
    if target.family is None:
        return {(n, layers): target.filter}
    divisor = ANSATZE[target.family].divisor
    depths = [(n, depth) for depth in range(1, max(layers, _MOST_LAYERS) + 1)]
    widths = [(q, layers) for q in range(divisor, max(n, 2 * divisor) + 1, divisor)]
    return {
        size: build_filter(target.family, qubits=size[0], layers=size[1])
        for size in dict.fromkeys(depths + widths)
    }


def _compare(arguments: argparse.Namespace) -> None:
    from qhdm.quantum.analysis.audit import audit, device_costs
    from qhdm.quantum.analysis.expressibility import gradient_variance, measure
    from qhdm.quantum.analysis.text import compare, summary
    from qhdm.quantum.ansatz import ANSATZE

    backend = _backend(arguments)
    # All are found before any is measured: a bad name is refused at once.
    filters = [
        _find(name, arguments if name in ANSATZE else _NO_SIZE).filter for name in arguments.targets
    ]
    columns = []
    for filter in filters:
        facts = audit(filter)
        device = (str(backend.name), device_costs(facts, backend)) if backend else None
        measures = gradients = None
        if arguments.measure:
            measures = measure(filter, pairs=arguments.pairs, seed=arguments.seed, progress=True)
            gradients = gradient_variance(filter, samples=arguments.gradients, seed=arguments.seed)
        columns.append(summary(facts, device=device, measures=measures, gradients=gradients))
    print(compare(columns))


#: Sizes given to `compare` are those of the families; files have their own.
_NO_SIZE = argparse.Namespace(qubits=None, layers=None)


def _backend(arguments: argparse.Namespace) -> BackendV2 | None:
    if not arguments.backend:
        return None
    from qhdm.hardware.runtime import find_backend

    return find_backend(arguments.backend)


def _export(arguments: argparse.Namespace) -> None:
    from qhdm.config import is_circuit_file
    from qhdm.errors import ExportError
    from qhdm.quantum.files.save import write_filter

    if not is_circuit_file(str(arguments.out)):
        raise ExportError(f"--out: {arguments.out} must end in .qasm (OpenQASM 3) or .qpy")
    check_new("--out", arguments.out, force=arguments.force)
    filter = _find(arguments.target, arguments).filter
    write_filter(filter, arguments.out)
    print(f"{filter.name}: {arguments.out}")
