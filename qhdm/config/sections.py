"""The sections of a configuration, one frozen dataclass per concern.

Angles are in radians, images are square, sizes are in pixels. The defaults are the recommended
set-up, which `configs/eurosat.yaml` spells out; `qhdm.config.published` has the other variant of
the sections that differ in the published one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from qhdm.config.fields import (
    STRICT,
    Ansatz,
    BelowOne,
    Fraction,
    Kind,
    Levels,
    Positive,
    distinct,
    is_circuit_file,
)
from qhdm.quantum.options import ENGINES, PATCH_CHANNELS, Aer, EngineName, EngineOptions
from qhdm.schema import Either, one_line_errors

#: Ansatz layers of a family, unless given.
FAMILY_LAYERS = 3


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """The recommended network, a magnitude-preserving U-Net (Karras et al. 2024, EDM2, in small).

    Attributes:
        kind: `unet` (classical), `qvunet` (quantum filters at the vertex), `fullqvunet` (as many
            there as fit), `qcunet` (in the encoder and at the vertex).
        widths: channels of each level, finest first, each at half the resolution of the one before;
            the last is the vertex.
        blocks: residual blocks of each level, in the encoder and in the decoder.
        head_dim: channels of an attention head; divides the last width.
        emb_dim: size of the vector that conditions every block on noise level and label.

    Example:
        >>> qhdm.ModelConfig(kind="unet", widths=(32, 64, 64)).vertex_channels
        64
    """

    kind: Kind = "qcunet"
    widths: Annotated[
        tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=2, max_length=12)
    ] = (16, 48, 96, 128, 128)
    blocks: Annotated[int, Field(ge=1, le=64)] = 1
    head_dim: Annotated[int, Field(ge=1, le=4096)] = 32
    emb_dim: Annotated[int, Field(ge=1, le=4096)] = 128

    @property
    def halvings(self) -> int:
        """How often the resolution is halved from the image to the vertex."""
        return len(self.widths) - 1

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of the blocks of each encoder level, finest first."""
        return self.widths[:-1]

    @property
    def vertex_channels(self) -> int:
        """Channels of the vertex (bottleneck)."""
        return self.widths[-1]


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class VertexConfig:
    """Quantum filters at one place of the network.

    Attributes:
        ansatz: name of a built-in circuit family, or the path of a circuit file (`.qasm`, OpenQASM
            3, or `.qpy`), relative to the current folder; see docs/circuits.md.
        layers: ansatz layers L of a family, 3 if null; must be null for a circuit file.
        filters: filters side by side; each takes three channels.
        rho: fraction of the channels that pass through filters; replaces `filters` by the
            resulting number, rounded down.

    Example:
        >>> qhdm.VertexConfig(ansatz="fqconv", rho=0.5).count(channels=60)
        10
    """

    ansatz: Ansatz = "fqconv"
    layers: Annotated[int, Field(ge=1, le=64)] | None = Field(default=None, validate_default=True)
    filters: Positive = 4
    rho: Fraction | None = None

    @field_validator("layers")
    @classmethod
    def _of_family(cls, layers: int | None, others: ValidationInfo) -> int | None:
        # An unknown ansatz is not among the others, and is refused for itself.
        if layers is None and not is_circuit_file(others.data.get("ansatz", "")):
            return FAMILY_LAYERS
        return layers

    def count(self, channels: int) -> int:
        """Number of filters on a map of `channels` channels."""
        if self.rho is None:
            return self.filters
        # The tolerance makes rho = 0.05 of 60 channels one filter, not 0.9999... of one.
        return int(self.rho * channels / PATCH_CHANNELS + 1e-9)


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class EncoderConfig(VertexConfig):
    """Quantum filters in the encoder.

    Attributes:
        filters: as at the vertex, or a list of one number for each level.
        levels: encoder levels with filters, 0 being the finest: in their first block, or in both
            blocks of the published network.
        replace: of the published network: the filters replace channels of the `first` convolution
            of a block (as the paper says), or of `both`.

    Example:
        >>> qhdm.EncoderConfig(levels=(1, 2), filters=(2, 4)).ansatz
        'fqconv'
    """

    filters: Positive | tuple[Positive, ...] = 4  # type: ignore[assignment]  # one place, or several
    levels: Levels = (2, 3)
    replace: Literal["first", "both"] = "first"

    def counts(self, level_channels: Sequence[int]) -> dict[int, int]:
        """Number of filters on each of `levels`, whose channels `level_channels` lists for all."""
        if self.rho is None and not isinstance(self.filters, int):
            return dict(zip(self.levels, self.filters, strict=True))
        return {level: self.count(level_channels[level]) for level in self.levels}


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class QuantumConfig:
    """The quantum filters, their places and their engine.

    Attributes:
        filter: `circuit`, or a baseline to compare with: `frozen` (the circuit with untrained
            random weights), `cosine` (of each value, as a circuit without entanglement computes),
            `linear` (a classical map of the patch with as many weights as the circuit),
            `perceptron` (the same, nonlinear and with the circuit's connectivity), `identity`
            (unchanged channels).
        engine: evaluates the circuits.
        aer: options of the engine `aer` (docs/aer.md).
        vertex, encoder: filters at these places.

    Example:
        >>> qhdm.QuantumConfig(engine="aer", aer=qhdm.Aer(shots=256)).engine_options.label
        '256 shots'
    """

    filter: Literal["circuit", "frozen", "cosine", "linear", "perceptron", "identity"] = "circuit"
    engine: EngineName = "exact"
    aer: Aer = Aer()
    vertex: VertexConfig = field(default_factory=VertexConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    @property
    def places(self) -> dict[str, VertexConfig]:
        """The filters by place."""
        return {"vertex": self.vertex, "encoder": self.encoder}

    @property
    def engine_options(self) -> EngineOptions:
        """The engine, as one value."""
        return self.aer if self.engine == "aer" else ENGINES[self.engine]

    def on(self, engine: EngineOptions) -> QuantumConfig:
        """The same filters on another engine."""
        aer = engine if isinstance(engine, Aer) else self.aer
        return replace(self, engine=engine.name, aer=aer)  # type: ignore[arg-type]


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class PowerEmaConfig:
    """Averages of the weights by power-function profiles (Karras et al. 2024, arXiv 2312.02696).

    An average of any length between the smallest and the largest is reconstructed after training
    (`ema:0.08`) from these and from snapshots of them, which the run keeps.

    Attributes:
        std: lengths of the running averages: standard deviations of the profiles as fractions of
            the steps done. The first one is `ema`.
        update_every: interval of updates in steps.
        snapshots: the number of moments, evenly spaced over `train.steps`, of which the averages
            are kept, in half precision.

    Example:
        >>> train = qhdm.TrainConfig(steps=1000, ema=qhdm.PowerEmaConfig(snapshots=5))
        >>> [step for step in range(1, 1001) if train.keeps_snapshot(step)]
        [200, 400, 600, 800, 1000]
    """

    std: Annotated[
        tuple[Annotated[float, Field(gt=0, le=0.28)], ...],
        Field(min_length=1, max_length=4),
        AfterValidator(distinct),
    ] = (0.05, 0.10)
    update_every: Positive = 4
    snapshots: Annotated[int, Field(ge=1, le=64)] = 8

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the averages in files: `ema`, `ema-0.1`."""
        return ("ema", *(f"ema-{std}" for std in self.std[1:]))

    def averaged_to(self, step: int) -> int:
        """The last step whose weights are in the averages of `step`."""
        return step - step % self.update_every if step > self.update_every else step


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class EmaConfig:
    """Exponential moving average of the weights, as the published code has it.

    The decay at step number s (from 0) is 0 up to `after`, then
    min(decay, 1 - (1 + (s - after - 1) / inv_gamma) ^ -power).

    Example:
        >>> qhdm.TrainConfig(ema=qhdm.EmaConfig(decay=0.999)).ema.every
        10
    """

    decay: BelowOne = 0.995
    every: Positive = 10
    after: Annotated[int, Field(ge=0)] = 100
    inv_gamma: Annotated[float, Field(gt=0)] = 1.0
    power: Annotated[float, Field(gt=0)] = 2 / 3

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the averages in files."""
        return ("ema",)


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """Optimisation and bookkeeping.

    Attributes:
        optimizer: `adam`, `adamw` (decoupled weight decay) or `sgd` (momentum betas[0]).
        lr, betas, eps, weight_decay: options of the optimiser.
        lr_quantum: learning rate of circuit angles; null is `lr`.
        warmup: steps in which the learning rate rises linearly to `lr`; below 1, as a fraction of
            all.
        lr_schedule: learning rate after the warm-up: `constant`, `cosine` or `linear` decay to 0 at
            the last step, or `trapezoid`: constant, and linear to 0 in the `cooldown`.
        cooldown: fraction of the steps in which `trapezoid` falls.
        grad_clip: largest norm of the gradient; null does not clip.
        label_dropout: probability of hiding a label, so that guidance works in sampling.
        precision: of the classical layers in training; filters and weights stay in float32. `auto`
            is `bf16` where the device multiplies it faster than `float32`; a run records which.
        compile: run the network through torch.compile.
        tensorboard: also log to TensorBoard (extra `tensorboard`).
        device: `auto` prefers CUDA.
        log_every, sample_every, checkpoint_every: intervals in steps.
        keep_checkpoints: number of newest checkpoints to keep.

    Example:
        >>> qhdm.TrainConfig(steps=500, optimizer="adamw", lr_schedule="cosine", warmup=50).lr
        0.02
    """

    steps: Positive = 60_000
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 16
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 2e-2
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.99)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    lr_quantum: Annotated[float, Field(gt=0)] | None = 2e-3
    warmup: Annotated[int, Field(ge=0)] | BelowOne = 0.03
    lr_schedule: Literal["trapezoid", "constant", "cosine", "linear"] = "trapezoid"
    cooldown: Fraction = 0.5
    grad_clip: Annotated[float, Field(gt=0)] | None = None
    label_dropout: BelowOne = 0.1
    ema: Annotated[PowerEmaConfig | EmaConfig, Either] = field(default_factory=PowerEmaConfig)
    precision: Literal["auto", "float32", "bf16"] = "auto"
    compile: bool = False
    tensorboard: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    log_every: Positive = 50
    sample_every: Positive = 2000
    checkpoint_every: Positive = 1000
    keep_checkpoints: Positive = 2

    def keeps_snapshot(self, step: int) -> bool:
        """Whether a snapshot of the averages of `step` is kept."""
        if not isinstance(self.ema, PowerEmaConfig):
            return False
        every = self.ema.update_every
        return step % (every * -(-self.steps // (every * self.ema.snapshots))) == 0
