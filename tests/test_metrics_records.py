"""Records of evaluations: JSON that is read back, or refused in one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from qhdm.errors import ConfigError, EvaluationError
from qhdm.metrics.records import (
    DataRecord,
    Evaluation,
    ExtractorRecord,
    GeneratedRecord,
    Metric,
    read_evaluation,
    table_order,
)
from qhdm.metrics.settings import EvaluationSettings
from qhdm.metrics.tables import class_table, metric_table
from qhdm.schema import Document, validate, write_record

EVALUATION = Evaluation(
    data=DataRecord("bundled", "0123", 93, 10, 32),
    generated=GeneratedRecord("runs/a", 100, "ddim", 50, 1.5, 0, "ema", 600, "aer", 64, None),
    extractor=ExtractorRecord("classifier", "ab12cd34", 64),
    metrics=(
        Metric("FID", "FID[classifier ab12cd34, N=90, train]", "train", 90, 1.5, "lower"),
        Metric("CAS", "CAS[x]", "test", 90, 0.5, "higher", class_name="Forest", error=0.1),
        Metric("CAS", "CAS[x]", "test", 90, 0.6, "higher", floor=0.9),
    ),
    groups=("distances",),
    notes=("something was left out",),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_record(EVALUATION, path)
    assert read_evaluation(path) == EVALUATION
    plain = json.loads(path.read_text())
    assert plain["format"] == 1
    assert plain["metrics"][1]["class"] == "Forest"
    assert "class_name" not in plain["metrics"][1]


def test_metrics_are_found() -> None:
    assert EVALUATION.find("FID", split="test") is None
    assert EVALUATION.find("FID", split="train") is EVALUATION.metrics[0]
    assert EVALUATION.find("CAS") is EVALUATION.metrics[2]
    assert EVALUATION.find("CAS", class_name="Forest") is EVALUATION.metrics[1]
    assert EVALUATION.find("CAS", setting="10 real images per class") is None


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda d: d.pop("format"), ""),
        (lambda d: d.update(format=2), "format: 2"),
        (lambda d: d.update(metricks=[]), "metricks: .*metrics"),
        (lambda d: d["metrics"][0].update(value="x"), r"metrics\[0\].value: "),
        (lambda d: d["metrics"][0].update(value=float("nan")), r"metrics\[0\].value: "),
        (lambda d: d["metrics"][0].update(name="FIDD"), r"metrics\[0\].name: 'FIDD'"),
        (lambda d: d["data"].pop("digest"), r"data\.digest: "),
    ],
)
def test_what_is_no_evaluation_is_refused(change: object, place: str, tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    write_record(EVALUATION, path)
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))
    with pytest.raises(EvaluationError, match=f"{path}: {place}") as refused:
        read_evaluation(path)
    assert "\n" not in str(refused.value)


def test_files_that_are_not_json_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"format": 1, "da')
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    (tmp_path / "list.json").write_text("[]")
    for name in ("absent", "cut", "bytes", "list"):
        with pytest.raises(EvaluationError, match=f"{name}.json: "):
            read_evaluation(tmp_path / f"{name}.json")


def test_numbers_that_are_not_finite_are_refused() -> None:
    for value in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="value"):
            dataclasses.replace(EVALUATION.metrics[0], value=value)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"num": 0}, "num: "),
        ({"shots": 64}, "shots: "),
        ({"extractor": "inception"}, "extractor_weights: "),
        ({"metrics": ["distance"]}, r"metrics\[0\]: 'distance' .*distances"),
        ({"metrics": []}, "metrics: "),
        ({"numb": 3}, "numb: .*num"),
    ],
)
def test_settings_are_strict(given: dict, place: str) -> None:
    with pytest.raises(ConfigError, match=f"ablation.yaml: {place}"):
        validate(EvaluationSettings, Document("ablation.yaml", given, {}))


def test_tables_lead_with_recall_coverage_and_cas() -> None:
    names = ("class accuracy", "FID", "augmentation gain", "CAS", "coverage", "precision", "recall")
    metrics = [Metric(name, f"{name}[x]", "test", 9, 0.5, "higher") for name in names]
    metrics.append(Metric("recall", "recall[x]", "test", 9, 0.5, "higher", class_name="Forest"))
    evaluation = dataclasses.replace(EVALUATION, metrics=tuple(metrics))
    labels = [row[0] for row in metric_table(evaluation).rows]
    assert [label.removesuffix("[x]") for label in labels] == [
        "recall", "coverage", "CAS", "augmentation gain", "FID", "precision", "class accuracy",
    ]  # fmt: skip
    assert table_order("beauty[x]") > table_order("memorisation[x]")
    # Without a floor, tables say so.
    assert {row[3] for row in metric_table(evaluation).rows} == {"n/a"}
    assert class_table(evaluation).rows == [["Forest", "0.5000 (n/a)"]]
