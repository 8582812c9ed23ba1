"""Devices: the backends that circuits are compiled for."""

from __future__ import annotations

from dataclasses import dataclass

from qiskit.providers import BackendV2
from qiskit.transpiler import CouplingMap, Target

from qhdm.errors import AccessError, did_you_mean
from qhdm.quantum.devices.calibration import named_devices
from qhdm.quantum.options import IDEAL

#: Qubits of the ideal device: one filter.
_IDEAL_QUBITS = 12
#: The repetition delay of Heron devices, for a device that does not report one; seconds.
_REP_DELAY = 250e-6


@dataclass(frozen=True, eq=False)
class Device:
    """A backend that circuits are compiled for.

    Attributes:
        name: of the backend.
        target: gates, couplings, errors and times.
        rep_delay: between shots, seconds; 0 for a simulation.
        max_shots: of a circuit; None is unlimited.
        source: of these facts.
    """

    name: str
    target: Target
    rep_delay: float
    max_shots: int | None
    source: str


def snapshot(name: str) -> Device:
    """A device, as far as it is known without a network.

    Args:
        name: `aer`, a fake device, or an IBM backend of which there is a fake one.

    Raises:
        AccessError: nothing is known of it.
    """
    if name == IDEAL:
        gates = ["rz", "sx", "x", "cz", "measure"]
        coupling = CouplingMap.from_full(_IDEAL_QUBITS)
        target = Target.from_configuration(gates, _IDEAL_QUBITS, coupling)
        return Device(name, target, 0.0, None, "ideal")
    fake = name if name.startswith("fake_") else "fake_" + name.removeprefix("ibm_")
    known = named_devices()
    if fake not in known:
        raise AccessError(
            f"backend {name}: qiskit-ibm-runtime ships no snapshot of it; name one that it does, "
            "for example --device fake_torino",
            "backend",
        )
    backend = known[fake]()
    source = f"snapshot {fake} of qiskit-ibm-runtime"
    return device_of(name, backend, source)


def device_of(name: str, backend: BackendV2, source: str) -> Device:
    """The device of a backend, whose facts are from `source`."""
    facts = backend.configuration()
    delay = getattr(facts, "default_rep_delay", None)
    # Configurations give microseconds, which the client turns into seconds.
    return Device(
        name,
        backend.target,
        _REP_DELAY if delay is None else delay,
        getattr(facts, "max_shots", None),
        source,
    )


def fake_backend(name: str) -> BackendV2:
    """A fake device by name (`fake_fez`).

    Raises:
        AccessError: there is none of that name.
    """
    known = named_devices()
    if name not in known:
        raise AccessError(
            f"backend {name}: there is no such fake device{did_you_mean(name, known)}", "backend"
        )
    backend: BackendV2 = known[name]()
    return backend
