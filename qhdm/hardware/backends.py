"""Backends by name."""

from __future__ import annotations

import difflib

from qiskit.providers import BackendV2

from qhdm.errors import HardwareError
from qhdm.quantum.aer.calibration import named_devices


def find_backend(name: str) -> BackendV2:
    """A backend by name.

    Args:
        name: `fake_fez` and its like, snapshots of real devices that qiskit-ibm-runtime ships and
            that need no account, or the name of a real device (`ibm_fez`), which needs one.

    Raises:
        HardwareError: there is no such device, no account, or no way to reach it.
    """
    if name.startswith("fake_"):
        return _fake_backend(name)
    # Imported here: it takes seconds.
    from qiskit_ibm_runtime import QiskitRuntimeService

    try:
        return QiskitRuntimeService().backend(name)
    except Exception as error:  # the service raises many kinds, from accounts, HTTP and sockets
        reason = str(error).strip("\"'").splitlines()[0] if str(error) else type(error).__name__
        raise HardwareError(
            f"backend {name}: {reason} A real device needs an IBM Quantum account "
            "(QiskitRuntimeService.save_account); without one, use a fake device such as fake_fez"
        ) from None


def _fake_backend(name: str) -> BackendV2:
    known = named_devices()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise HardwareError(f"backend {name}: there is no such fake device{hint}")
    backend: BackendV2 = known[name]()
    return backend
