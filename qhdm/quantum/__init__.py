"""Quantum filters: circuits, their analysis, the engines that evaluate them, the torch layer.

The names below are loaded when first used, so that options can be read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qhdm.quantum.engines import expectation
    from qhdm.quantum.files.load import find_filter, load_filter
    from qhdm.quantum.filter import Filter, build_filter

_HOME = {
    "Filter": "filter",
    "build_filter": "filter",
    "expectation": "engines",
    "find_filter": "files.load",
    "load_filter": "files.load",
}

__all__ = ["Filter", "build_filter", "expectation", "find_filter", "load_filter"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qhdm.quantum' has no attribute {name!r}")
    return getattr(import_module(f"qhdm.quantum.{_HOME[name]}"), name)
