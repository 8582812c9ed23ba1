"""The images to judge: sampled from a run and kept there as they come, or read from a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np

from qhdm import console, data
from qhdm.config import DataConfig
from qhdm.data import Dataset
from qhdm.errors import DataError, EvaluationError
from qhdm.files import atomic_path, write_text
from qhdm.metrics.records import GeneratedRecord
from qhdm.metrics.settings import EvaluationSettings
from qhdm.quantum.options import Aer
from qhdm.run import Run
from qhdm.runs.directory import RunDirectory

#: Images sampled and written at once: an interruption loses no more than these.
_CHUNK = 25


def as_dataset(
    images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...], name: str
) -> Dataset:
    """Generated images (N, H, W, C) and labels (N,) in the form of a data set."""
    return Dataset(
        name=name,
        class_names=class_names,
        images=images,
        labels=np.asarray(labels, dtype=np.int64),
        names=tuple(f"{class_names[label]}/{i}" for i, label in enumerate(labels)),
        is_test=np.zeros(len(images), dtype=bool),
        skipped=(),
    )


def described(run: RunDirectory, settings: EvaluationSettings) -> GeneratedRecord:
    """What `settings` asks for, with the run's own defaults filled in.

    Raises:
        RunError: the run has no checkpoint.
    """
    run.latest_checkpoint()
    known = settings.resolved(run.config)
    engine = settings.engine_of(run.config.quantum)
    aer = engine if isinstance(engine, Aer) else None
    return GeneratedRecord(
        source=str(run.path),
        num=settings.num,
        sampler=known.sampler,
        steps=int(known.steps),
        guidance=float(known.guidance),
        eta=known.eta or None,
        seed=settings.seed,
        weights=settings.weights,
        step=run.last_step(),
        engine=engine.name,
        shots=aer.shots if aer else None,
        noise=aer.noise if aer else None,
        method=aer.method if aer else None,
        device=aer.device if aer else None,
    )


def sampled(
    run: RunDirectory, settings: EvaluationSettings, *, progress: bool = False
) -> tuple[Dataset, int]:
    """Images of a run, labelled 0, 1, ... in turn, so that the classes are even.

    Each is the image that `qhdm sample` gives that number. They are kept in the run's
    `evaluations/samples/`, a few at a time: what an interrupted evaluation or one of fewer images
    has sampled is not sampled again.

    Args:
        run: an open run.
        settings: of the evaluation.
        progress: show a bar on stderr.

    Returns:
        The images, and how many of them were there already.

    Raises:
        RunError, SamplingError, EngineError: as `Run.sample`.
        EvaluationError: a file of kept images is damaged.
    """
    record = described(run, settings)
    folder = run.path / "evaluations" / "samples" / _key(run, record)
    names = run.config.data.classes
    assert names is not None
    found = _kept(folder)[: settings.num]
    present = sum(map(len, found))
    if present < settings.num:
        trained = Run.open(run.path, weights=settings.weights, device=settings.device)
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
                labels = [number % len(names) for number in numbers]
                images = trained.sample(request, labels=labels, indices=numbers)
                _keep(folder, start, images, record)
                found.append(images)
                bar.update(len(images))
    images = np.concatenate(found)[: settings.num]
    of_class = np.arange(settings.num) % len(names)
    return as_dataset(images, of_class, names, run.path.name), min(present, settings.num)


def from_folder(path: Path, like: DataConfig) -> Dataset:
    """Images from class folders (or a zip of them), prepared as `like` prepares real ones.

    Raises:
        DataError: the folder is absent or malformed, or an image is unreadable.
        EvaluationError: it has a class that the real images lack.
    """
    assert like.classes is not None
    own = dataclasses.replace(like, root=str(path), classes=None, test_fraction=0.0)
    try:
        found = data.load(own)
    except DataError as error:  # it names the option of the real images
        raise DataError(f"--images: {str(error).removeprefix('data.root: ')}") from None
    unknown = [name for name in found.class_names if name not in like.classes]
    if unknown:
        raise EvaluationError(
            f"--images: {path}: class folder {unknown[0]} is not a class of the real images: "
            f"{', '.join(like.classes)}"
        )
    numbers = np.array([like.classes.index(name) for name in found.class_names])
    return as_dataset(found.images, numbers[found.labels], like.classes, found.name)


def _key(run: RunDirectory, record: GeneratedRecord) -> str:
    """Stands for the weights and for all of the request but the number of images."""
    weights = run.latest_checkpoint() / f"{record.weights}.safetensors"
    digest = hashlib.sha256(weights.read_bytes() if weights.exists() else b"")
    asked = dataclasses.asdict(dataclasses.replace(record, source="", num=0))
    if record.engine != "aer":  # as older versions named the images of other engines
        del asked["method"], asked["device"]
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
    """The images in a folder, from number 0 on without a gap, in pieces."""
    found: list[np.ndarray] = []
    for path in sorted(folder.glob("[0-9]*.npy")):
        if int(path.stem) != sum(map(len, found)):
            break
        try:
            found.append(np.load(path, allow_pickle=False))
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            raise EvaluationError(
                f"{path}: damaged; delete it to sample its images again"
            ) from None
    return found
