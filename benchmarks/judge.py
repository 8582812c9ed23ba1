"""All that `qhdm evaluate` measures of a run, at several strengths of guidance and step counts.

    python benchmarks/judge.py RUN --data EuroSAT_RGB.zip
    python benchmarks/judge.py eurosat --data EuroSAT_RGB.zip --num 1000 --guidance 1 2 --steps 20

A row for each request, with both extractors that qhdm trains: without guidance at each number of
evaluations, and with each guidance above 1 at the run's own number, at all noise levels and on
`--interval` alone. The last row has real images in the place of generated ones. Before the table,
the first request in full: per class, with memorisation, CAS and augmentation gain. Interrupted,
the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses

import qhdm  # before torch, whose threads it tells how to wait

# isort: split
from recipe import EXTRACTORS

from qhdm.metrics.records import Evaluation, MetricName
from qhdm.metrics.settings import EvaluationSettings
from qhdm.metrics.tables import describe
from qhdm.runs.directory import RunDirectory
from qhdm.tables import Table, number

COLUMNS: tuple[MetricName, ...] = (
    "recall", "coverage", "FID", "KID", "precision", "density", "class accuracy"
)  # fmt: skip


def requests(arguments: argparse.Namespace, own_steps: int) -> dict[str, EvaluationSettings]:
    """The requests by their titles, the one of the run itself first."""
    plain = EvaluationSettings(num=arguments.num, steps=own_steps, guidance=1.0)
    asked = {f"{own_steps} evaluations": plain}
    for steps in arguments.steps:
        asked.setdefault(f"{steps} evaluations", dataclasses.replace(plain, steps=steps))
    for guidance in arguments.guidance:
        if guidance != 1:
            guided = dataclasses.replace(plain, guidance=guidance, guidance_interval=None)
            low, high = arguments.interval
            limited = dataclasses.replace(guided, guidance_interval=(low, high))
            asked[f"guidance {guidance:g}"] = guided
            asked[f"guidance {guidance:g} on [{low:g}, {high:g}]"] = limited
    return asked


def values(evaluation: Evaluation, *, floor: bool = False) -> list[str]:
    """The metrics against the test split, or their floors."""
    metrics = [evaluation.find(name, split="test") or evaluation.find(name) for name in COLUMNS]
    return [number(m and (m.floor if floor else m.value)) for m in metrics]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN", help="a run directory, or eurosat")
    parser.add_argument("--data", required=True, help="its data, as data.root")
    parser.add_argument("--num", type=int, default=2700, help="images to sample")
    parser.add_argument("--steps", type=int, nargs="*", default=[10, 50], metavar="N")
    parser.add_argument("--guidance", type=float, nargs="*", default=[1.5, 2, 3], metavar="S")
    parser.add_argument("--interval", type=float, nargs=2, default=[0.2, 2.0], metavar="SIGMA")
    arguments = parser.parse_args()
    config = RunDirectory.open(arguments.run).config
    real = dataclasses.replace(config.data, root=arguments.data)
    floors: list[str] = []
    rows, details = [], []
    for title, request in requests(arguments, config.sample.steps).items():
        row = [title]
        for extractor in EXTRACTORS:
            metrics = ("distances", "classes")
            if not rows:  # loss and utility, which need no features, once
                metrics = "all" if not details else (*metrics, "memorisation")
            settings = dataclasses.replace(request, extractor=extractor, metrics=metrics)
            evaluation = qhdm.evaluate(arguments.run, real, settings, progress=True)
            row += values(evaluation)
            if not rows:
                details.append(describe(evaluation))
                floors += values(evaluation, floor=True)
        rows.append(row)
    rows.append(["real", *floors])
    header = [f"{name} [{extractor}]" for extractor in EXTRACTORS for name in COLUMNS]
    print("\n\n".join([*details, Table(["request", *header], rows).markdown()]))


if __name__ == "__main__":
    main()
