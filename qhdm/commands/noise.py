"""`qhdm noise`: the errors of a device, and its calibration as a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from qhdm.commands.arguments import add_force, check_new
from qhdm.errors import EngineError


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    noise = commands.add_parser("noise", help="errors of a named device; save its calibration")
    noise.add_argument(
        "device", metavar="DEVICE", help="for example fake_torino, or a calibration file (*.json)"
    )
    noise.add_argument("--save", type=Path, metavar="FILE", help="write a calibration file (.json)")
    add_force(noise)
    noise.set_defaults(command=_noise)


def _noise(arguments: argparse.Namespace) -> None:
    from qhdm.quantum.devices.calibration import describe, find_calibration, save_calibration

    if arguments.save and arguments.save.suffix != ".json":
        raise EngineError(f"--save: {arguments.save}: a calibration file is named *.json")
    if arguments.save:
        check_new("--save", arguments.save, force=arguments.force)
    calibration = find_calibration(arguments.device)
    print(describe(calibration))
    if arguments.save:
        save_calibration(calibration, arguments.save)
        print(f"calibration: {arguments.save} (use it as quantum.aer.noise or --noise)")
