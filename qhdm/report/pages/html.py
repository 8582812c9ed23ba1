"""From what a page shows to one file of HTML, pictures and style inside."""

from __future__ import annotations

import base64
import math
from functools import cache
from io import BytesIO
from typing import Any

import jinja2
import numpy as np

from qhdm._version import __version__
from qhdm.console import duration
from qhdm.pictures import to_picture


def render(template: str, **content: Any) -> str:
    """A page; every text in it is escaped, for names of classes and runs may hold anything.

    Args:
        template: its file in `templates/`.
        content: what the template reads.
    """
    return _environment().get_template(template).render(version=__version__, **content)


def data_uri(content: bytes, kind: str) -> str:
    """`content` as an address that holds it; `kind` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def tiles(images: np.ndarray) -> list[str]:
    """Images (N, H, W, 1 or 3) uint8 as addresses of PNGs."""
    found = []
    for image in images:
        buffer = BytesIO()
        to_picture(image).save(buffer, format="PNG", optimize=True)
        found.append(data_uri(buffer.getvalue(), "image/png"))
    return found


def number(value: float | None) -> str:
    """Three significant digits; a dash for nothing."""
    if value is None:
        return "\N{EN DASH}"
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.2e}".replace("-", "\N{MINUS SIGN}")
    digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qhdm.report.pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, count="{:,}".format, duration=duration)
    return environment
