"""What is known of a device's gates and qubits, by name or from a calibration file.

A calibration file is JSON:

    {"format": "qhdm-calibration/1", "name": "fake_torino", "dt": seconds,
     "qubits": [{"t1": seconds, "t2": seconds}, ...],
     "instructions": [{"name": "cz", "qubits": [0, 1], "error": 0.003, "duration": seconds}, ...]}

Readout errors are those of `measure`; what is not known is null, and no circuit is laid out on it
(`working_part`). A T2 above 2 T1, which is often measured and no qubit has, counts as 2 T1, as in
Aer. The file holds all that the noise model and the layout are made of, so that a run can be
repeated when the device, or the package that names it, has changed.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qiskit.circuit import Gate, Instruction, Measure
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.transpiler import InstructionProperties, QubitProperties, Target

from qhdm.errors import EngineError, did_you_mean
from qhdm.files import write_text

FORMAT = "qhdm-calibration/1"
#: So many qubits that are left out are named.
_NAMED = 10


@dataclass(frozen=True, eq=False)
class Calibration:
    """A device: its name, its gates, couplings, errors and times, and the file they are from."""

    name: str
    target: Target
    file: Path | None = None

    def __str__(self) -> str:
        return self.name if self.file is None else f"{self.file}: {self.name}"


def find_calibration(source: str) -> Calibration:
    """The calibration of a device.

    Args:
        source: the name of a device of `qiskit_ibm_runtime.fake_provider`, for example
            `fake_torino`, or the path of a calibration file.

    Raises:
        EngineError: there is no such device or file, or the file is damaged.
    """
    path = Path(os.path.expanduser(source))
    if path.suffix == ".json" or "/" in source:
        return _read(path)
    devices = named_devices()
    if source not in devices:
        raise EngineError(
            f"noise: unknown device {source!r}; give a fake device of qiskit-ibm-runtime "
            "(fake_torino, fake_fez, ...) or a calibration file (*.json)"
            f"{did_you_mean(source, devices)}"
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


def working_part(target: Target) -> Target:
    """Gates and measurements that are known to work: what circuits may be laid out on.

    A missing figure is what a device reports of a gate that could not be calibrated, an error of 1
    of one that is broken. Left out are

    * gates on several qubits and measurements without an error, or of error 1;
    * qubits without a measurement that works; with a gate of their own that is broken, or that has
      no error where it has one elsewhere; without a T1 or T2 where others have one: with all gates
      on them.

    A target in which no such gate or measurement has an error is an ideal device: none is left out
    for want of one.
    """
    part = unitary_part(target)
    places = {name: dict(part[name]) for name in part.operation_names}
    width = {name: part.operation_from_name(name).num_qubits for name in places}
    rated = {
        name
        for name, found in places.items()
        if any(getattr(properties, "error", None) is not None for properties in found.values())
    }
    ideal = all(name != "measure" and width[name] == 1 for name in rated)

    def works(name: str, properties: InstructionProperties | None) -> bool:
        error = getattr(properties, "error", None)
        if error is None:
            return ideal or (name not in rated and name != "measure" and width[name] == 1)
        return bool(error < 1)

    bad = {
        qubit
        for name, found in places.items()
        for qubits, properties in found.items()
        if width[name] == 1 and not works(name, properties)
        for qubit in qubits or range(target.num_qubits)
    }
    if None not in places.get("measure", {None: None}):
        bad |= {q for q in range(target.num_qubits) if (q,) not in places["measure"]}
    for key in ("t1", "t2"):
        times = [getattr(q, key, None) for q in target.qubit_properties or ()]
        if any(time is not None for time in times):
            bad |= {q for q, time in enumerate(times) if time is None}

    working = Target(
        num_qubits=target.num_qubits, dt=target.dt, qubit_properties=target.qubit_properties
    )
    for name, found in places.items():
        kept = {
            qubits: properties
            for qubits, properties in found.items()
            if works(name, properties) and not bad.intersection(qubits or ())
        }
        # A target does not tell the bounds of angles: without them such a gate would get any.
        if kept and not target.gate_has_angle_bounds(name):
            working.add_instruction(part.operation_from_name(name), kept)
    return working


def left_out(target: Target) -> str:
    """What `working_part` leaves out, in words that begin with why; empty where it is nothing."""
    part, working = unitary_part(target), working_part(target)
    found = []
    if "measure" in part.operation_names and None not in part["measure"]:
        measured = working["measure"] if "measure" in working.operation_names else {}
        bad = [str(q) for q in range(target.num_qubits) if (q,) not in measured]
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        if bad:
            found.append(f"qubit{'s' * (len(bad) > 1)} {', '.join(bad[:_NAMED])}{more}")
    for name in sorted(part.operation_names):
        total = len(part[name])
        kept = len(working[name]) if name in working.operation_names else 0
        if kept < total and part.operation_from_name(name).num_qubits > 1:
            found.append(f"{total - kept} of {total} {name}")
    return f"not used, as broken or without figures: {'; '.join(found)}" if found else ""


def _read(path: Path) -> Calibration:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EngineError(f"noise: {path}: no such calibration file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(f"noise: {path}: cannot be read as JSON ({error})") from None
    try:
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']!r}, not {FORMAT!r}")
        return Calibration(str(document["name"]), _target(document), path)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise EngineError(f"noise: {path}: not a calibration file ({reason})") from None


def _target(document: dict[str, Any]) -> Target:
    qubits = [_qubit(f"qubits[{i}]", entry) for i, entry in enumerate(document["qubits"])]
    if not qubits:
        raise ValueError("it has no qubits")
    dt = _number("dt", document.get("dt"), positive=True)
    target = Target(num_qubits=len(qubits), dt=dt, qubit_properties=qubits)
    operations: dict[str, Instruction] = {}
    places: dict[str, dict[tuple[int, ...], InstructionProperties]] = {}
    for i, entry in enumerate(document["instructions"]):
        where = f"instructions[{i}]"
        name, place = _member(where, entry, "name"), _member(where, entry, "qubits")
        if not isinstance(name, str) or name not in operations:
            operations[name] = _operation(where, name)
        wanted = operations[name].num_qubits
        if not (
            isinstance(place, list)
            and all(type(q) is int and 0 <= q < len(qubits) for q in place)
            and len(set(place)) == len(place) == wanted
        ):
            raise ValueError(
                f"{where}: {name} on qubits {place}; it takes {wanted} different ones, from 0 to "
                f"{len(qubits) - 1}"
            )
        if tuple(place) in places.setdefault(name, {}):
            raise ValueError(f"{where}: {name} on qubits {place} for the second time")
        places[name][tuple(place)] = InstructionProperties(
            _number(f"{where}.duration", entry.get("duration")),
            _number(f"{where}.error", entry.get("error"), most=1.0),
        )
    for name, operation in operations.items():
        target.add_instruction(operation, places[name])
    if "measure" not in operations:
        raise ValueError("it has no measurements")
    return target


def _qubit(where: str, entry: Any) -> QubitProperties:
    times = {
        key: _number(f"{where}.{key}", _member(where, entry, key), positive=True)
        for key in ("t1", "t2")
    }
    return QubitProperties(**times)


def _operation(where: str, name: Any) -> Instruction:
    if name == "measure":
        return Measure()
    known = get_standard_gate_name_mapping()
    if not (isinstance(name, str) and name in known and isinstance(known[name], Gate)):
        raise ValueError(f"{where}: {name!r} is not a gate of Qiskit's library")
    return known[name]


def _member(where: str, entry: Any, key: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise ValueError(f"{where}: {key!r} is missing")
    return entry[key]


def _number(
    where: str, value: Any, *, positive: bool = False, most: float = math.inf
) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{where}: {value!r} is not a number or null")
    if value < 0 or (positive and value == 0) or value > most:
        span = f"from 0 to {most:g}" if most < math.inf else "above 0" if positive else "from 0 up"
        raise ValueError(f"{where}: {value!r} is not a number {span}")
    return float(value)


def describe(calibration: Calibration) -> str:
    """Working gates with their median errors and times, median T1 and T2, and what is not used."""
    target, missing = working_part(calibration.target), left_out(calibration.target)
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
    if missing:
        lines.append(f"  {missing}")
    return "\n".join(lines)
