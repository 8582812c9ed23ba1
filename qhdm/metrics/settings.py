"""What to evaluate, and how: the options of `qhdm evaluate`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from qhdm.config import Config, EngineRequest, SamplerOptions
from qhdm.config.fields import STRICT, Positive
from qhdm.errors import EvaluationError
from qhdm.quantum.options import Hardware
from qhdm.schema import one_line_errors

#: Metrics that are computed together, cheapest first.
Group = Literal["loss", "use", "bands", "distances", "classes", "memorisation", "utility"]
GROUPS: tuple[Group, ...] = get_args(Group)
#: Of a run's network, for which no images are sampled.
NETWORK_GROUPS: tuple[Group, ...] = ("loss", "use")
#: Extractors that are trained on the real images.
OwnExtractor = Literal["resnet", "classifier"]
Pretrained = Literal["inception", "dinov2"]


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class EvaluationSettings(SamplerOptions, EngineRequest):
    """A request to evaluate a run.

    Attributes:
        num: images to sample, spread evenly over the classes; and held-out images to denoise, at
            most.
        sampler, steps, guidance, eta, seed, weights, engine, method, shots, noise: of sampling;
            see `qhdm.Sampling`.
        extractor: what turns images into features (docs/evaluation.md).
        extractor_weights: file of its weights. `resnet` and `classifier` are trained without one.
        metrics: groups to compute; `all` that a run, or images, have, except `use`. `bands` is for
            images with bands.
        device: where to sample and to extract features.

    Example:
        >>> qhdm.EvaluationSettings(num=700, steps=50, metrics=("distances", "classes")).seed
        0
    """

    num: Positive = 1000
    extractor: OwnExtractor | Pretrained = "resnet"
    extractor_weights: Annotated[str, Field(min_length=1)] | None = None
    metrics: Annotated[tuple[Group, ...], Field(min_length=1)] | Literal["all"] = "all"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def needs_images(self) -> bool:
        """Whether images are sampled."""
        return not set(self.groups(of_run=True, bands=True)) <= set(NETWORK_GROUPS)

    @property
    def needs_features(self) -> bool:
        """Whether features of images are extracted."""
        return not set(self.groups(of_run=True, bands=True)) <= {*NETWORK_GROUPS, "bands"}

    def groups(self, *, of_run: bool, bands: bool) -> tuple[Group, ...]:
        """The groups to compute, in their order.

        Args:
            of_run: whether there is a network.
            bands: whether images have bands.

        Raises:
            EvaluationError: they need a run's network or bands, and there are none.
        """
        missing: tuple[Group, ...] = () if of_run else NETWORK_GROUPS
        if self.metrics == "all":
            without: tuple[Group, ...] = () if bands else ("bands",)
            return tuple(group for group in GROUPS if group not in (*missing, *without, "use"))
        if "bands" in self.metrics and not bands:
            raise EvaluationError(
                "metrics: bands: the images are pictures, without bands; leave it out"
            )
        for group in set(missing) & set(self.metrics):
            raise EvaluationError(
                f"metrics: {group} is measured on the network of a run, and these are only images; "
                "give a run, or leave it out"
            )
        return tuple(group for group in GROUPS if group in self.metrics)

    def resolved(self, config: Config) -> EvaluationSettings:
        """The same with the values of the run filled in."""
        known = super().resolved(config)
        return replace(
            known, metrics=known.groups(of_run=True, bands=config.data.bands is not None)
        )

    @model_validator(mode="after")
    def _check(self) -> EvaluationSettings:
        if self.extractor in get_args(Pretrained) and self.extractor_weights is None:
            raise ValueError(f"extractor_weights: give the file of the weights of {self.extractor}")
        if isinstance(self.engine, Hardware):
            raise ValueError("engine: sample on a backend first, and evaluate the images")
        return self
