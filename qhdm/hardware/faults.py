"""What the client of the service raises, as one line with a remedy.

The client raises the same class for different faults (an unreachable network is an invalid account,
a full queue a runtime error), and hides their causes. What tells is the whole chain of exceptions:
their class names, HTTP status codes and words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from qhdm.errors import (
    AccountError,
    BackendMissingError,
    HardwareError,
    InstanceError,
    NetworkError,
    RateLimitError,
    ResultLostError,
    ServiceError,
    SessionExpiredError,
    UsageLimitError,
)

_LONGEST = 300
_SESSION = re.compile(r"(session|batch)\b.*\b(closed|expired|terminated|inactive|not found)", re.I)
_USAGE = re.compile(r"usage limit|no more time available", re.I)
#: urllib3's word for a status that its retries did not cure.
_RETRIED = re.compile(r"too many (\d{3}) error responses|\b(\d{3}) (?:Client|Server) Error")
#: Of sockets and names, in the class names of requests, urllib3 and Python.
_NETWORK = {
    "ConnectionError", "ConnectTimeout", "ReadTimeout", "Timeout", "NewConnectionError",
    "NameResolutionError", "ProtocolError", "RemoteDisconnected", "SSLError", "ProxyError",
    "ChunkedEncodingError", "ConnectionResetError", "ConnectionRefusedError", "TimeoutError",
    "InvalidURL", "MissingSchema",
}  # fmt: skip
#: What the client trips over in an answer that is empty, cut off, or of somebody else.
_GARBLED = {"JSONDecodeError", "KeyError", "TypeError", "AttributeError"}
_BROKEN = re.compile("Max retries exceeded|Connection (aborted|refused|reset)|timed out")
_TOKEN_REMEDY = (
    "check QISKIT_IBM_TOKEN, or the account saved with QiskitRuntimeService.save_account; "
    "tokens are made at https://quantum.cloud.ibm.com"
)


def redacted(text: str, secrets: Iterable[str]) -> str:
    """`text` without any of `secrets`."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return text


def explained(error: BaseException, doing: str, secrets: Iterable[str] = ()) -> HardwareError:
    """The error to raise instead of one of the client's.

    Args:
        error: what the client raised.
        doing: what was tried, to begin the line with (`backend ibm_fez`).
        secrets: never repeated.
    """
    chain = list(_chain(error))
    names = {kind.__name__ for one in chain for kind in type(one).__mro__}
    text = redacted(" ".join(str(chain[0]).strip("\"'").split()), secrets)
    words = redacted(" ".join(str(one) for one in chain), secrets)
    reason = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    status = _status(chain, words)

    if "AccountNotFoundError" in names:
        return AccountError(
            f"{doing}: no IBM Quantum account; set QISKIT_IBM_TOKEN (and QISKIT_IBM_INSTANCE), or "
            "save one with QiskitRuntimeService.save_account"
        )
    if _USAGE.search(words):
        return UsageLimitError(
            f"{doing}: the instance has no QPU time left; wait for its next period, or use another "
            "instance, then: qhdm jobs resume"
        )
    if status == 429:
        found = RateLimitError(
            f"{doing}: too many requests (HTTP 429), also after waiting; try later: "
            "qhdm jobs resume"
        )
        found.retry_after = _retry_after(chain)
        return found
    if _SESSION.search(words) and "RuntimeJobNotFound" not in names:
        return SessionExpiredError(
            f"{doing}: the session is closed or expired; qhdm jobs resume opens a new one"
        )
    if status in (400, 401, 403) and ("ApiException" in names or status != 400):
        return AccountError(f"{doing}: the token is refused (HTTP {status}); {_TOKEN_REMEDY}")
    if status is not None and status >= 500:
        return ServiceError(f"{doing}: the service failed (HTTP {status}); try later")
    if "InvalidAccountError" in names and "JSONDecodeError" in names:
        return ServiceError(f"{doing}: the service's answer cannot be read ({reason}); try later")
    if "InvalidAccountError" in names and not names & _NETWORK and not _BROKEN.search(words):
        return AccountError(f"{doing}: the account is not valid ({reason}); {_TOKEN_REMEDY}")
    if names & _NETWORK or _BROKEN.search(words):
        return NetworkError(
            f"{doing}: the service cannot be reached ({_root(chain, secrets)}); check the network "
            "and try again"
        )
    if _GARBLED & {kind.__name__ for kind in type(error).__mro__}:
        return ServiceError(
            f"{doing}: the service's answer cannot be read ({type(error).__name__}: {reason}); "
            "try later"
        )
    if "instance" in words.lower() and "IBMInputValueError" in names:
        return InstanceError(
            f"{doing}: the account has no such instance; check `instance` of the specification and "
            "QISKIT_IBM_INSTANCE"
        )
    if "QiskitBackendNotFoundError" in names:
        return BackendMissingError(
            f"{doing}: the instance has no such backend; list them at "
            "https://quantum.cloud.ibm.com/computers"
        )
    if "RuntimeJobNotFound" in names or status == 404:
        return ResultLostError(f"{doing}: the service does not have it (any more)")
    return HardwareError(f"{doing}: {type(error).__name__}: {reason}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, what it was raised from or during, and what it carries."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__, getattr(one, "reason", None)]
        waiting += [a for a in getattr(one, "args", ()) if isinstance(a, BaseException)]
        waiting = [w for w in waiting if isinstance(w, BaseException)]


def _status(chain: list[BaseException], words: str) -> int | None:
    for one in chain:
        response = getattr(one, "response", None)
        for holder, name in ((response, "status_code"), (one, "status_code"), (one, "code")):
            found = getattr(holder, name, None)
            if isinstance(found, int) and 400 <= found < 600:
                return found
    retried = _RETRIED.search(words)
    return int(retried[1] or retried[2]) if retried else None


def _retry_after(chain: list[BaseException]) -> float | None:
    for one in chain:
        headers = getattr(getattr(one, "response", None), "headers", None) or {}
        try:
            return max(0.0, float(headers["Retry-After"]))
        except (KeyError, TypeError, ValueError):
            continue
    return None


def _root(chain: list[BaseException], secrets: Iterable[str]) -> str:
    """The last cause in a few words."""
    found = [one for one in chain if type(one).__name__ in _NETWORK] or chain
    text = redacted(" ".join(str(found[-1]).split()), secrets)
    # urllib3 begins with the address of an object.
    text = re.sub(r"<[^>]*>:?\s*", "", text)
    return f"{type(found[-1]).__name__}: {text[:120]}" if text else type(found[-1]).__name__
