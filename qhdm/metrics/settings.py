"""What to evaluate, and how: the options of `qhdm evaluate`."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from qhdm.config import EngineRequest, SamplerOptions
from qhdm.config.fields import STRICT, Positive
from qhdm.quantum.options import Hardware
from qhdm.schema import one_line_errors

#: Metrics that are computed together, cheapest first.
Group = Literal["distances", "classes", "memorisation", "utility"]
GROUPS: tuple[Group, ...] = get_args(Group)
#: Extractors that are trained on the real images.
OwnExtractor = Literal["resnet", "classifier"]
Pretrained = Literal["inception", "dinov2"]


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class EvaluationSettings(SamplerOptions, EngineRequest):
    """A request to evaluate a run.

    Attributes:
        num: images to sample, spread evenly over the classes.
        sampler, steps, guidance, eta, seed, weights, engine, method, shots, noise: of sampling;
            see `qhdm.Sampling`.
        extractor: what turns images into features (docs/evaluation.md).
        extractor_weights: file of its weights. `resnet` and `classifier` are trained without one.
        metrics: groups to compute.
        device: where to sample and to extract features.

    Example:
        >>> qhdm.EvaluationSettings(num=700, steps=50, metrics=("distances", "classes")).seed
        0
    """

    num: Positive = 1000
    extractor: OwnExtractor | Pretrained = "resnet"
    extractor_weights: Annotated[str, Field(min_length=1)] | None = None
    metrics: Annotated[tuple[Group, ...], Field(min_length=1)] = GROUPS
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _check(self) -> EvaluationSettings:
        if self.extractor in get_args(Pretrained) and self.extractor_weights is None:
            raise ValueError(f"extractor_weights: give the file of the weights of {self.extractor}")
        if isinstance(self.engine, Hardware):
            raise ValueError("engine: sample on a backend first, and evaluate the images")
        return self
