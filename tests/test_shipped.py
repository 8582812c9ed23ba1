"""Shipped files: found by name, copied to edit, and part of what is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

import qhdm
from qhdm.cli import main
from qhdm.comparison.spec import load_grid
from qhdm.config import VertexConfig, load_config
from qhdm.errors import CircuitError, ConfigError, QhdmError
from qhdm.hardware.spec import load_spec
from qhdm.quantum import find_filter
from qhdm.shipped import SUFFIXES, Kind, find_shipped, shipped_files

REPOSITORY = Path(__file__).parent.parent


def tree(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def shipped_tree() -> dict[str, bytes]:
    """All shipped files that are copied to edit, as the repository has them."""
    return {
        f"{kind}/{name}": content
        for kind, suffix in SUFFIXES.items()
        for name, content in tree(REPOSITORY / kind).items()
        if name.endswith(suffix)
    }


def test_every_reader_finds_shipped_files_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("quickstart", ["seed=7"]).seed == 7
    assert load_config("released/unet") == load_config(REPOSITORY / "configs/released/unet.yaml")
    assert load_grid("ablation").specification.name == "eurosat-ablation"
    assert load_spec(Path("rehearsal")).backend == "fake_boston"
    assert find_filter("reuploading").name == "reuploading"
    vertex = VertexConfig(ansatz="reuploading")
    assert Path(vertex.ansatz) == REPOSITORY / "circuits/reuploading.qasm"
    assert vertex.layers is None  # as of every circuit file


def test_files_of_the_user_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "quickstart").mkdir()  # a folder is no configuration
    assert load_config("quickstart").name == "quickstart"
    (tmp_path / "quickstart").rmdir()
    (tmp_path / "quickstart").write_text("name: mine\n")
    assert load_config("quickstart").name == "mine"


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("configs", "quikstart", ["quickstart?", "eurosat", "released/unet"]),
        # A file of that name is meant, and may be another than the shipped one.
        ("configs", "quickstart.yaml", ["no such file", "quickstart?"]),
        ("configs", "configs/quickstart.yaml", ["no such file", "is named quickstart", "init"]),
        ("jobs", "rehersal", ["rehearsal?", "aer", "boston"]),
        ("circuits", "reupload", ["reuploading?", "hqconv"]),
    ],
)
def test_other_names_are_refused_with_those_there_are(
    kind: Kind, name: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refusal = CircuitError if kind == "circuits" else ConfigError
    with pytest.raises(refusal) as error:
        find_shipped(kind, name, refusal)
    for word in (name, *words):
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["", ".", "..", "/", "no/such.yaml", "x" * 5000, "a\0b", "\udcff"])
def test_no_name_is_an_accident(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for read in (load_config, load_grid, load_spec, find_filter):
        with pytest.raises(QhdmError):
            read(name)


def test_ansatz_that_is_neither_family_nor_shipped() -> None:
    with pytest.raises(ConfigError, match="reuploading"):
        load_config("quickstart", ["quantum.vertex.ansatz=reuploding"])


def test_init_copies_all_and_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my lab"]) == 0
    assert tree(tmp_path / "my lab") == shipped_tree()
    assert "cd 'my lab' && qhdm train configs/quickstart.yaml" in capsys.readouterr().out
    edited = tmp_path / "my lab/configs/quickstart.yaml"
    edited.write_text("name: edited\n")
    assert main(["init", "my lab"]) == 1
    assert "my lab/configs: exists already" in capsys.readouterr().err
    assert edited.read_text() == "name: edited\n"
    # One folder is in the way: none is made.
    (tmp_path / "jobs").mkdir()
    assert main(["init"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jobs", "my lab"]
    (tmp_path / "jobs").rmdir()
    assert main(["init"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {*SUFFIXES, "my lab"}


def test_init_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lab"
    folder.mkdir()
    files = shipped_files("jobs")
    files["absent"] = tmp_path / "absent.yaml"  # the last kind fails, when others are copied
    monkeypatch.setattr(
        "qhdm.commands.init.shipped_files",
        lambda kind: files if kind == "jobs" else shipped_files(kind),
    )
    assert main(["init", str(folder)]) == 1
    assert list(folder.iterdir()) == []


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what a distribution is built from: building writes beside the sources."""
    copy = tmp_path / "sources"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    for name in ("qhdm", *SUFFIXES, "pretrained"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, copy / name, ignore=ignored)
    return copy


def pip(*words: object, python: Path | str = sys.executable) -> None:
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [python, "-m", "pip", *words, *offline]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def environment(folder: Path) -> Path:
    """The interpreter of a new environment that has this one's packages, but no qhdm."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder)}))
    # Such a file makes packages of another folder importable, but not the editable ones in it.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def run(python: Path, *words: str, folder: Path) -> str:
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environ["QHDM_DATA"] = str(folder / "data")
    done = subprocess.run([python, *words], cwd=folder, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_installed_from_a_wheel(sources: Path, tmp_path: Path) -> None:
    """From a wheel of a source distribution, in an environment and a folder outside the clone."""
    build = "import setuptools.build_meta as b; b.build_sdist('sdist')"
    subprocess.run([sys.executable, "-c", build], cwd=sources, check=True, capture_output=True)
    (source,) = (sources / "sdist").iterdir()
    pip("wheel", source, "--wheel-dir", tmp_path / "wheel")
    (wheel,) = (tmp_path / "wheel").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = message_from_bytes(archive.read(f"qhdm-{qhdm.__version__}.dist-info/METADATA"))
    pretrained = [f"pretrained/{name}" for name in tree(REPOSITORY / "pretrained")]
    assert {f"qhdm/shipped/{name}" for name in (*shipped_tree(), *pretrained)} <= set(names)
    outside = ("tests/", "configs/", "benchmarks/", "pretrained/")
    assert not [name for name in names if name.startswith(outside)]
    assert metadata["Version"] == qhdm.__version__
    assert not [key for key in metadata if "author" in key.lower() or "maintainer" in key.lower()]
    links = re.findall(r"\]\(([^)]+)\)", metadata.get_payload())
    assert links
    assert all(link.startswith("https://") for link in links)
    pip("wheel", sources, "--wheel-dir", tmp_path / "direct")
    with zipfile.ZipFile(next((tmp_path / "direct").iterdir())) as archive:
        assert sorted(archive.namelist()) == sorted(names)

    python = environment(tmp_path / "environment")
    pip("install", "--ignore-installed", wheel, python=python)
    here = tmp_path / "here"
    here.mkdir()
    command = str(python.with_name("qhdm"))
    assert "usage: qhdm" in run(python, command, "--help", folder=here)
    assert "103 images" in run(python, command, "data", "info", "bundled", folder=here)
    dry = run(python, command, "train", "quickstart", "--dry-run", folder=here)
    assert "name: quickstart" in dry
    assert "estimated time" in dry
    run(python, command, "init", folder=here)
    assert {name: (here / name).read_bytes() for name in shipped_tree()} == shipped_tree()
    where = run(python, "-c", "import qhdm; print(qhdm.__file__)", folder=here).strip()
    assert Path(where).is_relative_to(tmp_path / "environment")
    # The shipped model samples at once, and nothing is written beside it.
    request = ("--class", "River", "--num", "2", "--steps", "2", "--device", "cpu")
    grid = "runs/pretrained-eurosat/samples/sample_River_2each_2steps_seed0.png"
    assert run(python, command, "sample", "eurosat", *request, folder=here) == f"grid: {grid}\n"
    assert (here / grid).is_file()
    installed = Path(where).parent / "shipped" / "pretrained"
    assert tree(installed) == tree(REPOSITORY / "pretrained")


@pytest.mark.slow
def test_installed_to_edit(sources: Path, tmp_path: Path) -> None:
    """`pip install -e`: names mean the files of the clone, which are there to be edited."""
    python = environment(tmp_path / "environment")
    pip("install", "--ignore-installed", "--editable", sources, python=python)
    code = "from qhdm.config import load_config; print(load_config('quickstart').seed)"
    assert run(python, "-c", code, folder=tmp_path) == "42\n"
    edited = sources / "configs" / "quickstart.yaml"
    edited.write_text(yaml.safe_dump({**yaml.safe_load(edited.read_text()), "seed": 43}))
    assert run(python, "-c", code, folder=tmp_path) == "43\n"
