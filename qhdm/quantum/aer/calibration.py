"""What is known of a device's gates and qubits, by name or from a calibration file.

A calibration file is JSON:

    {"format": "qhdm-calibration/1", "name": "fake_torino", "dt": seconds,
     "qubits": [{"t1": seconds, "t2": seconds}, ...],
     "instructions": [{"name": "cz", "qubits": [0, 1], "error": 0.003, "duration": seconds}, ...]}

Readout errors are those of `measure`. It holds all that the noise model and the layout are made of,
so that a run can be repeated when the device, or the package that names it, has changed.
"""

from __future__ import annotations

import difflib
import inspect
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qiskit.circuit import Instruction, Measure
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.transpiler import InstructionProperties, QubitProperties, Target

from qhdm.errors import EngineError
from qhdm.files import write_text

FORMAT = "qhdm-calibration/1"


@dataclass(frozen=True, eq=False)
class Calibration:
    """A device: its name, and its gates, couplings, errors and times."""

    name: str
    target: Target


def find_calibration(source: str) -> Calibration:
    """The calibration of a device.

    Args:
        source: the name of a device of `qiskit_ibm_runtime.fake_provider`, for example
            `fake_torino`, or the path of a calibration file.

    Raises:
        EngineError: there is no such device or file, or the file is damaged.
    """
    path = Path(source).expanduser()
    if path.suffix == ".json" or "/" in source:
        return _read(path)
    devices = named_devices()
    if source not in devices:
        near = difflib.get_close_matches(source, devices, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise EngineError(
            f"noise: device {source!r} is unknown; {guess}Known are the fake devices of "
            "qiskit-ibm-runtime (fake_torino, fake_fez, ...) and calibration files (*.json)"
        )
    backend = devices[source]()
    return Calibration(source, unitary_part(backend.target))


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration file."""
    target = calibration.target
    properties = target.qubit_properties or [None] * target.num_qubits
    instructions = [
        {
            "name": name,
            "qubits": list(qubits),
            "error": getattr(found, "error", None),
            "duration": getattr(found, "duration", None),
        }
        for name in target.operation_names
        for qubits, found in target[name].items()
    ]
    document = {
        "format": FORMAT,
        "name": calibration.name,
        "dt": target.dt,
        "qubits": [
            {"t1": getattr(q, "t1", None), "t2": getattr(q, "t2", None)} for q in properties
        ],
        "instructions": instructions,
    }
    write_text(path, json.dumps(document) + "\n")


def named_devices() -> dict[str, Any]:
    """The classes of the fake devices of qiskit-ibm-runtime, by name (`fake_torino`)."""
    from qiskit_ibm_runtime import fake_provider
    from qiskit_ibm_runtime.fake_provider.fake_backend import FakeBackendV2

    classes = (found for _, found in inspect.getmembers(fake_provider, inspect.isclass))
    fakes: list[Any] = [found for found in classes if issubclass(found, FakeBackendV2)]
    return {fake.backend_name: fake for fake in fakes if getattr(fake, "backend_name", None)}


def unitary_part(target: Target) -> Target:
    """Gates and measurements on particular qubits: no control flow, delays or resets."""
    known = get_standard_gate_name_mapping()
    part = Target(
        num_qubits=target.num_qubits, dt=target.dt, qubit_properties=target.qubit_properties
    )
    for name in target.operation_names:
        if name == "measure" or (name in known and name not in ("delay", "reset")):
            part.add_instruction(target.operation_from_name(name), dict(target[name]))
    return part


def _read(path: Path) -> Calibration:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EngineError(f"noise: {path}: no such calibration file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise EngineError(f"noise: {path}: cannot be read as JSON ({error})") from None
    try:
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']!r}, not {FORMAT!r}")
        return Calibration(str(document["name"]), _target(document))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise EngineError(f"noise: {path}: not a calibration file ({reason})") from None


def _target(document: dict[str, Any]) -> Target:
    qubits = [QubitProperties(t1=q.get("t1"), t2=q.get("t2")) for q in document["qubits"]]
    if not qubits:
        raise ValueError("it has no qubits")
    by_name: dict[str, dict[tuple[int, ...], InstructionProperties]] = {}
    for entry in document["instructions"]:
        place = tuple(entry["qubits"])
        if not all(isinstance(q, int) and 0 <= q < len(qubits) for q in place):
            raise ValueError(f"{entry['name']} on qubits {list(place)}, of {len(qubits)}")
        error, duration = entry.get("error"), entry.get("duration")
        for value in (error, duration):
            if value is not None and not (isinstance(value, int | float) and value >= 0):
                raise ValueError(f"{value!r} is not an error or a duration")
        by_name.setdefault(entry["name"], {})[place] = InstructionProperties(duration, error)
    target = Target(num_qubits=len(qubits), dt=document.get("dt"), qubit_properties=qubits)
    known = get_standard_gate_name_mapping()
    for name, places in by_name.items():
        operation: Instruction = Measure() if name == "measure" else known.get(name)
        if operation is None:
            raise ValueError(f"{name!r} is not a gate of Qiskit's library")
        target.add_instruction(operation, places)
    if "measure" not in by_name:
        raise ValueError("it has no measurements")
    return target


def describe(calibration: Calibration) -> str:
    """Gates with their median errors and times, and the qubits' median T1 and T2."""
    target = calibration.target
    lines = [f"{calibration.name}: {target.num_qubits} qubits"]
    for key in ("t1", "t2"):
        values = [getattr(q, key, None) for q in target.qubit_properties or ()]
        known = [value for value in values if value is not None]
        if known:
            lines.append(f"  median {key.upper()}: {1e6 * statistics.median(known):.0f} us")
    lines.append(f"  {'gate':<10}{'places':>7}{'median error':>15}{'ns':>8}")
    for name in sorted(target.operation_names):
        found = [p for p in target[name].values() if p is not None]
        errors = [p.error for p in found if p.error is not None]
        times = [p.duration for p in found if p.duration is not None]
        error = f"{statistics.median(errors):.2e}" if errors else "-"
        time = f"{1e9 * statistics.median(times):.0f}" if times else "-"
        lines.append(f"  {name:<10}{len(found):>7}{error:>15}{time:>8}")
    return "\n".join(lines)
