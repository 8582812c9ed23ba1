"""Exceptions of IBM's client as errors of one line with a remedy.

The client raises the same class for different faults (an unreachable network is an invalid
account, a full queue a runtime error) and hides their causes, so the whole chain of exceptions is
read: class names, HTTP status codes and words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from qhdm.errors import AccessError, HardwareError, RuntimeJobError, ServiceError

_MAX_LENGTH = 300
_SESSION = re.compile(r"(session|batch)\b.*\b(closed|expired|terminated|inactive|not found)", re.I)
_USAGE = re.compile(r"usage limit|no more time available", re.I)
#: How urllib3 reports a status that its retries did not cure.
_RETRIED = re.compile(r"too many (\d{3}) error responses|\b(\d{3}) (?:Client|Server) Error")
#: Exceptions of requests, urllib3 and Python when a host is not reached.
_NETWORK = {
    "ConnectionError", "ConnectTimeout", "ReadTimeout", "Timeout", "NewConnectionError",
    "NameResolutionError", "ProtocolError", "RemoteDisconnected", "SSLError", "ProxyError",
    "ChunkedEncodingError", "ConnectionResetError", "ConnectionRefusedError", "TimeoutError",
    "InvalidURL", "MissingSchema",
}  # fmt: skip
_BROKEN = re.compile("Max retries exceeded|Connection (aborted|refused|reset)|timed out")
#: What the client raises on an answer that is empty, cut off, or not the service's.
_GARBLED = {"JSONDecodeError", "KeyError", "TypeError", "AttributeError"}
_TOKEN = (
    "check QISKIT_IBM_TOKEN, or the account saved with QiskitRuntimeService.save_account; "
    "tokens are made at https://quantum.cloud.ibm.com"
)


@dataclass(frozen=True)
class _Fault:
    """What an exception and those behind it reveal.

    Attributes:
        names: of all their classes, bases included.
        own: of the exception itself.
        words: of all messages.
        status: HTTP status, if any.
    """

    names: set[str]
    own: set[str]
    words: str
    status: int | None

    @property
    def unreachable(self) -> bool:
        return bool(self.names & _NETWORK or _BROKEN.search(self.words))

    @property
    def refused(self) -> bool:
        bad_key = self.status == 400 and "ApiException" in self.names
        return bad_key or self.status in (401, 403)


#: The first rule that applies gives the class, the reason and the message.
_RULES: tuple[tuple[Callable[[_Fault], object], type[HardwareError], str, str], ...] = (
    (lambda f: "AccountNotFoundError" in f.names, AccessError, "account",
     "no IBM Quantum account; set QISKIT_IBM_TOKEN (and QISKIT_IBM_INSTANCE), or save one with "
     "QiskitRuntimeService.save_account"),
    (lambda f: _USAGE.search(f.words), AccessError, "usage",
     "the instance has no QPU time left; wait for its next period, or use another instance, then: "
     "qhdm jobs resume"),
    (lambda f: f.status == 429, ServiceError, "rate",
     "too many requests (HTTP 429), also after waiting; try later: qhdm jobs resume"),
    (lambda f: _SESSION.search(f.words) and "RuntimeJobNotFound" not in f.names,
     HardwareError, "session",
     "the session is closed or expired; qhdm jobs resume opens a new one"),
    (lambda f: f.refused, AccessError, "account",
     f"the token is refused (HTTP {{status}}); {_TOKEN}"),
    (lambda f: (f.status or 0) >= 500, ServiceError, "service",
     "the service failed (HTTP {status}); try later"),
    (lambda f: f.names >= {"InvalidAccountError", "JSONDecodeError"}, ServiceError, "service",
     "the service's answer cannot be read ({text}); try later"),
    (lambda f: "InvalidAccountError" in f.names and not f.unreachable, AccessError, "account",
     f"the account is not valid ({{text}}); {_TOKEN}"),
    (lambda f: f.unreachable, ServiceError, "network",
     "the service cannot be reached ({cause}); check the network and try again"),
    (lambda f: f.own & _GARBLED, ServiceError, "service",
     "the service's answer cannot be read ({kind}: {text}); try later"),
    (lambda f: "instance" in f.words.lower() and "IBMInputValueError" in f.names,
     AccessError, "instance",
     "the account has no such instance; check `instance` of the specification and "
     "QISKIT_IBM_INSTANCE"),
    (lambda f: "QiskitBackendNotFoundError" in f.names, AccessError, "backend",
     "the instance has no such backend; list them at https://quantum.cloud.ibm.com/computers"),
    (lambda f: "RuntimeJobNotFound" in f.names or f.status == 404, RuntimeJobError, "lost",
     "the service does not have it (any more)"),
    (lambda f: True, HardwareError, "other", "{kind}: {text}"),
)  # fmt: skip


def redacted(text: str, secrets: Iterable[str]) -> str:
    """`text` without any of `secrets`."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text


def explained(error: BaseException, doing: str, secrets: Iterable[str] = ()) -> HardwareError:
    """The error to raise instead of one of the client's.

    Args:
        error: what the client raised.
        doing: what was tried, the start of the message (`backend ibm_fez`).
        secrets: never repeated.
    """
    chain, secrets = list(_chain(error)), list(secrets)
    words = " ".join(str(one) for one in chain)
    fault = _Fault(
        names={kind.__name__ for one in chain for kind in type(one).__mro__},
        own={kind.__name__ for kind in type(error).__mro__},
        words=words,
        status=_status(chain, words),
    )
    text = redacted(" ".join(str(error).strip("\"'").split()), secrets)
    facts = {
        "status": fault.status,
        "kind": type(error).__name__,
        "text": text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - 3] + "...",
        "cause": _cause(chain, secrets),
    }
    kind, reason, message = next(rule[1:] for rule in _RULES if rule[0](fault))
    explanation = kind(f"{doing}: {message.format(**facts)}", reason)
    if isinstance(explanation, ServiceError):
        explanation.retry_after = _retry_after(chain)
    return explanation


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, what it was raised from or during, and what it carries."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]


def _status(chain: list[BaseException], words: str) -> int | None:
    for one in chain:
        response = getattr(one, "response", None)
        for holder, name in ((response, "status_code"), (one, "status_code"), (one, "code")):
            status = getattr(holder, name, None)
            if isinstance(status, int) and 400 <= status < 600:
                return status
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


def _cause(chain: list[BaseException], secrets: Iterable[str]) -> str:
    """The last cause in a few words."""
    last = ([one for one in chain if type(one).__name__ in _NETWORK] or chain)[-1]
    # urllib3 begins with the address of an object.
    text = re.sub(r"<[^>]*>:?\s*", "", redacted(" ".join(str(last).split()), secrets))
    return f"{type(last).__name__}: {text[:120]}" if text else type(last).__name__
