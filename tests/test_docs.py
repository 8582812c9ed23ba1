"""README and docs: commands and code run, links resolve, the reference is complete.

Commands run in this process, in a folder that contains what the pages name (RUN, PATH, DIR, ...).
`NOT_RUN` lists the exceptions with their reasons. `CHEAPER` appends words to commands that would
take minutes; others run unchanged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml
from command_line import call, succeeded
from pages import PAGES, ROOT, Snippet, anchors, links, snippets
from place import Place, call_script, parse

import qhdm
from qhdm import cli
from qhdm.comparison.spec import Specification, load_grid
from qhdm.config import Config, load_config
from qhdm.hardware.spec import JobSpec
from qhdm.models.filters import build_filters

#: Commands that do not run, with the reason.
NOT_RUN = {
    r"make ": "installs qhdm, or runs these tests",
    r"source ": "activates the environment that make creates",
    r"pip install ": "needs a network",
    r"python -m build": "needs a network",
    r"python docs/cli.py ": "writes into the repository; its output is compared",
    r"qhdm data download ": "needs a network (tests/test_download.py)",
    r"qhdm submit jobs/boston.yaml$": "needs an account (tests/test_hardware_service.py)",
    r"qhdm submit (sheet|rehearsal .*mitigation)": "compiles 48 trained components",
    r"qhdm sample .*--format geotiff": "takes a run on bands (tests/test_bands_run.py)",
    r"ray start ": "starts a cluster",
    r"qhdm evaluate eurosat .*--extractor classifier": "as the command without it",
    r"qhdm augment ": "trains 30 classifiers (tests/test_augment.py)",
    r"from torch.utils.data import ConcatDataset": "needs torchvision",
    r"qhdm compare .* --power": "takes trained cells (tests/test_power.py)",
    r"(RAY_ADDRESS=\S+ )?qhdm compare .*--executor ray": "needs a cluster (test_executors.py)",
    r"(QHDM_[A-Z]+=\d+ )?pytest ": "runs these tests",
    r"(OMP_NUM_THREADS=1 )?python benchmarks/": "measures for minutes; its options are checked",
    r"torchrun --nproc-per-node 8 benchmarks/": "measures for minutes; its options are checked",
    r"python tests/fuzz/fuzz.py ": "needs atheris",
    r"#!/bin/bash\n#SBATCH": "needs Slurm",
}

CLASSIFIER = ["--metrics", "classes", "--extractor-weights", "classifier"]
SMALL = "train.steps=1 train.batch_size=1 sample.steps=1 sample.num=1"
#: Instead of the five levels of the EuroSAT configuration.
SMALL_NET = (
    "data.image_size=16 model.widths=[16,32] quantum.encoder.levels=[0] quantum.encoder.filters=1"
)
#: The same of the published network, on which the comparisons are based.
SMALL_PUBLISHED = "data.image_size=16 model.dim_mults=[1,3] quantum.encoder.levels=[1]"
NO_STUDY = "inference=[] inference_variants=null inference_evaluate=null"
SMALL_JOB = (
    "images=1 classes=[Forest] steps=1 hardware_steps=1 shots=16 packing=1 "
    "limits.jobs_per_minute=1000"
)
#: Words to append, by pattern; the first that matches decides.
CHEAPER = {
    r"qhdm train .*train\.device=cuda": [*SMALL.split(), *SMALL_NET.split(), "train.device=cpu"],
    # At the published size: counts, circuits and time.
    r"qhdm train configs/(released/unet|eurosat)\.yaml --dry-run$": SMALL.split(),
    r"qhdm train (configs/)?eurosat": [*SMALL.split(), *SMALL_NET.split()],
    r"qhdm train --resume ": [],
    r"qhdm train ": SMALL.split(),
    r"qhdm sample .*--engine-steps 5": [
        *("--class", "Forest", "--num", "1", "--steps", "5", "--shots", "8")
    ],
    r"qhdm sample ": ["--num", "1", "--steps", "2"],
    r"qhdm evaluate eurosat .*data.root": [
        *("--num", "2", "--steps", "1"),
        *CLASSIFIER[:3],
        "classifier64",
    ],
    r"qhdm evaluate eurosat": ["--num", "3", "--steps", "1", *CLASSIFIER[:3], "classifier64"],
    r"qhdm evaluate .*--size 64": [*CLASSIFIER[:3], "classifier64"],
    r"qhdm evaluate .*--images": CLASSIFIER,
    r"qhdm evaluate RUN --num 40 ": ["--steps", "1", *CLASSIFIER[2:]],
    r"qhdm evaluate ": ["--num", "2", "--steps", "1", *CLASSIFIER],
    r"qhdm train-classifier ": ["--steps", "1"],
    r"qhdm compare .*eurosat_ablation.* --only fqconv": [
        *("--dry-run", "seeds=[0]"),
        "variants={fqconv: {}, cosine: {}, linear: {}, perceptron: {}}",
        *SMALL.split(),
        *SMALL_NET.split(),
    ],
    r"qhdm compare .*eurosat_ablation": [
        *("--dry-run", "seeds=[0]", "baseline=unet", "variants={unet: {model.kind: unet}}"),
        *SMALL.split(),
        *SMALL_NET.split(),
    ],
    r"qhdm compare ": [
        "--dry-run",
        "--only",
        "unet",
        "seeds=[0]",
        *SMALL.split(),
        *SMALL_PUBLISHED.split(),
        *NO_STUDY.split(),
    ],
    r"qhdm submit ": SMALL_JOB.split(),
    r"qhdm circuits .*--measure": ["--pairs", "8", "--gradients", "2"],
    r"qhdm circuits verify FILE": ["--batch", "1"],
    r"qhdm circuits verify ": ["--batch", "1", "--qubits", "4"],
}

#: Values of placeholders; other names in capitals exist in the folder.
MEANT = {
    "BASE": "CONFIG",
    "CELL": "RUN",
    "CHECKPOINT": "runs/golden/qcunet_fqconv.npz",
    "checkpoint_60000": "runs/golden/qcunet_fqconv.npz",
    "COMMAND": "train",
    "COMPARISON": "comparisons/NAME",
    "circuits/NAME.qasm": "circuits/hqconv.qasm",
    "NAME": "hqconv",
    "FILE": "circuits/reuploading.qasm",
    "model.kind=KIND": "model.kind=unet",
    "data.root=rsscn7_64.zip": "data.root=PATH",
    "train.steps=N": "train.steps=3",
    "N": "16",
    "DEVICE": "fake_torino",
    "released.time_blind=BLIND": "released.time_blind=true",
}
#: Replacements in Python code.
IN_CODE = {
    # In reasonable time: of 700 images, with a classifier of 600 steps.
    "num=700, steps=50,": "num=66, steps=1, extractor_weights='classifier',",
    '"fake_boston", shots=1024': '"fake_boston", shots=16, packing=1',
    "qhdm.evaluate(images, dataset)": "qhdm.evaluate(images, dataset, qhdm.EvaluationSettings("
    "metrics=('memorisation',), extractor_weights='classifier_two'))",
}
#: Files that the pages name as examples.
MADE_BY_READERS = {"circuits/NAME.qasm", "circuits/mine.qasm"}
#: Options that name output: a new path each time, unless it is to be replaced.
MADE = ("--out", "--save", "--plot")


@pytest.fixture(scope="module")
def made_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("QHDM_DATA", str(folder / "cache"))
        yield Place.make(folder)


@pytest.fixture
def place(made_place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(made_place.folder)
    return made_place


def with_settings(words: Sequence[str]) -> list[str]:
    """`words` with `--set` before each `key=value`."""
    return [part for word in words for part in (["--set", word] if "=" in word else [word])]


def alternatives(text: str) -> list[str]:
    """`jobs list | status ID` and `NAME|FILE` stand for several commands."""
    if " | " in text:
        first, *others = text.split(" | ")
        stem = first.rpartition(" ")[0]
        return [first, *(f"{stem} {other}" for other in others)]
    if choice := re.search(r"\b([A-Z]+)\|([A-Z]+)\b", text):
        return [text.replace(choice[0], name) for name in choice.groups()]
    return [text]


def words_of(text: str, place: Place) -> list[str]:
    """The arguments of a complete command of qhdm, with placeholders replaced."""
    text = text.replace(" --set ...", "").removesuffix(" ...")
    words = [MEANT.get(word, word) for word in shlex.split(text)[1:]]
    if "ID" in words:
        words[words.index("ID")] = job_id(place)
    if "comparisons/NAME" in words:
        place.comparison()
    if any(word.startswith("runs/golden/") for word in words):
        place.golden()
    if "--resume" in words:  # changes the run
        copy = place.new("run")
        shutil.copytree("RUN", copy)
        words[words.index("RUN")] = copy
    for option in MADE:
        if option in words and "--force" not in words:
            at = words.index(option) + 1
            words[at] = place.new(Path(words[at]).name)
    return words


def job_id(place: Place) -> str:
    """The id of a finished job."""
    done = place.once(["submit", "jobs/aer.yaml", *with_settings(SMALL_JOB.split())])
    printed = re.search(r"^job: (\S+)", done.stdout, re.M)
    assert printed, done.stderr
    return printed[1]


RUN_BY_NAME = {str(snippet): snippet for snippet in snippets()}


def why_not(snippet: Snippet) -> str | None:
    return next((why for rule, why in NOT_RUN.items() if re.match(rule, snippet.text)), None)


TO_RUN = [name for name, snippet in RUN_BY_NAME.items() if not why_not(snippet)]


@pytest.mark.slow
@pytest.mark.parametrize("name", TO_RUN, ids=str)
def test_snippet_runs(name: str, place: Place) -> None:
    snippet = RUN_BY_NAME[name]
    if snippet.kind == "command":
        for text in alternatives(re.sub(r"^torchrun .*-m (-- )?qhdm ", "qhdm ", snippet.text)):
            check_command(text, snippet.answer, place)
    elif snippet.kind == "setting":
        check_setting(snippet.text.removeprefix("ansatz: "))
    elif snippet.kind == "yaml":
        check_yaml(snippet.text)
    else:
        assert snippet.kind == "python"
        check_code(snippet.text, place)


def check_command(text: str, answer: str | None, place: Place) -> None:
    if text.startswith("python tests/reference.py "):
        place.golden()
        assert Path(text.split()[-1], "unet.npz").exists()
        return
    assert text.startswith("qhdm ")
    if re.fullmatch(r"qhdm( [a-z-]+)+", text):  # the name of a command
        words = text.split()[1:]
        done = call(*(word for word in words if word[0] != "-"), "--help")
        assert done.returncode == 0, done.stderr
        assert all(word in done.stdout for word in words if word[0] == "-")
        return
    appended = next((words for rule, words in CHEAPER.items() if re.match(rule, text)), [])
    words = [*words_of(text, place), *with_settings(appended)]
    done = place.once(words)
    if answer is None:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1, done.stdout
        assert answer in done.stderr


def check_setting(ansatz: str) -> None:
    ansatz = MEANT.get(ansatz, ansatz)
    layers = "null" if "." in ansatz else "3"
    settings = [f"quantum.vertex.ansatz={ansatz}", f"quantum.vertex.layers={layers}"]
    assert build_filters(load_config("CONFIG", settings))["vertex"].observables


def check_yaml(text: str) -> None:
    path = Path("configs", "page.yaml")
    path.write_text(text)
    if "variants" in yaml.safe_load(text):
        assert load_grid(path).configs
    else:
        assert load_config(path)


def check_code(code: str, place: Place) -> None:
    if "DIR/" in code:
        exported = place.new("export")
        succeeded(call("export", "RUN", "--out", exported))
        code = code.replace("DIR/", f"{exported}/")
    for given, meant in IN_CODE.items():
        code = code.replace(given, meant)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, "page", "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in RUN_BY_NAME if n not in TO_RUN], ids=str)
def test_files_and_options_of_other_commands_exist(name: str) -> None:
    words = RUN_BY_NAME[name].text.split()
    for word in words:
        if re.fullmatch(r"(benchmarks|tests|configs|jobs)/\S+\.(py|yaml)", word):
            assert (ROOT / word).is_file(), word
    for script in (word for word in words if re.fullmatch(r"benchmarks/\S+\.py", word)):
        parse(ROOT / script, RUN_BY_NAME[name].text.split(script)[1])


BENCHMARKS = [
    (script, words)
    for script in sorted((ROOT / "benchmarks").glob("*.py"))
    for words in re.findall(
        rf"(?m)^    (?:python|torchrun) .*{script.name}(.*)", script.read_text()
    )
]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "words"), BENCHMARKS, ids=lambda p: getattr(p, "name", p))
def test_benchmarks_parse_the_commands_in_their_docstrings(script: Path, words: str) -> None:
    parse(script, words)


def test_every_rule_matches_a_snippet() -> None:
    """A rule that outlives its command would excuse others."""
    commands = [a for s in RUN_BY_NAME.values() for a in alternatives(s.text)]
    commands += [re.sub(r"^torchrun .*-m (-- )?qhdm ", "qhdm ", text) for text in commands]
    for rule in (*NOT_RUN, *CHEAPER):
        assert any(re.match(rule, text) for text in commands), rule
    words = {word for text in commands for word in text.split()}
    for word in MEANT:
        assert word in words, word
    for part in IN_CODE:
        assert any(part in snippet.text for snippet in RUN_BY_NAME.values()), part


def test_links_resolve() -> None:
    for page, target in links():
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(path), f"{page}: {target}"


def test_named_files_exist() -> None:
    folders = "qhdm|tests|benchmarks|configs|circuits|jobs"
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for path in re.findall(rf"`((?:{folders})/[\w./-]+)", text):
            assert (ROOT / path).exists() or path in MADE_BY_READERS, f"{page}: {path}"
        for module in re.findall(r"`(qhdm(?:\.[a-z_]+)+)`", text):
            assert hasattr(qhdm, module.split(".")[1]) or find_spec(module), f"{page}: {module}"


REFERENCE = ROOT / "docs" / "reference.md"


def sections(title: str) -> dict[str, str]:
    """The parts of a chapter of the reference, by heading."""
    (chapter,) = re.findall(
        rf"^## {title}$(.*?)(?=^## |\Z)", REFERENCE.read_text(encoding="utf-8"), re.M | re.S
    )
    parts = re.split(r"^### (.*)$", chapter, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_page_of_the_command_line_is_what_the_parsers_say() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert call_script(ROOT / "docs" / "cli.py") == page, "python docs/cli.py > docs/cli.md"
    assert set(re.findall(r"^## `qhdm ([a-z-]+)`$", page, re.M)) == {
        name.rpartition(".")[2].replace("_", "-") for name in (m.__name__ for m in cli._COMMANDS)
    }


def keys(section: type, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a configuration class, in all variants of its sections."""
    for name, hint in get_type_hints(section).items():
        variants = [h for h in (hint, *get_args(hint)) if dataclasses.is_dataclass(h)]
        for variant in variants:
            yield from keys(variant, f"{prefix}{name}.")
        if not variants:
            yield prefix + name


def test_reference_lists_every_configuration_key() -> None:
    documented = set()
    for section, text in sections("Configuration keys").items():
        name = section.strip("`")
        documented |= {f"{name}.{key}" for key in re.findall(r"`([a-z0-9_.]+)`", text)}
    missing = set(keys(Config)) - documented - {"name", "seed"}
    assert not missing


def test_pages_list_every_key_of_jobs_and_comparisons() -> None:
    nested = {key.split(".")[-1] for key in keys(JobSpec)}
    for page, names in (
        ("hardware.md", nested),
        ("comparison.md", {field.name for field in dataclasses.fields(Specification)}),
    ):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert names <= set(re.findall(r"\w+", text)), page


def test_library_and_api_pages_list_every_public_name() -> None:
    public = set(qhdm.__all__) - {"__version__"}
    library = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+)`", library.split("## Public names")[1])) >= public
    api = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"auto\w+:: qhdm\.(\w+)", api)) == sorted(public)


def test_site_has_every_page() -> None:
    """A page outside the contents makes `make docs` fail."""
    for index in (ROOT / "docs" / "index.md", ROOT / "docs" / "tutorials" / "index.md"):
        contents = re.findall(r"^(\S+\.md)$", index.read_text(encoding="utf-8"), re.M)
        pages = {page.name for page in index.parent.glob("*.md")} - {"index.md"}
        assert pages | {"tutorials/index.md"} == {*contents} | {"tutorials/index.md"}
        assert len(contents) == len(set(contents))
