"""`qhdm export`: a run's trained filters as files."""

from __future__ import annotations

import argparse


def add(commands: argparse._SubParsersAction) -> None:
    """Add the verb to the parser."""
