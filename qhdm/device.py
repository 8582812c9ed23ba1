"""The torch device of a configuration or command."""

from __future__ import annotations

import torch

from qhdm.errors import ConfigError


def resolve_device(name: str, *, key: str = "train.device") -> torch.device:
    """The device called `auto`, `cpu` or `cuda`; `key` is named in the error.

    Raises:
        ConfigError: CUDA is requested but absent.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{key}: cuda asked for, but torch finds no CUDA device; use auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
