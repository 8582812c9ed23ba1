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

    exit_code: ClassVar[int] = 1


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
    """A backend is unknown or cannot be used, or a job on it cannot go on."""

    exit_code = 3


class AccountError(HardwareError):
    """There is no IBM Quantum account, or its token is refused."""

    exit_code = 10


class NetworkError(HardwareError):
    """The service cannot be reached, or the connection broke."""

    exit_code = 11


class InstanceError(HardwareError):
    """The account has no such instance."""

    exit_code = 12


class BackendMissingError(HardwareError):
    """The instance has no such backend."""

    exit_code = 13


class BackendUnavailableError(HardwareError):
    """The backend is in maintenance or otherwise not taking jobs."""

    exit_code = 14


class RateLimitError(HardwareError):
    """The service refused a request because there were too many (HTTP 429).

    Attributes:
        retry_after: seconds that the service asks to wait; None if it does not say.
    """

    exit_code = 15
    retry_after: float | None = None


class ServiceError(HardwareError):
    """The service failed (HTTP 5xx)."""

    exit_code = 16


class JobFailedError(HardwareError):
    """The service could not execute a job."""

    exit_code = 17


class JobCancelledError(HardwareError):
    """A job was cancelled, here or elsewhere."""

    exit_code = 18


class JobTooLongError(HardwareError):
    """The service stopped a job that ran beyond its time."""

    exit_code = 19


class UsageLimitError(HardwareError):
    """The instance has no QPU time left."""

    exit_code = 20


class ResultLostError(HardwareError):
    """The service has a job but no longer its result, or no longer the job."""

    exit_code = 21


class SessionExpiredError(HardwareError):
    """The session or batch that jobs were sent in is closed."""

    exit_code = 22


class BudgetError(HardwareError):
    """A job specification's own limits do not allow what it asks for."""

    exit_code = 23


class QueueError(HardwareError):
    """A job is still in the queue after the time that the specification allows for waiting."""

    exit_code = 24


class Interrupted(QhdmError):  # noqa: N818 (an event, not a fault)
    """The user interrupted a command; the message tells what was saved and how to resume."""

    exit_code = 130
