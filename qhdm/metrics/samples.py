"""The images to evaluate, sampled from a run, read from a folder or given, and the real ones."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhdm import console, data
from qhdm.config import DataConfig
from qhdm.data import Bands, Dataset, Images
from qhdm.data.bands import bands_of
from qhdm.errors import DataError, EvaluationError
from qhdm.files import atomic_path, write_text
from qhdm.metrics.records import GeneratedRecord
from qhdm.metrics.settings import EvaluationSettings
from qhdm.run import Run
from qhdm.runs.directory import RunDirectory
from qhdm.runs.weights import weight_files
from qhdm.shipped import results_path, run_name

#: Images that are sampled and written at once: what an interruption loses at most.
_CHUNK = 25


def described(run: RunDirectory, settings: EvaluationSettings) -> GeneratedRecord:
    """The record of what `settings` asks of a run, with the run's own defaults.

    Raises:
        RunError: the run has no checkpoint.
    """
    run.latest_checkpoint()
    network = dict(
        source=run_name(run.path),
        num=settings.num,
        weights=settings.weights,
        step=run.last_step(),
        **GeneratedRecord.engine_fields(settings.engine_of(run.config.quantum)),
    )
    if not settings.needs_images:
        return GeneratedRecord(**network, digest=_hashed(run, settings.weights).hexdigest()[:16])
    known = settings.resolved(run.config)
    assert known.guidance_interval != "run"
    assert known.guide != "run"
    return GeneratedRecord(
        **network,
        digest=_hashed(run, settings.weights, known.guide).hexdigest()[:16],
        sampler=known.sampler,
        steps=int(known.steps),
        guidance=float(known.guidance),
        eta=known.eta or None,
        guidance_interval=known.guidance_interval,
        guide=known.guide,
        seed=settings.seed,
        start="mean",
    )


def sampled(
    run: RunDirectory, settings: EvaluationSettings, *, progress: bool = False
) -> tuple[Dataset, int]:
    """Sample a run, with the labels 0, 1, ... in turn, so that the classes are even.

    Each image is the one that `qhdm sample` gives that number. They are kept in the run's
    `evaluations/samples/`, some at a time: images that an interrupted or smaller evaluation has
    sampled are not sampled again.

    Returns:
        The images, and how many of them were kept already.

    Raises:
        RunError, SamplingError, EngineError: as `Run.sample`.
        EvaluationError: a file of kept images is damaged.
    """
    record = described(run, settings)
    folder = results_path(run.path) / "evaluations" / "samples" / _key(run, record)
    names = run.config.data.classes
    assert names is not None
    chunks = _kept(folder)
    present = sum(map(len, chunks))
    labels = np.arange(settings.num) % len(names)
    if present < settings.num:
        trained = Run.open(run.path, device=settings.device)
        request = settings.on(settings.engine_of(run.config.quantum))  # as the record says
        with console.bar(
            total=settings.num,
            initial=present,
            desc="sampling",
            unit="image",
            show=progress,
        ) as bar:
            for start in range(present, settings.num, _CHUNK):
                numbers = range(start, min(start + _CHUNK, settings.num))
                own = labels[start : numbers.stop].tolist()
                images = trained.sample(request, labels=own, indices=numbers)
                _keep(folder, start, images, record)
                chunks.append(images)
                bar.update(len(images))
    images = np.concatenate(chunks)[: settings.num]
    bands = bands_of(run.config.data)
    return _dataset(images, labels, names, run.path.name, bands), min(present, settings.num)


def from_folder(path: Path, like: DataConfig) -> Dataset:
    """Images from class folders (or a zip of them), prepared as `like` prepares real ones.

    Raises:
        DataError: the folder is absent or malformed, or an image is unreadable.
        EvaluationError: it has a class that the real images lack.
    """
    assert like.classes is not None
    own = dataclasses.replace(
        like, root=str(path), classes=None, test_fraction=0.0, split=None, blocks=None,
        per_class=None,
    )  # fmt: skip
    try:
        dataset = data.load(own)
    except DataError as error:  # it names the option of the real images
        raise DataError(f"--images: {str(error).removeprefix('data.root: ')}") from None
    unknown = [name for name in dataset.class_names if name not in like.classes]
    if unknown:
        raise EvaluationError(
            f"--images: {path}: class folder {unknown[0]} is not a class of the real images: "
            f"{', '.join(like.classes)}"
        )
    numbers = np.array([like.classes.index(name) for name in dataset.class_names])
    labels = numbers[dataset.labels]
    return _dataset(dataset.images, labels, like.classes, dataset.name, dataset.bands)


def from_arrays(
    generated: Any, real: Dataset, labels: Sequence[int | str] | None
) -> tuple[Dataset, bool]:
    """Images (N, H, W, C) with their labels as a data set, and whether the labels are known.

    Raises:
        EvaluationError: the images are not like the real ones, or labels are missing or unknown.
    """
    names, shape = real.class_names, real.images.shape[1:]
    if not isinstance(generated, np.ndarray | Tensor):
        generated = data.given(generated, _like(shape, real.bands, names))
    images = generated.images if isinstance(generated, Dataset) else np.asarray(generated)
    dtype = real.images.dtype
    if images.dtype != dtype or images.shape[1:] != shape or not len(images):
        raise EvaluationError(
            f"evaluate: images of type {images.dtype} and shape {images.shape}; give {dtype} "
            f"(N, {', '.join(map(str, shape))}), as the real ones are"
        )
    if isinstance(generated, Dataset):
        return generated, True
    if labels is None:
        unknown = np.zeros(len(images), int)
        return _dataset(images, unknown, names, "array", real.bands), False
    known: dict[int | str, int] = {name: i for i, name in enumerate(names)}
    known |= {i: i for i in range(len(names))}
    if len(labels) != len(images) or not set(labels) <= known.keys():
        raise EvaluationError("labels: give one class for each image")
    numbers = np.array([known[label] for label in labels])
    return _dataset(images, numbers, names, "array", real.bands), True


def real_set(real: Any, generated: Any) -> Dataset:
    """The real images as a data set; ones that are handed over, at the size of `generated`."""
    if isinstance(real, DataConfig):
        return data.load(real)
    if real is None:
        raise EvaluationError("evaluate: give the real images to compare with")
    bands = real.bands if isinstance(real, Dataset) else None
    shape = _shape_of(generated)
    if bands is None and getattr(generated, "dtype", None) in (np.uint16, torch.uint16):
        raise EvaluationError(
            "evaluate: levels of bands cannot be compared with real images whose bands and ranges "
            "are unknown; give these as qhdm.data.given(dataset, run.config.data)"
        )
    return data.given(real, _like(shape, bands))


def _like(
    shape: tuple[int, ...], bands: Bands | None, classes: tuple[str, ...] | None = None
) -> DataConfig:
    """The configuration of images (H, W, C) that are handed over."""
    if bands is None:
        return DataConfig(image_size=shape[0], channels=shape[2], classes=classes)
    return DataConfig(image_size=shape[0], bands=bands.names, range=bands.range, classes=classes)


def _shape_of(images: Any) -> tuple[int, ...]:
    """(H, W, C) of images that are handed over."""
    if not isinstance(images, np.ndarray | Tensor):
        return data.shape_of(images)
    if images.ndim != 4:
        raise EvaluationError(
            f"evaluate: an array of shape {tuple(images.shape)}; give (N, H, W, C)"
        )
    return tuple(images.shape[1:])


def _dataset(
    images: Images,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    name: str,
    bands: Bands | None,
) -> Dataset:
    """Generated images (N, H, W, C) and labels (N,) as a data set."""
    return Dataset(
        name=name,
        class_names=class_names,
        images=images,
        labels=np.asarray(labels, dtype=np.int64),
        names=tuple(f"{class_names[label]}/{i}" for i, label in enumerate(labels)),
        is_test=np.zeros(len(images), dtype=bool),
        skipped=(),
        bands=bands,
    )


def _hashed(run: RunDirectory, *weights: str | None) -> hashlib._Hash:
    """The SHA-256 of the weights of these names, as far as they are named."""
    digest = hashlib.sha256()
    for name in filter(None, weights):
        for file in weight_files(run, name):
            digest.update(file.read_bytes())
    return digest


def _key(run: RunDirectory, record: GeneratedRecord) -> str:
    """A digest of the weights and of all of the request but the number of images."""
    digest = _hashed(run, record.weights, record.guide)
    asked = dataclasses.asdict(dataclasses.replace(record, source="", num=0))
    del asked["digest"]  # of the same bytes
    if record.engine != "aer":  # as older versions named the images of other engines
        del asked["method"], asked["device"]
    for name in ("guidance_interval", "guide", "start"):
        if asked[name] is None:
            del asked[name]
    digest.update(json.dumps(asked, sort_keys=True).encode())
    noise = Path(record.noise) if record.noise and record.noise.endswith(".json") else None
    if noise and noise.exists():
        digest.update(noise.read_bytes())
    return digest.hexdigest()[:16]


def _keep(folder: Path, start: int, images: np.ndarray, record: GeneratedRecord) -> None:
    if not (folder / "request.json").exists():
        asked = dataclasses.asdict(dataclasses.replace(record, num=0))
        write_text(folder / "request.json", json.dumps(asked, indent=2) + "\n")
    with atomic_path(folder / f"{start:07d}.npy") as temporary, temporary.open("wb") as file:
        np.save(file, images)


def _kept(folder: Path) -> list[np.ndarray]:
    """The images in a folder, from number 0 on without a gap, in chunks."""
    chunks: list[np.ndarray] = []
    for path in sorted(folder.glob("[0-9]*.npy")):
        if int(path.stem) != sum(map(len, chunks)):
            break
        try:
            chunks.append(np.load(path, allow_pickle=False))
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            raise EvaluationError(
                f"{path}: damaged; delete it to sample its images again"
            ) from None
    return chunks
