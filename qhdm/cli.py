"""The command line: parse, call one function, print.

Everything heavy is imported inside the commands, so that `qhdm --help` answers at once. Verbs that
are more than a call have modules of their own in `qhdm.commands`.
"""

from __future__ import annotations

import argparse
import errno
import io
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from qhdm import console
from qhdm._version import __version__
from qhdm.commands import (
    circuits,
    compare,
    evaluate,
    export,
    import_flax,
    init,
    jobs,
    noise,
    report,
    sample,
    submit,
    train,
    train_classifier,
)
from qhdm.commands.arguments import add_range, fraction, pixels, settings
from qhdm.distributed import World
from qhdm.errors import ConfigError, DataError, Interrupted, PeerFailed, QhdmError

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
#: Characters of a message.
_LONGEST = 5000

#: torchrun ends all processes as soon as one has left with an error: those that have nothing to
#: say give the one that has so many seconds.
_GRACE_SECONDS = 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if not World.from_environment().first:
            self.exit(_leave_in_silence(EXIT_USAGE))
        self.exit(EXIT_USAGE, f"{self.prog}: error: {_shown(message)} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    with _terminable():
        return _main(argv)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM, as batch systems send it, do what Ctrl-C does."""
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _main(argv: Sequence[str] | None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be in no encoding
    try:
        world = World.from_environment()
        arguments = _parser().parse_args(argv)
        if world.size > 1 and not getattr(arguments, "processes", False):
            raise world.common(
                ConfigError(f"this command runs in one process, and {world.size} were started")
            )
        command: Callable[[argparse.Namespace], None] = arguments.command
        command(arguments)
    except Interrupted as stop:
        return _fail(str(stop), EXIT_INTERRUPTED)
    except PeerFailed:
        return _leave_in_silence(EXIT_FAILURE)
    except QhdmError as error:
        return _fail(f"error: {error}", error.exit_code)
    except KeyboardInterrupt:
        if not world.first:
            return _leave_in_silence(EXIT_INTERRUPTED)
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe left: nobody to tell
        return EXIT_FAILURE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "; free some space and run it again" if full else ""
        return _fail(f"error: {where}{error.strerror or error}{hint}", EXIT_FAILURE)
    except (MemoryError, RuntimeError) as error:
        # torch has no type of its own for this on the CPU, and is not imported here.
        words = "out of memory", "allocate memory"
        if not isinstance(error, MemoryError) and not any(w in str(error).lower() for w in words):
            raise
        return _fail("error: out of memory; lower train.batch_size, --batch or --num", EXIT_FAILURE)
    return 0


def _fail(message: str, code: int) -> int:
    console.end_bars()
    console.message(f"qhdm: {_shown(message)}")
    return code


def _shown(message: str) -> str:
    """One line, in which names from files can neither break it nor steer the terminal."""
    line = " ".join(message.split())
    line = line if len(line) <= _LONGEST else line[:_LONGEST] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _leave_in_silence(code: int) -> int:
    """Leave it to another process to say what is wrong."""
    time.sleep(_GRACE_SECONDS)
    return code


def _data_info(arguments: argparse.Namespace) -> None:
    import dataclasses

    from qhdm import data
    from qhdm.config import DataConfig
    from qhdm.data.info import describe
    from qhdm.pictures import contact_sheet, save_png

    given = {
        "root": arguments.path,
        "image_size": arguments.size,
        "range": arguments.range,
        "classes": arguments.classes and list(dict.fromkeys(arguments.classes)),
        "test_fraction": arguments.test_fraction,
    }
    config = settings(DataConfig, given, DataError)
    text = describe(config, progress=True)
    print(text)
    lenient = dataclasses.replace(config, skip_broken=True)
    sheet = arguments.sheet or Path(f"{Path(arguments.path).stem}_contact_sheet.png")
    try:
        dataset = data.load(lenient, progress=True)
    except DataError as error:
        # The set is described all the same: what is wrong with it is what one wants to know.
        print(f"contact sheet: none ({'see above' if str(error) in text else error})")
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

    train.add(verbs)
    sample.add(verbs)
    evaluate.add(verbs)
    train_classifier.add(verbs)
    compare.add(verbs)
    report.add(verbs)
    circuits.add(verbs)
    export.add(verbs)
    noise.add(verbs)

    init.add(verbs)
    data = verbs.add_parser("data", help="look at or download data")
    kinds = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    info = kinds.add_parser("info", help="classes, counts, sizes, values, split; a contact sheet")
    info.add_argument("path", metavar="PATH", help="a folder or zip of class folders, or `bundled`")
    info.add_argument("--size", type=pixels, default=64, metavar="PIXELS", help="resize to this")
    info.add_argument("--test-fraction", type=fraction, default=0.1, metavar="F")
    info.add_argument("--classes", nargs="+", metavar="NAME", help="only these class folders")
    add_range(info)
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
