"""Files beside the code: they name one version, and hold what the tools that read them ask for."""

from __future__ import annotations

import re

import yaml
from pages import CHANGELOG, ROOT

import qhdm


def document(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_citation_and_changelog_name_the_version() -> None:
    citation = document("CITATION.cff")
    assert citation["version"] == qhdm.__version__
    assert citation["license"] == "Apache-2.0"
    for paper in (citation, *citation["references"]):
        assert paper["title"]
        assert all({"name", "family-names"} & author.keys() for author in paper["authors"])
    assert str(citation["cff-version"]) == "1.2.0"
    log = CHANGELOG.read_text(encoding="utf-8")
    unreleased, newest, *_ = re.findall(r"^## \[(.+?)\]( - \d{4}-\d\d-\d\d)?$", log, re.M)
    assert unreleased == ("Unreleased", "")
    assert newest[0] == qhdm.__version__
    assert newest[1]
    assert set(re.findall(r"^### (.+)$", log, re.M)) <= {
        *("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
    }


def test_workflow_runs_what_every_change_must_pass() -> None:
    jobs = document(".github/workflows/ci.yml")["jobs"]
    assert ".ci/run" in [step.get("run") for step in jobs["everything"]["steps"]]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for variant in jobs["versions"]["strategy"]["matrix"]["include"]:
        assert variant["target"] in targets
