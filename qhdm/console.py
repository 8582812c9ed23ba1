"""Progress bars and messages on stderr, each message on its own line."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

#: Seconds between updates of a bar on a terminal, and in a log.
_SHORT, _LONG = 0.2, 30


class _Stderr:
    """stderr for bars, which tracks whether the current line has been begun."""

    def __init__(self) -> None:
        self.line_begun = False

    def write(self, text: str) -> None:
        if not text:
            return
        self.line_begun = True  # first: an interrupt may end the write anywhere
        sys.stderr.write(text)
        self.line_begun = not text.endswith(("\r", "\n"))

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


_stderr = _Stderr()


def bar(
    iterable: Iterable[Any] | None = None,
    *,
    show: bool = True,
    in_logs: bool = True,
    **options: Any,
) -> tqdm:
    """Progress bar on stderr.

    Args:
        iterable: what to iterate over; None for a bar that is updated by hand.
        show: False hides the bar.
        in_logs: also show it where stderr is not a terminal.
        options: passed to `tqdm`.
    """
    from tqdm import tqdm  # only here: the command line must start quickly

    options.setdefault("mininterval", _SHORT if sys.stderr.isatty() else _LONG)
    hidden = not (show and (in_logs or sys.stderr.isatty()))
    return tqdm(iterable, file=_stderr, disable=hidden, **options)


def message(text: str) -> None:
    """Write a line to stderr, above running bars."""
    module = sys.modules.get("tqdm")
    if module is None:
        print(text, file=sys.stderr)
    else:
        module.tqdm.write(text, file=_stderr)


def end_bars() -> None:
    """Close all bars and end their line.

    Bars close as their functions are left, unless an interrupt hits one while it is drawn.
    """
    module = sys.modules.get("tqdm")
    for unfinished in list(getattr(module and module.tqdm, "_instances", ())):
        with suppress(AttributeError):  # half constructed when it was interrupted
            unfinished.close()
    if _stderr.line_begun:
        _stderr.write("\n")


def duration(seconds: float) -> str:
    """`seconds` in its largest unit: `45 s`, `7 min`, `3.2 h`, `5.1 days`."""
    for unit, size in (("days", 86_400), ("h", 3_600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
