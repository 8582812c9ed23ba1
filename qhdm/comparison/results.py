"""Results of comparisons: results.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass

from qhdm.comparison.cells import Cell, Judged
from qhdm.comparison.spec import Specification
from qhdm.comparison.statistics import MeanTest, holm, t_test
from qhdm.errors import ComparisonError
from qhdm.metrics.records import STRICT, Better, DataRecord, GeneratedRecord, Metric
from qhdm.quantum.options import EngineOptions, Exact
from qhdm.schema import read_record


class MetricKey(NamedTuple):
    """Metrics with the same key are comparable."""

    label: str
    class_name: str | None
    setting: str | None


#: The metric that variants are tested on first; the others are secondary.
PRIMARY = "denoising loss"
#: Metrics by key, variant and seed.
Values = dict[MetricKey, dict[str, dict[int, Metric]]]


@dataclass(frozen=True, config=STRICT)
class Parameters:
    """The numbers of classical weights and of weights of circuits."""

    classical: int
    quantum: int


@dataclass(frozen=True, config=STRICT)
class CellResult:
    """One cell.

    Attributes:
        run, evaluation: paths relative to the comparison's directory; null if not evaluated yet.
        step: that it is trained to, of `steps`.
        train_seconds: spent in training steps.
        engine: label of the engine that images were sampled on; null without an evaluation, and in
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


@dataclass(frozen=True, config=STRICT)
class Summary:
    """A metric of a variant, over its seeds.

    Attributes:
        label, class_name, setting, better: as in the evaluations.
        mean, low, high: with the 95 % interval; null for a single seed, and without spread.
        n: number of seeds.
        floor: mean of the floors.
    """

    variant: str
    label: str
    class_name: Annotated[str | None, Field(alias="class")]
    setting: str | None
    better: Better | None
    mean: float
    low: float | None
    high: float | None
    n: int
    floor: float | None


@dataclass(frozen=True, config=STRICT)
class Paired:
    """A variant against the baseline, paired over seeds.

    Attributes:
        difference, low, high: variant less baseline, with the 95 % interval.
        p: of the paired t test; null below two pairs, and without spread.
        p_holm: corrected for the number of variants that are tested (Holm).
        n: number of seeds that both have.
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


@dataclass(frozen=True, config=STRICT)
class Inference:
    """A metric of the same trained weights on another engine.

    Attributes:
        engine: its label: `exact`, `64 shots`, `fake_torino, 1024 shots`.
        shots, noise: null if there are none.
        mean, low, high, n: over seeds.
        difference, difference_low, difference_high, p: from the exact engine, paired over seeds.
        method: of Aer; null for the exact engine, and in older files.
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


@dataclass(frozen=True, config=STRICT)
class Results:
    """The results of a comparison.

    Attributes:
        data: the real images; null until there is an evaluation.
        primary: label of the primary endpoint, the denoising loss of the baseline; null where it
            was not evaluated, and in older files.
    """

    name: str
    baseline: str
    data: DataRecord | None
    cells: tuple[CellResult, ...]
    summary: tuple[Summary, ...]
    paired: tuple[Paired, ...]
    inference: tuple[Inference, ...]
    primary: str | None = None
    format: Literal[1] = 1


def collect(
    specification: Specification,
    cells: Sequence[Cell],
    folder: Path,
    parameters: Mapping[str, Parameters],
) -> Results:
    """Gather what cells have so far; `folder` is the comparison's directory.

    Raises:
        ComparisonError: evaluations are of different images.
        EvaluationError: an evaluation is damaged.
    """
    main = {cell.name: cell.evaluation(cell.main) for cell in cells}
    _check_same_data({name: judged for name, judged in main.items() if judged is not None})
    records = []
    for cell in cells:
        judged = main[cell.name]
        records.append(
            CellResult(
                variant=cell.variant,
                seed=cell.seed,
                run=cell.path.relative_to(folder).as_posix(),
                evaluation=judged.path.relative_to(folder).as_posix() if judged else None,
                parameters=parameters[cell.variant],
                step=cell.step(),
                steps=cell.config.train.steps,
                train_seconds=cell.train_seconds(),
                engine=judged.evaluation.generated.engine_label if judged else None,
            )
        )
    values = _values(cells, main)
    return Results(
        name=specification.name,
        baseline=specification.baseline,
        data=next((judged.evaluation.data for judged in main.values() if judged), None),
        cells=tuple(records),
        summary=tuple(_summaries(values)),
        paired=tuple(_tests(values, specification.baseline)),
        inference=tuple(_inference(specification, cells)),
        primary=_primary(values, specification.baseline),
    )


def _check_same_data(judged: Mapping[str, Judged]) -> None:
    """Refuse evaluations with different real images, whose numbers do not compare."""
    first: str | None = None
    for name, one in judged.items():
        first = first or name
        if one.evaluation.data.digest != judged[first].evaluation.data.digest:
            raise ComparisonError(
                f"{one.path}: evaluated with other real images than {first}; delete it to evaluate "
                "the cell again"
            )


def _values(cells: Sequence[Cell], judged: Mapping[str, Judged | None]) -> Values:
    """The metrics of evaluated cells."""
    values: Values = {}
    variants = dict.fromkeys(cell.variant for cell in cells)
    for cell in cells:
        if (one := judged[cell.name]) is None:
            continue
        for metric in one.evaluation.metrics:
            key = MetricKey(metric.label, metric.class_name, metric.setting)
            values.setdefault(key, {v: {} for v in variants})[cell.variant][cell.seed] = metric
    return values


def _primary(values: Values, baseline: str) -> str | None:
    for key, variants in values.items():
        if any(metric.name == PRIMARY for metric in variants[baseline].values()):
            return key.label
    return None


def _summaries(values: Values) -> Iterable[Summary]:
    for key, variants in values.items():
        for variant, metrics in variants.items():
            if not metrics:
                continue
            test = t_test([metric.value for metric in metrics.values()])
            floors = [metric.floor for metric in metrics.values() if metric.floor is not None]
            yield Summary(
                variant=variant,
                **key._asdict(),
                better=next(iter(metrics.values())).better,
                **test.interval(),
                floor=sum(floors) / len(floors) if floors else None,
            )


def _paired(ours: Mapping[int, Metric], theirs: Mapping[int, Metric]) -> MeanTest | None:
    """The paired t test over common seeds; None if there are none."""
    seeds = sorted(ours.keys() & theirs.keys())
    return t_test([ours[s].value - theirs[s].value for s in seeds]) if seeds else None


def _tests(values: Values, baseline: str) -> Iterable[Paired]:
    for key, variants in values.items():
        tests = {
            variant: test
            for variant, metrics in variants.items()
            if variant != baseline and (test := _paired(metrics, variants[baseline]))
        }
        # Corrected within a metric, the primary one too: the question is which variant differs.
        p_values = {variant: test.p for variant, test in tests.items() if test.p is not None}
        corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
        for variant, test in tests.items():
            yield Paired(
                variant=variant,
                baseline=baseline,
                **key._asdict(),
                difference=test.mean,
                low=test.low,
                high=test.high,
                p=test.p,
                p_holm=corrected.get(variant),
                n=test.n,
            )


def _inference(specification: Specification, cells: Sequence[Cell]) -> Iterable[Inference]:
    tables: dict[EngineOptions, Values] = {}
    for engine in (entry.options for entry in specification.inference):
        judged = {
            cell.name: cell.evaluation(cell.study[engine]) if engine in cell.study else None
            for cell in cells
        }
        tables[engine] = _values(cells, judged)
    exact = tables.get(Exact(), {})
    for engine, values in tables.items():
        fields = GeneratedRecord.engine_fields(engine)
        for key, variants in values.items():
            if key.class_name is not None or key.setting is not None:
                continue
            for variant, metrics in variants.items():
                if not metrics:
                    continue
                mean = t_test([metric.value for metric in metrics.values()])
                others = {} if values is exact else exact.get(key, {}).get(variant, {})
                test = _paired(metrics, others)
                yield Inference(
                    variant=variant,
                    engine=engine.label,
                    **{name: fields[name] for name in ("shots", "noise", "method")},
                    label=key.label,
                    **mean.interval(),
                    difference=test.mean if test else None,
                    difference_low=test.low if test else None,
                    difference_high=test.high if test else None,
                    p=test.p if test else None,
                )


def read_results(path: str | Path) -> Results:
    """Read the JSON file of a comparison's results.

    Raises:
        ComparisonError: the file is missing, damaged, or not results.
    """
    return read_record(
        Results,
        Path(path),
        ComparisonError,
        missing="`qhdm compare` makes it",
        again="compare again",
    )
