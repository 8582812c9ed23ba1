"""Work on many images in threads: Pillow and zlib release the GIL while they decode."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from qhdm import console

T = TypeVar("T")
R = TypeVar("R")

_MAX_THREADS = 16


def map_in_threads(
    function: Callable[[T], R], items: Sequence[T], *, title: str, progress: bool
) -> Iterator[R]:
    """`map(function, items)` in threads, results in order.

    The first exception, in the order of `items`, ends the work.

    Args:
        title: what the progress bar says.
        progress: show a bar on stderr, where that is a terminal and the work takes over a second.
    """
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as executor:
        yield from console.bar(
            executor.map(function, items),
            total=len(items),
            desc=title,
            unit=" images",
            show=progress,
            in_logs=False,
            delay=1,
            mininterval=0.5,
            leave=False,
        )
