"""`qhdm report`: write the HTML page of a run or comparison."""

from __future__ import annotations

import argparse
from pathlib import Path

from qhdm import console
from qhdm.commands.arguments import RUN, add_force, check_new
from qhdm.shipped import results_path, run_path


def add(commands: argparse._SubParsersAction) -> None:
    """Add the `report` subcommand."""
    report = commands.add_parser("report", help="write a run or comparison as one HTML page")
    report.add_argument(
        "path",
        type=Path,
        metavar="RUN|COMPARISON",
        help=f"{RUN}; or the directory of a comparison",
    )
    report.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (default: report.html in the directory)"
    )
    add_force(report)
    report.set_defaults(command=_report)


def _report(arguments: argparse.Namespace) -> None:
    path = run_path(arguments.path)
    # The page in the directory is replaced each time; any other file is the user's.
    out = arguments.out or results_path(path) / "report.html"
    check_new("--out", out, force=arguments.force or arguments.out is None)
    from qhdm.runs.config import config_path

    if (path / "comparison.yaml").is_file():
        from qhdm.report.comparison import write_comparison_page as write_page
    else:
        config_path(path)  # refused before the heavy imports
        from qhdm.report.run import write_run_page as write_page

    for line in write_page(path, out):
        console.message(f"qhdm: {line}")
    print(f"report: {out}")
