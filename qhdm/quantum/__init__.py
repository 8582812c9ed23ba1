"""Quantum filters: circuits, their analysis, the engines that evaluate them, the torch layer."""

from qhdm.quantum.engines import expectation
from qhdm.quantum.files.load import find_filter, load_filter
from qhdm.quantum.filter import Filter, build_filter

__all__ = ["Filter", "build_filter", "expectation", "find_filter", "load_filter"]
