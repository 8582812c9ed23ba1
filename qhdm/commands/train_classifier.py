"""`qhdm train-classifier`: train the feature extractor of evaluations."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qhdm.commands.arguments import (
    add_device,
    add_range,
    add_set,
    fraction,
    natural,
    pixels,
    positive,
    settings,
)
from qhdm.errors import EvaluationError

if TYPE_CHECKING:
    from qhdm.config import DataConfig


def add(verbs: argparse._SubParsersAction) -> None:
    """Add the `train-classifier` subcommand."""
    train = verbs.add_parser("train-classifier", help="train the feature extractor of evaluations")
    add_data(train, "CONFIG", "a configuration file or a run directory, for its data section")
    train.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="training steps (default: 6.5 epochs, at least 120; classifier: 600)",
    )
    train.add_argument(
        "--seed", type=natural, metavar="N", help="seed of the training (default: 0)"
    )
    train.add_argument(
        "--extractor",
        choices=["resnet", "classifier"],
        default="resnet",
        help="a small ResNet, or the classifier of older versions (default: resnet)",
    )
    add_device(train)
    train.add_argument(
        "--out", type=Path, metavar="FILE", help="a safetensors file (default: in the cache folder)"
    )
    train.set_defaults(command=_train)


def add_data(parser: argparse.ArgumentParser, name: str, description: str) -> None:
    """Add options that name the real images: by a file, or by themselves."""
    parser.add_argument("source", nargs="?", type=Path, metavar=name, help=description)
    group = parser.add_argument_group(
        "data options", "For real images without a run or configuration."
    )
    group.add_argument(
        "--data", metavar="ROOT", help="the real images: bundled, eurosat, a folder or zip"
    )
    group.add_argument(
        "--size", type=pixels, metavar="PIXELS", help="image size of --data (default: 64)"
    )
    group.add_argument(
        "--test-fraction", type=fraction, metavar="F", help="held-out part of --data (default: 0.1)"
    )
    add_range(group, ", of --data")
    add_set(group, "change a setting of the run's or configuration's data")


def data_config(arguments: argparse.Namespace) -> DataConfig:
    """The real images that the command line names.

    Raises:
        EvaluationError: it names none, or two.
        ConfigError: the configuration cannot be read.
    """
    from qhdm.config import DataConfig, load_config
    from qhdm.runs.config import load_run_config

    source = arguments.source
    if (source is None) == (arguments.data is None):
        raise EvaluationError("give either a configuration file, a run directory, or --data ROOT")
    if source is None:
        if arguments.set:
            raise EvaluationError(
                "--set: only with a configuration; use --size, --test-fraction, --range"
            )
        given = {
            "root": arguments.data,
            "image_size": arguments.size,
            "range": arguments.range,
            "test_fraction": arguments.test_fraction,
        }
        return settings(DataConfig, given, EvaluationError)
    for name in ("size", "test_fraction", "range"):
        if getattr(arguments, name) is not None:
            raise EvaluationError(f"--{name.replace('_', '-')}: only with --data")
    load = load_run_config if source.is_dir() else load_config
    return load(source, arguments.set).data


def _train(arguments: argparse.Namespace) -> None:
    config = data_config(arguments)
    if arguments.out and arguments.out.exists():
        raise EvaluationError(f"--out: {arguments.out}: exists already; name another file")

    # Only now the heavy imports: bad input is refused at once.
    import numpy as np

    from qhdm import data
    from qhdm.device import resolve_device
    from qhdm.metrics.trained import SETTINGS, classifier_path, trained_classifier
    from qhdm.tables import Table

    device = resolve_device(arguments.device, key="--device")
    dataset = data.load(config, progress=True)
    training = dataset.split("train")
    given = {"steps": arguments.steps, "seed": arguments.seed}
    chosen = settings(SETTINGS[arguments.extractor], given, EvaluationError)
    path = arguments.out or classifier_path(training, chosen)
    if path.exists():
        print("trained already")
    classifier = trained_classifier(training, chosen, device=device, path=path, progress=True)
    right = classifier.predict(dataset.images) == dataset.labels
    rows = []
    for label, name in [*enumerate(dataset.class_names), (None, "all")]:
        own = np.full(len(right), True) if label is None else dataset.labels == label
        parts = right[own & ~dataset.is_test], right[own & dataset.is_test]
        rows.append([name, *(f"{part.mean():.3f}" if len(part) else "" for part in parts)])
    print(Table(["accuracy", "train", "test"], rows).markdown())
    print(f"{classifier.name} {classifier.digest}, {classifier.dim} features: {path}")
