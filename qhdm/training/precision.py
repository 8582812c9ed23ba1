"""The precision of training: float32, or bf16 where the device multiplies it faster."""

from __future__ import annotations

import time
from functools import cache
from typing import Literal

import torch

from qhdm.config import TrainConfig

#: bf16 must take at most this part of the time of float32: it must be worth its rounding.
_WORTH = 0.8
_REPEATS = 8


def precision_of(train: TrainConfig, device: torch.device) -> Literal["float32", "bf16"]:
    """`train.precision`, `auto` resolved by a measurement of some 50 ms once in a process."""
    return _faster(device.type) if train.precision == "auto" else train.precision


@cache
def _faster(device_type: str) -> Literal["float32", "bf16"]:
    if device_type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if native else "float32"
    # A 3x3 convolution of 96 channels on maps of 16x16 and its gradients, as networks have them.
    shapes = (4, 96, 16, 16), (96, 96, 3, 3)
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other on a busy machine, and count it as time
    try:
        for _ in range(_REPEATS):
            for dtype, times in seconds.items():
                operands = (torch.ones(shape, dtype=dtype, requires_grad=True) for shape in shapes)
                times.append(_convolution(*operands))
    finally:
        torch.set_num_threads(threads)
    float32, bf16 = map(min, seconds.values())
    return "bf16" if bf16 < _WORTH * float32 else "float32"


def _convolution(x: torch.Tensor, kernel: torch.Tensor) -> float:
    """CPU seconds of a convolution and its gradients."""
    start = time.process_time()
    x = x.contiguous(memory_format=torch.channels_last)
    torch.nn.functional.conv2d(x, kernel, padding=1).sum().backward()
    return time.process_time() - start
