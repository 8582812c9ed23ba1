"""`qhdm init`: copy the shipped configurations, circuits and jobs for editing."""

from __future__ import annotations

import argparse
import shlex
import shutil
from contextlib import ExitStack
from pathlib import Path

from qhdm.errors import ExportError
from qhdm.files import atomic_path
from qhdm.shipped import SUFFIXES, shipped_files


def add(commands: argparse._SubParsersAction) -> None:
    """Add `init` to the commands."""
    parser = commands.add_parser(
        "init", help="copy the shipped configs, circuits and jobs for editing"
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="target folder (default: here)",
    )
    parser.set_defaults(command=_init)


def _init(arguments: argparse.Namespace) -> None:
    folder: Path = arguments.folder
    copies = {kind: folder / kind for kind in SUFFIXES}
    for copy in copies.values():
        if copy.exists() or copy.is_symlink():
            raise ExportError(f"{copy}: exists already; name another folder: qhdm init DIR")
    with ExitStack() as stack:  # all or nothing: folders take their places on leaving
        for kind, copy in copies.items():
            temporary = stack.enter_context(atomic_path(copy))
            for name, file in shipped_files(kind).items():
                target = temporary / f"{name}{file.suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    print(f"copied to {', '.join(map(str, copies.values()))}")
    go = "" if folder == Path() else f"cd {shlex.quote(str(folder))} && "
    print(f"next: {go}qhdm train configs/quickstart.yaml")
