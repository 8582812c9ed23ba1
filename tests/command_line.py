"""Calls of the command line in this process, and what its refusals look like."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass

from qhdm.cli import main


@dataclass(frozen=True)
class Done:
    """The exit code, stdout and stderr of a command."""

    returncode: int
    stdout: str
    stderr: str


#: `cli("train", path, "--out", run, cwd=folder)`
Cli = Callable[..., Done]


def call(*arguments: object) -> Done:
    """Run `qhdm ...` in this process; an exception that escapes is a failure of the test."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse: a usage error, --help or --version
            code = int(stop.code or 0)
    return Done(code, stdout.getvalue(), stderr.getvalue())


def refused(done: Done, *words: str, code: int = 1) -> None:
    """Check that a command ended with `code` and one printable line on stderr with `words`."""
    assert done.returncode == code, done
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("qhdm"), line
    assert line.isprintable()
    for word in words:
        assert word in line


def succeeded(done: Done) -> str:
    """The stdout of a command that must have succeeded."""
    assert done.returncode == 0, done.stderr
    return done.stdout


def sets(*settings: str) -> list[str]:
    """`--set KEY=VALUE` for each setting."""
    return [word for setting in settings for word in ("--set", setting)]
