"""Seeds for independent random streams, derived from the one seed of the configuration.

Every draw is a function of (seed, stream, keys): there is no generator state to carry through a
checkpoint, and neither batch size nor process count can change a draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a random stream is for. Values are part of every run: never renumber them."""

    INIT = 0
    EPOCH = 1
    STEP = 2
    IMAGE = 3
    CALL = 4
    STEP_CALL = 5
    IMAGE_CALL = 6
    CIRCUIT = 7
    PERTURBATION = 8
    MEASURE = 30
    CLASSIFIER = 40
    SUBSET = 41


def derive_seed(seed: int, stream: Stream, *keys: int) -> int:
    """A 63-bit seed for `stream` at `keys`, by NumPy's SeedSequence (O'Neill's seed_seq_fe).

    Args:
        seed: the configuration's seed, >= 0.
        stream: what the draws are for.
        keys: the position within the stream, for example (epoch,) or (image index,); each >= 0.
    """
    state = np.random.SeedSequence(entropy=(seed, int(stream), *keys)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


class Draws:
    """Seeds for draws made deep inside a network, such as shots: call k draws from position and k.

    Args:
        seed: the configuration's seed.
        stream: what the draws are for.
        positions: one for a whole batch, or one for each of its samples (in order, each the same
            share of whatever the batch becomes inside the network), whose draws are then the same
            in whichever batch it stands.
    """

    def __init__(self, seed: int, stream: Stream, positions: Sequence[tuple[int, ...]]) -> None:
        self._seed, self._stream, self._positions = seed, stream, positions
        self._calls = 0

    def next(self) -> tuple[int, ...]:
        """The seeds of the next call, one for each position."""
        call, self._calls = self._calls, self._calls + 1
        return tuple(
            derive_seed(self._seed, self._stream, *position, call) for position in self._positions
        )


_drawing: ContextVar[Draws | None] = ContextVar("drawing", default=None)


@contextmanager
def drawing(draws: Draws) -> Iterator[None]:
    """What is evaluated within draws from `draws`."""
    token = _drawing.set(draws)
    try:
        yield
    finally:
        _drawing.reset(token)


def current_draws() -> Draws | None:
    """The innermost `drawing`, or None outside."""
    return _drawing.get()
