"""The torch device that a user asks for."""

from __future__ import annotations

import torch

from qhdm.errors import ConfigError


def resolve_device(name: str, *, key: str = "train.device") -> torch.device:
    """`auto`, `cpu` or `cuda` as a device; `key` is where the user gave it.

    Raises:
        ConfigError: CUDA is asked for and absent.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{key}: cuda asked for, but torch finds no CUDA device; use auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
