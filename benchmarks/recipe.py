"""Published and recommended training for the same CPU time: what the images are worth.

    python benchmarks/recipe.py --data EuroSAT_RGB.zip --out runs/recipe
    python benchmarks/recipe.py --data EuroSAT_RGB.zip --recipes recommended --budgets 300 --seeds 0

Trains configs/eurosat.yaml (*recommended*), also without filters (*classical*), and
configs/published.yaml with batch 32 (*published*) on one thread for each budget of CPU seconds and
each seed, samples, and evaluates the images with both extractors that qhdm trains. The steps that
fit a budget come from a few steps, timed at the beginning; the table has the CPU time that training
took, without loading of the data. A published run, whose rate is constant, goes on from the next
shorter one. Interrupted, the same command goes on. `--gallery FILE` draws images of the first seed
side by side.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import qhdm  # before torch, whose threads it tells how to wait

# isort: split
import torch
from gallery import gallery

from qhdm import data
from qhdm.config import Config, load_config
from qhdm.files import write_text
from qhdm.metrics.records import Evaluation, MetricName
from qhdm.metrics.samples import sampled
from qhdm.metrics.settings import EvaluationSettings, Group, OwnExtractor
from qhdm.pictures import save_png
from qhdm.runs.directory import RunDirectory
from qhdm.tables import Table, number
from qhdm.training.trainer import Trainer

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = {
    "published": ("published.yaml", ["train.batch_size=32"]),
    "recommended": ("eurosat.yaml", []),
    "classical": ("eurosat.yaml", ["model.kind=unet"]),  # the recommended network without filters
}
COLUMNS: tuple[MetricName, ...] = ("recall", "coverage", "FID", "class accuracy")
EXTRACTORS: tuple[OwnExtractor, ...] = ("resnet", "classifier")


class Clock(qhdm.Callback):
    """CPU seconds of training up to each checkpoint, kept in a file for runs that go on."""

    def on_start(self, run: RunDirectory, step: int) -> None:
        self._path = run.path / "cpu_seconds.json"
        self._used = json.loads(self._path.read_text()) if self._path.exists() else {"0": 0.0}
        self._start = time.process_time() - self._used[str(step)]

    def on_checkpoint(self, step: int, path: Path) -> None:
        self._used[str(step)] = time.process_time() - self._start
        write_text(self._path, json.dumps(self._used))


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training: a recipe, a budget of CPU seconds, a seed; and the run that it goes on from."""

    recipe: str
    budget: int
    seed: int
    config: Config
    path: Path
    shorter: Path | None

    def train(self) -> None:
        """Train, or go on, or do nothing if it is done."""
        callbacks = [qhdm.ProgressBar(), Clock()]
        if self.shorter and not self.path.exists():
            part = self.path.with_name(f"{self.path.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(self.shorter, part, ignore=shutil.ignore_patterns("evaluations"))
            part.rename(self.path)
        if not self.path.exists():
            qhdm.train(self.config, out=self.path, callbacks=callbacks)
        elif RunDirectory.open(self.path).last_step() < self.config.train.steps:
            config = RunDirectory.open(self.path).config
            train = dataclasses.replace(config.train, steps=self.config.train.steps)
            config = dataclasses.replace(config, train=train)
            qhdm.resume(self.path, config=config, callbacks=callbacks)

    def evaluate(self, num: int) -> list[Evaluation]:
        """Evaluate with each extractor, CAS with the first."""
        evaluations = []
        for extractor in EXTRACTORS:
            groups: tuple[Group, ...] = ("distances", "classes")
            if extractor == EXTRACTORS[0]:
                groups = (*groups, "utility")
            settings = EvaluationSettings(
                num=num, steps=20, guidance=1, extractor=extractor, metrics=groups
            )
            evaluations.append(qhdm.evaluate(self.path, settings=settings, progress=True))
        return evaluations

    def row(self, evaluations: list[Evaluation]) -> list[str]:
        steps, B = self.config.train.steps, self.config.train.batch_size
        seconds = json.loads((self.path / "cpu_seconds.json").read_text())[str(steps)]
        done = [f"{seconds:.0f}", f"{steps * B:,}", f"{seconds / steps / B * 1e3:.1f}"]
        values = map(number, values_of(evaluations))
        return [self.recipe, str(self.budget), str(self.seed), *done, *values]


def values_of(evaluations: list[Evaluation], *, floor: bool = False) -> list[float | None]:
    """The metrics of a row against the test split, or their values for real images."""
    wanted = [(evaluation, name) for evaluation in evaluations for name in COLUMNS]
    values: list[float | None] = []
    for evaluation, name in [*wanted, (evaluations[0], "CAS")]:
        metric = evaluation.find(name, split="test") or evaluation.find(name)
        assert metric is not None
        values.append(metric.floor if floor else metric.value)
    return values


def seconds_a_step(config: Config, out: Path) -> float:
    """CPU seconds of a step of training; measured once for a recipe, so that seeds are paired."""
    path = out / f"{config.name}.json"
    if not path.exists():
        images = data.load(config.data, progress=True).split("train")
        B = config.train.batch_size
        batches = data.Batches(images, batch_size=B, seed=0, augment=config.data.augment)
        trainer, times = Trainer(config, batches, torch.device("cpu")), []
        while len(times) < 4 or (sum(times) < 30 and len(times) < 60):
            begin = time.process_time()
            trainer.advance()
            times.append(time.process_time() - begin)
        write_text(path, json.dumps(statistics.median(times[1:])))
    return float(json.loads(path.read_text()))


def cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    """The trainings, the short ones first."""
    known: dict[tuple[str, int], Path] = {}
    for budget in sorted(arguments.budgets):
        for recipe in arguments.recipes:
            file, settings = RECIPES[recipe]
            for seed in arguments.seeds:
                own = [f"data.root={arguments.data}", f"seed={seed}", f"name={recipe}"]
                config = data.resolved(load_config(CONFIGS / file, [*settings, *own]))
                steps = int(budget / seconds_a_step(config, arguments.out))
                train = dataclasses.replace(config.train, steps=steps)
                config = dataclasses.replace(config, train=train)
                constant = config.train.lr_schedule == "constant"
                shorter = known.get((recipe, seed)) if constant else None
                known[recipe, seed] = path = arguments.out / f"{recipe}-{budget}-{seed}"
                yield Cell(recipe, budget, seed, config, path, shorter)


def samples(tried: list[Cell], num: int, seed: int) -> list[tuple[str, data.Dataset]]:
    """The images of each training with `seed`, and a title for them."""
    settings = EvaluationSettings(num=num, steps=20, guidance=1)
    return [
        (
            f"{cell.recipe}, {cell.budget:,} CPU s",
            sampled(RunDirectory.open(cell.path), settings)[0],
        )
        for cell in tried
        if cell.seed == seed
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="eurosat", help="EuroSAT, as data.root")
    parser.add_argument("--out", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES)[:2])
    parser.add_argument("--budgets", type=int, nargs="+", default=[300, 1500], metavar="SECONDS")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--num", type=int, default=1000, help="images to sample")
    parser.add_argument("--gallery", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tried, rows = list(cells(arguments)), []
    for cell in tried:
        cell.train()
        evaluations = cell.evaluate(arguments.num)
        rows.append(cell.row(evaluations))
    rows.append(["real", *[""] * 5, *map(number, values_of(evaluations, floor=True))])
    columns = [f"{name} [{extractor}]" for extractor in EXTRACTORS for name in COLUMNS]
    header = ["recipe", "budget", "seed", "CPU s", "images seen", "ms an image", *columns, "CAS"]
    print(Table(header, rows).markdown())
    if arguments.gallery:
        datasets = samples(tried, arguments.num, arguments.seeds[0])
        save_png(gallery(datasets, count=2), arguments.gallery)


if __name__ == "__main__":
    main()
