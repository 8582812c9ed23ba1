"""`qhdm export`: write the trained filters of a run to files."""

from __future__ import annotations

import argparse
from pathlib import Path

from qhdm.commands.arguments import RUN, add_weights
from qhdm.shipped import run_name


def add(commands: argparse._SubParsersAction) -> None:
    """Add the `export` subcommand."""
    export = commands.add_parser(
        "export", help="write the trained filters of a run to circuit files"
    )
    export.add_argument("run", type=Path, metavar="RUN", help=RUN)
    export.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the folder to create"
    )
    export.add_argument(
        "--free-weights", action="store_true", help="leave the weights free, as the inputs are"
    )
    export.add_argument(
        "--inputs",
        metavar="FILE",
        help="also write OpenQASM 2, bound to these inputs: a .npy file of radians, or zeros",
    )
    export.add_argument(
        "--backend",
        metavar="NAME",
        help="also write ISA circuits for a device, for example fake_fez (a real one needs an "
        "account)",
    )
    export.add_argument(
        "--compile",
        choices=["exact", "off"],
        default="off",
        help="with --backend: exact writes ISA circuits of fewer gates with the same <Z> (default: "
        "off)",
    )
    export.add_argument(
        "--draw", action="store_true", help="draw the circuits: PNG files, and text on the terminal"
    )
    add_weights(export)
    export.set_defaults(command=_export)


def _export(arguments: argparse.Namespace) -> None:
    from qhdm.errors import ExportError
    from qhdm.export import Export, check_target, export, read_inputs
    from qhdm.models.named_filters import named_filters
    from qhdm.quantum.files.save import named_circuit
    from qhdm.report.circuits import draw_png, draw_text
    from qhdm.run import load_model
    from qhdm.runs.directory import versions

    check_target(arguments.out)
    compiling = arguments.compile == "exact"
    if compiling and (arguments.free_weights or not arguments.backend):
        raise ExportError("--compile exact: needs --backend, and bound weights")
    weights = arguments.weights or "ema"
    model, run = load_model(arguments.run, weights=weights)
    placed = named_filters(model)
    if not placed:
        raise ExportError(f"{arguments.run}: a {run.config.model.kind} has no quantum filters")
    inputs = None
    if arguments.inputs:
        inputs = read_inputs(arguments.inputs, len(placed[0].filter.inputs))
    backend = None
    if arguments.backend:
        from qhdm.hardware.runtime import find_backend

        backend = find_backend(arguments.backend)
    what = Export(
        source={
            "run": run_name(run.path.resolve()),
            "step": run.last_step(),
            "weights": weights,
            "versions": versions(),
        },
        free_weights=arguments.free_weights,
        inputs=inputs,
        backend=backend,
        compile=compiling,
        draw=draw_png if arguments.draw else None,
    )
    names = export(placed, arguments.out, what)
    if arguments.draw:
        for circuit_filter in dict.fromkeys(item.filter for item in placed):
            print(f"{circuit_filter.name}:\n{draw_text(named_circuit(circuit_filter))}\n")
    for item in placed:
        print(f"{item.name}: {item.filter.name}, filter {item.index} of {item.place}")
    print(f"{len(names)} files: {arguments.out}")
