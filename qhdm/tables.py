"""Tables of results, printed as Markdown or shown on HTML pages, and the numbers in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        header: titles of the columns.
        rows: a cell for each column.
        left: how many columns, the first ones, are text aligned to the left; the others are
            numbers, aligned to the right.
        shaded: first cell of the row that a page emphasises.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    shaded: str | None = None

    def markdown(self) -> str:
        """The table in Markdown, its columns aligned."""
        header, *rows = [[c.replace("|", r"\|") for c in row] for row in (self.header, *self.rows)]
        widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            texts = [
                cell.ljust(width) if i < self.left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            return f"| {' | '.join(texts)} |"

        rule = ["-" * w if i < self.left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
        return "\n".join([line(header), line(rule), *map(line, rows)])


def number(value: float | None) -> str:
    """`value` with four significant digits; nothing for None."""
    return "" if value is None else f"{value:#.4g}".removesuffix(".")


def signed(value: float | None) -> str:
    """A difference, with its sign and three significant digits."""
    return "" if value is None else f"{value:+#.3g}".removesuffix(".")


def interval(low: float | None, high: float | None) -> str:
    """`[low, high]` with three significant digits; nothing if either is None."""
    return "" if low is None or high is None else f"[{low:.3g}, {high:.3g}]"


def p_value(value: float | None) -> str:
    """The p value of a test with two significant digits."""
    if value is None:
        return ""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"
