"""Fractional gates: RZZ of an angle from 0 to pi/2 and RX of any angle, each in one pulse."""

from __future__ import annotations

import math
from collections.abc import Collection

from qiskit.circuit import QuantumCircuit
from qiskit.transpiler import InstructionProperties, Target

from qhdm.quantum.devices.calibration import with_gates

FRACTIONAL = ("rx", "rzz")
#: Gates that may lend a fractional one their errors, the first that a device has.
_ALIKE = {"rx": ("sx", "x"), "rzz": ("cz", "ecr", "cx")}


def two_qubit_gates(target: Target) -> set[str]:
    """The names of a target's gates on two qubits."""
    names = target.operation_names
    return {name for name in names if target.operation_from_name(name).num_qubits == 2}


def without(target: Target, names: Collection[str]) -> Target:
    """A target of gates on particular qubits, without those of some names."""
    return with_gates(
        target, {n: dict(target[n]) for n in target.operation_names if n not in names}
    )


def folded(circuit: QuantumCircuit) -> QuantumCircuit:
    """The same up to a global phase, with all angles of RZZ from 0 to pi/2."""
    result = circuit.copy_empty_like()
    for entry in circuit.data:
        if entry.operation.name != "rzz":
            result.append(entry)
            continue
        one, other = entry.qubits
        angle = math.remainder(float(entry.operation.params[0]), 2 * math.pi)
        if abs(angle) > math.pi / 2:
            # RZZ of half a turn is RZ of half a turn on both.
            angle -= math.copysign(math.pi, angle)
            result.rz(math.pi, [one, other])
        if angle < 0:
            result.x(one)
        result.rzz(abs(angle), one, other)
        if angle < 0:
            result.x(one)
    return result


def with_figures(target: Target) -> tuple[Target, list[str]]:
    """Give fractional gates of which a device reports no error those of a gate alike.

    Without, an RZZ would count as broken everywhere, and an RX as free of errors.

    Args:
        target: of gates on particular qubits.

    Returns:
        The target, and what is assumed, in words.
    """
    places, assumed = {n: dict(target[n]) for n in target.operation_names}, []
    for name in FRACTIONAL:
        own = places.get(name, {})
        alike = next((other for other in _ALIKE[name] if other in places), None)
        if not own or not alike or any(getattr(p, "error", None) is not None for p in own.values()):
            continue
        places[name] = {q: _filled(p, places[alike], q) for q, p in own.items()}
        assumed.append(f"{name} has no error figures: those of {alike} are assumed")
    return with_gates(target, places), assumed


def _filled(
    own: InstructionProperties | None,
    alike: dict[tuple[int, ...], InstructionProperties | None],
    qubits: tuple[int, ...],
) -> InstructionProperties | None:
    """The error of a gate alike on the same qubits, and its duration if there is no other."""
    known = alike.get(qubits) or alike.get(qubits[::-1])
    if known is None:
        return own
    duration = getattr(own, "duration", None)
    return InstructionProperties(known.duration if duration is None else duration, known.error)
