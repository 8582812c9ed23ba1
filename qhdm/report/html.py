"""HTML pages that hold all they show: style, images and charts."""

from __future__ import annotations

import base64
from functools import cache
from io import BytesIO
from typing import Any

import jinja2
import numpy as np

from qhdm._version import __version__
from qhdm.console import duration
from qhdm.data import Bands
from qhdm.pictures import to_picture
from qhdm.tables import number


def render(template: str, **content: Any) -> str:
    """Fill a template of `templates/`; all text is escaped, as names may hold anything."""
    return _environment().get_template(template).render(version=__version__, **content)


def data_uri(content: bytes, media_type: str) -> str:
    """A `data:` URI of `content`."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def tiles(images: np.ndarray, bands: Bands | None = None, view: int = 0) -> list[str]:
    """Data URIs of images (N, H, W, 1 or 3) uint8, or of a composite of bands, as PNGs."""
    uris = []
    for image in images:
        buffer = BytesIO()
        to_picture(image, bands, view).save(buffer, format="PNG", optimize=True)
        uris.append(data_uri(buffer.getvalue(), "image/png"))
    return uris


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qhdm.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, count="{:,}".format, duration=duration)
    return environment
