"""The command line: its parser, and exit codes and messages for everything that can go wrong.

Commands are modules of `qhdm.commands`. They import what is heavy only when they run, so that
`qhdm --help` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from qhdm import console
from qhdm._version import __version__
from qhdm.commands import (
    augment,
    circuits,
    compare,
    data,
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
from qhdm.distributed import World
from qhdm.errors import ConfigError, Interrupted, PeerFailed, QhdmError

#: In the order of the help text.
_COMMANDS = (
    train, sample, evaluate, augment, train_classifier, compare, report, circuits, export, noise,
    init, data, import_flax, submit, jobs,
)  # fmt: skip
EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
_MAX_MESSAGE = 5000
#: torchrun ends all processes as soon as one has failed. Processes without a message of their own
#: wait so many seconds for the one that has it.
_GRACE_SECONDS = 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if not World.from_environment().first:
            self.exit(_fail_silently(EXIT_USAGE))
        self.exit(EXIT_USAGE, f"{self.prog}: error: {_shown(message)} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    with _terminable():
        return _main(argv)


@contextmanager
def _terminable() -> Iterator[None]:
    """Treat SIGTERM, as sent by batch systems, like Ctrl-C."""
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
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may not be encodable
    try:
        world = World.from_environment()
        arguments = _parser().parse_args(argv)
        if world.size > 1 and not getattr(arguments, "processes", False):
            raise world.common(
                ConfigError(f"this command runs in one process, and {world.size} were started")
            )
        command: Callable[[argparse.Namespace], None] = arguments.command
        command(arguments)
        sys.stdout.flush()  # what cannot be written is an error of the command
    except Interrupted as stop:
        return _fail(str(stop), EXIT_INTERRUPTED)
    except PeerFailed:
        return _fail_silently(EXIT_FAILURE)
    except QhdmError as error:
        return _fail(f"error: {error}", error.exit_code)
    except KeyboardInterrupt:
        if not world.first:
            return _fail_silently(EXIT_INTERRUPTED)
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader has gone. What is still buffered must not fail again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "; free some space and run it again" if full else ""
        return _fail(f"error: {where}{error.strerror or error}{remedy}", EXIT_FAILURE)
    except (MemoryError, RuntimeError) as error:
        # torch raises a plain RuntimeError for this on the CPU.
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
    """`message` in one line without control characters, which names from files may hold."""
    line = " ".join(message.split())
    line = line if len(line) <= _MAX_MESSAGE else line[:_MAX_MESSAGE] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _fail_silently(code: int) -> int:
    """Wait for another process to report the error."""
    time.sleep(_GRACE_SECONDS)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="qhdm",
        description="Quantum hybrid diffusion models for Earth Observation.",
    )
    parser.add_argument("--version", action="version", version=f"qhdm {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in _COMMANDS:
        module.add(commands)
    return parser
