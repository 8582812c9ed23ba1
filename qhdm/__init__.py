"""qhdm: quantum hybrid diffusion models for Earth Observation, native to Qiskit.

The names below are loaded when first used, so that `import qhdm` stays quick.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from qhdm._version import __version__

# By default, waiting torch threads spin and block their core for other processes, which makes small
# operations several times slower. Read when torch is loaded; a value set by the user is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from qhdm import data as data
    from qhdm.augmentation import AugmentSettings, augment
    from qhdm.config import (
        Config,
        DataConfig,
        DiscreteConfig,
        EdmConfig,
        EmaConfig,
        EncoderConfig,
        ModelConfig,
        PowerEmaConfig,
        PublishedModelConfig,
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

_MODULES = {
    "augmentation": "AugmentSettings augment",
    "config": (
        "Config DataConfig DiscreteConfig EdmConfig EmaConfig EncoderConfig ModelConfig "
        "PowerEmaConfig PublishedModelConfig QuantumConfig SampleConfig Sampling TrainConfig "
        "VertexConfig load_config"
    ),
    "errors": "QhdmError",
    "metrics": "EvaluationSettings evaluate",
    "models": "build_model",
    "quantum": "Filter build_filter expectation load_filter",
    "quantum.layer": "QuantumConv2d",
    "quantum.options": "Aer Exact Hardware Limits",
    "run": "Run",
    "training.callbacks": "Callback PreviewGrid ProgressBar TensorBoard",
    "training.train": "resume train",
}
#: The module of each public name.
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "Aer",
    "AugmentSettings",
    "Callback",
    "Config",
    "DataConfig",
    "DiscreteConfig",
    "EdmConfig",
    "EmaConfig",
    "EncoderConfig",
    "EvaluationSettings",
    "Exact",
    "Filter",
    "Hardware",
    "Limits",
    "ModelConfig",
    "PowerEmaConfig",
    "PreviewGrid",
    "ProgressBar",
    "PublishedModelConfig",
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
    "augment",
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
    if name == "data":
        return import_module("qhdm.data")
    if name not in _HOME:
        raise AttributeError(f"module 'qhdm' has no attribute {name!r}")
    return getattr(import_module(f"qhdm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
