"""The HTML pages: complete, escaped, alone in the world, and as a browser sees them."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from browser import CHROMIUM, opened
from command_line import Cli, refused
from conftest import TINY
from PIL import Image

from qhdm import Run, data
from qhdm.cli import main
from qhdm.comparison.cells import cells_of
from qhdm.comparison.plan import parameters_of
from qhdm.comparison.results import collect, read_results
from qhdm.comparison.spec import load_grid
from qhdm.config import load_config
from qhdm.console import duration
from qhdm.data.batches import symmetries
from qhdm.errors import ComparisonError, EvaluationError, RunError
from qhdm.metrics.records import (
    DataRecord,
    Evaluation,
    ExtractorRecord,
    GeneratedRecord,
    Metric,
    Use,
)
from qhdm.metrics.samples import described
from qhdm.metrics.tables import metric_table
from qhdm.models import build_model
from qhdm.report.comparison import write_comparison_page
from qhdm.report.run import write_run_page
from qhdm.runs.directory import RunDirectory
from qhdm.schema import write_record
from qhdm.training.log import MetricsLog, training_seconds

#: Names that folders can have: a script, a formula, and everything that HTML gives a meaning.
HOSTILE = ("<script>alert(1)", "a&amp;b \"c\" 'd' $x$", "<img src=x onerror=alert(1)>")
#: Attributes that make a browser fetch something.
FETCHING = {"src", "srcset", "href", "xlink:href", "data", "action", "poster", "background"}


class Parsed(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._style = False
        self.style = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_data(self, data: str) -> None:
        if self._style:
            self.style += data
        else:
            self.text += re.sub(r"\s+", " ", data)

    def images(self, alt: str = "") -> list[bytes]:
        """The contents of the images whose description holds `alt`."""
        return [
            base64.b64decode(str(attributes["src"]).partition("base64,")[2], validate=True)
            for tag, attributes in self.elements
            if tag == "img" and alt in str(attributes["alt"])
        ]


def parse(path: Path) -> Parsed:
    """A page, checked: nothing outside is named, nothing runs, no element is left open."""
    page = Parsed(path.read_text(encoding="utf-8"))
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base"), attributes
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in FETCHING or str(value).startswith("data:"), (tag, value)
    assert "url(" not in page.style
    assert "@import" not in page.style
    for content in page.images():
        if content.startswith(b"<?xml"):
            drawn = content.decode()
            for link in re.findall(r'href="([^"]*)"', drawn):
                assert link.startswith(("#", "data:")), link
    return page


#: The primary endpoint.
LOSS = "denoising loss[edm 0123abcd, 4 noise levels, N=10, test]"


def evaluation(value: float, *, step: int, class_name: str = "Forest") -> Evaluation:
    """An evaluation as `qhdm evaluate` writes it, of the bundled patches, with given values."""
    label = "[resnet ab12cd34, N=100, test]"
    return Evaluation(
        data=DataRecord(name="bundled", digest="0123", train=93, test=10, image_size=16),
        generated=GeneratedRecord(
            source="run",
            num=100,
            sampler="ddim",
            steps=4,
            guidance=1.0,
            seed=0,
            weights="ema",
            step=step,
            engine="exact",
        ),
        extractor=ExtractorRecord(name="resnet", digest="ab12cd34", dim=64),
        metrics=(
            Metric(
                name="FID",
                label=f"FID{label}",
                split="test",
                num=100,
                value=value,
                better="lower",
                error=0.25,
                floor=0.875,
            ),
            Metric(
                name="class accuracy",
                label=f"class accuracy{label}",
                split="test",
                num=10,
                value=0.125,
                better="higher",
                class_name=class_name,
                floor=0.625,
            ),
            Metric(
                name="denoising loss",
                label=LOSS,
                split="test",
                num=10,
                value=value / 100,
                better="lower",
            ),
        ),
        notes=("CAS was left out: <too few> images.",),
        use=(
            Use("all", "filters", 0.0212, 0.0011, 0.131),
            Use("all", "channels", 0.0051, None, 0.0444),
        ),
    )


@pytest.fixture(scope="module")
def run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run with an evaluation in it, and its page."""
    path = tmp_path_factory.mktemp("report") / "tiny"
    shutil.copytree(trained_run, path)
    write_record(evaluation(12.34, step=20), path / "evaluations" / "first.json")
    return path


@pytest.fixture(scope="module")
def page(cli: Cli, run: Path) -> Path:
    done = cli("report", run)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"report: {run / 'report.html'}\n"
    assert "No real images" not in done.stderr
    return run / "report.html"


def test_a_run_is_shown_in_full(run: Path, page: Path) -> None:
    found = parse(page)
    names = data.EUROSAT_CLASSES
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in names:
        assert len(found.images(f"generated image of {name}")) == 6 + 1
        assert len(found.images(f"nearest training image of {name}")) == 6
        assert len(found.images(f"{name} at noise level")) == 4
    for words in (
        "12.34",
        "0.2500",
        "0.8750",
        "FID[resnet ab12cd34, N=100, test]",
        "CAS was left out: <too few> images.",
        "0.1250 (0.6250)",
        "+2.12 ± 0.11 % (0.13)",
        "+0.510 % (0.044)",
        "93 training and 10 held-out images",
        duration(training_seconds(records)),
        "fqconv_12x1",
        "four independent 3-qubit circuits",
        "vertex.block1.conv1",
        "kind: qcunet",
        "qiskit-machine-learning 0.9",
        "differ by 1.814 rad",
    ):
        assert words in found.text, words
    for chart in ("training loss by step", "classical and quantum", "angles", "circuit fqconv"):
        (drawn,) = found.images(chart)
        assert drawn.startswith(b"<?xml")


def test_the_samples_on_the_page_are_those_of_the_pipeline(run: Path, page: Path) -> None:
    pipeline = Run.open(run, device="cpu")
    names = pipeline.class_names
    labels, indices = pipeline.images_of(["River"], 6)
    expected = pipeline.sample(labels=labels, indices=indices)
    shown = parse(page).images("generated image of River")
    for content, image in zip(shown[:6], expected, strict=True):
        # Other batch sizes may round a grey level differently.
        assert np.abs(decoded(content).astype(int) - image).max() <= 1
    training = data.load(pipeline.config.data).split("train")
    rivers = training.images[training.labels == names.index("River")]
    for content in parse(page).images("nearest training image of River"):
        every = np.concatenate([symmetries(rivers, np.full(len(rivers), k)) for k in range(8)])
        assert (every == decoded(content)).all(axis=(1, 2, 3)).any()


def decoded(content: bytes) -> np.ndarray:
    with Image.open(BytesIO(content)) as picture:
        return np.asarray(picture)


def test_the_same_run_gives_the_same_page(run: Path, page: Path, tmp_path: Path) -> None:
    before = page.read_bytes()
    write_run_page(run, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == before


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a classical network on folders with hostile names; its weights as drawn."""
    folder = tmp_path_factory.mktemp("hostile")
    for number_, name in enumerate(HOSTILE):
        (folder / "set" / name).mkdir(parents=True)
        for index in range(3):
            image = np.full((16, 16, 3), 40 * number_ + 10 * index, np.uint8)
            Image.fromarray(image).save(folder / "set" / name / f"{index}.png")
    config = load_yaml(folder, {"data.root": str(folder / "set"), "model.kind": "unet"})
    return untrained(RunDirectory.create(data.resolved(load_config(config)), folder / "<b>run"))


def load_yaml(folder: Path, settings: dict[str, object]) -> Path:
    """A configuration file: the tiny one with settings changed."""
    document = json.loads(json.dumps(TINY))
    for key, value in settings.items():
        section, name = key.split(".")
        document[section][name] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def untrained(run: RunDirectory, records: Sequence[float] = ()) -> Path:
    """A checkpoint of the weights as they were drawn, and a log of these losses."""
    state = build_model(run.config).state_dict()
    run.save_checkpoint(run.config.train.steps, {"model": state, "ema": state}, {})
    log = MetricsLog()
    log.on_start(run, 0)
    for index, loss in enumerate(records):
        log.on_loss(5 * index + 5, {"loss": loss, "steps_per_second": 2.0})
    log.on_end()
    return run.path


@pytest.fixture(scope="module")
def hostile_page(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its page, with an evaluation whose file and class have hostile names."""
    out = tmp_path_factory.mktemp("page") / "page.html"
    file = hostile / "evaluations" / "<i>e.json"
    write_record(evaluation(1.0, step=20, class_name=HOSTILE[0]), file)
    assert write_run_page(hostile, out) == []
    return out


def test_names_cannot_become_markup(hostile_page: Path) -> None:
    page = parse(hostile_page)
    for name in (*HOSTILE, "<b>run", "<i>e"):
        assert name in page.text
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "b", "i"})
    assert not page.images("training loss")
    assert not page.images("circuit")


def test_without_its_data_a_run_is_shown_without_real_images(
    hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_set = hostile.parent / "set"
    data_set.rename(hostile.parent / "moved")
    try:
        assert main(["report", str(hostile), "--out", str(tmp_path / "page.html")]) == 0
    finally:
        (hostile.parent / "moved").rename(data_set)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("qhdm: ")]
    assert "No real images are shown" in line
    assert str(data_set) in line
    page = parse(tmp_path / "page.html")
    assert "No real images are shown" in page.text
    assert not page.images("nearest")
    assert len(page.images("generated image of ")) == 7 * len(HOSTILE)


def test_refusals(cli: Cli, run: Path, hostile: Path, tmp_path: Path) -> None:
    refused(cli("report", tmp_path), f"{tmp_path}: ")
    kept = tmp_path / "kept.html"
    kept.write_text("mine")
    refused(cli("report", run, "--out", kept), "kept.html", "--force")
    refused(cli("report", run, "--out", tmp_path), f"--out: {tmp_path}: ")
    assert kept.read_text() == "mine"
    empty = tmp_path / "empty"
    shutil.copytree(hostile, empty, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(RunError, match="empty"):
        write_run_page(empty, tmp_path / "x.html")
    shutil.copytree(hostile / "checkpoints", empty / "checkpoints")
    (empty / "evaluations").mkdir(exist_ok=True)
    (empty / "evaluations" / "bad.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"bad\.json"):
        write_run_page(empty, tmp_path / "x.html")
    write_record(evaluation(1.0, step=20), empty / "evaluations" / "bad.json")
    (empty / "evaluations" / "bad_neighbours.png").write_bytes(b"\x89PNG")
    with pytest.raises(EvaluationError, match=r"bad_neighbours\.png: "):
        write_run_page(empty, tmp_path / "x.html")
    (empty / "evaluations" / "bad_neighbours.png").unlink()
    (empty / "versions.json").write_text("[]")
    with pytest.raises(RunError, match=r"versions\.json: "):
        write_run_page(empty, tmp_path / "x.html")
    (empty / "versions.json").unlink()
    (empty / "metrics.jsonl").write_text('{"step": 5, "loss": null, "steps_per_second": 1}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl: .*step 5 .*loss None"):
        write_run_page(empty, tmp_path / "x.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "kept.html"]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variants, two seeds, weights as drawn, with evaluations of given values."""
    folder = tmp_path_factory.mktemp("comparison")
    load_yaml(folder, {})
    spec = {
        "name": "two",
        "base": "config.yaml",
        "baseline": "unet",
        "seeds": [0, 1],
        "variants": {"unet": {"model.kind": "unet", "sample.steps": 3}, "qcunet": {}},
        "inference": [{"engine": "exact"}, {"engine": "aer", "shots": 64}],
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    grid = load_grid(folder / "spec.yaml")
    grid.save(folder)
    cells = cells_of(grid, folder)
    values = {("unet", 0): 10.0, ("unet", 1): 12.0, ("qcunet", 0): 15.0, ("qcunet", 1): 21.0}
    for cell in cells:
        run = RunDirectory.create(cell.config, cell.path)
        untrained(run, [0.5, 0.25])
        for shift, request in enumerate(cell.requests):
            found = dataclasses.replace(
                evaluation(values[cell.variant, cell.seed] + shift, step=20),
                generated=described(run, request),
                groups=request.metrics,
            )
            write_record(found, cell.path / "evaluations" / f"{shift}.json")
    results = collect(grid.specification, cells, folder, parameters_of(cells))
    write_record(results, folder / "results.json")
    return folder


@pytest.fixture(scope="module")
def comparison_page(comparison: Path) -> Path:
    assert main(["report", str(comparison)]) == 0
    return comparison / "report.html"


def test_a_comparison_is_shown_in_full(comparison_page: Path) -> None:
    page = parse(comparison_page)
    for words in (
        "11.00",  # the means of 10 and 12, of 15 and 21
        "18.00",
        "+7.00",  # and their difference
        "[-18.4, 32.4]",  # -+ 12.706 * 2
        "0.18",  # p of t = 7 / 2 with one degree of freedom
        "FID[resnet ab12cd34, N=100, test]",
        "lower is better",
        "model.kind=unet",
        "tested against unet",
        "10 s",
    ):
        assert words in page.text, words
    for name in ("unet, seed 0", "qcunet, seed 0", "real, held out"):
        assert page.images(f"{name}")
    assert len(page.images("qcunet, seed 0, step 20: River")) == 4
    assert len(page.images("with intervals")) == 2
    primary, secondary = (page.text.index(f"{w} endpoint") for w in ("Primary", "Secondary"))
    assert primary < page.text.index(LOSS, primary) < secondary
    assert secondary < page.text.index("FID[", secondary)
    assert "+63.6" in page.text  # percent of 11
    assert len(page.images("against shots")) == 2
    # Variants are not sampled alike.
    assert "3 steps, seed 0 (unet); " in page.text
    assert "(qcunet)" in page.text
    assert len(page.images("training loss of all cells")) == 1


def test_a_comparison_of_losses_alone_has_no_empty_parts(comparison: Path, tmp_path: Path) -> None:
    folder = tmp_path / "losses"
    shutil.copytree(comparison, folder)
    results = read_results(folder / "results.json")
    own = tuple(row for row in results.summary if row.label == results.primary)
    write_record(dataclasses.replace(results, summary=own), folder / "results.json")
    write_comparison_page(folder, folder / "page.html")
    page = parse(folder / "page.html")
    assert "Primary endpoint" in page.text
    assert "Secondary" not in page.text
    assert "real images" not in page.text


def test_only_gains_have_a_baseline() -> None:
    known = evaluation(1.0, step=20)
    metrics = tuple(dataclasses.replace(m, baseline=None) for m in known.metrics)
    without = metric_table(dataclasses.replace(known, metrics=metrics))
    assert "baseline" not in without.header
    gain = dataclasses.replace(metrics[0], baseline=0.25)
    table = metric_table(dataclasses.replace(known, metrics=(gain, *metrics[1:])))
    assert "0.2500" in [row[table.header.index("baseline")] for row in table.rows]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: chromium)")
@pytest.mark.parametrize(
    ("shown", "width"),
    [("page", 1200), ("page", 500), ("comparison_page", 500), ("hostile_page", 1200)],
)
def test_a_browser_shows_every_page(
    shown: str, width: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Every image is decoded, nothing fetched, nothing complained of."""
    path = request.getfixturevalue(shown)
    with opened(path, tmp_path / "profile", width=width) as page:
        sizes = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert len(sizes) == len(parse(path).images())
        assert all(size > 0 for size in sizes)
        # Wide tables scroll within themselves: the page never does.
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate("document.body.innerText.length") > 999
        # The pictures of a row are at one height, however its captions wrap.
        assert page.evaluate(
            "[...document.querySelectorAll('.strip')].every(strip => new Set([...strip.children]"
            ".map(figure => Math.round(figure.lastElementChild.getBoundingClientRect().bottom)))"
            ".size == 1)"
        )
        assert page.requests == []
        assert page.complaints == []


def test_a_comparison_without_results_is_refused(comparison: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(comparison, folder, ignore=shutil.ignore_patterns("results.json"))
    with pytest.raises(ComparisonError, match=r"results\.json: "):
        write_comparison_page(folder, tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
