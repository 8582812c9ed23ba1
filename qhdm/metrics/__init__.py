"""Evaluation of generated images by real ones (docs/evaluation.md).

The names below are loaded when first used, so that records can be read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qhdm.metrics.evaluation import evaluate
    from qhdm.metrics.records import Evaluation, Metric, read_evaluation
    from qhdm.metrics.settings import EvaluationSettings

_HOME = {
    "Evaluation": "records",
    "EvaluationSettings": "settings",
    "Metric": "records",
    "evaluate": "evaluation",
    "read_evaluation": "records",
}

__all__ = ["Evaluation", "EvaluationSettings", "Metric", "evaluate", "read_evaluation"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qhdm.metrics' has no attribute {name!r}")
    return getattr(import_module(f"qhdm.metrics.{_HOME[name]}"), name)
