"""Retries: how often, and for how long, the service is asked again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from qhdm.errors import RuntimeJobError, ServiceError
from qhdm.retries import retry

T = TypeVar("T")

#: Attempts, and seconds between them, which double each time.
ATTEMPTS, _FIRST_PAUSE, _LONGEST_PAUSE = 6, 2.0, 60.0
#: Seconds that are waited at most if the service asks for a pause.
_LONGEST_ASKED = 600.0
#: Seconds between two looks for something that should be there.
_LOOK = 2.0


def pause_after(attempt: int, error: ServiceError) -> float:
    """Seconds to wait after failed attempt 0, 1, ...: what the service asks for, or exponential."""
    if error.retry_after is not None:
        return min(error.retry_after, _LONGEST_ASKED)
    return min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE)


@dataclass(frozen=True)
class Patience:
    """Retries of calls to the service, by the monotonic clock.

    Attributes:
        settle_seconds: after which the service's answers show all that it has.
        notify: told what is being waited for.
    """

    settle_seconds: float
    notify: Callable[[str], object]

    def ask(self, call: Callable[[], T]) -> T:
        """Call again while the service fails or is not reached.

        Raises:
            HardwareError: it does so each time, or something else is wrong.
        """
        return retry(
            call,
            ServiceError,
            attempts=ATTEMPTS,
            pause=pause_after,
            notify=lambda *_: self.notify("waiting for the service"),
        )

    def insist(self, call: Callable[[], T]) -> T:
        """Call again, too, while the service lacks what it should have, or returns it broken.

        Raises:
            RuntimeJobError: it still does so after `settle_seconds`.
            HardwareError: as for `ask`.
        """
        since = time.monotonic()
        while True:
            try:
                return self.ask(call)
            except RuntimeJobError as error:
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
