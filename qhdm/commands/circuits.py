"""`qhdm circuits`: what a filter is, file or built-in."""

from __future__ import annotations

import argparse


def add(commands: argparse._SubParsersAction) -> None:
    """Add the verb to the parser."""
