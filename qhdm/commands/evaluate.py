"""`qhdm evaluate`: how good generated images are, against real ones."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qhdm.commands.arguments import add_device, add_engine, add_sampler, positive, settings
from qhdm.commands.train_classifier import add_data, data_config
from qhdm.errors import EvaluationError

if TYPE_CHECKING:
    from qhdm.metrics.records import Evaluation, Metric

_GROUPS = ("distances", "classes", "memorisation", "utility")
_ENGINE = ("engine", "shots", "noise", "method")
_SAMPLING = ("num", "steps", "sampler", "guidance", "eta", "seed", "weights", *_ENGINE)
_OTHERS = ("extractor", "extractor_weights", "metrics", "device")


def add(verbs: argparse._SubParsersAction) -> None:
    """Add the verb to the parser."""
    evaluate = verbs.add_parser("evaluate", help="compare generated images with real ones")
    add_data(evaluate, "RUN", "a run directory; with --images also a configuration file")
    evaluate.add_argument(
        "--images", type=Path, metavar="DIR", help="judge class folders of images, sample none"
    )
    evaluate.add_argument("--num", type=positive, metavar="N", help="images in all (1000)")
    add_sampler(evaluate)
    add_engine(evaluate)
    evaluate.add_argument(
        "--extractor",
        choices=["classifier", "inception", "dinov2"],
        help="of features; the classifier is trained on the training split (default)",
    )
    evaluate.add_argument(
        "--extractor-weights", metavar="FILE", help="of a classifier, of inception or dinov2"
    )
    evaluate.add_argument(
        "--metrics", nargs="+", choices=_GROUPS, help="groups of metrics (all; utility is slow)"
    )
    add_device(evaluate, default=None)
    evaluate.add_argument("--out", type=Path, metavar="FILE", help="where the JSON file goes")
    evaluate.set_defaults(command=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    given = {name: getattr(arguments, name) for name in (*_SAMPLING, *_OTHERS)}
    if arguments.images:
        for name in _SAMPLING:
            if given[name] is not None:
                raise EvaluationError(f"--{name}: not with --images, which are there already")
    elif arguments.source is None or arguments.data is not None:
        raise EvaluationError(
            "evaluate: give a run directory to sample, or --images DIR with the real images"
        )
    if arguments.out and arguments.out.is_dir():
        raise EvaluationError(f"--out: {arguments.out}: is a folder; name a JSON file")
    from qhdm.metrics.settings import EvaluationSettings

    request = settings(EvaluationSettings, given, EvaluationError)

    # Only now the heavy imports: bad input is refused at once.
    if arguments.images:
        config = data_config(arguments)
    from qhdm.metrics import evaluate_folder, evaluate_run
    from qhdm.metrics.evaluation import Reporting
    from qhdm.report.neighbours import save_neighbours

    reporting = Reporting(
        progress=True, say=lambda text: print(text, flush=True), picture=save_neighbours
    )
    if arguments.images:
        found = evaluate_folder(
            arguments.images, config, request, out=arguments.out, reporting=reporting
        )
    else:
        found = evaluate_run(
            arguments.source,
            request,
            out=arguments.out,
            overrides=arguments.set,
            reporting=reporting,
        )
    print(describe(found))


def describe(evaluation: Evaluation) -> str:
    """The evaluation as tables: what was compared, the metrics, and those of single classes."""
    real, made, extractor = evaluation.data, evaluation.generated, evaluation.extractor
    lines = [
        f"real: {real.name}, {real.train} training and {real.test} test images, "
        f"{real.image_size}x{real.image_size}",
        f"generated: {made.num} images, {made.source}"
        + (f", engine {made.engine_label}" if made.engine_label else ""),
        f"features: {extractor.name} {extractor.digest}, {extractor.dim} per image",
        "",
    ]
    whole = [metric for metric in evaluation.metrics if metric.class_name is None]
    width = max((len(metric.label) for metric in whole), default=0)
    lines.append(f"{'':<{width}}{'value':>10}{'error':>10}{'floor':>10}{'':>3}better")
    for metric in whole:
        lines.append(
            f"{metric.label:<{width}}{_number(metric.value)}{_number(metric.error)}"
            f"{_number(metric.floor)}{'':>3}{metric.better or ''}"
        )
    return "\n".join([*lines, *_classes(evaluation), *(f"note: {n}" for n in evaluation.notes)])


def _classes(evaluation: Evaluation) -> list[str]:
    """One row for each class, one column for each metric that has values of single classes."""
    single = [metric for metric in evaluation.metrics if metric.class_name is not None]
    if not single:
        return []
    columns = list(dict.fromkeys(map(_column, single)))
    table = {(metric.class_name, _column(metric)): metric.value for metric in single}
    names = list(dict.fromkeys(metric.class_name for metric in single))
    width = max(len(str(name)) for name in names)
    lines = ["", "of each class:"]
    head = [f"({letter}) {column}" for letter, column in zip("abcdefgh", columns, strict=False)]
    lines += [f"  {text}" for text in head]
    lines.append(" " * width + "".join(f"{text[:3]:>10}" for text in head))
    for name in names:
        row = "".join(_number(table.get((name, column))) for column in columns)
        lines.append(f"{name:<{width}}{row}")
    return lines


def _column(metric: Metric) -> str:
    if metric.name != "augmentation gain":
        return metric.name
    return f"{metric.name}, {metric.setting or 'all real images'}"


def _number(value: float | None) -> str:
    return f"{'' if value is None else format(value, '.4f'):>10}"
