"""Evaluation: how good generated images are, against real ones.

Features of images, distances as pure functions of features, what classifiers say, and the records
that all of it is written to (docs/evaluation.md). The names below are loaded when first used, so
that records can be read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qhdm.metrics.api import evaluate
    from qhdm.metrics.evaluation import evaluate_folder, evaluate_run
    from qhdm.metrics.records import Evaluation, Metric, read_evaluation
    from qhdm.metrics.settings import EvaluationSettings

_HOME = {
    "Evaluation": "records",
    "EvaluationSettings": "settings",
    "Metric": "records",
    "evaluate": "api",
    "evaluate_folder": "evaluation",
    "evaluate_run": "evaluation",
    "read_evaluation": "records",
}

__all__ = [
    "Evaluation",
    "EvaluationSettings",
    "Metric",
    "evaluate",
    "evaluate_folder",
    "evaluate_run",
    "read_evaluation",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qhdm.metrics' has no attribute {name!r}")
    return getattr(import_module(f"qhdm.metrics.{_HOME[name]}"), name)
