"""`qhdm compare`: train and evaluate a grid of variants and seeds, and test for differences."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from qhdm import console
from qhdm.commands.arguments import add_set, positive
from qhdm.errors import ComparisonError, Interrupted, QhdmError

if TYPE_CHECKING:
    from qhdm.comparison.cells import Cell
    from qhdm.comparison.execution import Executor
    from qhdm.comparison.results import Results


def add(commands: argparse._SubParsersAction) -> None:
    """Make the parser of `compare`."""
    compare = commands.add_parser(
        "compare", help="train and evaluate variants over seeds; means, intervals, paired tests"
    )
    compare.add_argument(
        "spec",
        type=Path,
        metavar="SPEC",
        help="a comparison (YAML file), or the name of a shipped one, as ablation",
    )
    compare.add_argument(
        "--out", type=Path, metavar="DIR", help="its directory (default: comparisons/<name>)"
    )
    add_set(
        compare, "change the comparison (seeds=[0]), or a setting of all cells (train.steps=100)"
    )
    compare.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="cells to run at a time (default: one per core; one on CUDA)",
    )
    compare.add_argument(
        "--executor",
        choices=["local", "ray"],
        default="local",
        help="where cells run: on this machine, or on a running Ray cluster (default: local)",
    )
    compare.add_argument(
        "--only", nargs="+", action="extend", metavar="VARIANT", help="restrict to these variants"
    )
    instead = compare.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run", action="store_true", help="print cells, parameters and estimated time"
    )
    instead.add_argument(
        "--power",
        action="store_true",
        help="plant effects in trained cells (of --only VARIANT): what do so many seeds find?",
    )
    compare.set_defaults(command=_compare)


def _compare(arguments: argparse.Namespace) -> None:
    from qhdm.comparison.spec import load_grid, variant_settings

    grid = load_grid(arguments.spec, arguments.set)
    spec = grid.specification
    for name in arguments.only or ():
        if name not in spec.variants:
            raise ComparisonError(
                f"--only: no variant {name}; there are {', '.join(spec.variants)}"
            )

    # Only now the heavy imports: bad input is refused at once.
    from qhdm.comparison.cells import cells_of
    from qhdm.comparison.plan import describe_plan, parameters_of, prepare
    from qhdm.comparison.results import collect
    from qhdm.comparison.runner import jobs_of, run_cells
    from qhdm.schema import write_record

    folder = arguments.out or Path("comparisons") / spec.name
    cells = cells_of(grid, folder)
    if arguments.power:
        from qhdm.comparison.power import measure_power
        from qhdm.files import write_text

        report = measure_power(cells, arguments.only or ())
        write_text(folder / "power.md", report)
        print(f"{report}\npower: {folder / 'power.md'}")
        return
    parameters = parameters_of(cells)
    chosen = [cell for cell in cells if cell.variant in (arguments.only or spec.variants)]
    executor = _executor(arguments, cells)
    if arguments.dry_run:
        print(describe_plan(spec, chosen, parameters, executor))
        return
    names = {cell.name for cell in chosen}
    left = {name: job for name, job in jobs_of(cells, folder).items() if name in names}
    prepare([cell for cell in chosen if cell.name in left])

    def save_results() -> Results:
        results = collect(spec, cells, folder, parameters)
        write_record(results, folder / "results.json")
        return results

    def on_end() -> None:
        # The results so far, should this process be killed. A cell whose files cannot be used must
        # not end the others; it is refused below, when all have ended.
        with suppress(QhdmError):
            save_results()

    grid.save(folder)
    print(f"comparison: {folder} ({len(left)} of {len(chosen)} cells to do, {executor})")
    sys.stdout.flush()
    failures, interrupted = run_cells(chosen, left, executor, on_end=on_end)
    for name, reason in failures.items():
        console.message(f"cell {name}: {reason}")
    settings = {variant: variant_settings(spec, variant) for variant in spec.variants}
    _show(save_results(), settings, folder)
    if interrupted:
        finished = len(chosen) - len(jobs_of(chosen, folder))
        raise Interrupted(
            f"interrupted: {finished} of {len(chosen)} cells are done, the others saved; resume "
            f"with `{_again(arguments)}`"
        )
    if failures:
        raise ComparisonError(
            f"{len(failures)} of {len(chosen)} cells failed (logs in {folder / 'logs'}); "
            f"fix the cause and resume with `{_again(arguments)}`"
        )


def _executor(arguments: argparse.Namespace, cells: list[Cell]) -> Executor:
    if arguments.executor == "ray":
        print("connecting to the Ray cluster", flush=True)
        from qhdm.comparison.cluster import RayExecutor

        gpu = any(cell.config.train.device != "cpu" for cell in cells)
        return RayExecutor(arguments.jobs, gpu=gpu)
    from qhdm.comparison.execution import LocalExecutor
    from qhdm.comparison.runner import default_jobs

    return LocalExecutor(arguments.jobs or default_jobs(cells))


def _show(results: Results, settings: Mapping[str, str], folder: Path) -> None:
    from qhdm.comparison.table import describe
    from qhdm.files import write_text

    write_text(folder / "results.md", describe(results, settings, all_settings=True))
    print("\n" + describe(results, settings, all_settings=False))
    print(f"results: {folder / 'results.json'}, {folder / 'results.md'}")
    if results.inference and results.data:
        from qhdm.report.charts import plot_inference

        title = f"{results.name}: engines at inference ({results.data.name})"
        plot_inference(folder / "inference.png", title, results.inference)
        print(f"engines at inference: {folder / 'inference.png'}")


def _again(arguments: argparse.Namespace) -> str:
    """The command that resumes the comparison."""
    words = ["qhdm", "compare", str(arguments.spec)]
    if arguments.out:
        words += ["--out", str(arguments.out)]
    for setting in arguments.set:
        words += ["--set", setting]
    if arguments.jobs:
        words += ["--jobs", str(arguments.jobs)]
    if arguments.executor != "local":
        words += ["--executor", arguments.executor]
    if arguments.only:
        words += ["--only", *arguments.only]
    return shlex.join(words)
