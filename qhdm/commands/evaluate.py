"""`qhdm evaluate`: metrics of generated images against real ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from qhdm.commands.arguments import (
    RUN,
    SAMPLER,
    add_device,
    add_engine,
    add_sampler,
    positive,
    settings,
)
from qhdm.commands.train_classifier import add_data, data_config
from qhdm.errors import ConfigError, EvaluationError, Interrupted

_ENGINE = ("engine", "shots", "noise", "method")
_SAMPLING = ("num", *SAMPLER, *_ENGINE)
_OTHERS = ("extractor", "extractor_weights", "metrics", "device")
#: What `--set` may change of a run: its images may have moved.
_MOVABLE = ("data.root", "data.split", "data.skip_broken")


def add(verbs: argparse._SubParsersAction) -> None:
    """Add the `evaluate` subcommand."""
    evaluate = verbs.add_parser("evaluate", help="compare generated images with real ones")
    add_data(
        evaluate, "RUN", f"{RUN}; with --images also a configuration file, or nothing with --data"
    )
    evaluate.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="evaluate the images in class folders instead of sampling",
    )
    evaluate.add_argument(
        "--num",
        type=positive,
        metavar="N",
        help="images to sample, over all classes, and held-out images to denoise, at most "
        "(default: 1000)",
    )
    add_sampler(evaluate)
    add_engine(evaluate)
    evaluate.add_argument(
        "--extractor",
        choices=["resnet", "classifier", "inception", "dinov2"],
        help="feature extractor; resnet and the classifier of older versions are trained on the "
        "training split (default: resnet)",
    )
    evaluate.add_argument("--extractor-weights", metavar="FILE", help="weights of the extractor")
    evaluate.add_argument(
        "--metrics",
        nargs="+",
        choices=["loss", "use", "bands", "distances", "classes", "memorisation", "utility"],
        help="groups of metrics; loss and use need a run, bands needs bands, utility is slow "
        "(default: all but use)",
    )
    add_device(evaluate, default=None)
    evaluate.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="path of the JSON file (default: in RUN/evaluations/)",
    )
    evaluate.set_defaults(command=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    images, source = arguments.images, arguments.source
    given = {name: getattr(arguments, name) for name in (*_SAMPLING, *_OTHERS)}
    if images:
        for name in _SAMPLING:
            if given[name] is not None:
                option = name.replace("_", "-")
                raise EvaluationError(f"--{option}: not with --images, which are not sampled")
        if (images / "config.yaml").is_file():
            raise EvaluationError(f"--images: {images}: is a run directory; give it as RUN")
    elif source is None or arguments.data is not None:
        raise EvaluationError(
            "evaluate: give a run directory to sample, or --images DIR with the real images"
        )
    if arguments.out and arguments.out.is_dir():
        raise EvaluationError(f"--out: {arguments.out}: is a folder; name a JSON file")
    from qhdm.metrics.settings import EvaluationSettings

    request = settings(EvaluationSettings, given, EvaluationError)
    if images:
        real = data_config(arguments)
    else:
        for key in (setting.partition("=")[0].strip() for setting in arguments.set):
            if key not in _MOVABLE:
                raise ConfigError(
                    f"--set {key}: an evaluation keeps the run's configuration; only "
                    f"{', '.join(_MOVABLE)} may be changed"
                )
        from qhdm.runs.config import load_run_config
        from qhdm.runs.directory import RunDirectory

        real = load_run_config(RunDirectory.open(source).path, arguments.set).data

    # Only now the heavy imports: bad input is refused at once.
    from qhdm.metrics import evaluate
    from qhdm.metrics.tables import describe

    try:
        result = evaluate(images or source, real, request, out=arguments.out, progress=True)
    except KeyboardInterrupt:
        if images and not arguments.out:
            raise
        raise Interrupted(
            "interrupted: finished metrics and sampled images are kept; repeat the command to "
            "continue"
        ) from None
    print(describe(result))
