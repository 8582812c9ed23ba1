"""`qhdm circuits verify`: engines against each other on one filter."""

from __future__ import annotations

import argparse

from qhdm.commands.arguments import natural, positive
from qhdm.errors import CircuitError


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command to those of `qhdm circuits`."""
    verify = commands.add_parser("verify", help="whether engines agree in values and gradients")
    verify.add_argument("target", metavar="NAME|FILE", help="an ansatz or a circuit file")
    verify.add_argument("--qubits", type=positive, metavar="N", help="of an ansatz (12)")
    verify.add_argument("--layers", type=positive, metavar="L", help="of an ansatz (3)")
    verify.add_argument(
        "--engines",
        default="exact,aer,statevector",
        metavar="NAMES",
        help="two or more, with commas; statevector is Qiskit's own, the reference",
    )
    verify.add_argument("--batch", type=positive, default=2, metavar="N", help="random samples")
    verify.add_argument("--seed", type=natural, default=0, metavar="N")
    verify.set_defaults(command=_verify)


def _verify(arguments: argparse.Namespace) -> None:
    from qhdm.quantum.analysis.cross_check import TOLERANCE, verify
    from qhdm.quantum.files.load import find_filter

    filter = find_filter(arguments.target, qubits=arguments.qubits, layers=arguments.layers)
    engines = [name.strip() for name in arguments.engines.split(",")]
    found = verify(filter, engines, batch=arguments.batch, seed=arguments.seed, progress=True)
    print(f"{filter.name}: largest disagreement on {arguments.batch} random samples, float64")
    print(f"{'':<34}{'values':>10}{'gradients':>12}")
    for pair in found:
        print(f"{' and '.join(pair.engines):<34}{pair.values:>10.1e}{pair.gradients:>12.1e}")
    worst = max(found, key=lambda pair: pair.largest)
    if not worst.largest <= TOLERANCE:
        raise CircuitError(
            f"{filter.name}: {' and '.join(worst.engines)} disagree by {worst.largest:.1e}, "
            f"more than {TOLERANCE:g}"
        )
    print(f"all within {TOLERANCE:g}")
