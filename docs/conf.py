"""The site that `make docs` builds: these pages, the tutorials executed, and the API."""

import functools
import re
import runpy
from pathlib import Path

import requests
from nbclient import NotebookClient

REPOSITORY = "https://github.com/qhdm/qhdm"
PEERS = {
    "python": "https://docs.python.org/3",
    "numpy": "https://numpy.org/doc/stable",
    "qiskit": "https://quantum.cloud.ibm.com/docs/api/qiskit",
    "torch": "https://docs.pytorch.org/docs/stable",
}

project = "qhdm"
author = "The qhdm developers"
copyright = f"2026, {author}"
release = runpy.run_path(str(Path(__file__).parent.parent / "qhdm" / "_version.py"))["__version__"]

extensions = [
    "myst_nb",
    "qiskit_sphinx_theme",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

html_theme = "qiskit-ecosystem"
html_title = f"qhdm {release}"
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}
copybutton_prompt_text = ">>> "
copybutton_exclude = ".linenos, .gp, .go"

myst_heading_anchors = 4  # as a repository host makes them
myst_enable_extensions = ["dollarmath"]

nb_execution_in_temp = True
nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 600  # of a cell, on a busy machine
nb_merge_streams = True
nb_output_stderr = "remove"
# IPython passes on what shell cells print in pieces of 100 bytes; myst-nb ends each with a newline.
NotebookClient.__init__ = functools.partialmethod(NotebookClient.__init__, coalesce_streams=True)

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
default_role = "code"  # docstrings write `name`
napoleon_use_ivar = True
python_display_short_literal_types = True


def _reachable(address: str) -> bool:
    """Whether names of other projects can be linked; pages are built offline, too."""
    try:
        return requests.head(f"{address}/objects.inv", timeout=5, allow_redirects=True).ok
    except requests.RequestException:
        return False


intersphinx_mapping = {
    name: (address, None) for name, address in PEERS.items() if _reachable(address)
}


def _outward_links(app, docname, source):
    """Address files beside this folder in the repository: `../jobs/fez.yaml` is not on the site."""
    up = r"\.\./" * (docname.count("/") + 1)
    source[0] = re.sub(rf"\]\({up}(?!\.\.)", f"]({REPOSITORY}/blob/main/", source[0])


def setup(app):
    app.connect("source-read", _outward_links)
