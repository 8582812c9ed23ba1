"""qhdm: quantum hybrid diffusion models for Earth Observation, native to Qiskit.

The names below are loaded when first used, so that `import qhdm` stays quick.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from qhdm._version import __version__

# Waiting threads of torch spin by default, and hold up whoever needs the core: where it is shared,
# small operations take several times as long. Read when torch is loaded; what the user set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from qhdm.config import (
        Config,
        DataConfig,
        DiffusionConfig,
        EmaConfig,
        EncoderConfig,
        ModelConfig,
        QuantumConfig,
        SampleConfig,
        Sampling,
        TrainConfig,
        VertexConfig,
        load_config,
    )
    from qhdm.errors import QhdmError
    from qhdm.metrics import EvaluationSettings, evaluate
    from qhdm.models import build_model
    from qhdm.quantum import Filter, build_filter, expectation, load_filter
    from qhdm.quantum.layer import QuantumConv2d
    from qhdm.quantum.options import Aer, Exact, Hardware, Limits
    from qhdm.run import Run
    from qhdm.training.callbacks import Callback, PreviewGrid, ProgressBar, TensorBoard
    from qhdm.training.train import resume, train

#: The public names, and the module of each.
_HOME = {
    "Aer": "qhdm.quantum.options",
    "Callback": "qhdm.training.callbacks",
    "Config": "qhdm.config",
    "DataConfig": "qhdm.config",
    "DiffusionConfig": "qhdm.config",
    "EmaConfig": "qhdm.config",
    "EncoderConfig": "qhdm.config",
    "EvaluationSettings": "qhdm.metrics",
    "Exact": "qhdm.quantum.options",
    "Filter": "qhdm.quantum",
    "Hardware": "qhdm.quantum.options",
    "Limits": "qhdm.quantum.options",
    "ModelConfig": "qhdm.config",
    "PreviewGrid": "qhdm.training.callbacks",
    "ProgressBar": "qhdm.training.callbacks",
    "QhdmError": "qhdm.errors",
    "QuantumConfig": "qhdm.config",
    "QuantumConv2d": "qhdm.quantum.layer",
    "Run": "qhdm.run",
    "SampleConfig": "qhdm.config",
    "Sampling": "qhdm.config",
    "TensorBoard": "qhdm.training.callbacks",
    "TrainConfig": "qhdm.config",
    "VertexConfig": "qhdm.config",
    "build_filter": "qhdm.quantum",
    "build_model": "qhdm.models",
    "evaluate": "qhdm.metrics",
    "expectation": "qhdm.quantum",
    "load_config": "qhdm.config",
    "load_filter": "qhdm.quantum",
    "resume": "qhdm.training.train",
    "train": "qhdm.training.train",
}

__all__ = [
    "Aer",
    "Callback",
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "EmaConfig",
    "EncoderConfig",
    "EvaluationSettings",
    "Exact",
    "Filter",
    "Hardware",
    "Limits",
    "ModelConfig",
    "PreviewGrid",
    "ProgressBar",
    "QhdmError",
    "QuantumConfig",
    "QuantumConv2d",
    "Run",
    "SampleConfig",
    "Sampling",
    "TensorBoard",
    "TrainConfig",
    "VertexConfig",
    "__version__",
    "build_filter",
    "build_model",
    "evaluate",
    "expectation",
    "load_config",
    "load_filter",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qhdm' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
