"""Devices: the backends that circuits are compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qiskit.providers import BackendV2
from qiskit.transpiler import CouplingMap, Target

from qhdm.errors import AccessError, ConfigError, did_you_mean
from qhdm.quantum.devices.calibration import named_devices, unitary_part
from qhdm.quantum.devices.fractional import FRACTIONAL, two_qubit_gates, with_figures, without
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
        target: gates, couplings, errors and times. An `rzz` takes any angle: `Compiler` folds them.
        rep_delay: between shots, seconds; 0 for a simulation.
        max_shots: of a circuit; None is unlimited.
        source: of these facts.
    """

    name: str
    target: Target
    rep_delay: float
    max_shots: int | None
    source: str


def snapshot(name: str, fractional: bool | Literal["auto"] = False) -> Device:
    """A device, as far as it is known without a network.

    Args:
        name: `aer`, a fake device, or an IBM backend of which there is a fake one.
        fractional: see `device_of`.

    Raises:
        AccessError: nothing is known of it.
        ConfigError: it has no fractional gates, which are asked for.
    """
    if name == IDEAL:
        gates = ["rz", "sx", "x", "cz", "measure"]
        coupling = CouplingMap.from_full(_IDEAL_QUBITS)
        target, _ = _chosen(
            name, Target.from_configuration(gates, _IDEAL_QUBITS, coupling), fractional
        )
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
    return device_of(name, backend, source, fractional)


def device_of(
    name: str, backend: BackendV2, source: str, fractional: bool | Literal["auto"] = False
) -> Device:
    """The device of a backend.

    Args:
        name: of the device.
        backend: its gates and figures.
        source: of these facts.
        fractional: `auto` takes fractional gates beside the others, True instead of the other
            two-qubit gates, False none.

    Raises:
        ConfigError: it has no fractional gates, which are asked for.
    """
    facts, (target, assumed) = backend.configuration(), _chosen(name, backend.target, fractional)
    delay = getattr(facts, "default_rep_delay", None)
    # Configurations give microseconds, which the client turns into seconds.
    return Device(
        name,
        target,
        _REP_DELAY if delay is None else delay,
        getattr(facts, "max_shots", None),
        "; ".join([source, *assumed]),
    )


def _chosen(
    name: str, target: Target, fractional: bool | Literal["auto"]
) -> tuple[Target, list[str]]:
    """The gates that circuits may have, see `device_of`, and what is assumed of them."""
    if fractional is True and "rzz" not in target.operation_names:
        raise ConfigError(
            f"fractional_gates: {name} has none; set it to auto or false, or name another backend"
        )
    if not {*FRACTIONAL} & {*target.operation_names}:
        return target, []
    part = unitary_part(target)
    if fractional is False:
        return without(part, FRACTIONAL), []
    part, assumed = with_figures(part)
    return without(part, two_qubit_gates(part) - {"rzz"}) if fractional is True else part, assumed


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
