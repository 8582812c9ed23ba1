"""Seeds of independent random streams, derived from the seed of the configuration.

Every draw is a function of (seed, stream, keys): checkpoints need no generator state, and neither
batch size nor process count affects a draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Purpose of a random stream. Runs depend on the values: never renumber them."""

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
    HELD_OUT = 42
    HELD_OUT_CALL = 43
    REDRAWN = 44


def derive_seed(seed: int, stream: Stream, *keys: int) -> int:
    """A 63-bit seed from NumPy's SeedSequence (O'Neill's seed_seq_fe).

    Args:
        seed: of the configuration, >= 0.
        stream: purpose of the draws.
        keys: position within the stream, for example (epoch,) or (image index,); each >= 0.
    """
    state = np.random.SeedSequence(entropy=(seed, int(stream), *keys)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


class Draws:
    """Seeds for draws inside a network, such as shots; call k is seeded by position and k.

    Args:
        seed: of the configuration.
        stream: purpose of the draws.
        positions: one for a whole batch, or one for each of its samples in order, each an equal
            share of the rows inside the network. The draws of a sample are then independent of its
            batch.
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
    """Let networks evaluated in the body draw from `draws`."""
    token = _drawing.set(draws)
    try:
        yield
    finally:
        _drawing.reset(token)


def current_draws() -> Draws | None:
    """The innermost `drawing`, or None outside."""
    return _drawing.get()
