"""Sampling requests: images, sampler, and the engine that evaluates the filters.

The value `"run"` means the value of the run's configuration. Nothing else, null included, takes
anything from the run.
"""

from __future__ import annotations

import math
import re
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from qhdm.config.fields import STRICT, Positive, ascending
from qhdm.config.sections import QuantumConfig
from qhdm.errors import SamplingError
from qhdm.quantum.options import Aer, EngineOptions, Exact, Hardware, Method, Noise, Shots
from qhdm.schema import one_line_errors

if TYPE_CHECKING:
    from qhdm.config.config import Config


def _weights(name: str) -> str:
    if not re.fullmatch(r"ema|model|ema:0?\.\d{1,6}|step:\d{1,12}", name):
        raise PydanticCustomError(
            "weights", "must be ema, model, an averaging length (ema:0.08) or a step (step:4000)"
        )
    return name


NonNegative = Annotated[float, Field(ge=0)]
#: Noise levels from low to high.
Interval = Annotated[tuple[NonNegative, NonNegative], AfterValidator(ascending)]
SamplerName = Literal["ddpm", "ddim", "dpm++"]
#: Weights of a run: averaged (`ema`), averaged over another length (`ema:0.08`), the last ones
#: (`model`), or averaged at an earlier step (`step:4000`).
Weights = Annotated[str, AfterValidator(_weights)]
#: The value of the run's configuration.
OfRun = Literal["run"]
T = TypeVar("T", bound="SamplerOptions")


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class SampleConfig:
    """Defaults of `Sampling`, and the preview grids of training.

    Previews are not guided where `guide` names weights, which may not be there yet.

    Example:
        >>> qhdm.SampleConfig(sampler="ddim", steps=20).guidance
        1.0
    """

    sampler: SamplerName = "dpm++"
    steps: Positive = 20
    guidance: NonNegative = 1.0
    guidance_interval: Interval | None = None
    guide: Weights | None = None
    num: Positive = 8


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class EngineRequest:
    """The engine that evaluates the filters of a trained model.

    `run` is the engine of the run's configuration. A named engine is complete: options that are
    not given have their defaults, never the run's values.

    Attributes:
        engine: `Exact(...)`, `Aer(...)` or `Hardware(...)`; or, in files, the name of one of the
            first two, with its options beside it.
        method, shots, noise: of the name `aer`, as in `qhdm.Aer`; null is without.
    """

    engine: Literal["run", "exact", "aer"] | Exact | Aer | Hardware = "run"
    method: Method = "auto"
    shots: Shots | None = None
    noise: Noise | None = None

    @property
    def named(self) -> EngineOptions | None:
        """The engine, complete; None where it is the run's own."""
        if not isinstance(self.engine, str):
            return self.engine
        if self.engine == "aer":
            return Aer(method=self.method, shots=self.shots, noise=self.noise)
        return Exact() if self.engine == "exact" else None

    def engine_of(self, own: QuantumConfig) -> EngineOptions:
        """The engine that evaluates the filters of a run with the configuration `own`."""
        return self.named or own.engine_options

    @field_validator("engine", mode="before")
    @classmethod
    def _of_older_files(cls, engine: Any) -> Any:
        return "run" if engine is None else engine  # comparisons used to write null

    @model_validator(mode="after")
    def _check_engine(self) -> EngineRequest:
        for name, absent in (("method", "auto"), ("shots", None), ("noise", None)):
            if getattr(self, name) != absent and self.engine != "aer":
                raise ValueError(
                    f"{name}: only with engine aer; name it, with all its options: "
                    "it takes nothing from the run"
                )
        if isinstance(self.named, Aer | Hardware) and (problem := self.named.problem()):
            raise ValueError(f"{problem[0]}: {problem[1]}")
        return self


def guidance_label(guidance: float, interval: Interval | None, guide: str | None) -> str:
    """`guidance 1.5 at noise levels 0.2 to 2`."""
    by = f" by {guide}" if guide else ""
    at = " at noise levels {:g} to {:g}".format(*interval) if interval else ""
    return f"guidance {guidance:g}{by}{at}"


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class SamplerOptions:
    """The sampler and its options.

    Attributes:
        sampler: `ddpm`, `ddim`, `dpm++`, or `run`.
        steps: noise levels at which the network is evaluated.
        guidance: scale of the difference from a weaker estimate; 1 is off.
        guidance_interval: noise levels [low, high] at which guidance is on (Kynkäänniemi et al.
            2024, arXiv 2404.07724); None is all of them.
        guide: what makes the weaker estimate: other weights of the run, named as in `weights`
            (autoguidance, Karras et al. 2024, arXiv 2406.02507), or None, the same network without
            the label (classifier-free guidance, Ho & Salimans 2022).
        eta: of DDIM: 0 is deterministic, 1 is DDPM.
        seed: image i depends on its label and (seed, i) alone, up to rounding at other batch
            sizes (docs/training.md).
        weights: `ema`, the averaged weights, `model`, the last ones, `ema:0.08`, averaged over
            another length, or `step:4000`, averaged at an earlier step (docs/training.md).
    """

    sampler: SamplerName | OfRun = "run"
    steps: Positive | OfRun = "run"
    guidance: NonNegative | OfRun = "run"
    guidance_interval: Interval | OfRun | None = "run"
    guide: Weights | OfRun | None = "run"
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    weights: Weights = "ema"

    def resolved(self: T, config: Config) -> T:
        """The same with the values of the run filled in.

        Raises:
            SamplingError: classifier-free guidance of a model that was trained without label
                dropout; or a guide or an interval without guidance.
        """
        names = ("sampler", "steps", "guidance", "guidance_interval", "guide")
        own = {name: getattr(config.sample, name) for name in names if getattr(self, name) == "run"}
        known = replace(self, **own)
        if known.guidance == 1:
            for name in ("guide", "guidance_interval"):
                if getattr(self, name) not in ("run", None):
                    raise SamplingError(
                        f"{name}: has no effect at guidance 1; set guidance above 1"
                    )
            return replace(known, guide=None, guidance_interval=None)
        if known.guide is None and config.train.label_dropout == 0:
            raise SamplingError(
                "guidance: this model was trained with every label shown "
                "(train.label_dropout 0), so it has no unconditional pass; use guidance 1, or "
                "a guide"
            )
        return known

    def guided_at(self, sigma: float) -> bool:
        """Whether guidance is on at a noise level; of resolved options."""
        assert self.guidance_interval != "run"
        low, high = self.guidance_interval or (0.0, math.inf)
        return self.guidance != 1 and low <= sigma <= high

    def on(self, engine: EngineOptions) -> Sampling:
        """A request for the same images with `engine` in all steps."""
        own = {field.name: getattr(self, field.name) for field in fields(SamplerOptions)}
        return Sampling(**own, engine=engine)

    @field_validator("guidance_interval", "guide", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        if value in ("none", ["none"]):  # the command line has no null
            return None
        return tuple(value) if isinstance(value, list) else value

    @field_validator("sampler", "steps", "guidance", mode="before")
    @classmethod
    def _of_older_requests(cls, value: Any) -> Any:
        return "run" if value is None else value  # null was the run's own


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class Sampling(SamplerOptions, EngineRequest):
    """A sampling request; `run` is the value of the run's configuration.

    Attributes:
        classes: names or numbers; None is all of them.
        num: images of each class.
        seed: image i of a class depends on it, the class and i alone.
        sampler, steps, guidance, guidance_interval, guide, eta, weights: as the options of
            `qhdm sample` (docs/training.md).
        engine: `Exact(...)`, `Aer(...)` or `Hardware(...)`, which evaluates the filters.
        engine_steps: an engine other than `run` evaluates the filters only in the last so many
            steps; the others are exact. None is all steps.

    Example:
        >>> request = qhdm.Sampling(classes=["Forest"], num=8, engine=qhdm.Aer(shots=1024))
        >>> request.sampler
        'run'
    """

    classes: Annotated[tuple[str | int, ...], Field(min_length=1)] | None = None
    num: Positive | OfRun = "run"
    engine_steps: Positive | None = None

    @model_validator(mode="after")
    def _check(self) -> Sampling:
        if self.engine_steps is not None and self.named is None:
            raise ValueError(
                "engine_steps: only with another engine than the run's; name it in `engine`"
            )
        return self
