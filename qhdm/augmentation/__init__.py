"""Generated images that help a classifier of few real ones (docs/augment.md).

The names below are loaded when first used, so that records can be read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qhdm.augmentation.folder import augment
    from qhdm.augmentation.records import Augmentation, AugmentSettings, read_augmentation

_HOME = {
    "AugmentSettings": "records",
    "Augmentation": "records",
    "augment": "folder",
    "read_augmentation": "records",
}

__all__ = ["AugmentSettings", "Augmentation", "augment", "read_augmentation"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qhdm.augmentation' has no attribute {name!r}")
    return getattr(import_module(f"qhdm.augmentation.{_HOME[name]}"), name)
