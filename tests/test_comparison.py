"""Comparisons: specifications, cells and their state, results, tables, processes."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import Cli, refused
from comparisons import cells, write_specification
from scipy import stats

from qhdm import data
from qhdm.comparison import plan
from qhdm.comparison.cells import Cell, cells_of
from qhdm.comparison.execution import LocalExecutor
from qhdm.comparison.plan import describe_plan, parameters_of, prepare
from qhdm.comparison.results import collect, read_results
from qhdm.comparison.runner import jobs_of
from qhdm.comparison.spec import load_grid, variant_settings
from qhdm.comparison.statistics import holm
from qhdm.comparison.table import describe, metric_blocks
from qhdm.config import ModelConfig, PublishedModelConfig
from qhdm.errors import ComparisonError, ConfigError, EvaluationError
from qhdm.metrics.records import (
    DataRecord,
    Evaluation,
    ExtractorRecord,
    Metric,
)
from qhdm.metrics.samples import described
from qhdm.runs.directory import RunDirectory
from qhdm.schema import write_record
from qhdm.training.loop import fit

CONFIGS = Path(__file__).parent.parent / "configs"
ABLATION = CONFIGS / "eurosat_ablation.yaml"
#: The primary endpoint.
LOSS = "denoising loss[edm 0123abcd, 4 noise levels, N=10, test]"


@pytest.fixture
def specification(tmp_path: Path) -> Path:
    return write_specification(tmp_path)


def trained(cell: Cell) -> None:
    run = RunDirectory.create(cell.config, cell.path)
    images = data.load(cell.config.data).split("train")
    fit(run, images, device=torch.device("cpu"))


def evaluated(cell: Cell, value: float, *, shots: int | None = None) -> None:
    """An evaluation file of `cell`, as `qhdm evaluate` writes it."""
    request = next(r for r in cell.requests if r.shots == shots)
    asked = described(RunDirectory(cell.path, cell.config), request)
    label = f"FID[resnet ab12cd34, N={request.num}, test]"
    evaluation = Evaluation(
        data=DataRecord(name="bundled", digest="0123", train=93, test=10, image_size=16),
        generated=replace(asked, source="where it was made"),
        extractor=ExtractorRecord(name="resnet", digest="ab12cd34", dim=8),
        metrics=(
            Metric(
                name="FID", label=label, split="test", num=request.num, value=value,
                better="lower", floor=1.5,
            ),
            Metric(
                name="FID", label=label, split="test", num=4, value=2 * value, better="lower",
                class_name="Forest",
            ),
            Metric(
                name="augmentation gain", label="gain[resnet ab12cd34]", split="test", num=40,
                value=-value / 100, better="higher", setting="10 real images per class",
            ),
            Metric(
                name="denoising loss", label=LOSS, split="test", num=10, value=value / 50,
                better="lower",
            ),
        ),
        groups=request.metrics,
    )  # fmt: skip
    write_record(evaluation, cell.path / "evaluations" / f"{asked.engine}_{shots}.json")


# Specifications


def test_shipped_comparisons_resolve() -> None:
    grid = load_grid(CONFIGS / "ablation.yaml")
    configs = {variant: config for (variant, _), config in grid.configs.items()}
    base = configs["qcunet"]
    assert {config.seed for config in grid.configs.values()} == {0, 1, 2}
    assert {config.quantum.filter for config in configs.values()} == {
        "circuit", "linear", "frozen", "cosine", "identity"
    }  # fmt: skip
    assert {config.quantum.vertex.ansatz for config in configs.values()} == {
        "hqconv", "hqconv_released", "fqconv", "basic", "product"
    }  # fmt: skip
    assert {config.model.kind for config in configs.values()} == {
        "unet", "qvunet", "fullqvunet", "qcunet"
    }  # fmt: skip
    assert {config.quantum.vertex.layers for config in configs.values()} == {1, 2, 3, 5}
    assert {config.quantum.vertex.rho for config in configs.values()} == {None, 0.25, 0.5}
    assert configs["unet-time-blind"].released.time_blind
    assert not configs["unet"].released.time_blind
    assert configs["qcunet-both"].quantum.encoder.replace == "both"
    assert base.quantum.encoder.replace == "first"
    small = load_grid(CONFIGS / "rsscn7_ablation.yaml")
    assert {variant for variant, _ in small.configs} >= {
        "unet", "unet_time_blind", "hqconv", "fqconv", "cosine"
    }  # fmt: skip
    verdict = {variant: c for (variant, _), c in load_grid(ABLATION).configs.items()}
    assert {config.quantum.filter for config in verdict.values()} == {
        "circuit", "frozen", "cosine", "linear", "perceptron", "identity"
    }  # fmt: skip
    published = verdict.pop("published")
    assert {config.train.precision for config in verdict.values()} == {"bf16"}
    assert isinstance(published.model, PublishedModelConfig)
    filters = {(c.vertex_filters, *c.encoder_filters.items()) for c in verdict.values()}
    assert filters == {(0,), (4, (1, 4), (2, 4))}
    # All see the same images; those whose loss is compared, as often.
    assert published.data == verdict["fqconv"].data
    sizes = {(c.data, c.train.steps, c.train.batch_size) for c in verdict.values()}
    assert len(sizes) == 1


def test_settings_of_cells_lie_over_each_other(specification: Path) -> None:
    grid = load_grid(specification, ["train.steps=7", "seeds=[5]", "data.augment=false"])
    assert list(grid.configs) == [("unet", 5), ("qcunet", 5), ("cosine", 5)]
    config = grid.configs["cosine", 5]
    assert (config.train.steps, config.seed, config.data.augment) == (7, 5, False)
    assert config.train.checkpoint_every == 2
    assert config.quantum.filter == "cosine"
    # A nested setting changes what it names alone.
    assert config.quantum.vertex.ansatz == "fqconv"
    assert variant_settings(grid.specification, "cosine") == "quantum.filter=cosine"


def test_a_saved_specification_gives_the_same_grid(specification: Path, tmp_path: Path) -> None:
    grid = load_grid(specification, ["train.grad_clip=null", "evaluate.num=50"])
    grid.save(tmp_path / "kept")
    again = load_grid(tmp_path / "kept" / "comparison.yaml")
    assert again.configs == grid.configs
    assert again.specification == replace(grid.specification, base="base.yaml")


def test_a_variant_may_have_a_base_of_its_own(specification: Path, tmp_path: Path) -> None:
    """The settings of all cells apply to it, and its own over them."""
    other = {"name": "other", "data": {"root": "bundled", "image_size": 32}, "train": {"lr": 0.5}}
    (specification.parent / "other.yaml").write_text(yaml.safe_dump(other))
    own = "{base: other.yaml, model.kind: unet, train.precision: float32}"
    changes = [f"variants.other={own}", "train.log_every=7"]
    grid = load_grid(specification, changes)
    config, common = grid.configs["other", 1], grid.configs["cosine", 1]
    assert isinstance(config.model, ModelConfig)
    assert isinstance(common.model, PublishedModelConfig)
    assert (config.name, config.data.image_size, config.train.lr) == ("other", 32, 0.5)
    assert (config.model.kind, config.train.steps, config.train.log_every) == ("unet", 2, 7)
    grid.save(tmp_path / "kept")
    assert load_grid(tmp_path / "kept" / "comparison.yaml").configs == grid.configs


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("variants.other={base: none.yaml}", "--set variants.other.base: "),
        ("variants.unet.model.knd=unet", "unet.model.knd: "),
        ("train.stepz=1", "--set train.stepz: "),
        ("train.steps.x=1", "--set train.steps.x: "),
        ("sedes=[1]", "--set sedes: "),
        ("seed=3", "--set seed: "),
        ("seeds=[]", "--set seeds: "),
        ("seeds=[1, 1]", "seeds: "),
        ("baseline=unt", "baseline: 'unt' "),
        ("base=none.yaml", "--set base: "),
        ("variants={}", "--set variants: "),
        ("variants.a/b={}", "variants.a/b: "),
        ("evaluate.nm=3", "--set evaluate.nm: "),
        ("evaluate.engine=exact", "evaluate.engine: "),
        ("inference=[{engine: exact, shots: 5}]", "shots: "),
        ("inference=[{engine: exact}, {engine: exact}]", "inference: "),
        ("inference_variants=[cosine]", "inference_variants: cosine "),
        ("inference_variants=[x]", "inference_variants: 'x' "),
        ("data.image_size=10", "small.yaml:11: variants.qcunet: data.image_size: "),
        ("train.precision=auto", "variants.unet: train.precision: "),
    ],
)
def test_bad_specifications_are_refused_by_place(
    specification: Path, change: str, place: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_grid(specification, [change])
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "guess"),
    [("variants.unet.model.knd=unet", "model.kind"), ("evaluate.nm=3", "evaluate.num")],
)
def test_similar_keys_are_suggested(specification: Path, change: str, guess: str) -> None:
    with pytest.raises(ConfigError, match=guess):
        load_grid(specification, [change])


def test_the_place_of_a_bad_variant_is_its_line(specification: Path) -> None:
    text = specification.read_text()
    specification.write_text(text.replace("model.kind: unet", "model.kind: unt"))
    with pytest.raises(ConfigError, match=r"small\.yaml:10: variants\.unet\.model\.kind: 'unt'"):
        load_grid(specification)
    with pytest.raises(ConfigError, match=r"tiny\.yaml: .*`variants`"):
        load_grid(specification.parent / "tiny.yaml")
    specification.write_text(text)
    (specification.parent / "tiny.yaml").write_text("train: {stepz: 3}\n")
    with pytest.raises(ConfigError, match=r"tiny\.yaml:1: train\.stepz:"):
        load_grid(specification)


# Cells


def test_a_cell_says_what_is_left_to_do(specification: Path, tmp_path: Path) -> None:
    cell = next(c for c in cells(specification) if c.name == "qcunet-seed1")
    log = tmp_path / "log"
    job = cell.job(log)
    verbs = [command[3] for command in job.commands]
    # On the exact engine, the cell's own, it is evaluated once.
    assert verbs == ["train", "evaluate", "evaluate"]
    assert job.commands[0][4:] == ("--resume", str(cell.path))
    assert pickle.loads(pickle.dumps(job)) == job
    trained(cell)
    assert [command[3] for command in cell.job(log).commands] == ["evaluate", "evaluate"]
    evaluated(cell, 3.0)
    (left,) = cell.job(log).commands
    assert {"--engine", "aer", "--shots", "64"} <= set(left)
    evaluated(cell, 3.0, shots=64)
    assert cell.job(log) is None
    assert cell.train_seconds() > 0
    # Its weights are not those that were judged.
    longer = replace(cell, config=replace(cell.config, train=replace(cell.config.train, steps=3)))
    assert longer.evaluation(longer.main) is None


def test_runs_trained_elsewhere_are_taken_or_refused(specification: Path) -> None:
    cell = cells(specification)[0]
    moved = replace(cell.config.data, root="elsewhere")
    shown = replace(cell.config.train, log_every=1, device="auto")
    RunDirectory.create(replace(cell.config, name="mine", data=moved, train=shown), cell.path)
    assert cell.step() == 0
    other = cells(specification, "train.lr=1")[0]
    with pytest.raises(ComparisonError, match=r"train\.lr 0\.001.* 1\.0"):
        other.step()
    (cell.path / "config.yaml").unlink()
    with pytest.raises(ComparisonError, match="cell unet-seed0: "):
        jobs_of([cell], cell.path.parent.parent)


def test_circuit_files_are_compared_by_content(specification: Path, tmp_path: Path) -> None:
    circuit = CONFIGS.parent / "circuits" / "fqconv.qasm"
    mine = tmp_path / "mine.qasm"
    mine.write_bytes(circuit.read_bytes())
    override = "variants.qcunet.quantum.vertex={ansatz: %s, layers: null}"
    one, other = (cells(specification, override % path)[3] for path in (circuit, mine))
    RunDirectory.create(one.config, one.path)
    assert other.step() == 0
    mine.write_bytes(circuit.read_bytes() + b"\n")
    with pytest.raises(ComparisonError, match=r"quantum\.vertex\.ansatz"):
        other.step()


def test_the_plan_names_cells_parameters_and_time(
    specification: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = load_grid(specification, ["seeds=[0]", "inference=[]"])
    found = cells_of(grid, specification.parent / "out")
    parameters = parameters_of(found)
    assert parameters["unet"].quantum == parameters["cosine"].quantum == 0
    assert parameters["qcunet"].quantum == 240
    text = describe_plan(grid.specification, found, parameters, LocalExecutor(2))
    for word in ("unet-seed0", "model.kind=unet", "240", "0/2", "estimated time: about"):
        assert word in text
    assert "timing" in capsys.readouterr().err
    # Of some variants alone, as --only chooses them.
    chosen = [cell for cell in found if cell.variant == found[-1].variant]
    text = describe_plan(grid.specification, chosen, parameters, LocalExecutor(2))
    assert f"({len(chosen)} cells" in text
    assert found[0].name not in text


def test_the_plan_counts_evaluations_with_and_without_guidance(
    specification: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "seconds_per_evaluation", lambda *_: 1.0)
    monkeypatch.setattr(plan, "seconds_per_step", lambda *_: 1.0)
    interval = "evaluate.guidance_interval=[0.2,2]"  # 12 of these 20 levels
    for evaluations, guidance in ((20, [1]), (40, [2]), (32, [2, interval])):
        own = [f"evaluate.guidance={guidance[0]}", *guidance[1:]]
        cell = cells(specification, "evaluate.steps=20", "inference=[]", *own)[0]
        _, sampling = plan._times(cell)
        assert sampling[cell.main] == evaluations * cell.main.num


def test_a_guide_needs_no_label_dropout(specification: Path) -> None:
    asked = ["settings.train.label_dropout=0", "evaluate.guidance=2", "inference=[]"]
    with pytest.raises(ConfigError, match="guidance"):
        cells(specification, *asked)
    assert cells(specification, *asked, "evaluate.guide=model")


def test_too_few_images_are_found_before_training(specification: Path) -> None:
    # 10 of the bundled images are held out; a classifier has 64 features.
    with pytest.raises(EvaluationError, match="test split"):
        prepare(cells(specification, "evaluate.num=200"), progress=False)


def test_variants_with_other_images_are_refused_before_training(specification: Path) -> None:
    (specification.parent / "other.yaml").write_text("data: {root: bundled, image_size: 32}")
    own = "variants.other={base: other.yaml, train.precision: float32}"
    with pytest.raises(ComparisonError, match=r"^variants\.other: .*test_fraction"):
        prepare(cells(specification, own, "evaluate.metrics=[loss]"), progress=False)


# Results


@pytest.fixture(scope="module")
def all_done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison all of whose cells are done."""
    path = write_specification(tmp_path_factory.mktemp("comparison"))
    values = {"unet": (10.0, 12.0, 11.0), "qcunet": (11.0, 13.5, 12.0), "cosine": (9.0, 12.5, 10.0)}
    for cell in cells(path):
        trained(cell)
        evaluated(cell, values[cell.variant][cell.seed])
        if cell.study:
            evaluated(cell, values[cell.variant][cell.seed] + 4 + cell.seed, shots=64)
    return path


@pytest.fixture
def finished(all_done: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(all_done.parent, tmp_path / "copy")
    return tmp_path / "copy" / all_done.name


def test_results_hold_means_tests_and_the_study(finished: Path) -> None:
    grid = load_grid(finished)
    folder = finished.parent / "out"
    found = cells_of(grid, folder)
    results = collect(grid.specification, found, folder, parameters_of(found))
    write_record(results, folder / "results.json")
    assert read_results(folder / "results.json") == results

    fid = "FID[resnet ab12cd34, N=40, test]"
    rows = {
        row.variant: row for row in results.summary if (row.label, row.class_name) == (fid, None)
    }
    assert rows["unet"].mean == 11.0
    assert rows["unet"].floor == 1.5
    assert rows["unet"].high - 11.0 == pytest.approx(stats.t.ppf(0.975, 2) / math.sqrt(3))
    (test,) = (
        row for row in results.paired
        if (row.variant, row.label, row.class_name) == ("qcunet", fid, None)
    )  # fmt: skip
    expected = stats.ttest_rel([11.0, 13.5, 12.0], [10.0, 12.0, 11.0])
    assert test.p == pytest.approx(expected.pvalue)
    assert (test.low, test.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert test.p_holm == pytest.approx(2 * test.p)  # the smaller of two
    exact, shots = (row for row in results.inference if row.label == fid)
    assert (exact.engine, shots.engine, shots.shots) == ("exact", "64 shots", 64)
    assert shots.difference == pytest.approx(5.0)
    assert all(cell.step == cell.steps == 2 and cell.train_seconds > 0 for cell in results.cells)

    text = describe(results, {"unet": "model.kind=unet"}, all_settings=True)
    assert "Data: bundled (digest 0123), 93 images to train on, 10 held out, 16x16" in text
    assert "n = 3" in text
    assert f"## {fid} (lower is better)" in text
    assert any(row.split()[:4] == ["|", "unet", "|", "11.00"] for row in text.splitlines())
    assert any("real images" in row and "1.500" in row for row in text.splitlines())
    assert "10 real images per class" in text
    assert "10 real images" not in describe(results, {}, all_settings=False)
    assert f"## Engines at inference, qcunet: {fid}" in text


def test_the_primary_endpoint_comes_first(finished: Path) -> None:
    grid = load_grid(finished)
    found = cells_of(grid, finished.parent / "out")
    results = collect(grid.specification, found, finished.parent / "out", parameters_of(found))
    assert results.primary == LOSS
    first, second, *_ = metric_blocks(results)
    assert (first.label, first.primary, second.primary) == (LOSS, True, False)
    text = describe(results, {}, all_settings=True)
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert heads[0] == f"## Primary endpoint: {LOSS} (lower is better)"
    assert not any("Primary" in head for head in heads[1:])
    # Of unet, the mean is 11; qcunet has 7 / 6 more, cosine 0.5 less.
    percent = {row[0]: row[-1] for row in first.table("unet").rows}
    assert percent == {"unet": "", "qcunet": "+10.6", "cosine": "-4.55"}
    # Its two tests are corrected for each other alone.
    tests = [row for row in results.paired if row.label == LOSS]
    assert [t.p_holm for t in tests] == holm([t.p for t in tests])
    assert len(tests) == 2


def test_results_of_earlier_versions_have_no_primary_endpoint(finished: Path) -> None:
    grid = load_grid(finished)
    found = cells_of(grid, finished.parent / "out")
    for path in finished.parent.glob("out/cells/*/evaluations/*.json"):
        record = json.loads(path.read_text())
        record["metrics"] = [m for m in record["metrics"] if m["name"] != "denoising loss"]
        path.write_text(json.dumps(record))
    results = collect(grid.specification, found, finished.parent / "out", parameters_of(found))
    path = finished.parent / "results.json"
    write_record(results, path)
    older = json.loads(path.read_text())
    assert older.pop("primary") is None
    path.write_text(json.dumps(older))
    assert read_results(path) == results
    assert "rimary" not in describe(results, {}, all_settings=True)


def test_the_study_is_drawn(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    from qhdm.report.charts import plot_inference

    found = cells(finished)
    grid = load_grid(finished)
    results = collect(grid.specification, found, finished.parent / "out", parameters_of(found))
    plot_inference(tmp_path / "study.png", "small (bundled)", results.inference)
    with Image.open(tmp_path / "study.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_evaluations_of_other_images_are_not_mixed(finished: Path) -> None:
    cell = cells(finished)[1]
    path = cell.evaluation(cell.main).path
    path.write_text(path.read_text().replace('"0123"', '"4567"'))
    grid = load_grid(finished)
    found = cells(finished)
    with pytest.raises(ComparisonError, match=rf"{path.name}.*unet-seed0"):
        collect(grid.specification, found, finished.parent / "out", parameters_of(found))


def test_damaged_results_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(ComparisonError, match=path.name):
        read_results(path)
    for text in ("{", "[]", '{"cells": []}'):
        path.write_text(text)
        with pytest.raises(ComparisonError, match=path.name):
            read_results(path)


# The command


def test_refusals_of_the_command(cli: Cli, finished: Path) -> None:
    refused(cli("compare", finished, "--only", "x"), "--only", "x", "unet, qcunet, cosine")
    out = finished.parent / "out"
    changed = cli("compare", finished, "--out", out, "--set", "train.lr=0.5")
    refused(changed, "train.lr 0.001", "0.5")


def test_a_finished_comparison_prints_its_tables(cli: Cli, finished: Path) -> None:
    out = finished.parent / "out"
    done = cli("compare", finished, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "0 of 9 cells to do" in done.stdout
    assert "minus unet" in done.stdout
    assert (out / "results.md").read_text().startswith("# small\n")
    assert len(read_results(out / "results.json").cells) == 9
    assert (out / "inference.png").exists()
