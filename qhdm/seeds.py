"""Seeds for independent random streams, derived from the one seed of the configuration.

Every draw is a function of (seed, stream, keys): there is no generator state to carry through a
checkpoint, and neither batch size nor process count can change a draw.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a random stream is for. Values are part of every run: never renumber them."""

    INIT = 0
    EPOCH = 1
    STEP = 2
    IMAGE = 3
    MEASURE = 30


def derive_seed(seed: int, stream: Stream, *keys: int) -> int:
    """A 63-bit seed for `stream` at `keys`, by NumPy's SeedSequence (O'Neill's seed_seq_fe).

    Args:
        seed: the configuration's seed, >= 0.
        stream: what the draws are for.
        keys: the position within the stream, for example (epoch,) or (image index,); each >= 0.
    """
    state = np.random.SeedSequence(entropy=(seed, int(stream), *keys)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
