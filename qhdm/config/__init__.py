"""The training configuration: YAML to frozen dataclasses, one per concern."""

from qhdm.config.config import (
    Config,
    load_config,
    to_dict,
    to_yaml,
    with_ansatz,
)
from qhdm.config.engine import EngineRequest
from qhdm.config.sections import (
    DataConfig,
    DiffusionConfig,
    EmaConfig,
    Engine,
    Family,
    FilePath,
    QuantumConfig,
    SamplerName,
    VertexConfig,
    is_circuit_file,
)

__all__ = [
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "EmaConfig",
    "Engine",
    "EngineRequest",
    "Family",
    "FilePath",
    "QuantumConfig",
    "SamplerName",
    "VertexConfig",
    "is_circuit_file",
    "load_config",
    "to_dict",
    "to_yaml",
    "with_ansatz",
]
