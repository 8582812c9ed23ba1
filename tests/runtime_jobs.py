"""Jobs of the service that tests/runtime_server.py is, executed by Aer, and what may be wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ibm_quantum_schemas.common import CompressedTensorModel
from ibm_quantum_schemas.executor.version_2_0 import (
    ItemMetadataModel,
    MetadataModel,
    QuantumProgramResultItemModel,
    QuantumProgramResultModel,
)
from qiskit_ibm_runtime.quantum_program.converters.converters_2_0 import passthrough_data_to_2_0
from qiskit_ibm_runtime.quantum_program.params_converters import QUANTUM_PROGRAM_PARAMS_CONVERTERS

from qhdm.hardware.runtime import execute
from qhdm.hardware.simulator import DeviceSimulator

#: Jobs that end without a result: status, reason and code.
ENDS = {
    "failed": ("Failed", "a qubit is broken", 1100),
    "cancelled": ("Cancelled", "", None),
    "too long": ("Cancelled", "ran too long", 1305),
}
Items = list[dict[str, np.ndarray]]
#: Results that are not what was asked for; outcomes are (rows, shots, bits).
WRONG: dict[str, Callable[[Items], Items]] = {
    "a bit less": lambda items: [{k: v[..., 1:] for k, v in i.items()} for i in items],
    "half the shots": lambda items: [
        {k: v[..., : v.shape[-2] // 2, :] for k, v in i.items()} for i in items
    ],
    "a row more": lambda items: [
        {k: np.concatenate([v, v[:1]]) for k, v in i.items()} for i in items
    ],
    "a circuit less": lambda items: items[1:],
    "another register": lambda items: [
        {"meas" if k == "outcomes" else k: v for k, v in i.items()} for i in items
    ],
}


@dataclass
class Job:
    """A job as the service knows it."""

    id: str
    crn: str
    tags: list[str]
    params: dict[str, Any]
    session: str | None
    max_seconds: int | None
    status: str = "Queued"
    reason: str = ""
    code: int | None = None
    result: str = ""
    made: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)

    def end(self, fate: str) -> None:
        """End without a result."""
        self.status, self.reason, self.code = ENDS[fate]
        self.result = "Traceback: words of the service"
        self.done.set()

    def execute(self, device: DeviceSimulator, alone: threading.Lock, fate: str | None) -> None:
        """Run the job; `fate` says what is wrong with its result."""
        converter = QUANTUM_PROGRAM_PARAMS_CONVERTERS[self.params["schema_version"]]
        with alone:
            program, _ = converter.decoder(converter.model.model_validate(self.params))
            for item in program.items:
                if hasattr(item, "samplex"):
                    item.samplex.finalize()
            result = execute(program, device)
            items = [dict(item.items()) for item in result]
            if fate in WRONG:
                items = WRONG[fate](items)
            model = QuantumProgramResultModel(
                data=[
                    QuantumProgramResultItemModel(
                        results={k: CompressedTensorModel.from_numpy(v) for k, v in item.items()},
                        metadata=ItemMetadataModel(),
                    )
                    for item in items
                ],
                metadata=MetadataModel(chunk_timing=[]),
                passthrough_data=passthrough_data_to_2_0(program.passthrough_data),
                semantic_role=program._semantic_role,
            )
        text = model.model_dump_json()
        self.result = {"lost": "", "nonsense": text.replace("v2.0", "v9.9")}.get(str(fate), text)
        if self.status == "Running":
            self.status = "Completed"
        self.done.set()

    def described(self, backend: str) -> dict[str, Any]:
        state = {"status": self.status, "reason": self.reason, "reason_code": self.code}
        return {
            "id": self.id,
            "backend": backend,
            "state": state,
            "status": self.status,
            "program": {"id": "executor"},
            "created": "2026-01-01T00:00:00.000Z",
            "tags": self.tags,
            "session_id": self.session,
        }
