"""Commands, code blocks and links of README and docs, read from the pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHANGELOG = ROOT / "CHANGELOG.md"
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("*/README.md")),
    *sorted(ROOT.glob("pretrained/*/MODEL_CARD.md")),
    *sorted({*ROOT.glob("*.md")} - {ROOT / "README.md", CHANGELOG}),
]
#: Executed when the documentation is built.
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))

_PROGRAMS = r"(qhdm|make|pip|python|pytest|torchrun|ray|source)\b"
_COMMAND = re.compile(rf"([A-Z_]+=\S+ )*{_PROGRAMS}")
_LANGUAGES = {"bash", "python", "yaml"}
#: Languages of blocks that cannot run: output, folders, formulas, citations, the site's contents.
_NOT_CODE = {"text", "bibtex", "{toctree}", "{eval-rst}"}


@dataclass(frozen=True)
class Snippet:
    """A command, or a block of code.

    Attributes:
        page, line: its place.
        kind: `command`, `setting` (an ansatz named in the text), `script`, `python` or `yaml`.
        text: the command without shell comments, continued lines joined; or the block.
        answer: the error message quoted below a command that is refused.
    """

    page: str
    line: int
    kind: str
    text: str
    answer: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text.splitlines()[0]}"


def snippets() -> list[Snippet]:
    """Snippets of all pages; only the first of equal ones."""
    first: dict[tuple[str, str], Snippet] = {}
    for page in PAGES:
        for snippet in _of_page(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8")):
            first.setdefault((snippet.kind, snippet.text), snippet)
    return list(first.values())


def links() -> list[tuple[Path, str]]:
    """Links of all pages to files or headings of this repository: (page, target)."""
    return [
        (page, target)
        for page in (*PAGES, *TUTORIALS, CHANGELOG)
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        if not target.startswith("https://")
    ]


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _of_page(page: str, text: str) -> Iterator[Snippet]:
    lines = text.splitlines()
    prose: list[str] = []  # the page without its blocks and headings, line by line
    at = 0
    while at < len(lines):
        line, start = lines[at], at
        assert not line.startswith("    "), f"{page}:{at + 1}: fence this block, with its language"
        at += 1
        if not line.startswith("```"):
            prose.append("" if line.startswith("#") else line)
            continue
        while not lines[at].startswith("```"):
            at += 1
        prose += [""] * (at + 1 - start)
        yield from _of_block(page, start, line[3:], lines[start + 1 : at], _answer(lines[at + 1 :]))
        at += 1
    joined = "\n".join(prose)
    for code in re.finditer(r"`([^`]+)`", joined):
        inline = " ".join(code[1].split())
        if re.match(rf"{_PROGRAMS} |ansatz: ", inline):
            kind = "setting" if inline.startswith("ansatz: ") else "command"
            yield Snippet(page, joined[: code.start()].count("\n") + 1, kind, inline)


def _of_block(
    page: str, start: int, language: str, lines: list[str], answer: str | None
) -> Iterator[Snippet]:
    place = f"{page}:{start + 1}"
    assert language in _LANGUAGES | _NOT_CODE, f"{place}: unknown language {language!r}"
    if language in _NOT_CODE:
        return
    if language != "bash":
        yield Snippet(page, start + 1, language, "\n".join(lines))
        return
    if lines[0].startswith("#!"):
        yield Snippet(page, start + 1, "script", "\n".join(lines))
        return
    commands: list[tuple[int, str]] = []
    for number, line in enumerate(lines, start + 2):
        words = re.sub(r"(^|\s+)#.*", "", line.strip())
        if commands and commands[-1][1].endswith("\\"):
            first, begun = commands.pop()
            commands.append((first, f"{begun[:-1].rstrip()} {words}"))
        elif words:
            commands.append((number, words))
    for number, command in commands:
        assert _COMMAND.match(command), f"{page}:{number}: not a known command"
        yield Snippet(page, number, "command", command, answer if len(commands) == 1 else None)


def _answer(rest: list[str]) -> str | None:
    """The quotation after a block, if it follows a blank line."""
    quoted = rest[1] if len(rest) > 1 and not rest[0].strip() else ""
    return quoted[2:].strip() if quoted.startswith("> ") else None
