"""What README and docs tell readers to run: commands and blocks of code, read from the pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("*/README.md")),
]

_PROGRAMS = r"(qhdm|make|pip|python|pytest|torchrun|ray|for|done)\b"
_COMMAND = re.compile(rf"([A-Z_]+=\S+ )*{_PROGRAMS}")
#: First lines of indented blocks that are no commands: output, folders, formulas, settings.
_NO_COMMANDS = re.compile(
    r"circuits per step: |comparisons/mine/$|runs/<name>|T = t0 |(quantum|data):$"
)


@dataclass(frozen=True)
class Snippet:
    """A command, or a block of code.

    Attributes:
        page, line: where it stands.
        kind: `command`, or the language of a fenced block.
        text: without comments of the shell, continued lines joined.
        answer: what the page quotes below a command, for which it says it is refused.
    """

    page: str
    line: int
    kind: str
    text: str
    answer: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text.splitlines()[0]}"


def snippets() -> list[Snippet]:
    """All of all pages; of equal commands the first."""
    found: dict[tuple[str, str], Snippet] = {}
    for page in PAGES:
        for snippet in _of_page(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8")):
            found.setdefault((snippet.kind, snippet.text), snippet)
    return list(found.values())


def _of_page(page: str, text: str) -> Iterator[Snippet]:
    lines = text.splitlines()
    prose: list[str] = []  # of the page without its blocks, line by line
    at = 0
    while at < len(lines):
        line, start = lines[at], at
        if line.startswith("```"):
            at = next(i for i in range(at + 1, len(lines)) if lines[i].startswith("```"))
            yield Snippet(page, start + 1, line[3:].strip(), "\n".join(lines[start + 1 : at]))
        elif line.startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            while at + 1 < len(lines) and lines[at + 1].startswith("    "):
                at += 1
            yield from _of_block(page, start, lines[start : at + 1], _answer(lines[at + 1 :]))
        else:
            prose.append(line)
            at += 1
            continue
        prose += [""] * (at + 1 - start)
        at += 1
    joined = "\n".join(prose)
    for code in re.finditer(r"`([^`]+)`", joined):
        inline = " ".join(code[1].split())
        if re.match(rf"{_PROGRAMS} |ansatz: ", inline) and not inline.startswith("for "):
            kind = "setting" if inline.startswith("ansatz: ") else "command"
            yield Snippet(page, joined[: code.start()].count("\n") + 1, kind, inline)


def _of_block(page: str, start: int, lines: list[str], answer: str | None) -> Iterator[Snippet]:
    if _NO_COMMANDS.match(lines[0].strip()):
        return
    whole: list[tuple[int, str]] = []
    for number, line in enumerate(lines, start + 1):
        words = re.sub(r"(^|\s+)#.*", "", line.strip())
        if whole and whole[-1][1].endswith("\\"):
            first, begun = whole.pop()
            whole.append((first, f"{begun[:-1].rstrip()} {words}"))
        elif words:
            whole.append((number, words))
    for number, command in whole:
        assert _COMMAND.match(command), f"{page}:{number}: neither a command nor known output"
        yield Snippet(page, number, "command", command, answer if len(whole) == 1 else None)


def _answer(rest: list[str]) -> str | None:
    """The quotation that follows a block, after a blank line."""
    quoted = rest[1] if len(rest) > 1 and not rest[0].strip() else ""
    return quoted[2:].strip() if quoted.startswith("> ") else None
