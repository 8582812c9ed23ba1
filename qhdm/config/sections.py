"""The sections of a configuration, one frozen dataclass per concern.

Angles are in radians, images are square, sizes are in pixels. The defaults are the published
EuroSAT set-up (arXiv 2512.20448, released configuration) with the defects of the released code
corrected; `configs/eurosat.yaml` spells them out.
"""

from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from qhdm.errors import ConfigError
from qhdm.quantum.ansatz import ANSATZE
from qhdm.quantum.options import ENGINES, PATCH_CHANNELS, Aer, EngineName, EngineOptions
from qhdm.schema import Either, one_line_errors
from qhdm.shipped import shipped_files

#: No unknown keys, no infinite or NaN values.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def is_circuit_file(ansatz: str) -> bool:
    """Whether an ansatz is a circuit file rather than a built-in family."""
    return ansatz.endswith((".qasm", ".qpy"))


def _ansatz(name: str) -> str:
    """`name`, or the path of the shipped circuit of that name."""
    if name in ANSATZE or is_circuit_file(name):
        return name
    shipped = shipped_files("circuits")
    if name in shipped:
        return str(shipped[name])
    expected = ", ".join(map(repr, dict.fromkeys([*ANSATZE, *shipped])))
    raise PydanticCustomError("literal_error", "unknown", {"expected": expected})


def _class_name(name: str) -> str:
    # Classes name folders of samples: they must not lead out of the parent folder.
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise PydanticCustomError("class_name", "must be the plain name of a folder")
    return name


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise PydanticCustomError("distinct", "must not repeat a value")
    return values


def ascending(limits: tuple[float, float]) -> tuple[float, float]:
    """Check that limits are [low, high]."""
    if not limits[0] < limits[1]:
        raise PydanticCustomError("range", "must be [low, high], low being less than high")
    return limits


Positive = Annotated[int, Field(ge=1)]
AboveZero = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Range = Annotated[tuple[float, float], AfterValidator(ascending)]
Levels = Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(_distinct)]
ClassName = Annotated[str, AfterValidator(_class_name)]
Classes = Annotated[tuple[ClassName, ...], Field(min_length=1), AfterValidator(_distinct)]
#: The path of a file or folder.
FilePath = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]
#: A built-in family, or the path of a circuit file (or the name of a shipped one).
Ansatz = Annotated[FilePath, AfterValidator(_ansatz)]

#: Ansatz layers of a family, unless given.
FAMILY_LAYERS = 3


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Which images, and how they are prepared.

    Attributes:
        root: `bundled`, `eurosat` (as `qhdm data download eurosat` leaves it), or the path of a
            folder or zip of class folders.
        image_size: images are cropped to the centre square and resized to this side.
        channels: 3 (RGB) or 1 (grey) for image files; a model may be built with any number.
        range: the values that become black and white, [low, high], of images of more than 8 bits
            or of signed or floating-point values; values beyond are clipped. Null takes all that
            16 bits hold, if the images fill it. Images of 8 bits are taken as they are.
        classes: the class folders to use, in this order; null takes all, sorted by name.
        test_fraction: part of each class kept out of training, chosen by file name; ignored if
            the data set has folders `train` and `test`.
        augment: random flips and right-angle rotations (overhead imagery has no up).
        skip_broken: skip and count unreadable images instead of raising an error.

    Example:
        >>> qhdm.DataConfig(root="bundled", image_size=32).channels
        3
    """

    root: FilePath = "eurosat"
    image_size: Annotated[int, Field(ge=2, le=4096)] = 64
    channels: Annotated[int, Field(ge=1, le=64)] = 3
    range: Range | None = None
    classes: Classes | None = None
    test_fraction: BelowOne = 0.1
    augment: bool = False
    skip_broken: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image, (C, H, W)."""
        return self.channels, self.image_size, self.image_size

    @property
    def num_classes(self) -> int:
        """How many classes labels count: those named, or the ten of EuroSAT.

        Raises:
            ConfigError: the classes of a folder are not named; `qhdm.data.resolved` finds them.
        """
        if self.classes is not None:
            return len(self.classes)
        if self.root in ("bundled", "eurosat"):
            return 10
        raise ConfigError(
            f"data.classes: null, and {self.root} is not opened to count them; name them, or use "
            "qhdm.data.resolved(config)"
        )


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """The U-Net (design of the released code; Ho et al. 2020 with FiLM conditioning).

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
        >>> qhdm.ModelConfig(dim=16, dim_mults=(1, 2, 4), groups=8).vertex_channels
        64
    """

    kind: Literal["unet", "qvunet", "fullqvunet", "qcunet"] = "qcunet"
    dim: Annotated[int, Field(ge=4, le=4096)] = 10
    dim_mults: Annotated[
        tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=12)
    ] = (1, 2, 3, 4, 5, 6)
    groups: Positive = 10
    heads: Annotated[int, Field(ge=1, le=256)] = 4
    dim_head: Annotated[int, Field(ge=1, le=4096)] = 32
    label_dim: Annotated[int, Field(ge=1, le=4096)] = 10

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

    ansatz: Ansatz = "hqconv"
    layers: Annotated[int, Field(ge=1, le=64)] | None = Field(default=None, validate_default=True)
    filters: Positive = 1
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
        levels: encoder levels that carry QuanResNet blocks, 0 being the finest.
        replace: `first` replaces the first convolution of a block (as the paper says), `both`
            replaces both.

    Example:
        >>> qhdm.EncoderConfig(levels=(3, 4), replace="both").ansatz
        'hqconv'
    """

    levels: Levels = (4,)
    replace: Literal["first", "both"] = "first"


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class QuantumConfig:
    """The quantum filters, their places and their engine.

    Attributes:
        filter: `circuit`, or a baseline to compare with: `frozen` (the circuit with untrained
            random weights), `cosine` (of each value, as a circuit without entanglement computes),
            `linear` (a classical map of the patch with as many weights as the circuit),
            `identity` (unchanged channels).
        engine: evaluates the circuits.
        aer: options of the engine `aer` (docs/aer.md).
        vertex, encoder: filters at these places.

    Example:
        >>> qhdm.QuantumConfig(engine="aer", aer=qhdm.Aer(shots=256)).engine_options.label
        '256 shots'
    """

    filter: Literal["circuit", "frozen", "cosine", "linear", "identity"] = "circuit"
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
        every: interval of updates in steps.
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
        AfterValidator(_distinct),
    ] = (0.05, 0.10)
    every: Positive = 4
    snapshots: Annotated[int, Field(ge=1, le=64)] = 8

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the averages in files: `ema`, `ema-0.1`."""
        return ("ema", *(f"ema-{std:g}" for std in self.std[1:]))

    def averaged_to(self, step: int) -> int:
        """The last step whose weights are in the averages of `step`; until `every`, each is."""
        return step - step % self.every if step > self.every else step


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
        0.001
    """

    steps: Positive = 60_000
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 128
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.99)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    lr_quantum: Annotated[float, Field(gt=0)] | None = None
    warmup: Annotated[int, Field(ge=0)] | BelowOne = 0
    lr_schedule: Literal["trapezoid", "constant", "cosine", "linear"] = "constant"
    cooldown: Fraction = 0.5
    grad_clip: Annotated[float, Field(gt=0)] | None = None
    label_dropout: BelowOne = 0.1
    ema: Annotated[PowerEmaConfig | EmaConfig, Either] = field(default_factory=EmaConfig)
    precision: Literal["auto", "float32", "bf16"] = "float32"
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
        updates = -(-self.steps // (self.ema.snapshots * self.ema.every))
        return step % (updates * self.ema.every) == 0


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
