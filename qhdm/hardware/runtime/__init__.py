"""The client of IBM's service, and its substitute on this machine.

All of qhdm.hardware that imports qiskit-ibm-runtime is here. Circuits are sent through the client's
`executor_sampler.Sampler`, the successor of the SamplerV2 that 0.50 deprecates: it measures what
the circuit measures, and no other qubit.
"""

from qhdm.hardware.runtime.client import find_backend
from qhdm.hardware.runtime.device import Device, snapshot
from qhdm.hardware.runtime.local_service import LocalService, execute
from qhdm.hardware.runtime.protocol import Service, Status
from qhdm.hardware.runtime.service import RuntimeService

__all__ = [
    "Device",
    "LocalService",
    "RuntimeService",
    "Service",
    "Status",
    "execute",
    "find_backend",
    "snapshot",
]
