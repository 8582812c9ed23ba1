"""Trying again after a fault that may pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


def retry(
    call: Callable[[], T],
    faults: type[E] | tuple[type[E], ...],
    *,
    attempts: int,
    pause: Callable[[int, E], float],
    notify: Callable[[E, float], object] = lambda error, seconds: None,
) -> T:
    """The result of `call`, which is called up to `attempts` times.

    Args:
        call: what to do.
        faults: the exceptions after which to try again; the last one is raised.
        attempts: at least 1.
        pause: seconds to wait after attempt 0, 1, ..., which raised an exception.
        notify: called with the exception and the seconds before each pause.
    """
    for attempt in range(attempts - 1):
        try:
            return call()
        except faults as error:
            seconds = pause(attempt, error)
            notify(error, seconds)
            time.sleep(seconds)
    return call()
