"""The gates, couplings, errors and times of a device, by its name or from a calibration file.

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
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from qiskit.circuit import Gate
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.transpiler import InstructionProperties, QubitProperties, Target

from qhdm.errors import EngineError, did_you_mean, shortened
from qhdm.files import write_text

#: Where a gate is, and how good; None as the qubits of a gate that is everywhere.
Places = dict[tuple[int, ...] | None, InstructionProperties | None]

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
    instructions = [
        {
            "name": name,
            "qubits": list(qubits),
            "error": getattr(properties, "error", None),
            "duration": getattr(properties, "duration", None),
        }
        for name in target.operation_names
        for qubits, properties in target[name].items()
    ]
    document = {
        "format": FORMAT,
        "name": calibration.name,
        "dt": target.dt,
        "qubits": [
            {"t1": getattr(q, "t1", None), "t2": getattr(q, "t2", None)}
            for q in target.qubit_properties or [None] * target.num_qubits
        ],
        "instructions": instructions,
    }
    write_text(path, json.dumps(document) + "\n")


def named_devices() -> dict[str, Any]:
    """The classes of the fake devices of qiskit-ibm-runtime, by name (`fake_torino`)."""
    from qiskit_ibm_runtime import fake_provider
    from qiskit_ibm_runtime.fake_provider.fake_backend import FakeBackendV2

    classes: list[Any] = [kind for _, kind in inspect.getmembers(fake_provider, inspect.isclass)]
    fakes = [kind for kind in classes if issubclass(kind, FakeBackendV2)]
    return {fake.backend_name: fake for fake in fakes if getattr(fake, "backend_name", None)}


def unitary_part(target: Target) -> Target:
    """Gates and measurements on particular qubits: no control flow, delays or resets."""
    known = get_standard_gate_name_mapping()
    return with_gates(
        target,
        {
            name: dict(target[name])
            for name in target.operation_names
            if name == "measure" or (name in known and name not in ("delay", "reset"))
        },
    )


def with_gates(target: Target, places: Mapping[str, Places]) -> Target:
    """The qubits of a target with some of its gates, each where and how good it is."""
    part = Target(
        num_qubits=target.num_qubits, dt=target.dt, qubit_properties=target.qubit_properties
    )
    for name, entries in places.items():
        part.add_instruction(target.operation_from_name(name), entries)
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
        for name, entries in places.items()
        if any(getattr(properties, "error", None) is not None for properties in entries.values())
    }
    ideal = all(name != "measure" and width[name] == 1 for name in rated)

    def works(name: str, properties: InstructionProperties | None) -> bool:
        error = getattr(properties, "error", None)
        if error is None:
            return ideal or (name not in rated and name != "measure" and width[name] == 1)
        return bool(error < 1)

    bad = {
        qubit
        for name, entries in places.items()
        for qubits, properties in entries.items()
        if width[name] == 1 and not works(name, properties)
        for qubit in qubits or range(target.num_qubits)
    }
    if None not in places.get("measure", {None: None}):
        bad |= {q for q in range(target.num_qubits) if (q,) not in places["measure"]}
    for key in ("t1", "t2"):
        times = [getattr(q, key, None) for q in target.qubit_properties or ()]
        if any(time is not None for time in times):
            bad |= {q for q, time in enumerate(times) if time is None}

    kept = {
        name: {
            qubits: properties
            for qubits, properties in entries.items()
            if works(name, properties) and not bad.intersection(qubits or ())
        }
        for name, entries in places.items()
        # A target does not tell the bounds of angles: without them such a gate would get any.
        if not target.gate_has_angle_bounds(name)
    }
    return with_gates(part, {name: entries for name, entries in kept.items() if entries})


def left_out(target: Target) -> str:
    """What `working_part` leaves out, in words that begin with why; empty where it is nothing."""
    part, working = unitary_part(target), working_part(target)
    missing = []
    if "measure" in part.operation_names and None not in part["measure"]:
        measured = working["measure"] if "measure" in working.operation_names else {}
        bad = [str(q) for q in range(target.num_qubits) if (q,) not in measured]
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        if bad:
            missing.append(f"qubit{'s' * (len(bad) > 1)} {', '.join(bad[:_NAMED])}{more}")
    for name in sorted(part.operation_names):
        total = len(part[name])
        kept = len(working[name]) if name in working.operation_names else 0
        if kept < total and part.operation_from_name(name).num_qubits > 1:
            missing.append(f"{total - kept} of {total} {name}")
    return f"not used, as broken or without figures: {'; '.join(missing)}" if missing else ""


_CONFIG = ConfigDict(strict=True, allow_inf_nan=False)
_Time = Annotated[float, Field(gt=0)] | None


@dataclass(frozen=True)
class _Qubit:
    __pydantic_config__ = _CONFIG

    t1: _Time
    t2: _Time


@dataclass(frozen=True)
class _Instruction:
    __pydantic_config__ = _CONFIG

    name: str
    qubits: list[Annotated[int, Field(ge=0)]]
    error: Annotated[float, Field(ge=0, le=1)] | None = None
    duration: Annotated[float, Field(ge=0)] | None = None


@dataclass(frozen=True)
class _Document:
    __pydantic_config__ = _CONFIG

    format: Literal["qhdm-calibration/1"]
    name: str
    qubits: Annotated[list[_Qubit], Field(min_length=1)]
    instructions: list[_Instruction]
    dt: _Time = None


def _read(path: Path) -> Calibration:
    def damaged(place: str, reason: str) -> EngineError:
        where = f"noise: {path}: {place}: " if place else f"noise: {path}: "
        return EngineError(f"{where}not a calibration: {shortened(reason)}")

    try:
        document = TypeAdapter(_Document).validate_json(path.read_bytes())
    except FileNotFoundError:
        raise EngineError(f"noise: {path}: no such calibration file") from None
    except OSError as error:
        raise EngineError(f"noise: {path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])
        raise damaged(place.removeprefix("."), first["msg"]) from None

    gates = get_standard_gate_name_mapping()
    places: dict[str, dict[tuple[int, ...], InstructionProperties]] = {}
    for i, entry in enumerate(document.instructions):
        gate, qubits = gates.get(entry.name), tuple(entry.qubits)
        if not (entry.name == "measure" or isinstance(gate, Gate)):
            raise damaged(
                f"instructions[{i}].name", f"{entry.name!r} is no gate of Qiskit's library"
            )
        wanted = gates[entry.name].num_qubits
        if not len(set(qubits)) == len(qubits) == wanted or max(qubits) >= len(document.qubits):
            raise damaged(
                f"instructions[{i}].qubits",
                f"{entry.name} on {entry.qubits} takes {wanted} different qubits, from 0 to "
                f"{len(document.qubits) - 1}",
            )
        if qubits in places.setdefault(entry.name, {}):
            raise damaged(f"instructions[{i}].qubits", f"{entry.name} on {entry.qubits} twice")
        places[entry.name][qubits] = InstructionProperties(entry.duration, entry.error)
    if "measure" not in places:
        raise damaged("instructions", "it has no measurements")
    target = Target(
        num_qubits=len(document.qubits),
        dt=document.dt,
        qubit_properties=[QubitProperties(t1=q.t1, t2=q.t2) for q in document.qubits],
    )
    for name, properties in places.items():
        target.add_instruction(gates[name], properties)
    return Calibration(document.name, target, path)


def describe(calibration: Calibration) -> str:
    """Working gates with their median errors and times, median T1 and T2, and what is not used."""
    target, missing = working_part(calibration.target), left_out(calibration.target)
    lines = [f"{calibration.name}: {target.num_qubits} qubits"]
    for key in ("t1", "t2"):
        values = [getattr(q, key, None) for q in target.qubit_properties or ()]
        times = [value for value in values if value is not None]
        if times:
            lines.append(f"  median {key.upper()}: {1e6 * statistics.median(times):.0f} us")
    lines.append(f"  {'gate':<10}{'places':>7}{'median error':>15}{'ns':>8}")
    for name in sorted(target.operation_names):
        known = [p for p in target[name].values() if p is not None]
        errors = [p.error for p in known if p.error is not None]
        times = [p.duration for p in known if p.duration is not None]
        error = f"{statistics.median(errors):.2e}" if errors else "-"
        time = f"{1e9 * statistics.median(times):.0f}" if times else "-"
        lines.append(f"  {name:<10}{len(known):>7}{error:>15}{time:>8}")
    if missing:
        lines.append(f"  {missing}")
    return "\n".join(lines)
