"""IBM's client: its account, its warnings, and its errors as one line.

The client reads the token from the environment or the account file; it is removed from every
message and log record.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qiskit.providers import BackendV2

from qhdm.errors import AccessError, HardwareError
from qhdm.hardware.faults import explained, redacted
from qhdm.hardware.runtime.device import fake_backend

_NO_TOKEN = r"Unable to retrieve IBM Cloud access token"
_NO_TIME = r"(?s).*(usage limit|no more time available)"


class Client:
    """An account of IBM's service.

    Args:
        instance: CRN or name; None takes QISKIT_IBM_INSTANCE, or the account's.

    Raises:
        HardwareError: no account, no network, or no such instance.
    """

    def __init__(self, instance: str | None = None) -> None:
        from qiskit_ibm_runtime import QiskitRuntimeService

        self.secrets = _secrets()
        _redact_logs(self.secrets)
        with self.calling("account"):
            self.service = QiskitRuntimeService(instance=instance)

    def backend(self, name: str, *, fractional: bool = False) -> Any:
        """A backend by name, with the fractional gates that it has, or without.

        Raises:
            HardwareError: the instance has none of that name, or it cannot be described.
        """
        with self.calling(f"backend {name}"), _logged_problems() as problems:
            try:
                # True would refuse a backend that has none.
                return self.service.backend(
                    name, use_fractional_gates=None if fractional else False
                )
            except Exception:
                # The client only logs why a backend cannot be described, and then has none.
                if problems:
                    raise RuntimeError(" ".join(problems)) from None
                raise

    @contextmanager
    def calling(self, doing: str) -> Iterator[None]:
        """Call the client: important warnings become errors, and errors become one line."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # The client would continue, and send the token itself instead.
                warnings.filterwarnings("error", message=_NO_TOKEN)
                warnings.filterwarnings("error", message=_NO_TIME)
                yield
        except HardwareError:
            raise
        except Exception as error:  # the client raises dozens of kinds, its own and of libraries
            raise explained(error, doing, self.secrets) from None


def find_backend(name: str) -> BackendV2:
    """A backend by name.

    Args:
        name: `fake_fez` and its like, snapshots of real devices that qiskit-ibm-runtime ships and
            that need no account, or the name of a real device (`ibm_fez`), which needs one.

    Raises:
        HardwareError: there is no such device, no account, or no way to reach it.
    """
    if name.startswith("fake_"):
        return fake_backend(name)
    try:
        backend: BackendV2 = Client().backend(name)
    except AccessError as error:
        if error.reason != "account":
            raise
        raise AccessError(
            f"backend {name}: {error}; or use a fake device such as fake_fez"
        ) from None
    return backend


@contextmanager
def _logged_problems() -> Iterator[list[str]]:
    """What the client logs about backends that it cannot describe."""
    problems: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Unable to create configuration" in record.getMessage():
                problems.append(record.getMessage())

    logger, listener = logging.getLogger("qiskit_ibm_runtime"), Listener()
    level, spreads = logger.level, logger.propagate
    logger.addHandler(listener)
    if level > logging.WARNING:
        logger.setLevel(logging.WARNING)
        logger.propagate = False
    try:
        yield problems
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)
        logger.propagate = spreads


def _secrets() -> list[str]:
    """The tokens that the client may use."""
    from qiskit_ibm_runtime import QiskitRuntimeService

    tokens = [os.environ.get("QISKIT_IBM_TOKEN", "")]
    try:
        accounts = QiskitRuntimeService.saved_accounts().values()
        tokens += [account.get("token", "") for account in accounts]
    except Exception as error:  # an account file may hold anything
        if not tokens[0]:
            raise explained(error, "account file ~/.qiskit/qiskit-ibm.json") from None
    return [token for token in tokens if token]


def _redact_logs(secrets: Sequence[str]) -> None:
    """Remove secrets from the log records of all libraries, and hide warnings of the client."""
    if "QISKIT_IBM_RUNTIME_LOG_LEVEL" not in os.environ:
        logging.getLogger("qiskit_ibm_runtime").setLevel(logging.ERROR)
    make = logging.getLogRecordFactory()

    def clean(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        text = record.getMessage()
        if any(secret in text for secret in secrets):
            record.msg, record.args = redacted(text, secrets), ()
        return record

    logging.setLogRecordFactory(clean)
