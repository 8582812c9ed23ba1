"""Specifications of sampling jobs: jobs/*.yaml as frozen dataclasses, validated strictly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from qhdm.config import FilePath, SamplerOptions, Sampling
from qhdm.config.fields import STRICT, Positive
from qhdm.errors import ConfigError
from qhdm.quantum.options import Hardware, Limits
from qhdm.schema import Document, read_document, validate, with_overrides
from qhdm.shipped import find_shipped, is_shipped


@dataclass(frozen=True, config=STRICT)
class CostAssumptions:
    """What the cost estimate cannot know.

    Attributes:
        price_per_second: of QPU time on your plan; null prints no cost.
        currency: of the price.
        queue_seconds: wait of a runtime job in the queue, which the dry run cannot see.
        between_seconds: from one runtime job to the next: the rest of the network, transfers.
    """

    price_per_second: Annotated[float, Field(ge=0)] | None = None
    currency: Annotated[str, Field(min_length=1, max_length=8)] = "USD"
    queue_seconds: Annotated[float, Field(ge=0)] = 0.0
    between_seconds: Annotated[float, Field(ge=0)] = 5.0


@dataclass(frozen=True, config=STRICT, kw_only=True)
class JobSpec(SamplerOptions, Hardware):
    """A sampling job: which images of which run, on which backend. All fields are keys of one file.

    Attributes:
        run: the run directory of a trained model; `runs/quickstart` also means the newest of
            `runs/quickstart-<time>`. Or the name of a shipped model.
        classes: to generate; null takes all.
        images: of each class.
        hardware_steps: the last so many network evaluations, or `all`; the others are exact.
        limits: what the job may use.
        estimate: what its cost estimate assumes.
    """

    run: FilePath
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    images: Annotated[int, Field(ge=1, le=10_000)] = 1
    hardware_steps: Positive | Literal["all"] = "all"
    limits: Limits = field(default_factory=Limits)
    estimate: CostAssumptions = field(default_factory=CostAssumptions)

    @property
    def engine(self) -> Hardware:
        """What evaluates the filters."""
        return Hardware(**{name: getattr(self, name) for name in Hardware.__dataclass_fields__})

    @classmethod
    def of_request(
        cls, request: Sampling, engine: Hardware, *, run: str, classes: Sequence[str], images: int
    ) -> JobSpec:
        """The job of a resolved request.

        Args:
            request: resolved.
            engine: of the request.
            run: the run directory.
            classes, images: of the request, by name and number.

        Raises:
            ConfigError: a field has no valid value.
        """
        plain = {name: getattr(request, name) for name in SamplerOptions.__dataclass_fields__}
        plain |= {key: value for key, value in asdict(engine).items() if value is not None}
        plain |= {"run": run, "classes": list(classes), "images": images}
        plain["hardware_steps"] = request.engine_steps or request.steps
        return validate(cls, Document("qhdm.Hardware", plain, {}))

    @model_validator(mode="after")
    def _check(self) -> JobSpec:
        if problem := self.problem():
            raise ValueError(f"{problem[0]}: {problem[1]}")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: one is given twice")
        return self


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Read a job specification.

    Args:
        path: the file, or the name of a shipped one: `rehearsal`.
        overrides: `key=value` settings applied on top, for example `["shots=4096"]`.

    Raises:
        ConfigError: with the file, line, key and remedy.
    """
    document = read_document(find_shipped("jobs", path, ConfigError))
    return validate(JobSpec, _present(with_overrides(document, overrides)))


def load_kept_spec(path: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Read the specification of a job that exists, as `load_spec`.

    One of a version that compiled nothing, or took no fractional gates, lacks the key: its circuits
    stay as they are. One that leaves guidance or interval to a shipped model is of a version
    whose shipped models had none.
    """
    document = read_document(path)
    data = document.data if isinstance(document.data, dict) else {}
    before = {"compile": "off", "fractional_gates": "false"}
    kept = [f"{key}={value}" for key, value in before.items() if key not in data]
    if is_shipped(str(data.get("run"))):
        then = {"guidance": "1", "guidance_interval": "null"}
        kept += [f"{key}={value}" for key, value in then.items() if data.get(key, "run") == "run"]
    return validate(JobSpec, _present(with_overrides(document, [*kept, *overrides])))


def _present(document: Document) -> Document:
    """A specification in the keys of this version: `mitigation` was `resilience_level` 0 or 1."""
    data, lines = document.data, dict(document.lines)
    if not isinstance(data, dict) or "resilience_level" not in data or "mitigation" in data:
        return document
    old, new = ("resilience_level",), ("mitigation",)
    data = {("mitigation" if key == old[0] else key): value for key, value in data.items()}
    level = data["mitigation"]
    data["mitigation"] = {0: "none", 1: "trex"}.get(level, level)
    if old in lines:
        lines[new] = lines[old]
    return replace(document, data=data, lines=lines)


def spec_to_yaml(spec: JobSpec) -> str:
    """`spec` as YAML that `load_spec` reads back to an equal specification."""
    data = TypeAdapter(JobSpec).dump_python(spec, mode="json")
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
