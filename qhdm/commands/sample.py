"""`qhdm sample`: images by a trained model, in one process or, under torchrun, in several."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qhdm.commands.arguments import add_device, add_engine, add_sampler, images, positive, settings
from qhdm.distributed import World
from qhdm.errors import SamplingError

if TYPE_CHECKING:
    import numpy as np

    from qhdm.config import Sampling
    from qhdm.run import Run

#: More images of a class are not put into a grid, which would be too tall to look at.
_MOST_IN_GRID = 256


def add(commands: argparse._SubParsersAction) -> None:
    """Make the parser of `sample`."""
    parser = commands.add_parser("sample", help="generate images with a trained model")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--class",
        dest="classes",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="classes to generate (all when none is named)",
    )
    parser.add_argument("--num", type=images, metavar="N", help="images per class")
    add_sampler(parser)
    parser.add_argument("--batch", type=positive, default=64, metavar="N", help="images at once")
    add_device(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="also write one PNG per image, in class folders"
    )
    parser.add_argument("--grid", type=Path, metavar="FILE", help="where the PNG grid goes")
    add_engine(parser)
    parser.add_argument(
        "--engine-steps",
        type=positive,
        metavar="K",
        help="only the last K network evaluations on aer, the others exact",
    )
    parser.set_defaults(command=_sample, processes=True)


def _sample(arguments: argparse.Namespace) -> None:
    world = World.from_environment()
    with world.joined():
        with world.agreed():
            request = _prepare(arguments, world)
        with _result_folders(request.folders, world):
            _run(arguments, request, world)


@dataclass(frozen=True)
class _Request:
    """What is to be sampled, and where it goes.

    Attributes:
        run: with the model.
        labels, indices: of all images, N each.
        files: of all images, N, or none.
        folders: for results, each with the option that names it.
        grid: where the grid goes.
        shown: which images are in it, N.
        sampling: how.
    """

    run: Run
    labels: list[int]
    indices: list[int]
    files: list[Path]
    folders: list[tuple[str, Path]]
    grid: Path
    shown: list[bool]
    sampling: Sampling


def _prepare(arguments: argparse.Namespace, world: World) -> _Request:
    """Load the model and refuse bad input before anything is written."""
    sampling = _sampling(arguments)  # before the model is loaded
    from qhdm.models.named_filters import named_filters
    from qhdm.quantum.options import Exact
    from qhdm.run import Run

    run = Run.open(arguments.run, weights=sampling.weights, device=arguments.device)
    if sampling.named not in (None, Exact()) and not named_filters(run.model):
        raise SamplingError(
            f"--engine: {arguments.run} has no circuits (model.kind {run.config.model.kind}); "
            "leave it out"
        )
    names = run.class_names
    num = arguments.num or run.config.sample.num
    labels, indices = run.images_of(arguments.classes, num)
    classes = list(dict.fromkeys(labels))

    grid = arguments.grid or _grid_path(arguments, [names[label] for label in classes], len(names))
    files = []
    folders = [("--grid", grid.parent)]
    if arguments.out:
        for label in classes:
            folder = arguments.out / names[label]
            folders.append(("--out", folder))
            files += [folder / f"{names[label]}_{i:05d}.png" for i in range(num)]
    for file in files if world.first else ():
        if file.exists():
            raise SamplingError(f"{file}: exists already; give another --out")
    shown = [i < _MOST_IN_GRID for _ in classes for i in range(num)]
    return _Request(run, labels, indices, files, folders, grid, shown, sampling)


def _run(arguments: argparse.Namespace, request: _Request, world: World) -> None:
    """Sample this process's share; the first process makes the grid of all."""
    import numpy as np

    from qhdm.pictures import labelled_grid, save_png, to_picture
    from qhdm.quantum.options import Exact

    labels = request.labels
    # Whole batches: an image is the same, bit by bit, whichever process samples it.
    part = world.share(len(labels), whole=arguments.batch)

    def sample(sampling: Sampling) -> np.ndarray:
        return request.run.sample(
            sampling,
            labels=labels[part],
            indices=request.indices[part],
            batch_size=arguments.batch,
            progress=world.first,
        )

    def save_grid(images: np.ndarray, path: Path) -> None:
        shown = images[np.array(request.shown[part], dtype=bool)]
        gathered = np.frombuffer(b"".join(world.gather(shown.tobytes())), dtype=np.uint8)
        of_shown = [label for label, show in zip(labels, request.shown, strict=True) if show]
        with world.agreed():
            if world.first:
                whole = gathered.reshape(len(of_shown), *images.shape[1:])
                save_png(labelled_grid(whole, of_shown, request.run.class_names), path)

    engine = request.sampling.engine_of(request.run.config.quantum)
    if world.first and engine != Exact():
        late = request.sampling.engine_steps
        part_of = f" (the last {late} steps; the others exact)" if late else ""
        print(f"engine: {engine.description}{part_of}", flush=True)
    with world.agreed():
        images = sample(request.sampling)
    if arguments.engine == "aer":
        # The exact images from the same noise, to compare with.
        exact = request.grid.with_name(f"{request.grid.stem}_exact.png")
        with world.agreed():
            exact_images = sample(request.sampling.on(Exact()))
        save_grid(exact_images, exact)
        if world.first:
            print(f"exact grid: {exact}")
    with world.agreed():
        for file, image in zip(request.files[part], images, strict=False):
            save_png(to_picture(image), file)
    save_grid(images, request.grid)
    if world.first:
        if request.files:
            print(f"{len(request.files)} images: {arguments.out}")
        cut = "" if all(request.shown) else f" (the first {_MOST_IN_GRID} of each class)"
        print(f"grid: {request.grid}{cut}")


def _sampling(arguments: argparse.Namespace) -> Sampling:
    """What the command line asks for.

    Raises:
        SamplingError: options of Aer without `--engine aer`, or such as contradict each other.
    """
    for name in ("method", "shots", "noise", "engine_steps"):
        if getattr(arguments, name) is not None and arguments.engine != "aer":
            raise SamplingError(
                f"--{name.replace('_', '-')}: only with --engine aer; name it, with all its "
                "options: it takes nothing from the run"
            )
    from qhdm.config import Sampling

    options = ("sampler", "steps", "guidance", "eta", "seed", "weights", "num")
    engine = ("engine", "method", "shots", "noise", "engine_steps")
    given = {name: getattr(arguments, name) for name in (*options, *engine)}
    return settings(Sampling, given, SamplingError)


@contextmanager
def _result_folders(folders: Sequence[tuple[str, Path]], world: World) -> Iterator[None]:
    """Make folders, given with their options, for results; if these fail, empty ones go again."""
    made: set[Path] = set()
    try:
        with world.agreed():
            for option, folder in folders if world.first else ():
                made.update(path for path in (folder, *folder.parents) if not path.exists())
                _make_folder(option, folder)
        yield
    except BaseException:
        for path in sorted(made, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # not empty, or never made
                path.rmdir()
        raise


def _make_folder(option: str, path: Path) -> None:
    """Find out before the work whether its results can be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise SamplingError(f"{option}: {path} is not a folder that can be written; give another")


def _grid_path(arguments: argparse.Namespace, classes: list[str], known: int) -> Path:
    """A name that tells the grids of different requests apart."""
    parts = ["sample"]
    if len(classes) < known:
        parts += classes if len(classes) <= 3 else [f"{len(classes)}classes"]
    if arguments.num:
        parts.append(f"{arguments.num}each")
    if arguments.weights == "model":
        parts.append(arguments.weights)
    if arguments.sampler:
        parts.append(arguments.sampler.replace("+", "p"))
    if arguments.eta:
        parts.append(f"eta{arguments.eta:g}")
    if arguments.steps:
        parts.append(f"{arguments.steps}steps")
    if arguments.guidance is not None:
        parts.append(f"guidance{arguments.guidance:g}")
    if arguments.engine not in (None, "run"):
        parts.append(arguments.engine)
    if arguments.method:
        parts.append(arguments.method)
    if arguments.shots:
        parts.append(f"{arguments.shots}shots")
    if arguments.noise:
        parts.append(Path(arguments.noise).stem)
    if arguments.engine_steps:
        parts.append(f"last{arguments.engine_steps}")
    path: Path = (
        arguments.run / "samples" / ("_".join([*parts, f"seed{arguments.seed or 0}"]) + ".png")
    )
    return path
