"""Exceptions for input that qhdm cannot use, and helpers for their messages.

A message is one line that names the place (key, file, image, job) and the remedy. The command line
prints it and exits with the code of the class. Any other exception that escapes is a bug.
"""

import difflib
import re
from collections.abc import Iterable
from typing import ClassVar


def shortened(message: str) -> str:
    """`message` with words of more than 60 characters cut."""
    return re.sub(r"\S{61,}", lambda word: f"{word[0][:57]}...", message)


def one_line(error: BaseException) -> str:
    """The text of an exception in one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is probably a misspelling of, or None."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: `; did you mean X?`, or nothing."""
    guess = closest(name, known)
    return f"; did you mean {guess}?" if guess else ""


class QhdmError(Exception):
    """Base of all errors that a user can cause and fix.

    Attributes:
        exit_code: of the command line.

    Example:
        >>> try:
        ...     qhdm.build_filter("hqconv", qubits=6)
        ... except qhdm.QhdmError as error:
        ...     print(type(error).__name__, error.exit_code)
        CircuitError 1
    """

    exit_code: int = 1


class ConfigError(QhdmError):
    """A configuration key or value is unknown, of the wrong type, or contradicts another."""


class DataError(QhdmError):
    """A data set or one of its images is missing or unreadable."""


class DownloadError(DataError):
    """A download failed, or its content is not the requested archive."""


class CircuitError(QhdmError):
    """A circuit, ansatz or observable cannot be built or simulated."""


class EngineError(QhdmError):
    """An engine cannot be set up as requested, or cannot hold a circuit."""


class ExportError(QhdmError):
    """An export would overwrite files, or its inputs do not fit the filters."""


class RunError(QhdmError):
    """A run directory or checkpoint is missing, incomplete, or belongs to another model."""


class CheckpointError(QhdmError):
    """A checkpoint of the published code cannot be read, or is not of the configured network."""


class SamplingError(QhdmError):
    """A sampling request does not fit the trained model (labels, steps, guidance)."""


class TrainingError(QhdmError):
    """Training cannot continue, for example because the loss is not finite."""


class DistributedError(QhdmError):
    """The processes of one command cannot reach each other."""


class PeerFailed(QhdmError):  # noqa: N818 (a consequence, not a fault)
    """Another process of the same command failed and reports it; this one exits silently."""


class ComparisonError(QhdmError):
    """The directory of a comparison holds other runs than specified, or some cells failed."""


class EvaluationError(QhdmError):
    """Images, features or a file of results cannot be used to judge a model."""


class HardwareError(QhdmError):
    """A sampling job on a backend cannot continue.

    Attributes:
        reason: which of `codes` it is, by default the first.
        codes: the exit code of each reason (docs/hardware.md).
    """

    codes: ClassVar[dict[str, int]] = {"other": 3, "session": 22}

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = next(iter(self.codes)) if reason is None else reason
        self.exit_code = self.codes[self.reason]


class AccessError(HardwareError):
    """The account, its instance or the backend is missing, refused, or takes no jobs."""

    codes: ClassVar[dict[str, int]] = {
        "account": 10,
        "instance": 12,
        "backend": 13,
        "maintenance": 14,
        "usage": 20,
    }


class ServiceError(HardwareError):
    """The service failed, could not be reached, or had too many requests: trying again may help.

    Attributes:
        retry_after: seconds that the service asks to wait; None if it does not say.
    """

    codes: ClassVar[dict[str, int]] = {"service": 16, "network": 11, "rate": 15}
    retry_after: float | None = None


class RuntimeJobError(HardwareError):
    """A runtime job has no result and will not have one."""

    codes: ClassVar[dict[str, int]] = {"failed": 17, "cancelled": 18, "too long": 19, "lost": 21}


class BudgetError(HardwareError):
    """A sampling job would exceed one of its own limits."""

    codes: ClassVar[dict[str, int]] = {"limit": 23, "queue": 24}


class Interrupted(QhdmError):  # noqa: N818 (an event, not a fault)
    """The user interrupted a command; the message tells what was saved and how to resume."""

    exit_code = 130
