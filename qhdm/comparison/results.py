"""What a comparison found: results.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from qhdm.comparison.cells import Cell
from qhdm.comparison.spec import InferenceOptions, Specification
from qhdm.comparison.statistics import holm, mean_interval, paired_test
from qhdm.errors import ComparisonError, ConfigError
from qhdm.metrics.records import DataRecord, Evaluation, Metric
from qhdm.schema import Document, read_json, validate, write_record

_STRICT = ConfigDict(
    extra="forbid", allow_inf_nan=False, validate_by_name=True, validate_by_alias=True
)

#: What makes two numbers comparable.
Key = tuple[str, str | None, str | None]


@dataclass(frozen=True, config=_STRICT)
class Parameters:
    """Weights of the network, those of circuits apart."""

    classical: int
    quantum: int


@dataclass(frozen=True, config=_STRICT)
class CellResult:
    """One cell.

    Attributes:
        run, evaluation: relative to the comparison's directory; no evaluation: not done yet.
        step: that it is trained to, of `steps`.
        train_seconds: spent in training steps.
        engine: on which its images were sampled, for people; null without an evaluation, and in
            older files.
    """

    variant: str
    seed: int
    run: str
    evaluation: str | None
    parameters: Parameters
    step: int
    steps: int
    train_seconds: float
    engine: str | None = None


@dataclass(frozen=True, config=_STRICT)
class Summary:
    """A metric of a variant, over its seeds.

    Attributes:
        label, class_name, setting, better: as in the evaluations.
        mean, low, high: with the 95 % interval; null for a single seed, and without spread.
        n: seeds.
        floor: the mean of real images in the place of the generated ones.
    """

    variant: str
    label: str
    class_name: Annotated[str | None, Field(alias="class")]
    setting: str | None
    better: Literal["lower", "higher"] | None
    mean: float
    low: float | None
    high: float | None
    n: int
    floor: float | None


@dataclass(frozen=True, config=_STRICT)
class Paired:
    """A variant against the baseline, paired over seeds.

    Attributes:
        difference, low, high: variant less baseline, with the 95 % interval.
        p: of the paired t test; null below two pairs, and without spread.
        p_holm: corrected for the number of variants that are tested (Holm).
        n: seeds that both have.
    """

    variant: str
    baseline: str
    label: str
    class_name: Annotated[str | None, Field(alias="class")]
    setting: str | None
    difference: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    n: int


@dataclass(frozen=True, config=_STRICT)
class Inference:
    """A metric of the same trained weights on another engine.

    Attributes:
        engine: for people: `exact`, `64 shots`, `fake_torino, 1024 shots`.
        shots, noise: null is without.
        method: of Aer; null for the exact engine, and in older files.
        mean, low, high, n: over seeds.
        difference, difference_low, difference_high, p: from the exact engine, paired over seeds;
            null where there is none.
    """

    variant: str
    engine: str
    shots: int | None
    noise: str | None
    label: str
    mean: float
    low: float | None
    high: float | None
    n: int
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    p: float | None
    method: str | None = None


@dataclass(frozen=True, config=_STRICT)
class Results:
    """All of it.

    Attributes:
        data: the real images, as evaluations name them; null until there is an evaluation.
    """

    name: str
    baseline: str
    data: DataRecord | None
    cells: tuple[CellResult, ...]
    summary: tuple[Summary, ...]
    paired: tuple[Paired, ...]
    inference: tuple[Inference, ...]
    format: Literal[1] = field(default=1)


def collect(
    specification: Specification,
    cells: Sequence[Cell],
    folder: Path,
    parameters: Mapping[str, Parameters],
) -> Results:
    """Gather what cells have so far.

    Args:
        specification, cells: of the comparison.
        folder: its directory.
        parameters: of each variant's network.

    Raises:
        ComparisonError: evaluations are of different images.
        EvaluationError: an evaluation is damaged.
    """
    found = {cell.name: cell.evaluation(cell.main) for cell in cells}
    paths = {cell.name: cell.evaluation_path(cell.main) for cell in cells}
    evaluations = [evaluation for evaluation in found.values() if evaluation is not None]
    _check_same_data(cells, found)
    records = [
        CellResult(
            variant=cell.variant,
            seed=cell.seed,
            run=cell.path.relative_to(folder).as_posix(),
            evaluation=path.relative_to(folder).as_posix() if path else None,
            parameters=parameters[cell.variant],
            step=cell.step(),
            steps=cell.config.train.steps,
            train_seconds=cell.train_seconds(),
            engine=judged.generated.engine_label if judged else None,
        )
        for cell in cells
        for path, judged in [(paths[cell.name], found[cell.name])]
    ]
    table = _Table(cells, lambda cell: found[cell.name])
    return Results(
        name=specification.name,
        baseline=specification.baseline,
        data=evaluations[0].data if evaluations else None,
        cells=tuple(records),
        summary=tuple(_summaries(table)),
        paired=tuple(_tests(table, specification.baseline)),
        inference=tuple(_inference(specification, cells)),
    )


class _Table:
    """The metrics of cells: by key, then variant, then seed."""

    def __init__(
        self, cells: Sequence[Cell], evaluation: Callable[[Cell], Evaluation | None]
    ) -> None:
        self.variants = list(dict.fromkeys(cell.variant for cell in cells))
        self.metrics: dict[Key, dict[str, dict[int, Metric]]] = {}
        for cell in cells:
            if (judged := evaluation(cell)) is None:
                continue
            for metric in judged.metrics:
                key = metric.label, metric.class_name, metric.setting
                of_variant = self.metrics.setdefault(key, {}).setdefault(cell.variant, {})
                of_variant[cell.seed] = metric


def _summaries(table: _Table) -> Iterable[Summary]:
    for (label, class_name, setting), variants in table.metrics.items():
        for variant in table.variants:
            if variant not in variants:
                continue
            metrics = list(variants[variant].values())
            mean = mean_interval([metric.value for metric in metrics])
            floors = [metric.floor for metric in metrics if metric.floor is not None]
            yield Summary(
                variant=variant,
                label=label,
                class_name=class_name,
                setting=setting,
                better=metrics[0].better,
                mean=mean.value,
                low=mean.low,
                high=mean.high,
                n=mean.n,
                floor=sum(floors) / len(floors) if floors else None,
            )


def _tests(table: _Table, baseline: str) -> Iterable[Paired]:
    for (label, class_name, setting), variants in table.metrics.items():
        tests = {}
        for variant in table.variants:
            if variant == baseline:
                continue
            ours, theirs = variants.get(variant, {}), variants.get(baseline, {})
            if seeds := sorted(ours.keys() & theirs.keys()):
                tests[variant] = paired_test(
                    [ours[seed].value for seed in seeds], [theirs[seed].value for seed in seeds]
                )
        # Corrected within a metric: the question is which variant differs from the baseline.
        known = {variant: test.p for variant, test in tests.items() if test.p is not None}
        corrected = dict(zip(known, holm(list(known.values())), strict=True))
        for variant, test in tests.items():
            yield Paired(
                variant=variant,
                baseline=baseline,
                label=label,
                class_name=class_name,
                setting=setting,
                difference=test.difference,
                low=test.low,
                high=test.high,
                p=test.p,
                p_holm=corrected.get(variant),
                n=test.n,
            )


def _inference(specification: Specification, cells: Sequence[Cell]) -> Iterable[Inference]:
    requests = {cell.name: dict(cell.study) for cell in cells}
    exact = InferenceOptions(engine="exact")

    def evaluated(engine: InferenceOptions, cell: Cell) -> Evaluation | None:
        request = requests[cell.name].get(engine)
        return cell.evaluation(request) if request is not None else None

    tables = {
        engine: _Table(cells, lambda cell, engine=engine: evaluated(engine, cell))  # type: ignore[misc]
        for engine in specification.inference
    }
    reference = tables[exact].metrics if exact in tables else {}
    for engine, table in tables.items():
        for key, variants in table.metrics.items():
            label, class_name, setting = key
            if class_name is not None or setting is not None:
                continue
            for variant, metrics in variants.items():
                mean = mean_interval([metric.value for metric in metrics.values()])
                base = reference.get(key, {}).get(variant, {})
                seeds = sorted(metrics.keys() & base.keys()) if engine != exact else []
                test = (
                    paired_test([metrics[s].value for s in seeds], [base[s].value for s in seeds])
                    if seeds
                    else None
                )
                yield Inference(
                    variant=variant,
                    engine=engine.label,
                    shots=engine.shots,
                    noise=engine.noise,
                    method=engine.method if engine.engine == "aer" else None,
                    label=label,
                    mean=mean.value,
                    low=mean.low,
                    high=mean.high,
                    n=mean.n,
                    difference=test.difference if test else None,
                    difference_low=test.low if test else None,
                    difference_high=test.high if test else None,
                    p=test.p if test else None,
                )


def _check_same_data(cells: Sequence[Cell], found: Mapping[str, Evaluation | None]) -> None:
    """Numbers against other images, or by another extractor, do not compare."""
    first: tuple[Cell, Evaluation] | None = None
    for cell in cells:
        evaluation = found[cell.name]
        if evaluation is None:
            continue
        if first is None:
            first = cell, evaluation
        elif evaluation.data.digest != first[1].data.digest:
            raise ComparisonError(
                f"{cell.evaluation_path(cell.main)}: judged by other images than {first[0].name}; "
                "delete it to judge it anew"
            )


def write_results(results: Results, path: Path) -> None:
    """Write `results` as JSON, whole or not at all."""
    write_record(results, path)


def read_results(path: str | Path) -> Results:
    """Read what `write_results` wrote.

    Raises:
        ComparisonError: the file is missing, damaged, or not results.
    """
    path = Path(path)
    plain = read_json(
        path, ComparisonError, missing="`qhdm compare` makes it", again="compare again"
    )
    if not isinstance(plain, dict) or "cells" not in plain:
        raise ComparisonError(f"{path}: not the results of a comparison")
    try:
        return validate(Results, Document(str(path), plain, {}))
    except ConfigError as error:
        raise ComparisonError(f"{error}; compare again") from None
