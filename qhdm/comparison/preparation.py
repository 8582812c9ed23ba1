"""What can be found wrong, or done once for all cells, before any cell is trained."""

from __future__ import annotations

from collections.abc import Sequence

from qhdm import data
from qhdm.comparison.cells import Cell
from qhdm.config import DataConfig
from qhdm.data import Dataset
from qhdm.device import resolve_device
from qhdm.metrics.classifier import ClassifierSettings
from qhdm.metrics.features import make_extractor
from qhdm.metrics.groups import check_size
from qhdm.metrics.settings import EvaluationSettings
from qhdm.quantum.engines import make_engine


def prepare(cells: Sequence[Cell], *, progress: bool = True) -> None:
    """Read the images, set up the engines, and have the extractors of features ready.

    Cells at work side by side then find the classifier in the cache, instead of training one each.

    Args:
        cells: some of whose work is left.
        progress: show a bar on stderr while a classifier is trained.

    Raises:
        DataError: images are absent or cannot be read.
        EngineError: an engine cannot be set up.
        EvaluationError: there are too few images for an evaluation, or an extractor is missing.
    """
    for engine in dict.fromkeys(
        request.engine_of(cell.config.quantum) for cell in cells for request in cell.requests
    ):
        make_engine(engine)
    asked: dict[DataConfig, dict[EvaluationSettings, None]] = {}
    for cell in cells:
        asked.setdefault(cell.config.data, {}).update(dict.fromkeys(cell.requests))
    for config, requests in asked.items():
        images = data.load(config, progress=progress)
        training, test = images.split("train"), images.split("test")
        for request in requests:
            _check_extractor(request, training, test, progress=progress)


def _check_extractor(
    request: EvaluationSettings, training: Dataset, test: Dataset, *, progress: bool
) -> None:
    """Have the extractor of an evaluation ready, and refuse too few images for its features."""

    def check(dim: int) -> None:
        if "distances" in request.metrics:
            more = "set evaluate.num (or inference_evaluate.num) to {} or more"
            check_size(request.num, len(training), len(test), dim, more=more)

    if request.extractor == "classifier" and request.extractor_weights is None:
        check(ClassifierSettings.dim)  # before it is trained
    device = resolve_device(request.device, key="evaluate.device")
    extractor = make_extractor(request, training, device=device, progress=progress)
    check(extractor.record.dim)
