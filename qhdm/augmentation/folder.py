"""Augment few real images by generated ones that help a classifier (docs/augment.md)."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from qhdm import console, data
from qhdm.augmentation.choice import (
    FOLDS,
    SHARES,
    Choice,
    CrossValidation,
    choose,
    first_of_each,
    trainings,
)
from qhdm.augmentation.records import FILE_NAME, Augmentation, AugmentSettings, ClassRecord
from qhdm.config import Config, SamplerOptions
from qhdm.data import Dataset
from qhdm.data.geotiff import of_levels, write_geotiff
from qhdm.data.source import locate
from qhdm.device import resolve_device
from qhdm.errors import DataError, EvaluationError, did_you_mean
from qhdm.files import atomic_path, sweep
from qhdm.metrics.records import DataRecord
from qhdm.metrics.samples import described, sampled
from qhdm.metrics.settings import EvaluationSettings
from qhdm.pictures import labelled_grid, to_picture
from qhdm.run import Run
from qhdm.runs.directory import RunDirectory
from qhdm.schema import write_record

#: Images of each kind of each class in the picture.
_SHOWN = 10


def augment(
    real: Any,
    run: str | Path | Run,
    out: str | Path,
    settings: AugmentSettings | None = None,
    *,
    progress: bool = False,
) -> Augmentation:
    """Write those generated images that help a classifier of few real ones, in class folders.

    Images of each class are sampled. Small classifiers, trained on parts of the real images with
    and without them, tell by the other parts how many of each class help: all, fewer or none.
    Images in which these classifiers do not see the class, copies of real images, and duplicates
    are left out.

    Args:
        real: the real images: a folder or zip of class folders, of which held-out parts (`test`)
            are not touched; or any torch `Dataset` of (image, label) with the classes of the run.
        run: the generator, or the path of its run directory.
        out: the new folder: PNG files, or GeoTIFF files of bands, in a folder for each class, which
            may be empty; `augment.json` and `augment.png`. The real images are not in it.
        settings: how many images are sampled, and how.
        progress: show bars and messages on stderr.

    Returns:
        The record in `augment.json`.

    Raises:
        EvaluationError: the folder exists already, or there are fewer than five real images of a
            class.
        DataError: the real images cannot be used, or have a class that the run does not know.
        RunError, SamplingError: the run cannot be sampled in that way.

    Example:
        >>> from pathlib import Path
        >>> run = qhdm.train(CONFIG, DATASET, out="generator", callbacks=[])
        >>> request = qhdm.AugmentSettings(num=4, steps=2)
        >>> record = qhdm.augment(DATASET, run, "augmented", request)
        >>> sum(record.chosen.values()) == len(list(Path("augmented").glob("*/*.png")))
        True
    """
    settings, out = settings or AugmentSettings(), Path(out)
    if out.exists():
        raise EvaluationError(f"--out: {out}: exists already; name another folder, or delete it")
    place = next(folder for folder in out.absolute().parents if folder.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise EvaluationError(f"--out: {place} is not a folder that can be written; name another")
    path = run.path if isinstance(run, Run) else Path(run)
    if path is None:
        raise EvaluationError("augment: this network is of no run directory; train it into one")
    directory = RunDirectory.open(path)
    config, notes = directory.config, []
    device = resolve_device(settings.device, key="device")
    images = _real_images(real, config, progress).split("train")
    _check_counts(images)
    if _is_own(real, config):
        notes.append(
            "the generator was trained on these real images, so that held-out folds are no test of "
            "it: expect smaller gains on other images"
        )
    request = _request(settings, len(config.data.classes or ()))
    everything, _ = sampled(directory, request, progress=progress)
    candidates = _with_classes(everything, images.class_names)
    total = trainings(len(images)) * (1 + len(SHARES))
    with console.bar(
        total=total, desc="training classifiers", unit="training", show=progress
    ) as bar:
        choice = choose(
            CrossValidation(images, candidates, seed=settings.seed, device=device, bar=bar)
        )
    record = Augmentation(
        data=DataRecord.of(images),
        generated=described(directory, request),
        classes=tuple(_class_records(images, candidates, choice, len(everything.class_names))),
        baseline=choice.baseline,
        trials=choice.trials,
        gain=choice.best.gain if any(choice.counts) else 0.0,
        error=choice.best.error if any(choice.counts) else 0.0,
        folds=FOLDS,
        seed=settings.seed,
        notes=tuple(notes),
    )
    sweep(out.parent, out.name)
    with atomic_path(out) as temporary:
        _write(temporary, candidates, choice, record)
    return record


def _real_images(real: Any, config: Config, progress: bool) -> Dataset:
    """The real images, prepared as those that the run was trained on.

    Raises:
        DataError: as `qhdm.data.load`; or the run does not know a class.
    """
    known = config.data.classes or ()
    whole = dataclasses.replace(
        config.data, test_fraction=0.0, split=None, blocks=None, per_class=None
    )
    if not isinstance(real, str | Path):
        names = getattr(real, "class_names", ()) or getattr(real, "classes", ()) or known
        own = dataclasses.replace(whole, classes=tuple(map(str, names)))
        images = data.given(real, own)
        present = np.unique(images.labels)
        images = _with_classes(images, tuple(images.class_names[label] for label in present))
    else:
        own = dataclasses.replace(whole, root=str(real), classes=None)
        try:
            images = data.load(config.data if _is_own(real, config) else own, progress=progress)
        except DataError as error:
            raise DataError(f"DATA: {str(error).removeprefix('data.root: ')}") from None
    for name in images.class_names:
        if name not in known:
            raise DataError(
                f"DATA: {images.name}: {name} is not a class of the generator, which knows "
                f"{', '.join(known)}{did_you_mean(name, known)}"
            )
    return images


def _is_own(real: Any, config: Config) -> bool:
    """Whether these are the images that a run was trained on, by their place."""
    root = config.data.root
    return isinstance(real, str | Path) and (
        str(real) == root or locate(str(real)).resolve() == locate(root).resolve()
    )


def _check_counts(images: Dataset) -> None:
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    fewest = int(counts.argmin())
    if counts[fewest] < FOLDS:
        raise EvaluationError(
            f"DATA: {images.name}: class {images.class_names[fewest]} has {counts[fewest]} images "
            f"to train on; give {FOLDS} or more of each class, as some are held out to choose"
        )
    if len(images.class_names) < 2:
        raise EvaluationError("DATA: one class alone; a classifier needs two or more")


def _request(settings: AugmentSettings, classes: int) -> EvaluationSettings:
    """The same images as those of an evaluation, which are kept in the run directory."""
    own = {
        field.name: getattr(settings, field.name) for field in dataclasses.fields(SamplerOptions)
    }
    return EvaluationSettings(**own, num=settings.num * classes, device=settings.device)


def _with_classes(images: Dataset, names: tuple[str, ...]) -> Dataset:
    """The images of these classes, with their numbers as labels."""
    numbers = np.array([names.index(name) if name in names else -1 for name in images.class_names])
    labels = numbers[images.labels]
    own = dataclasses.replace(images, class_names=names, labels=labels)
    return own.where(labels >= 0)


def _class_records(
    real: Dataset, candidates: Dataset, choice: Choice, classes: int
) -> list[ClassRecord]:
    """The record of each class; image i of class c of C has the name i * C + c."""
    chosen = first_of_each(candidates.labels, choice.usable, choice.counts)
    numbers = _numbers(candidates, classes)
    records = []
    for label, name in enumerate(real.class_names):
        own = candidates.labels == label
        records.append(
            ClassRecord(
                class_name=name,
                real=int((real.labels == label).sum()),
                sampled=int(own.sum()),
                unlike=int((choice.unlike & own).sum()),
                copies=int((choice.copies & own).sum()),
                duplicates=int((choice.duplicates & own).sum()),
                chosen=int((chosen & own).sum()),
                numbers=tuple(numbers[chosen & own].tolist()),
                effect=float(choice.effects[label]),
                error=float(choice.errors[label]),
            )
        )
    return records


def _numbers(candidates: Dataset, classes: int) -> np.ndarray:
    """Numbers of images within their class, as `qhdm sample` counts them, (M,)."""
    return np.array([int(name.rpartition("/")[2]) // classes for name in candidates.names])


def _write(folder: Path, candidates: Dataset, choice: Choice, record: Augmentation) -> None:
    """The files of the result. Classes without images have empty folders, so that others keep
    their numbers where folders are counted."""
    chosen = first_of_each(candidates.labels, choice.usable, choice.counts)
    bands, names = candidates.bands, candidates.class_names
    for label, own in enumerate(record.classes):
        (folder / own.class_name).mkdir(parents=True)
        images = candidates.images[chosen & (candidates.labels == label)]
        for number, image in zip(own.numbers, images, strict=True):
            file = folder / own.class_name / f"{own.class_name}_{number:05d}"
            if bands is None:
                to_picture(image).save(f"{file}.png")
            else:
                write_geotiff(Path(f"{file}.tif"), of_levels(image, bands, whole=False))
    kinds = np.select([chosen, choice.usable], [0, 1], 2)
    rows = 3 * candidates.labels + kinds
    shown = np.concatenate([np.flatnonzero(rows == row)[:_SHOWN] for row in np.unique(rows)])
    words = ("chosen", "not used", "rejected")
    titles = [f"{name}, {word}" for name in names for word in words]
    sheet = labelled_grid(
        candidates.images[shown], rows[shown], titles, title="generated images", bands=bands
    )
    sheet.save(folder / "augment.png")
    write_record(record, folder / FILE_NAME)
