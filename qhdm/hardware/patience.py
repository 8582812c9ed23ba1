"""How often, and how long, the service is asked again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from qhdm.errors import NetworkError, RateLimitError, ResultLostError, ServiceError
from qhdm.retries import retry

T = TypeVar("T")

#: How often, and from how many seconds on, something is tried again; each time twice as long.
ATTEMPTS, _FIRST_PAUSE, _LONGEST_PAUSE = 6, 2.0, 60.0
#: However long the service asks to wait.
_LONGEST_ASKED = 600.0
#: Between two looks for something that should be there, seconds.
_LOOK = 2.0


def pause_after(attempt: int, error: Exception) -> float:
    """Seconds to wait after a failed attempt, counted from 0: what the service asks for, or more
    each time.
    """
    asked = getattr(error, "retry_after", None)
    if asked is not None:
        return min(float(asked), _LONGEST_ASKED)
    return min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE)


@dataclass(frozen=True)
class Patience:
    """Asks the service, and asks again.

    Time is that of a clock that nobody can set.

    Attributes:
        settle_seconds: in which what the service has shows up in its answers.
        notify: told what is being waited for.
    """

    settle_seconds: float
    notify: Callable[[str], object]

    def ask(self, call: Callable[[], T]) -> T:
        """Call again when the connection breaks or the service falters.

        Raises:
            HardwareError: it does so each time, or something else is wrong.
        """
        return retry(
            call,
            (NetworkError, ServiceError, RateLimitError),
            attempts=ATTEMPTS,
            pause=pause_after,
            notify=lambda *_: self.notify("waiting for the service"),
        )

    def insist(self, call: Callable[[], T]) -> T:
        """Ask again, too, when the service does not have what it should have, or gives it broken.

        Raises:
            ResultLostError: it still does so after `settle_seconds`.
            HardwareError: as for `ask`.
        """
        since = time.monotonic()
        while True:
            try:
                return self.ask(call)
            except ResultLostError as error:
                if self.settled(since):
                    raise
                self.notify(f"asking again: {error}")
                self.rest(since)

    def settled(self, since: float) -> bool:
        """Whether `settle_seconds` have passed since a moment of `time.monotonic`."""
        return self.settle_seconds <= time.monotonic() - since

    def rest(self, since: float) -> None:
        """Wait until the next look, or until the last one."""
        left = self.settle_seconds - (time.monotonic() - since)
        time.sleep(max(0.0, min(_LOOK, left)))
