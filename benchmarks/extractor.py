"""How far images without shapes are from real ones, by both extractors that qhdm trains.

    python benchmarks/extractor.py                               # the EuroSAT of the cache folder
    python benchmarks/extractor.py --data ROOT --size 64
    python benchmarks/extractor.py --data ROOT --images PATH ...  # generated ones, too

Each row puts images in the place of generated ones and compares them with the test split: real
training images (the floor, which has the N of each row), the same cut into 8x8 pieces that are
shuffled, the same with random phases, and those of each PATH: class folders, a zip of them, or an
.npz with uint8 images `x` (N, H, W, C) and labels `y` (N,). Extractors are trained, or read from
the cache folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from qhdm import data
from qhdm.config import DataConfig
from qhdm.data import Dataset
from qhdm.metrics.distances import frechet_distance, neighbourhoods
from qhdm.metrics.features import Extractor, make_extractor
from qhdm.metrics.resnet import phase_randomised, shuffled
from qhdm.metrics.samples import from_arrays, from_folder
from qhdm.metrics.settings import EvaluationSettings, OwnExtractor
from qhdm.metrics.trained import TrainedClassifier
from qhdm.tables import Table

NAMES: tuple[OwnExtractor, ...] = ("resnet", "classifier")


def named_images(
    paths: list[Path], config: DataConfig, real: Dataset
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The rows: name, images (N, H, W, C) and labels (N,)."""
    training = real.split("train")
    num = min(len(training), int(real.is_test.sum()))
    chosen = np.random.default_rng(0).permutation(len(training))[:num]
    images, labels, rng = training.images[chosen], training.labels[chosen], np.random.default_rng(1)
    yield "real (training)", images, labels
    yield "8x8 pieces, shuffled", shuffled(images, 8, rng), labels
    yield "random phases", phase_randomised(images, rng), labels
    for path in paths:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                made, _ = from_arrays(arrays["x"], real, arrays["y"].tolist())
        else:
            made = from_folder(path, config)
        yield path.name, made.images, made.labels


def rows(
    extractor: Extractor, real: Dataset, images: list[tuple[str, np.ndarray, np.ndarray]]
) -> Iterator[list[str]]:
    network = extractor.network
    assert isinstance(network, TrainedClassifier)
    reference = extractor.reference(real)[real.is_test]
    test = real.split("test")
    right = (network.predict(test.images) == test.labels).mean()
    yield [network.name, "real (test)", str(len(test)), *[""] * 4, f"{right:.3f}"]
    rng = np.random.default_rng(2)
    base = network.features(images[0][1])
    for name, pixels, labels in images:
        order = rng.permutation(len(pixels))[: len(reference)]
        own = reference[rng.permutation(len(reference))[: len(order)]]  # N on both sides
        features = network.features(pixels[order])
        distance = frechet_distance(own, features)
        floor = frechet_distance(own, base[: len(order)])
        near = neighbourhoods(own, features)
        accuracy = (network.predict(pixels[order]) == labels[order]).mean()
        shares = (near["recall"], near["coverage"])
        cells = [
            *(f"{share:.2f}" for share in shares),
            f"{distance:.3g}",
            f"{distance / floor:.0f}",
        ]
        yield [network.name, name, str(len(order)), *cells, f"{accuracy:.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="eurosat", help="the real images, as data.root")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--test-fraction", type=float, default=0.1)
    parser.add_argument("--images", type=Path, nargs="+", default=[], metavar="PATH")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = DataConfig(
        root=arguments.data, image_size=arguments.size, test_fraction=arguments.test_fraction
    )
    real = data.load(config, progress=True)
    config = dataclasses.replace(config, classes=real.class_names)
    images = list(named_images(arguments.images, config, real))
    table: list[list[str]] = []
    for name in NAMES:
        start = time.process_time()
        extractor = make_extractor(
            EvaluationSettings(extractor=name),
            real,
            num=min(len(pixels) for _, pixels, _ in images),
            more="give {} or more",
            device=torch.device("cpu"),
            progress=True,
        )
        seconds = time.process_time() - start
        print(f"{name} {extractor.record.digest}: {seconds:.0f} CPU s to train or read")
        table += rows(extractor, real, images)
    header = ["extractor", "images", "N", "recall", "coverage", "FID", "FID / floor"]
    print(Table([*header, "class accuracy"], table, left=2).markdown())


if __name__ == "__main__":
    main()
