"""`qhdm sample`: sample a trained model, in one process or, under torchrun, in several."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qhdm.commands.arguments import (
    RUN,
    SAMPLER,
    add_device,
    add_engine,
    add_sampler,
    images,
    positive,
    settings,
)
from qhdm.distributed import World
from qhdm.errors import SamplingError
from qhdm.shipped import results_path

if TYPE_CHECKING:
    import numpy as np

    from qhdm.config import Sampling
    from qhdm.data.geotiff import GeoImage
    from qhdm.run import Run

#: Most images of a class in a grid.
_MOST_IN_GRID = 256


def add(commands: argparse._SubParsersAction) -> None:
    """Make the parser of `sample`."""
    parser = commands.add_parser("sample", help="generate images with a trained model")
    parser.add_argument("run", type=Path, metavar="RUN", help=RUN)
    parser.add_argument(
        "--class",
        dest="classes",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="classes to generate (default: all)",
    )
    parser.add_argument("--num", type=images, metavar="N", help="images per class")
    add_sampler(parser)
    parser.add_argument(
        "--batch",
        type=positive,
        default=64,
        metavar="N",
        help="images per network evaluation (default: 64)",
    )
    add_device(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="also write one file per image, in class folders"
    )
    parser.add_argument(
        "--format",
        dest="form",
        choices=["png", "geotiff", "geotiff-uint16"],
        default="png",
        help="format of the files of --out: png (bands in true colour), geotiff (values of bands "
        "as float32) or geotiff-uint16 (as integers, with scale and offset tags where needed; "
        "default: png)",
    )
    parser.add_argument(
        "--like",
        type=Path,
        metavar="FILE",
        help="GeoTIFF file whose georeference the files get (default: none)",
    )
    parser.add_argument(
        "--grid", type=Path, metavar="FILE", help="path of the PNG grid (default: in RUN/samples/)"
    )
    add_engine(parser)
    parser.add_argument(
        "--engine-steps",
        type=positive,
        metavar="K",
        help="use --engine only in the last K network evaluations, the others are exact",
    )
    parser.set_defaults(command=_sample, processes=True)


def _sample(arguments: argparse.Namespace) -> None:
    world = World.from_environment()
    with world.joined():
        with world.agreed():
            job = _prepare(arguments, world)
        with _result_folders(job.folders, world):
            _run(job, world)


@dataclass(frozen=True)
class _Job:
    """What is sampled, and where it goes.

    Attributes:
        run: the trained model.
        request: how it is sampled.
        labels, indices: of all images, N each.
        files: of all images, N, or none.
        shown: which images are in the grid, N.
        grid: its file.
        folders: that are made for results, each with the option that names it.
        write: writes an image to a file.
        compared: whether the exact images from the same noise are shown, too.
        batch_size: images at once.
    """

    run: Run
    request: Sampling
    labels: list[int]
    indices: list[int]
    files: list[Path]
    shown: list[bool]
    grid: Path
    folders: list[tuple[str, Path]]
    write: Callable[[np.ndarray, Path], None]
    compared: bool
    batch_size: int


def _prepare(arguments: argparse.Namespace, world: World) -> _Job:
    """Load the model and refuse bad input before anything is written."""
    from qhdm.config import Sampling
    from qhdm.quantum.options import Exact

    engine = ("engine", "method", "shots", "noise", "engine_steps")
    given = {name: getattr(arguments, name) for name in (*SAMPLER, "num", *engine)}
    request = settings(Sampling, given, SamplingError)

    from qhdm.models.named_filters import named_filters
    from qhdm.run import Run

    run = Run.open(arguments.run, device=arguments.device)
    if request.named not in (None, Exact()) and not named_filters(run.model):
        raise SamplingError(
            f"--engine: {arguments.run} has no circuits (model.kind {run.config.model.kind}); "
            "leave it out"
        )
    write, suffix = _writer(arguments, run)
    num = arguments.num or run.config.sample.num
    labels, indices = run.images_of(arguments.classes, num)
    names = [run.class_names[label] for label in dict.fromkeys(labels)]
    samples = results_path(arguments.run) / "samples"
    grid = arguments.grid or samples / _grid_name(arguments, names, run)
    folders, files = [("--grid", grid.parent)], []
    if arguments.out:
        folders += [("--out", arguments.out / name) for name in names]
        files = [
            arguments.out / name / f"{name}_{i:05d}{suffix}" for name in names for i in range(num)
        ]
    for file in files if world.first else ():
        if file.exists():
            raise SamplingError(f"{file}: exists already; give another --out")
    return _Job(
        run=run,
        request=request,
        labels=labels,
        indices=indices,
        files=files,
        shown=[i < _MOST_IN_GRID for _ in names for i in range(num)],
        grid=grid,
        folders=folders,
        write=write,
        compared=arguments.engine == "aer",
        batch_size=arguments.batch,
    )


def _writer(
    arguments: argparse.Namespace, run: Run
) -> tuple[Callable[[np.ndarray, Path], None], str]:
    """A function that writes an image in the requested format, and the suffix of its files."""
    from qhdm.data.geotiff import import_rasterio, of_levels, read_geotiff, write_geotiff
    from qhdm.pictures import save_png, to_picture

    bands = run.bands
    if arguments.form == "png":
        if arguments.like:
            raise SamplingError("--like: PNG files have no georeference; give --format geotiff")
        return lambda image, path: save_png(to_picture(image, bands), path), ".png"
    if arguments.out is None:
        raise SamplingError(f"--format: {arguments.form} is for the files of --out; give --out")
    if bands is None:
        raise SamplingError(
            f"--format: {arguments.run} was trained on pictures, which have no measured values; "
            "train with data.bands, or write png"
        )
    import_rasterio("--format")
    whole, like = arguments.form == "geotiff-uint16", None
    if arguments.like:
        like = read_geotiff(arguments.like)
        if like.crs is None or like.transform is None:
            raise SamplingError(f"--like: {arguments.like}: no georeference; give another file")
        like = _covering(like, run.config.data.image_size, arguments.like)
    return lambda image, path: write_geotiff(path, of_levels(image, bands, whole, like)), ".tif"


def _covering(like: GeoImage, size: int, path: Path) -> GeoImage:
    """`like` with the transform of a square image of `size` pixels that covers the same ground."""
    import dataclasses

    height, width = like.values.shape[:2]
    if height != width:
        raise SamplingError(
            f"--like: {path}: {width}x{height} pixels, but samples are square; give a square file"
        )
    scale = type(like.transform).scale(width / size)
    return dataclasses.replace(like, transform=like.transform * scale)


def _run(job: _Job, world: World) -> None:
    """Sample and write this process's share; the first process makes the grid of all."""
    from qhdm.quantum.options import Exact

    # Whole batches: an image is the same, bit by bit, whichever process samples it.
    part = world.share(len(job.labels), whole=job.batch_size)

    def sample(request: Sampling) -> np.ndarray:
        with world.agreed():
            return job.run.sample(
                request,
                labels=job.labels[part],
                indices=job.indices[part],
                batch_size=job.batch_size,
                progress=world.first,
            )

    engine, late = job.request.engine_of(job.run.config.quantum), job.request.engine_steps
    if world.first and engine != Exact():
        part_of = f" (the last {late} steps; the others exact)" if late else ""
        print(f"engine: {engine.description}{part_of}", flush=True)
    sampled = sample(job.request)
    if job.compared:
        exact = job.grid.with_name(f"{job.grid.stem}_exact.png")
        _save_grid(job, sample(job.request.on(Exact())), part, exact, world)
        if world.first:
            print(f"exact grid: {exact}")
    with world.agreed():
        for file, image in zip(job.files[part], sampled, strict=False):
            job.write(image, file)
    _save_grid(job, sampled, part, job.grid, world)
    if world.first:
        if job.files:
            print(f"{len(job.files)} images: {job.files[0].parents[1]}")
        cut = "" if all(job.shown) else f" (the first {_MOST_IN_GRID} of each class)"
        print(f"grid: {job.grid}{cut}")


def _save_grid(job: _Job, sampled: np.ndarray, part: slice, path: Path, world: World) -> None:
    """Write the grid of all processes' images, of which this one has `part`."""
    import numpy as np

    from qhdm.pictures import labelled_grid, save_png

    own = sampled[np.array(job.shown[part], dtype=bool)]
    pixels = np.frombuffer(b"".join(world.gather(own.tobytes())), dtype=own.dtype)
    labels = [label for label, shown in zip(job.labels, job.shown, strict=True) if shown]
    with world.agreed():
        if world.first:
            whole = pixels.reshape(len(labels), *sampled.shape[1:])
            names, bands = job.run.class_names, job.run.bands
            save_png(labelled_grid(whole, labels, names, bands=bands), path)


@contextmanager
def _result_folders(folders: Sequence[tuple[str, Path]], world: World) -> Iterator[None]:
    """Make folders, given with their options, for results; on failure, remove those left empty."""
    made: set[Path] = set()
    try:
        with world.agreed():
            for option, folder in folders if world.first else ():
                made.update(path for path in (folder, *folder.parents) if not path.exists())
                with suppress(OSError):
                    folder.mkdir(parents=True, exist_ok=True)
                if not (folder.is_dir() and os.access(folder, os.W_OK)):
                    raise SamplingError(
                        f"{option}: {folder} is not a folder that can be written; give another"
                    )
        yield
    except BaseException:
        for path in sorted(made, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # not empty, or never made
                path.rmdir()
        raise


def _grid_name(arguments: argparse.Namespace, names: list[str], run: Run) -> str:
    """A file name that tells the grids of different requests apart."""
    parts = ["sample"]
    if len(names) < len(run.class_names):
        parts += names if len(names) <= 3 else [f"{len(names)}classes"]
    for name, text in (
        ("num", "{}each"),
        ("weights", "{}"),
        ("sampler", "{}"),
        ("eta", "eta{:g}"),
        ("steps", "{}steps"),
        ("guidance", "guidance{:g}"),
        ("guidance_interval", "sigma{}"),
        ("guide", "by-{}"),
        ("engine", "{}"),
        ("method", "{}"),
        ("shots", "{}shots"),
        ("noise", "{}"),
        ("engine_steps", "last{}"),
    ):
        value = getattr(arguments, name)
        if value not in (None, "run") and (name, value) not in (("eta", 0), ("weights", "ema")):
            if name == "noise":
                value = Path(value).stem
            if name == "guidance_interval":
                value = "-".join(f"{x:g}" if isinstance(x, float) else x for x in value)
            parts.append(text.format(value).replace("+", "p").replace(":", "-"))
    return "_".join([*parts, f"seed{arguments.seed or 0}"]) + ".png"
