"""What the images of `qhdm augment` are worth to a classifier, on EuroSAT's held-out images.

    python benchmarks/augment.py --data EuroSAT_RGB.zip --run RUN --out runs/augment
    python benchmarks/augment.py --data EuroSAT_RGB.zip --train 1500 --out runs/own --sizes 10 100
    python benchmarks/augment.py --data EuroSAT_RGB.zip --run RUN --few bundled --out runs/few

Draws some training images of each class (`--sizes`, 0 being all), several times, augments each
draw by `qhdm.augment`, and trains classifiers as `qhdm evaluate --metrics utility` does, tested
on all held-out images. They are trained on the drawn images without and with flips and turns; with
the chosen generated images, without and with flips and turns; with as many further real images; and
with both. `--run` is a generator of all training images. `--train STEPS` is the fair test: for each
draw, a generator (configs/eurosat.yaml) that is trained on the drawn images alone; so is `--few`,
with the images that a run was trained on.

Images that a run has sampled are kept in its directory and shared by all draws. What was computed
is kept in `--out`; interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import qhdm  # before torch, whose threads it tells how to wait

# isort: split
import numpy as np
import torch

from qhdm import data
from qhdm.augmentation import Augmentation, AugmentSettings, augment, read_augmentation
from qhdm.augmentation.choice import joined
from qhdm.comparison.statistics import t_test
from qhdm.config import DataConfig, load_config
from qhdm.data import Dataset
from qhdm.files import write_text
from qhdm.metrics.samples import from_folder
from qhdm.metrics.training import predicted, train_network
from qhdm.metrics.utility import RETRAINED, few_of_each, some_of
from qhdm.runs.directory import RunDirectory
from qhdm.tables import Table, interval, signed

CONFIG = Path(__file__).parent.parent / "configs" / "eurosat.yaml"
#: Training sets: which images, and whether these are flipped and turned.
ARMS = {
    "plain": (("drawn",), False),
    "flips": (("drawn",), True),
    "generated": (("drawn", "generated"), False),
    "flips and generated": (("drawn", "generated"), True),
    "flips and further real": (("drawn", "further"), True),
    "all three": (("drawn", "generated", "further"), True),
}
DEVICE = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One draw of one size."""

    arguments: argparse.Namespace
    config: DataConfig
    real: Dataset
    size: int
    draw: int
    few: frozenset[str]

    @property
    def path(self) -> Path:
        """The folder of generated images; other files of the cell have longer names."""
        return self.arguments.out / f"{self.size or 'all'}-{self.draw}"

    @property
    def chosen(self) -> np.ndarray:
        """Which training images are drawn, (N,) bool."""
        training = self.real.split("train")
        if self.few or not self.size:
            return np.array([name in self.few or not self.few for name in training.names])
        return few_of_each(training, self.size, self.draw)

    def generator(self, drawn: Dataset) -> Path:
        """The run that was given, or one that is trained on the drawn images."""
        if self.arguments.run:
            return Path(self.arguments.run)
        run = self.path.with_name(f"{self.path.name}-run")
        if (run / "checkpoints").exists():
            qhdm.resume(run, drawn, callbacks=[qhdm.ProgressBar()])
        else:
            steps = [f"train.steps={self.arguments.train}", f"data.classes={[*drawn.class_names]}"]
            config = load_config(CONFIG, [*steps, f"seed={self.draw}"])
            qhdm.train(config, drawn, out=run, callbacks=[qhdm.ProgressBar()])
        return run

    def augmented(self, drawn: Dataset) -> Augmentation:
        if not self.path.exists():
            settings = AugmentSettings(num=self.arguments.num, **self.asked, device="cpu")
            augment(drawn, self.generator(drawn), self.path, settings, progress=True)
        record = read_augmentation(self.path)
        kept = {name: getattr(record.generated, name) for name in self.asked}
        if kept != self.asked or {own.sampled for own in record.classes} != {self.arguments.num}:
            raise SystemExit(f"{self.path}: of other --guidance or --num; give another --out")
        return record

    @property
    def asked(self) -> dict[str, float]:
        guidance = self.arguments.guidance
        return {} if guidance is None else {"guidance": guidance}

    def sets(self) -> dict[str, Dataset]:
        """The drawn images, the chosen generated ones, and as many further real images."""
        training = self.real.split("train")
        drawn, rest = training.where(self.chosen), training.where(~self.chosen)
        sets, num = {"drawn": drawn}, sum(self.augmented(drawn).chosen.values())
        if num:
            sets["generated"] = from_folder(self.path, self.config)
        if num and len(rest):
            sets["further"] = some_of(rest, num, self.draw)
        return sets

    def accuracies(self) -> dict[str, float]:
        """The accuracy of each arm on the held-out images, a mean over seeds."""
        sets, test = self.sets(), self.real.split("test")
        file = self.path.with_name(f"{self.path.name}.json")
        known = json.loads(file.read_text()) if file.exists() else {}
        accuracies = {}
        for name, (parts, flips) in ARMS.items():
            own = [part for part in parts if part in sets]
            values = []
            for seed in range(self.arguments.seeds):
                key = f"{' '.join(own)}, {'flips' if flips else 'plain'}, {seed}"
                if key not in known:
                    images = [sets[part] for part in own]
                    known[key] = trained(images, flips, 1000 * self.draw + seed, test)
                    write_text(file, json.dumps(known, indent=2))
                values.append(known[key])
            accuracies[name] = float(np.mean(values))
        return accuracies


def trained(parts: Sequence[Dataset], flips: bool, seed: int, test: Dataset) -> float:
    """The accuracy of a classifier of these images."""
    whole = parts[0]
    for part in parts[1:]:
        whole = joined(whole, part)
    settings = dataclasses.replace(RETRAINED, seed=seed)
    network = train_network([whole], settings, device=DEVICE, augment=flips)
    return float((predicted(network, test.images, DEVICE) == test.labels).mean())


def row(
    size: int, accuracies: Sequence[dict[str, float]], records: Sequence[Augmentation]
) -> list[str]:
    """A size: accuracy with flips and turns, gains over it, and what was chosen."""
    base = np.array([own["flips"] for own in accuracies])
    cells = [str(size or "all"), str(len(base)), f"{100 * base.mean():.1f}"]
    for name in ARMS:
        if name == "flips":
            continue
        gain = t_test((100 * (np.array([own[name] for own in accuracies]) - base)).tolist())
        cells.append(f"{signed(gain.mean)} {interval(gain.low, gain.high)}".strip())
    counts = np.array([list(record.chosen.values()) for record in records])
    expected = [100 * record.gain for record in records]
    return [
        *cells,
        signed(np.mean(expected)),
        f"{counts.mean():.0f}",
        f"{(counts == 0).mean():.0%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="eurosat", help="EuroSAT, as data.root")
    generator = parser.add_mutually_exclusive_group(required=True)
    generator.add_argument("--run", help="a run directory, or the name of a shipped model")
    generator.add_argument("--train", type=int, metavar="STEPS", help="train one for each draw")
    parser.add_argument(
        "--few", metavar="ROOT", help="the images that --run was trained on, instead of draws"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 50, 100, 0], help="0: all")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--num", type=int, default=100, help="candidates of each class")
    parser.add_argument("--guidance", type=float, metavar="S", help="default: the run's own")
    parser.add_argument("--seeds", type=int, default=1, help="classifiers of each draw")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    size = RunDirectory.open(arguments.run).config.data.image_size if arguments.run else 64
    config = DataConfig(root=arguments.data, image_size=size)
    real = data.load(config, progress=True)
    config = dataclasses.replace(config, classes=real.class_names)
    few: frozenset[str] = frozenset()
    if arguments.few:
        few = frozenset(data.load(DataConfig(root=arguments.few)).split("train").names)
        fresh = np.array([name not in few for name in real.names])
        real = dataclasses.replace(real, is_test=real.is_test & fresh)
        arguments.sizes, arguments.draws = [-(-len(few) // len(real.class_names))], 1
    done: dict[int, list[tuple[dict[str, float], Augmentation]]] = {}
    header = [
        *("per class", "draws", "flips and turns, %"),
        *(f"{name}, gain" for name in ARMS if name != "flips"),
        *("gain on folds", "chosen per class", "none"),
    ]
    for draw in range(arguments.draws):
        for size in arguments.sizes:
            cell = Cell(arguments, config, real, size, draw, few)
            accuracies = cell.accuracies()
            done.setdefault(size, []).append((accuracies, read_augmentation(cell.path)))
            rows = [row(size, *zip(*cells, strict=True)) for size, cells in done.items()]
            print(Table(header, rows).markdown(), flush=True)


if __name__ == "__main__":
    main()
