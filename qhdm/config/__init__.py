"""The training configuration: YAML to frozen dataclasses, one per concern."""

from qhdm.config.config import (
    Config,
    load_config,
    to_dict,
    to_yaml,
    with_circuit_files,
)
from qhdm.config.data import DataConfig
from qhdm.config.diffusion import DiscreteConfig, EdmConfig
from qhdm.config.fields import FilePath, is_circuit_file
from qhdm.config.published import PublishedModelConfig, ReleasedConfig
from qhdm.config.sampling import EngineRequest, SampleConfig, SamplerName, SamplerOptions, Sampling
from qhdm.config.sections import (
    EmaConfig,
    EncoderConfig,
    ModelConfig,
    PowerEmaConfig,
    QuantumConfig,
    TrainConfig,
    VertexConfig,
)

__all__ = [
    "Config",
    "DataConfig",
    "DiscreteConfig",
    "EdmConfig",
    "EmaConfig",
    "EncoderConfig",
    "EngineRequest",
    "FilePath",
    "ModelConfig",
    "PowerEmaConfig",
    "PublishedModelConfig",
    "QuantumConfig",
    "ReleasedConfig",
    "SampleConfig",
    "SamplerName",
    "SamplerOptions",
    "Sampling",
    "TrainConfig",
    "VertexConfig",
    "is_circuit_file",
    "load_config",
    "to_dict",
    "to_yaml",
    "with_circuit_files",
]
