"""qhdm: quantum hybrid diffusion models for Earth Observation, native to Qiskit.

The names below are loaded when first used, so that `import qhdm` stays quick.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Waiting threads of torch spin by default, and hold up whoever needs the core: where it is shared,
# small operations take several times as long. Read when torch is loaded; what the user set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from qhdm.config import Config, load_config
    from qhdm.models import build_model
    from qhdm.quantum import build_filter, expectation, load_filter
    from qhdm.quantum.options import Aer, Exact
    from qhdm.run import Run

_HOME = {
    "Aer": "qhdm.quantum.options",
    "Exact": "qhdm.quantum.options",
    "Config": "qhdm.config",
    "load_config": "qhdm.config",
    "build_model": "qhdm.models",
    "Run": "qhdm.run",
    "build_filter": "qhdm.quantum",
    "expectation": "qhdm.quantum",
    "load_filter": "qhdm.quantum",
}

__all__ = [
    "Aer",
    "Config",
    "Exact",
    "Run",
    "__version__",
    "build_filter",
    "build_model",
    "expectation",
    "load_config",
    "load_filter",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qhdm' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
