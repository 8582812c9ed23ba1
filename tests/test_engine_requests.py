"""A named engine is complete, on runs of every kind; records, labels and names say what ran."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from PIL import Image

from qhdm.cli import main
from qhdm.comparison.cells import cells_of
from qhdm.comparison.plan import parameters_of
from qhdm.comparison.results import collect, read_results
from qhdm.comparison.spec import load_grid
from qhdm.comparison.table import describe
from qhdm.config import EngineRequest, QuantumConfig, Sampling
from qhdm.errors import CircuitError, ConfigError
from qhdm.metrics import EvaluationSettings, read_evaluation
from qhdm.metrics.records import (
    DataRecord,
    Evaluation,
    ExtractorRecord,
    GeneratedRecord,
    Metric,
)
from qhdm.metrics.samples import described, sampled
from qhdm.quantum import build_filter, expectation
from qhdm.quantum.options import Aer, EngineOptions, Exact
from qhdm.run import Run
from qhdm.runs.directory import RunDirectory
from qhdm.schema import Document, validate, write_record

NOISE = "fake_torino"
#: Runs of every kind, by what evaluates their filters.
KINDS: dict[str, EngineOptions] = {
    "exact": Exact(),
    "shots": Aer(shots=16, gradient="shift"),
    "noise": Aer(noise=NOISE),
}
#: Engines as they are asked for, and what must run; None is the run's own.
REQUESTS: list[tuple[dict[str, Any], EngineOptions | None]] = [
    ({}, None),
    ({"engine": "exact"}, Exact()),
    ({"engine": "aer"}, Aer()),
    ({"engine": "aer", "shots": 8}, Aer(shots=8)),
    ({"engine": "aer", "shots": 8, "noise": NOISE}, Aer(shots=8, noise=NOISE)),
    (
        {"engine": "aer", "shots": 8, "method": "density_matrix"},
        Aer(shots=8, method="density_matrix"),
    ),
]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QHDM_DATA", str(tmp_path_factory.mktemp("cache")))
        yield


def configuration(options: EngineOptions) -> dict[str, Any]:
    """A network so small that the noise of a device takes no time."""
    filters = {"ansatz": "fqconv", "layers": 1}
    aer = {"shots": options.shots, "noise": options.noise} if isinstance(options, Aer) else {}
    gradient = {"gradient": options.gradient} if isinstance(options, Aer) else {}
    return {
        **TINY,
        "data": {**TINY["data"], "image_size": 8, "classes": ["Forest", "River"]},
        "model": {**TINY["model"], "kind": "qvunet"},
        "quantum": {"engine": options.name, "aer": {**aer, **gradient}, "vertex": filters},
        "train": {**TINY["train"], "steps": 1, "batch_size": 1},
        "sample": {"steps": 2, "num": 1},
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind, trained for a step."""
    folder = tmp_path_factory.mktemp("runs")
    for kind, options in KINDS.items():
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(configuration(options)))
        words = ["train", str(folder / f"{kind}.yaml"), "--out", str(folder / kind)]
        assert main(words) == 0
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="module")
def images(runs: dict[str, Path]) -> Callable[[str, EngineOptions], np.ndarray]:
    """Three images of a run on an engine that is made by hand, without any request."""
    known: dict[tuple[str, EngineOptions], np.ndarray] = {}

    def of(kind: str, options: EngineOptions) -> np.ndarray:
        if (kind, options) not in known:
            pipeline = Run.open(runs[kind], device="cpu")
            known[kind, options] = pipeline.sample(Sampling(engine=options), labels=[0, 1, 0])
        return known[kind, options]

    return of


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("asked", "named"), REQUESTS)
def test_what_is_recorded_is_what_ran(
    kind: str,
    asked: dict[str, Any],
    named: EngineOptions | None,
    runs: dict[str, Path],
    images: Callable[[str, EngineOptions], np.ndarray],
) -> None:
    run = RunDirectory.open(runs[kind])
    settings = EvaluationSettings(num=3, device="cpu", **asked)
    ran = named or KINDS[kind]
    found, _ = sampled(run, settings)
    assert np.array_equal(found.images, images(kind, ran))

    record = described(run, settings)
    aer = ran if isinstance(ran, Aer) else None
    wanted = (aer.shots, aer.noise, aer.method) if aer else (None, None, None)
    assert (record.engine, record.shots, record.noise, record.method) == (ran.name, *wanted)
    assert record.engine_label == ran.description
    kept = [json.loads(path.read_text()) for path in run.path.glob("*/samples/*/request.json")]
    assert [record.engine, *wanted] in [
        [file[name] for name in ("engine", "shots", "noise", "method")] for file in kept
    ]


def test_engines_are_told_apart_by_their_images(
    images: Callable[[str, EngineOptions], np.ndarray],
) -> None:
    """Without which the test above could not fail."""
    engines = [Exact(), Aer(shots=16), Aer(shots=8), Aer(noise=NOISE), Aer(shots=8, noise=NOISE)]
    for kind in KINDS:
        found = {images(kind, options).tobytes() for options in engines}
        assert len(found) == len(engines), kind
        # Without shots or noise, Aer's images are the exact ones.
        apart = images(kind, Aer()).astype(int) - images(kind, Exact())
        assert np.abs(apart).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_sample_says_and_does_the_same(
    kind: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sample(*arguments: str) -> tuple[str, np.ndarray]:
        grid = tmp_path / f"{len(list(tmp_path.iterdir()))}.png"
        assert main(["sample", str(runs[kind]), "--grid", str(grid), *arguments]) == 0
        with Image.open(grid) as picture:
            return capsys.readouterr().out, np.asarray(picture.convert("RGB")).astype(int)

    said, own = sample()
    assert (f"engine: {KINDS[kind].description}\n" in said) == (kind != "exact")
    said, ideal = sample("--engine", "aer")
    assert "engine: aer, without shots\n" in said
    _, exact = sample("--engine", "exact")
    assert np.abs(ideal - exact).max() <= 1
    said, again = sample("--engine", "run")
    assert np.array_equal(again, own)
    said, noisy = sample("--engine", "aer", "--shots", "8", "--engine-steps", "1")
    assert "engine: aer, 8 shots (the last 1 steps; the others exact)\n" in said
    assert (noisy != exact).any()
    assert (own != exact).any() == (kind != "exact")


def test_evaluations_and_their_names_say_what_ran(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = tmp_path / "classifier.safetensors"
    assert main(["train-classifier", str(runs["noise"]), "--steps=1", f"--out={classifier}"]) == 0
    evaluate = ["evaluate", str(runs["noise"]), "--num", "3", "--metrics", "classes"]
    evaluate += ["--extractor-weights", str(classifier)]
    for options, name, label in (
        ([], f"aer_{NOISE}_", f"aer, {NOISE}, without shots"),
        (["--engine", "aer", "--shots", "8"], "aer_8shots_", "aer, 8 shots"),
        (
            ["--engine=aer", "--shots=8", "--method=density_matrix"],
            "aer_density_matrix_8shots_",
            "aer, 8 shots, density_matrix",
        ),
        (["--engine", "exact"], "exact_", "exact"),
    ):
        assert main([*evaluate, *options]) == 0
        assert f"engine {label}\n" in capsys.readouterr().out
        (path,) = (runs["noise"] / "evaluations").glob(f"*_ema-step1_{name}resnet*.json")
        assert read_evaluation(path).generated.engine_label == label


# Comparisons


def specification(folder: Path, options: EngineOptions) -> Path:
    """One variant whose runs are on an engine, and a study of engines."""
    folder.mkdir()
    (folder / "base.yaml").write_text(yaml.safe_dump(configuration(options)))
    engines = [asked for asked, named in REQUESTS if named]
    document = {
        "name": "study",
        "base": "base.yaml",
        "seeds": [0],
        "baseline": "own",
        "variants": {"own": {}},
        "evaluate": {"num": 3},
        "inference": engines,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def evaluation(record: GeneratedRecord, value: float) -> Evaluation:
    label = "FID[resnet ab12cd34, N=3, test]"
    metric = Metric(name="FID", label=label, split="test", num=3, value=value, better="lower")
    return Evaluation(
        data=DataRecord(name="bundled", digest="0123", train=93, test=10, image_size=8),
        generated=record,
        extractor=ExtractorRecord(name="resnet", digest="ab12cd34", dim=8),
        metrics=(metric,),
        groups=("loss", "distances", "classes", "memorisation", "utility"),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_study_say_what_ran(kind: str, runs: dict[str, Path], tmp_path: Path) -> None:
    path = specification(tmp_path / "study", KINDS[kind])
    grid = load_grid(path)
    (cell,) = cells_of(grid, tmp_path / "out")
    cell.path.parent.mkdir(parents=True)
    cell.path.symlink_to(runs[kind])
    cell = replace(
        cell, config=RunDirectory.open(cell.path).config
    )  # of the same seed and settings

    # Evaluations of what each engine is, as `qhdm evaluate` writes them.
    named = [options for _, options in REQUESTS if options]
    own = described(RunDirectory.open(cell.path), EvaluationSettings(num=3))
    folder = cell.path / "evaluations"
    try:
        write_record(evaluation(own, -1.0), folder / "own.json")
        # Of a run on another engine, nothing of the study is done by that.
        done = [engine for engine, request in cell.study.items() if cell.is_evaluated(request)]
        assert done == [options for options in named if options == replaced_gradient(KINDS[kind])]
        for value, options in enumerate(named):
            aer = vars(options) if isinstance(options, Aer) else {}
            names = ("shots", "noise", "method", "device")
            record = replace(own, engine=options.name, **{name: aer.get(name) for name in names})
            write_record(evaluation(record, float(value)), folder / f"{value}.json")
        results = collect(grid.specification, [cell], tmp_path / "out", parameters_of([cell]))
    finally:
        for file in folder.glob("*.json"):
            file.unlink()
    write_record(results, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == results
    assert [row.mean for row in results.inference] == list(range(len(named)))
    text = describe(results, {}, all_settings=False)
    assert results.cells[0].engine == KINDS[kind].description
    said = f"Images of variants are sampled on: {KINDS[kind].description}." in text
    assert said == (kind != "exact")
    for row, options in zip(results.inference, named, strict=True):
        aer = options if isinstance(options, Aer) else None
        wanted = (aer.shots, aer.noise, aer.method) if aer else (None, None, None)
        assert (row.shots, row.noise, row.method) == wanted
        assert row.engine == options.label
        assert f"| {options.label} " in text
    assert [row.engine for row in results.inference] == [
        "exact", "without shots", "8 shots", f"{NOISE}, 8 shots", "8 shots, density_matrix"
    ]  # fmt: skip


def replaced_gradient(options: EngineOptions) -> EngineOptions:
    """What of a run's engine decides about values."""
    return replace(options, gradient="exact") if isinstance(options, Aer) else options


def test_a_cell_asks_for_complete_engines(tmp_path: Path) -> None:
    (cell,) = cells_of(load_grid(specification(tmp_path / "study", KINDS["noise"])), tmp_path)
    job = cell.job(tmp_path / "log")
    assert job is not None
    asked = [options_of(command) for command in job.commands if command[3] == "evaluate"]
    assert [tuple(options) for options in asked] == [
        ("run", None, None),
        ("exact", None, None), ("aer", None, None), ("aer", "8", None), ("aer", "8", NOISE),
        ("aer", "8", None),
    ]  # fmt: skip


def options_of(command: tuple[str, ...]) -> list[str | None]:
    words = list(command)
    return [
        words[words.index(name) + 1] if name in words else None
        for name in ("--engine", "--shots", "--noise")
    ]


# What older versions wrote


def test_older_records_can_be_read_and_count(runs: dict[str, Path], tmp_path: Path) -> None:
    for kind, asked in (("exact", {}), ("exact", {"engine": "aer", "shots": 8}), ("noise", {})):
        record = described(RunDirectory.open(runs[kind]), EvaluationSettings(num=3, **asked))
        path = tmp_path / "evaluation.json"
        write_record(evaluation(record, 1.0), path)
        document = json.loads(path.read_text())
        del document["generated"]["method"], document["generated"]["device"]
        path.write_text(json.dumps(document))
        older = read_evaluation(path).generated
        assert older.answers(record)
        assert older.engine_label == record.engine_label
        assert not older.answers(replace(record, shots=9))


def test_older_comparisons_can_be_read(tmp_path: Path) -> None:
    path = specification(tmp_path / "study", KINDS["exact"])
    document = yaml.safe_load(path.read_text())
    none = {"engine": None, "shots": None, "noise": None}
    document["evaluate"] = {"num": 3, **none}
    document["inference"] = [{**none, "engine": "exact"}, {**none, "engine": "aer", "shots": 8}]
    path.write_text(yaml.safe_dump(document))
    spec = load_grid(path).specification
    assert spec.evaluate.engine == "run"
    assert [engine.options for engine in spec.inference] == [Exact(), Aer(shots=8)]


# Refusals


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"shots": 8}, "shots: only with engine aer"),
        ({"engine": "run", "noise": NOISE}, "noise: only with engine aer"),
        ({"engine": "exact", "method": "statevector"}, "method: only with engine aer"),
        ({"engine": "aer", "noise": NOISE, "method": "statevector"}, "shots: noise on state"),
        ({"engine": "aer", "shots": 0}, "shots: must be greater than or equal to 1"),
        ({"engine": "aer", "gradient": "shift"}, "gradient: unknown key"),
        ({"engine": "exakt"}, "did you mean exact"),
    ],
)
def test_requests_that_cannot_be_are_refused(given: dict[str, Any], words: str) -> None:
    for cls in (EngineRequest, EvaluationSettings):
        with pytest.raises(ConfigError, match=words):
            validate(cls, Document("", given, {}))


@pytest.mark.parametrize(
    ("inference", "words"),
    [
        ("[{engine: run}]", r"inference\[0\]\.engine: 'run' is not one of exact, aer"),
        ("[{engine: null}]", r"inference\[0\]\.engine: 'run' is not one of exact, aer"),
        ("[{shots: 8}]", r"inference\[0\]\.engine: is required"),
        ("[{}]", r"inference\[0\]\.engine: is required"),
        ("[{engine: aer}, {engine: exact, shots: 8}]", r"inference\[1\]: shots: only with engine"),
        ("[{engine: aer, noise: a.json}, {engine: aer, noise: b/a.json}]", "two have one label"),
    ],
)
def test_engines_of_a_study_that_cannot_be_are_refused(
    inference: str, words: str, tmp_path: Path
) -> None:
    path = specification(tmp_path / "study", Exact())
    with pytest.raises(ConfigError, match=words):
        load_grid(path, [f"inference={inference}"])


def test_options_are_not_taken_for_an_engine(runs: dict[str, Path]) -> None:
    filter = build_filter("fqconv", qubits=12, layers=1)
    x, w = torch.zeros(1, 12), torch.zeros(24)
    with pytest.raises(CircuitError, match=r"make_engine\("):
        expectation(filter, x, w, engine=Aer(shots=8))  # type: ignore[arg-type]
    with pytest.raises(CircuitError, match="engine None: unknown"):
        expectation(filter, x, w, engine=None)  # type: ignore[arg-type]


def test_a_configuration_holds_the_engine_as_one_value() -> None:
    quantum = QuantumConfig(engine="aer", aer=Aer(shots=8))
    assert quantum.engine_options == Aer(shots=8)
    assert EngineRequest().engine_of(quantum) == Aer(shots=8)
    assert EngineRequest(engine="aer").engine_of(quantum) == Aer()
    for options in (Exact(), Exact("network"), Aer(noise=NOISE)):
        assert quantum.on(options).engine_options == options
