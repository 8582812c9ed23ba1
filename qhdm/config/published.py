"""The sections of the published set-up (arXiv 2512.20448), where it differs from the recommended.

A section is read as the published variant if it has a key that only this one has. Keys that a
configuration of the published network leaves out have their published values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from qhdm.config.fields import STRICT, Kind, Positive
from qhdm.schema import one_line_errors

#: Published values of keys, where those of the recommended set-up differ.
DEFAULTS: Mapping[str, Any] = {
    "data.augment": False,
    "diffusion.prediction": "eps",
    "quantum.vertex.ansatz": "hqconv",
    "quantum.vertex.filters": 1,
    "quantum.encoder.ansatz": "hqconv",
    "quantum.encoder.filters": 1,
    "quantum.encoder.levels": [4],
    "train.batch_size": 128,
    "train.lr": 1e-3,
    "train.lr_quantum": None,
    "train.warmup": 0,
    "train.lr_schedule": "constant",
    "train.ema": {"decay": 0.995},
    "train.precision": "float32",
    "sample.steps": 50,
}


def with_defaults(data: Any) -> Any:
    """`data` of a configuration file with the `DEFAULTS` of keys that it lacks."""
    for key, default in DEFAULTS.items():
        data = _with_default(data, key.split("."), default)
    return data


def _with_default(data: Any, path: list[str], default: Any) -> Any:
    if not isinstance(data, Mapping):
        return data  # refused when it is read
    key, *inner = path
    if not inner:
        return {key: default, **data}
    return {**data, key: _with_default(data.get(key, {}), inner, default)}


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class PublishedModelConfig:
    """The published U-Net (Ho et al. 2020 with FiLM conditioning), read from the keys below `kind`.

    Attributes:
        kind: `unet` (classical), `qvunet` (QResNet at the vertex), `fullqvunet` (QResNet at the
            vertex with every channel in a filter), `qcunet` (QuanResNet in the encoder and
            QResNet at the vertex).
        dim: channels of the first feature map, and size of the time embedding.
        dim_mults: channels of each level as multiples of `dim`.
        groups: groups of every GroupNorm; divides `dim`.
        heads, dim_head: attention heads and channels per head.
        label_dim: size of the label embedding.

    Example:
        >>> qhdm.PublishedModelConfig(dim=16, dim_mults=(1, 2, 4), groups=8).vertex_channels
        64
    """

    kind: Kind = "qcunet"
    dim: Annotated[int, Field(ge=4, le=4096)] = 10
    dim_mults: Annotated[
        tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=12)
    ] = (1, 2, 3, 4, 5, 6)
    groups: Positive = 10
    heads: Annotated[int, Field(ge=1, le=256)] = 4
    dim_head: Annotated[int, Field(ge=1, le=4096)] = 32
    label_dim: Annotated[int, Field(ge=1, le=4096)] = 10

    @property
    def halvings(self) -> int:
        """How often the resolution is halved from the image to the vertex."""
        return len(self.dim_mults) - 1

    @property
    def emb_dim(self) -> int:
        """Size of the vector that conditions every block on timestep and label."""
        return 4 * self.dim

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of the blocks of each encoder level, finest first."""
        return tuple(self.dim * mult for mult in (1, *self.dim_mults[:-1]))

    @property
    def vertex_channels(self) -> int:
        """Channels of the vertex (bottleneck)."""
        return self.dim * self.dim_mults[-1]


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class ReleasedConfig:
    """Differences between the published code and its paper (arXiv 2512.20448).

    Each switch restores one, to reproduce published numbers and import published weights. Two more
    are settings of their own: the ansatz `hqconv_released`, and `quantum.encoder.replace: both`.
    docs/reproduction.md gives the evidence.

    Attributes:
        time_blind: paper: every block is conditioned on the timestep and the label. Code: the
            encoder of UNet, QVUNet and FullQVUNet embeds the label alone.
        attention_over_tokens: paper: full attention at the vertex. Code: queries and keys are
            normalised over the pixels (tokens), where its own comment says over the features.
        discard_second_pass: paper: both convolutions of a QResNet block are hybrid. Code: the
            values of the second are discarded for those of the first; its weights get no
            gradient.
        second_pass_reads_input: paper: a layer reads the layer before it. Code: the filters of a
            QuanResNet block's second convolution read the block's input.
        swapped_embedding: paper: one vector of `model.label_dim` values for each class. Code: the
            arguments are swapped, so that `model.dim` vectors have one value for each class.
        p2_k_from_gamma: paper: the loss weight (k + snr)^-gamma has two parameters. Code: k is
            read from gamma.
    """

    time_blind: bool = False
    attention_over_tokens: bool = False
    discard_second_pass: bool = False
    second_pass_reads_input: bool = False
    swapped_embedding: bool = False
    p2_k_from_gamma: bool = False
