"""The training configuration: YAML to frozen dataclasses, one per concern."""

from qhdm.config.config import (
    Config,
    load_config,
    to_dict,
    to_yaml,
    with_circuit_files,
)
from qhdm.config.sampling import EngineRequest, SamplerOptions, Sampling, WeightsName
from qhdm.config.sections import (
    DataConfig,
    DiffusionConfig,
    EmaConfig,
    EncoderConfig,
    FilePath,
    ModelConfig,
    PowerEmaConfig,
    QuantumConfig,
    SampleConfig,
    SamplerName,
    TrainConfig,
    VertexConfig,
    is_circuit_file,
)

__all__ = [
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "EmaConfig",
    "EncoderConfig",
    "EngineRequest",
    "FilePath",
    "ModelConfig",
    "PowerEmaConfig",
    "QuantumConfig",
    "SampleConfig",
    "SamplerName",
    "SamplerOptions",
    "Sampling",
    "TrainConfig",
    "VertexConfig",
    "WeightsName",
    "is_circuit_file",
    "load_config",
    "to_dict",
    "to_yaml",
    "with_circuit_files",
]
