"""Comparison specifications: configs/*ablation.yaml, validated like configurations."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from qhdm.config import Config, EngineRequest
from qhdm.config.fields import STRICT
from qhdm.errors import ConfigError
from qhdm.files import write_text
from qhdm.metrics.settings import EvaluationSettings
from qhdm.quantum.options import EngineOptions
from qhdm.schema import (
    Document,
    Key,
    Setting,
    dotted,
    read_document,
    validate,
    with_overrides,
    with_settings,
)
from qhdm.shipped import find_shipped

#: Of comparisons and variants, which become names of folders.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=100)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True, config=STRICT)
class InferenceOptions(EngineRequest):
    """One engine of the study of noise and shots at inference, never the run's own."""

    engine: Literal["exact", "aer"] = Field()  # required, unlike in the base class

    @property
    def options(self) -> EngineOptions:
        """The engine as one value."""
        assert self.named is not None
        return self.named


@dataclass(frozen=True, config=STRICT)
class Specification:
    """What `qhdm compare` trains, evaluates and compares.

    Settings change single values of the training configuration. They are named as in `--set`
    (`model.kind: unet`), or nested.

    Attributes:
        name: of the comparison; its directory is `comparisons/<name>`.
        base: training configuration, relative to the specification's folder.
        baseline: the variant that the others are tested against.
        variants: the settings of each; `base` may be among them, another training configuration
            in the place of the common one.
        seeds: each variant is trained once with each.
        settings: of all cells; a variant's own take precedence.
        evaluate: how cells are evaluated, as by `qhdm evaluate`.
        inference: engines on which trained circuits are evaluated, to see what noise and shots do.
        inference_variants: the variants whose circuits are; null is all that have circuits.
        inference_evaluate: how they are evaluated; null is as `evaluate`.
    """

    name: Name
    base: Annotated[str, Field(min_length=1)]
    baseline: Name
    variants: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    settings: dict[str, Any] = field(default_factory=dict)
    evaluate: EvaluationSettings = field(default_factory=EvaluationSettings)
    inference: tuple[InferenceOptions, ...] = ()
    inference_variants: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    inference_evaluate: EvaluationSettings | None = None

    @model_validator(mode="after")
    def _check(self) -> Specification:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: one is given twice in {list(self.seeds)}")
        labels = [engine.options.label for engine in self.inference]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(
                f"inference: an engine is given twice, or two have one label ({twice[0]})"
            )
        for section in ("inference_evaluate", "inference_variants"):
            if getattr(self, section) is not None and not self.inference:
                raise ValueError(f"{section}: only with `inference`")
        known = ", ".join(self.variants)
        for key, names in (
            ("baseline", [self.baseline]),
            ("inference_variants", self.inference_variants or ()),
        ):
            for name in names:
                if name not in self.variants:
                    raise ValueError(f"{key}: {name!r} is not one of the variants ({known})")
        for section in ("evaluate", "inference_evaluate"):
            settings: EvaluationSettings | None = getattr(self, section)
            if settings is not None and settings.named is not None:
                raise ValueError(
                    f"{section}.engine: cells are compared on their own engine (quantum.engine); "
                    "other engines are for `inference`"
                )
        return self


@dataclasses.dataclass(frozen=True)
class Grid:
    """A specification and the checked configurations of its cells.

    Attributes:
        bases: the data of base configurations: of the common one (None), and of variants that have
            their own.
        configs: by (variant, seed), variants in their order, then seeds.
    """

    specification: Specification
    bases: Mapping[str | None, dict[str, Any]]
    configs: Mapping[tuple[str, int], Config]

    def save(self, folder: Path) -> None:
        """Write `comparison.yaml` and its bases, from which `load_grid` makes an equal grid."""
        names = {v: "base.yaml" if v is None else f"base-{v}.yaml" for v in self.bases}
        variants = {
            variant: {**values, "base": names[variant]} if variant in names else values
            for variant, values in self.specification.variants.items()
        }
        own = dataclasses.replace(self.specification, base=names[None], variants=variants)
        files = {names[variant]: data for variant, data in self.bases.items()}
        files["comparison.yaml"] = TypeAdapter(Specification).dump_python(own, mode="json")
        for name, plain in files.items():
            text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
            write_text(folder / name, text)


def load_grid(path: str | Path, overrides: Sequence[str] = ()) -> Grid:
    """Read a comparison specification, and check the configuration of every cell.

    Args:
        path: the file, or the name of a shipped one: `ablation`.
        overrides: `key=value`; changes the specification if the key is one of its own
            (`seeds=[0]`, `evaluate.num=200`), else the settings of all cells (`train.steps=100`).

    Raises:
        ConfigError: with the file, line, key and remedy.
    """
    path = find_shipped("configs", path, ConfigError)
    own = {entry.name for entry in dataclasses.fields(Specification)}
    document = with_overrides(
        read_document(path),
        [
            text if re.split("[=.]", text)[0].strip() in own else f"settings.{text}"
            for text in overrides
        ],
    )
    if not isinstance(document.data, dict) or "variants" not in document.data:
        raise ConfigError(
            f"{path}: not a comparison: it has no `variants`; a training configuration is for "
            "`qhdm train`"
        )
    specification = validate(Specification, document)
    bases: dict[str | None, Document] = {
        None: _base(path.parent, specification.base, document.place(("base",)))
    }
    configs = {}
    for variant, values in specification.variants.items():
        key = ("variants", variant)
        if "base" in values:
            place = document.place((*key, "base"))
            bases[variant] = _base(path.parent, values["base"], place)
        base = bases.get(variant, bases[None])
        common = with_settings(base, _settings(document, ("settings",), specification.settings))
        own_settings = {name: value for name, value in values.items() if name != "base"}
        varied = with_settings(common, _settings(document, key, own_settings))
        varied = dataclasses.replace(varied, source=document.place(key), origin=base.source)
        for seed in specification.seeds:
            of_seed = Setting(("seed",), seed, document.place(("seeds",)))
            cell = with_settings(varied, [of_seed])
            configs[variant, seed] = validate(Config, cell)
            if configs[variant, seed].train.precision == "auto":
                raise ConfigError(
                    f"{varied.source}: train.precision: auto may differ from cell to cell; set "
                    "float32 or bf16 (--set train.precision=float32)"
                )
        for section in ("evaluate", "inference_evaluate"):
            _check_sampling(document, section, getattr(specification, section), cell)
        if variant in (specification.inference_variants or ()) and not has_circuits(
            configs[variant, specification.seeds[0]]
        ):
            raise ConfigError(
                f"{document.place(('inference_variants',))}: {variant} has no circuits for an "
                "engine to evaluate; leave it out"
            )
    return Grid(specification, {name: base.data for name, base in bases.items()}, configs)


def _base(folder: Path, name: Any, place: str) -> Document:
    """A training configuration, relative to the specification's folder."""
    path = folder / str(name)
    if not path.is_file():
        raise ConfigError(f"{place}: {path}: no such file")
    return read_document(path)


def _check_sampling(
    document: Document, section: str, settings: EvaluationSettings | None, cell: Document
) -> None:
    """Check that a model can be sampled as an evaluation will, before it is trained."""
    if settings is None:
        return
    place = document.place((section,))
    given = [
        Setting(("sample", name), value, f"{place}.{name}")
        for name in ("steps", "sampler", "guidance", "guidance_interval", "guide")
        if (value := getattr(settings, name)) != "run"
    ]
    validate(Config, dataclasses.replace(with_settings(cell, given), source=place))


def has_circuits(config: Config) -> bool:
    """Whether the network of `config` has circuits that an engine evaluates."""
    return config.model.kind != "unet" and config.quantum.filter in ("circuit", "frozen")


def _settings(document: Document, key: Key, values: Mapping[str, Any]) -> Iterator[Setting]:
    """The settings in a section of the specification, with their places."""
    for path, value in leaves(values):
        name = tuple(".".join(map(str, path)).split("."))
        # `--set train.steps=1` is how settings of all cells are given.
        place = document.place((*key, *path)).replace("--set settings.", "--set ")
        if not all(name):
            raise ConfigError(f"{place}: expected the name of a setting, for example train.steps")
        if name == ("seed",):
            raise ConfigError(f"{place}: seeds are given in `seeds`, the same for all variants")
        yield Setting(name, value, place)


def leaves(values: Mapping[str, Any], prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    """The plain values in nested mappings, with their keys."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def variant_settings(specification: Specification, variant: str) -> str:
    """The settings of a variant in one line: `model.kind=unet`."""
    parts = []
    for path, value in leaves(specification.variants[variant]):
        text = yaml.safe_dump(value, default_flow_style=True).replace("\n...", "").strip()
        parts.append(f"{dotted(path)}={text}")
    return " ".join(parts)
