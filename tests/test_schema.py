"""Sections with two variants: which is read, and where their problems are reported."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from qhdm.errors import ConfigError
from qhdm.schema import Either, one_line_errors, read_document, validate, with_overrides


@one_line_errors
@dataclass(frozen=True, config={"extra": "forbid"})
class Wide:
    kind: Literal["a", "b"] = "a"
    goal: Literal["edm"] = "edm"
    widths: tuple[int, ...] = (16, 32)


@one_line_errors
@dataclass(frozen=True, config={"extra": "forbid"})
class Deep:
    kind: Literal["a", "b"] = "a"
    goal: Literal["eps", "x0"] = "eps"
    depth: int = 3
    steps: int = 10


@one_line_errors
@dataclass(frozen=True, config={"extra": "forbid"})
class Whole:
    net: Annotated[Wide | Deep, Either] = field(default_factory=Wide)


def read(folder: Path, text: str, *settings: str) -> Whole:
    path = folder / "file.yaml"
    path.write_text(text)
    return validate(Whole, with_overrides(read_document(path), settings))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Wide()),
        ("net: {}", Wide()),
        ("net: {kind: b}", Wide(kind="b")),
        ("net: {widths: [1]}", Wide(widths=(1,))),
        ("net: {goal: edm}", Wide()),
        ("net: {goal: x0}", Deep(goal="x0")),
        ("net: {kind: b, depth: 2}", Deep(kind="b", depth=2)),
        ("net: {depth: 3}", Deep()),
    ],
)
def test_a_mapping_is_the_second_variant_by_what_only_that_one_has(
    text: str, expected: Wide | Deep, tmp_path: Path
) -> None:
    whole = read(tmp_path, text)
    assert whole == Whole(net=expected)
    again = yaml.safe_dump(TypeAdapter(Whole).dump_python(whole, mode="json"))
    assert read(tmp_path, again) == whole


@pytest.mark.parametrize(
    ("text", "setting", "message"),
    [
        ("net: {depht: 3}", "", "FILE:1: net.depht: unknown key; did you mean net.depth?"),
        ("net: {depth: no}", "", "FILE:1: net.depth: "),
        ("net:\n  widths: [a]", "", "FILE:2: net.widths[0]: "),
        ("net: 3", "", "FILE:1: net: must be a mapping of keys"),
        ("net: {kind: c, depth: 2}", "", "FILE:1: net.kind: 'c' is not one of a, b"),
        ("net: {goal: eds}", "", "FILE:1: net.goal: 'eds' is not one of edm, eps, x0; did"),
        ("net:\n  widths: [1]", "net.depth=2", "--set net.depth: cannot be combined with net.wid"),
        ("net:\n  widths: [1]", "net.goal=x0", "--set net.goal: cannot be combined with net.wid"),
        ("net: {steps: 1}", "net.widhts=[1]", "--set net.widhts: unknown key; did you mean net.wi"),
        ("ent: {}", "", "FILE:1: ent: unknown key; did you mean net?"),
        ("depht: 3", "", "FILE:1: depht: unknown key; did you mean net.depth?"),
    ],
)
def test_problems_name_the_key_without_the_variant(
    text: str, setting: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, *([setting] if setting else []))
    expected = message.replace("FILE", str(tmp_path / "file.yaml"))
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_values_of_the_library_are_what_they_are() -> None:
    assert Whole(net=Deep()).net == Deep()
    with pytest.raises(ConfigError, match=r"^Whole: net: "):
        Whole(net=3)  # type: ignore[arg-type]
