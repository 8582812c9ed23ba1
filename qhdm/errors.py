"""The errors qhdm raises for input it cannot use.

Each message is one line that names the place (key, file, image, job) and the remedy; the command
line prints it as it stands and exits with a non-zero code. Anything else that escapes is a bug.
"""

import re


def shortened(message: str) -> str:
    """`message` with words of more than 60 characters cut, as names from files may be."""
    return re.sub(r"\S{61,}", lambda word: f"{word[0][:57]}...", message)


class QhdmError(Exception):
    """Base of all errors that a user can cause and mend."""


class ConfigError(QhdmError):
    """A configuration key or value is unknown, of the wrong type, or contradicts another."""


class DataError(QhdmError):
    """A data set or one of its images is missing or unreadable."""


class DownloadError(DataError):
    """A download failed or what came is not the archive that was asked for."""


class CircuitError(QhdmError):
    """A circuit, ansatz or observable cannot be built or simulated."""


class EngineError(QhdmError):
    """An engine cannot be set up as asked for, or cannot hold a circuit."""


class HardwareError(QhdmError):
    """A backend is unknown or cannot be reached."""


class ExportError(QhdmError):
    """An export would overwrite files, or its inputs do not fit the filters."""


class RunError(QhdmError):
    """A run directory or checkpoint is missing, incomplete, or belongs to another model."""


class CheckpointError(QhdmError):
    """A checkpoint of the published code cannot be read, or is not of the configured network."""


class SamplingError(QhdmError):
    """A sampling request does not fit the trained model (labels, steps, guidance)."""


class TrainingError(QhdmError):
    """Training cannot go on, for example because the loss is no longer finite."""


class Interrupted(QhdmError):  # noqa: N818 (an event, not a fault)
    """The user stopped the work; the message says what was saved and how to go on."""
