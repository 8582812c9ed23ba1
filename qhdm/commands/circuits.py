"""`qhdm circuits`: inspect, compare, verify and export filters."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qhdm import console
from qhdm.commands.arguments import add_force, check_new, natural, positive, several
from qhdm.shipped import run_path

if TYPE_CHECKING:
    from qiskit.providers import BackendV2

    from qhdm.quantum.analysis.expressibility import GradientVariance
    from qhdm.quantum.filter import Filter

#: Gradients are measured at 1 to so many layers.
_MOST_LAYERS = 5


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    circuits = commands.add_parser("circuits", help="inspect, compare, verify and export filters")
    verbs = circuits.add_subparsers(title="commands", metavar="COMMAND", required=True)

    inspect = verbs.add_parser(
        "inspect", help="what a filter connects and what simulating it costs"
    )
    inspect.add_argument(
        "target",
        metavar="NAME|FILE|RUN",
        help="an ansatz (hqconv), a circuit file (.qasm, .qpy), the name of a shipped one "
        "(reuploading), a run directory or the name of a shipped model (eurosat)",
    )
    _add_size(inspect)
    _add_audit(inspect)
    inspect.add_argument(
        "--plot", type=Path, metavar="FILE", help="file of the picture of --measure (PNG)"
    )
    inspect.set_defaults(command=_inspect)

    compare = verbs.add_parser("compare", help="filters side by side")
    compare.add_argument(
        "targets", nargs="+", metavar="NAME|FILE", help="ansatz names and circuit files"
    )
    _add_size(compare)
    _add_audit(compare)
    compare.set_defaults(command=_compare)

    export = verbs.add_parser("export", help="write a filter with free weights as a circuit file")
    _add_target(export)
    export.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="ends in .qasm (OpenQASM 3) or .qpy"
    )
    add_force(export)
    export.set_defaults(command=_export)

    verify = verbs.add_parser("verify", help="check that engines agree in values and gradients")
    _add_target(verify)
    verify.add_argument(
        "--engines",
        default="exact,aer,statevector",
        metavar="NAMES",
        help="two or more, separated by commas; statevector is Qiskit's own, the reference "
        "(default: %(default)s)",
    )
    verify.add_argument(
        "--batch", type=positive, default=2, metavar="N", help="random samples (default: 2)"
    )
    verify.add_argument("--seed", type=natural, default=0, metavar="N", help="default: 0")
    verify.set_defaults(command=_verify)


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="NAME|FILE", help="an ansatz or a circuit file")
    _add_size(parser)


def _add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--qubits", type=positive, metavar="N", help="qubits of a built-in family (default: 12)"
    )
    parser.add_argument(
        "--layers", type=positive, metavar="L", help="layers of a built-in family (default: 3)"
    )


def _add_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend", metavar="NAME", help="also two-qubit gates and depth on a device, as fake_fez"
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
        help="random pairs of states of --measure (default: 2000)",
    )
    parser.add_argument(
        "--gradients",
        type=several,
        default=200,
        metavar="N",
        help="random gradients of --measure (default: 200)",
    )
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="default: 0")


@dataclass(frozen=True)
class _Target:
    """A filter to inspect.

    Attributes:
        filter: the filter.
        family: the ansatz of which other sizes can be built; None for a file.
        layers: of the family; a file counts as one.
        places: its places in a run.
    """

    filter: Filter
    family: str | None
    layers: int
    places: tuple[str, ...] = ()


def _find(name: str, arguments: argparse.Namespace) -> _Target:
    from qhdm.quantum.ansatz import ANSATZE
    from qhdm.quantum.files.load import find_filter

    circuit_filter = find_filter(name, qubits=arguments.qubits, layers=arguments.layers)
    if name in ANSATZE:
        return _Target(circuit_filter, name, arguments.layers or 3)
    return _Target(circuit_filter, None, 1)


def _of_run(run: Path, arguments: argparse.Namespace) -> list[_Target]:
    """The distinct filters of a run."""
    from qhdm.config import is_circuit_file
    from qhdm.errors import CircuitError
    from qhdm.models.filters import build_filters
    from qhdm.runs.config import load_run_config

    config = load_run_config(run)
    if arguments.qubits or arguments.layers:
        raise CircuitError(f"{run}: a run has the filters it has; give neither qubits nor layers")
    places: dict[Filter, list[str]] = {}
    for place, circuit_filter in build_filters(config).items():
        places.setdefault(circuit_filter, []).append(place)
    if not places:
        raise CircuitError(f"{run}: a {config.model.kind} has no quantum filters")
    targets = []
    for circuit_filter, names in places.items():
        section = getattr(config.quantum, names[0])
        family = None if is_circuit_file(section.ansatz) else section.ansatz
        targets.append(_Target(circuit_filter, family, section.layers or 1, tuple(names)))
    return targets


def _inspect(arguments: argparse.Namespace) -> None:
    from qhdm.errors import CircuitError
    from qhdm.quantum.analysis.audit import audit, device_costs
    from qhdm.quantum.analysis.text import describe, describe_device

    run = run_path(arguments.target)
    targets = _of_run(run, arguments) if run.is_dir() else [_find(arguments.target, arguments)]
    if arguments.plot and not arguments.measure:
        raise CircuitError("--plot: draws the results of --measure; give both")
    if arguments.plot and len(targets) > 1:
        raise CircuitError(f"--plot: {run} has several filters; leave it out")
    backend = _backend(arguments)
    for number, target in enumerate(targets):
        if number:
            print()
        if target.places:
            print(" and ".join(target.places))
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

    circuit_filter = target.filter
    measures = measure(circuit_filter, pairs=arguments.pairs, seed=arguments.seed, progress=True)
    print(describe_measures(measures))
    variances: dict[tuple[int, int], GradientVariance] = {}
    for size, built in console.bar(
        _sizes(target).items(), desc="gradients", unit="circuit", in_logs=False
    ):
        variance = gradient_variance(built, samples=arguments.gradients, seed=arguments.seed)
        if variance.weights:  # a size at which no output sees a weight has no gradients
            variances[size] = variance
    n, layers = circuit_filter.circuit.num_qubits, target.layers
    print(f"gradients over {arguments.gradients} random inputs and weights:")
    for (qubits, depth), variance in variances.items():
        label = f"{qubits} qubits, {depth} layers" if target.family else circuit_filter.name
        print(describe_gradients(label, variance))
    plot_measures(
        plot,
        circuit_filter.name,
        measures,
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
    seed = arguments.seed
    for circuit_filter in filters:
        facts = audit(circuit_filter)
        device = (str(backend.name), device_costs(facts, backend)) if backend else None
        measures = gradients = None
        if arguments.measure:
            measures = measure(circuit_filter, pairs=arguments.pairs, seed=seed, progress=True)
            gradients = gradient_variance(circuit_filter, samples=arguments.gradients, seed=seed)
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
    circuit_filter = _find(arguments.target, arguments).filter
    write_filter(circuit_filter, arguments.out)
    print(f"{circuit_filter.name}: {arguments.out}")


def _verify(arguments: argparse.Namespace) -> None:
    from qhdm.errors import CircuitError
    from qhdm.quantum.analysis.cross_check import TOLERANCE, verify

    circuit_filter = _find(arguments.target, arguments).filter
    engines = [name.strip() for name in arguments.engines.split(",")]
    pairs = verify(
        circuit_filter, engines, batch=arguments.batch, seed=arguments.seed, progress=True
    )
    name = circuit_filter.name
    print(f"{name}: largest disagreement on {arguments.batch} random samples, float64")
    print(f"{'':<34}{'values':>10}{'gradients':>12}")
    for pair in pairs:
        print(f"{' and '.join(pair.engines):<34}{pair.values:>10.1e}{pair.gradients:>12.1e}")
    worst = max(pairs, key=lambda pair: pair.largest)
    if not worst.largest <= TOLERANCE:
        raise CircuitError(
            f"{name}: {' and '.join(worst.engines)} disagree by {worst.largest:.1e}, more than "
            f"{TOLERANCE:g}"
        )
    print(f"all within {TOLERANCE:g}")
