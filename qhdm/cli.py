"""The command line: parse, call one function, print.

Everything heavy is imported inside the commands, so that `qhdm --help` answers at once. Verbs that
are more than a call have modules of their own in `qhdm.commands`.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from qhdm import __version__
from qhdm.commands import circuits, export, import_flax, jobs, noise, submit
from qhdm.commands.arguments import (
    fraction,
    images,
    natural,
    non_negative,
    pixels,
    positive,
    shots,
)
from qhdm.errors import ConfigError, DataError, Interrupted, QhdmError, SamplingError

if TYPE_CHECKING:
    import numpy as np

    from qhdm.config import Config
    from qhdm.quantum.engines import Engine

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
#: Characters of a message.
_LONGEST = 5000


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: error: {_shown(message)} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be in no encoding
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], None] = arguments.command
    try:
        command(arguments)
    except Interrupted as stop:
        return _fail(str(stop), EXIT_INTERRUPTED)
    except QhdmError as error:
        return _fail(f"error: {error}", error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe left: nobody to tell
        return EXIT_FAILURE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "; make room, and run it again" if full else ""
        return _fail(f"error: {where}{error.strerror or error}{hint}", EXIT_FAILURE)
    except (MemoryError, RuntimeError) as error:
        # torch has no type of its own for this on the CPU, and is not imported here.
        words = "out of memory", "allocate memory"
        if not isinstance(error, MemoryError) and not any(w in str(error).lower() for w in words):
            raise
        return _fail("error: out of memory; lower train.batch_size, --batch or --num", EXIT_FAILURE)
    return 0


def _fail(message: str, code: int) -> int:
    print(f"qhdm: {_shown(message)}", file=sys.stderr)
    return code


def _shown(message: str) -> str:
    """One line, in which names from files can neither break it nor steer the terminal."""
    line = " ".join(message.split())
    line = line if len(line) <= _LONGEST else line[:_LONGEST] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _train(arguments: argparse.Namespace) -> None:
    from qhdm import data
    from qhdm.config import load_config, load_run_config, to_yaml

    if (arguments.config is None) == (arguments.resume is None):
        raise ConfigError("train: give either a configuration file or --resume RUN")
    if arguments.resume is not None and arguments.out is not None:
        raise ConfigError("--out: a resumed run stays in its directory")
    load, source = (
        (load_run_config, arguments.resume) if arguments.resume else (load_config, arguments.config)
    )
    config = data.resolved(load(source, arguments.set))

    # Only now the heavy imports: bad input is refused at once.
    from qhdm.models.build import build_filters
    from qhdm.training.loop import resolve_device, resumed, train
    from qhdm.training.metrics import check_tensorboard
    from qhdm.training.run import Run

    device = resolve_device(config.train.device)
    check_tensorboard(config.train.tensorboard)
    run = resumed(Run.open(arguments.resume), config) if arguments.resume else None
    build_filters(config)  # a circuit that cannot be used is refused before a run is made of it
    if arguments.dry_run:
        from qhdm.training.estimate import describe_counts, describe_time

        counts = describe_counts(config)  # first: it also finds out whether the circuits can run
        print(to_yaml(config))
        print(counts, flush=True)
        print(describe_time(config, device))
        return

    if run and run.last_step() >= config.train.steps:
        print(
            f"{run.path} is trained to step {run.last_step()} already; to go further: "
            f"qhdm train --resume {run.path} --set train.steps={2 * run.last_step()}"
        )
        return
    training = data.load(config.data, progress=True).split("train")
    if config.quantum.engine == "aer":
        from qhdm.training.estimate import describe_circuits

        # Before anything is written: it also finds out whether the circuits can run.
        print(describe_circuits(config))
    if not run:
        run = Run.create(config, arguments.out)
    print(f"run directory: {run.path}")
    print(f"training on {len(training)} images of {len(training.class_names)} classes ({device})")
    loss = train(
        run,
        training,
        device=device,
        preview=lambda images, labels, path: _save_grid(images, labels, training.class_names, path),
    )
    print(f"done: loss {loss:.4f} over the last logged steps")
    print(f"samples: {run.picture_path(config.train.steps)}")
    print(f"more samples: qhdm sample {run.path}")


def _sample(arguments: argparse.Namespace) -> None:
    _engine_options(arguments)  # refused before the model is loaded
    from qhdm.pipeline import Pipeline
    from qhdm.quantum.engines import make_engine
    from qhdm.report.pictures import save_png, to_picture

    pipeline = Pipeline.from_run(arguments.run, weights=arguments.weights, device=arguments.device)
    names = pipeline.class_names
    num = arguments.num or pipeline.config.sample.num
    labels, indices = pipeline.images_of(arguments.classes, num)
    classes = list(dict.fromkeys(labels))

    grid = arguments.grid or _grid_path(arguments, [names[label] for label in classes], len(names))
    engine = _engine(arguments, pipeline.config)
    files = []
    folders = [("--grid", grid.parent)]
    if arguments.out:
        for label in classes:
            folder = arguments.out / names[label]
            folders.append(("--out", folder))
            files += [folder / f"{names[label]}_{i:05d}.png" for i in range(num)]
    for file in files:
        if file.exists():
            raise SamplingError(f"{file}: exists already; give another --out")

    def sample(engine: Engine | None, engine_steps: int | None = None) -> np.ndarray:
        return pipeline.sample(
            labels,
            steps=arguments.steps,
            seed=arguments.seed,
            sampler=arguments.sampler,
            guidance=arguments.guidance,
            eta=arguments.eta,
            indices=indices,
            batch_size=arguments.batch,
            progress=True,
            engine=engine,
            engine_steps=engine_steps,
        )

    with _result_folders(folders):
        images = sample(engine, arguments.engine_steps)
        if arguments.engine == "aer":
            # The exact images from the same noise, to compare with.
            exact = grid.with_name(f"{grid.stem}_exact.png")
            _save_grid(sample(make_engine("exact")), labels, names, exact)
            print(f"exact grid: {exact}")
        for file, image in zip(files, images, strict=False):
            save_png(to_picture(image), file)
        if files:
            print(f"{len(files)} images: {arguments.out}")
        _save_grid(images, labels, names, grid)
        print(f"grid: {grid}")


def _engine_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those of Aer that the command line gives.

    Raises:
        SamplingError: some are given without `--engine aer`.
    """
    names = ("shots", "noise", "method")
    given = {name: found for name in names if (found := getattr(arguments, name)) is not None}
    if arguments.engine != "aer":
        for name in [*given, *(["engine-steps"] if arguments.engine_steps else [])]:
            raise SamplingError(f"--{name}: only with --engine aer")
    return given


def _engine(arguments: argparse.Namespace, config: Config) -> Engine | None:
    """The engine that the command line asks for; None is the run's own."""
    import dataclasses

    from qhdm.models.build import engine_of

    if arguments.engine is None:
        return None
    aer = dataclasses.replace(config.quantum.aer, **_engine_options(arguments))
    quantum = dataclasses.replace(config.quantum, engine=arguments.engine, aer=aer)
    return engine_of(quantum)


@contextmanager
def _result_folders(folders: Sequence[tuple[str, Path]]) -> Iterator[None]:
    """Make folders, given with their options, for results; if these fail, empty ones go again."""
    made: set[Path] = set()
    try:
        for option, folder in folders:
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
    if arguments.weights != "ema":
        parts.append(arguments.weights)
    if arguments.sampler:
        parts.append(arguments.sampler.replace("+", "p"))
    if arguments.eta:
        parts.append(f"eta{arguments.eta:g}")
    if arguments.steps:
        parts.append(f"{arguments.steps}steps")
    if arguments.guidance is not None:
        parts.append(f"guidance{arguments.guidance:g}")
    if arguments.engine:
        parts.append(arguments.engine)
    if arguments.method:
        parts.append(arguments.method)
    if arguments.shots:
        parts.append(f"{arguments.shots}shots")
    if arguments.noise:
        parts.append(Path(arguments.noise).stem)
    if arguments.engine_steps:
        parts.append(f"last{arguments.engine_steps}")
    path: Path = arguments.run / "samples" / ("_".join([*parts, f"seed{arguments.seed}"]) + ".png")
    return path


def _save_grid(
    images: np.ndarray, labels: Sequence[int], class_names: Sequence[str], path: Path
) -> None:
    from qhdm.report.pictures import labelled_grid, save_png

    save_png(labelled_grid(images, labels, class_names), path)


def _data_info(arguments: argparse.Namespace) -> None:
    import dataclasses

    from qhdm import data
    from qhdm.config import DataConfig
    from qhdm.data.info import describe
    from qhdm.report.pictures import contact_sheet, save_png

    config = DataConfig(
        root=arguments.path, image_size=arguments.size, test_fraction=arguments.test_fraction
    )
    print(describe(config, progress=True))
    lenient = dataclasses.replace(config, skip_broken=True)
    sheet = arguments.sheet or Path(f"{Path(arguments.path).stem}_contact_sheet.png")
    try:
        dataset = data.load(lenient, progress=True)
    except DataError as error:
        # The set is described all the same: what is wrong with it is what one wants to know.
        print(f"contact sheet: none ({error})")
        return
    save_png(contact_sheet(dataset), sheet)
    print(f"contact sheet: {sheet}")


def _data_download(arguments: argparse.Namespace) -> None:
    import dataclasses

    from qhdm.data.download import EUROSAT, download
    from qhdm.data.source import eurosat_folder

    archive = EUROSAT if arguments.url is None else dataclasses.replace(EUROSAT, url=arguments.url)
    folder = download(archive, arguments.to or eurosat_folder().parent)
    print(f"EuroSAT RGB: {folder}")
    if arguments.to:
        print(f"use it with --set data.root={folder}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="qhdm",
        description="Quantum hybrid diffusion models for Earth Observation.",
    )
    parser.add_argument("--version", action="version", version=f"qhdm {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    train = verbs.add_parser("train", help="train a model from a configuration file")
    train.add_argument("config", nargs="?", type=Path, metavar="CONFIG", help="a YAML file")
    train.add_argument("--out", type=Path, metavar="RUN", help="the run directory to make")
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting"
    )
    train.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run")
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration, parameter and circuit counts, estimated time",
    )
    train.set_defaults(command=_train)

    sample = verbs.add_parser("sample", help="generate images with a trained model")
    sample.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    sample.add_argument(
        "--class",
        dest="classes",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="classes to generate (all when none is named)",
    )
    sample.add_argument("--num", type=images, metavar="N", help="images per class")
    sample.add_argument("--steps", type=positive, metavar="N", help="network evaluations")
    sample.add_argument("--sampler", choices=["ddpm", "ddim", "dpm++"])
    sample.add_argument(
        "--guidance", type=non_negative, metavar="S", help="classifier-free guidance, 1 is off"
    )
    sample.add_argument(
        "--eta", type=non_negative, default=0.0, help="noise of DDIM: 0 none, 1 as DDPM"
    )
    sample.add_argument("--seed", type=natural, default=0, metavar="N")
    sample.add_argument(
        "--weights", choices=["ema", "model"], default="ema", help="averaged or last weights"
    )
    sample.add_argument("--batch", type=positive, default=64, metavar="N", help="images at once")
    sample.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    sample.add_argument(
        "--out", type=Path, metavar="DIR", help="also write one PNG per image, in class folders"
    )
    sample.add_argument("--grid", type=Path, metavar="FILE", help="where the PNG grid goes")
    sample.add_argument(
        "--engine", choices=["exact", "aer"], help="evaluates the filters (the run's own if absent)"
    )
    sample.add_argument("--shots", type=shots, metavar="N", help="samples per circuit on aer")
    sample.add_argument(
        "--noise", metavar="DEVICE", help="of a device (fake_torino) or a calibration file, on aer"
    )
    sample.add_argument(
        "--method",
        choices=["auto", "statevector", "density_matrix", "matrix_product_state"],
        help="of simulation on aer",
    )
    sample.add_argument(
        "--engine-steps",
        type=positive,
        metavar="K",
        help="only the last K network evaluations on aer, the others exact",
    )
    sample.set_defaults(command=_sample)

    circuits.add(verbs)
    export.add(verbs)
    noise.add(verbs)

    data = verbs.add_parser("data", help="look at or download data")
    kinds = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    info = kinds.add_parser("info", help="classes, counts, sizes and split; a contact sheet")
    info.add_argument("path", metavar="PATH", help="a folder or zip of class folders, or `bundled`")
    info.add_argument("--size", type=pixels, default=64, metavar="PIXELS", help="resize to this")
    info.add_argument("--test-fraction", type=fraction, default=0.1, metavar="F")
    info.add_argument("--sheet", type=Path, metavar="FILE", help="where the contact sheet goes")
    info.set_defaults(command=_data_info)
    download = kinds.add_parser("download", help="download a data set")
    download.add_argument("set", choices=["eurosat"])
    download.add_argument("--to", type=Path, metavar="DIR", help="where to unpack it")
    download.add_argument("--url", help="a mirror of the official archive")
    download.set_defaults(command=_data_download)

    import_flax.add(verbs)
    submit.add(verbs)
    jobs.add(verbs)
    return parser
