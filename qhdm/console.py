"""What a command shows on stderr while it runs: progress bars and messages, never on one line."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

#: Seconds between two states of a bar: on a terminal, and in a log.
_SHORT, _LONG = 0.2, 30


class _Stderr:
    """stderr as bars write to it, which knows whether something stands on the current line."""

    def __init__(self) -> None:
        self.line_begun = False

    def write(self, text: str) -> None:
        if not text:
            return
        self.line_begun = True  # until the call is over: an interrupt may end it anywhere
        sys.stderr.write(text)
        self.line_begun = not text.endswith(("\r", "\n"))

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


_stderr = _Stderr()


def bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """A progress bar on stderr.

    Args:
        iterable: what to go through; None for a bar that is updated by hand.
        options: of `tqdm`.
    """
    from tqdm import tqdm  # only here: the command line must start quickly

    options.setdefault("mininterval", _SHORT if sys.stderr.isatty() else _LONG)
    return tqdm(iterable, file=_stderr, **options)


def message(text: str) -> None:
    """Write a line to stderr; bars go on below it."""
    module = sys.modules.get("tqdm")
    if module is None:
        print(text, file=sys.stderr)
    else:
        module.tqdm.write(text, file=_stderr)


def end_bars() -> None:
    """End all bars, so that the next message stands below them on a line of its own.

    They end by themselves as their functions are left, unless an interrupt hits a bar while it is
    drawn or cleared.
    """
    module = sys.modules.get("tqdm")
    for unfinished in list(getattr(module and module.tqdm, "_instances", ())):
        with suppress(AttributeError):  # not all there: interrupted while it was made
            unfinished.close()
    if _stderr.line_begun:
        _stderr.write("\n")
