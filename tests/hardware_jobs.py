"""What tests of sampling jobs share: a small specification, and a chain without a model.

The fixtures that go with it are in conftest.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qiskit.circuit import ClassicalRegister, ParameterVector, QuantumCircuit
from runtime_server import BACKEND, TOKEN

from qhdm import errors
from qhdm.cli import main
from qhdm.hardware.isa import REGISTER
from qhdm.hardware.job_dir import JobDirectory
from qhdm.hardware.ledger import Ledger, RequestRecord
from qhdm.hardware.request import Request
from qhdm.hardware.runtime import RuntimeService
from qhdm.hardware.spec import JobSpec
from qhdm.hardware.submission import Submitter

SPEC: dict[str, Any] = {
    "backend": BACKEND,
    "classes": ["Forest"],
    "steps": 2,
    "hardware_steps": 1,
    "places": ["encoder"],
    "shots": 64,
    "packing": 1,
    "compile": "off",
    "limits": {"jobs_per_minute": 100_000, "settle_seconds": 0.2},
}
#: Runtime jobs that it takes.
JOBS = 2
#: Exit codes by the reason of the error.
CODES = {
    reason: code
    for kind in (errors.HardwareError, *errors.HardwareError.__subclasses__())
    for reason, code in kind.codes.items()
}

#: Submits SPEC with settings; returns the folder of the new job.
Submit = Callable[..., JobDirectory]


def jobs(runs: Path, *words: object) -> int:
    return main(["jobs", "--runs", str(runs), *map(str, words)])


def images(folder: JobDirectory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder.path / "images").rglob("*.png")}


@contextmanager
def opened(folder: JobDirectory) -> Iterator[Ledger]:
    ledger = folder.ledger()
    try:
        yield ledger
    finally:
        ledger.close()


def states(folder: JobDirectory) -> list[str]:
    with opened(folder) as ledger:
        return [entry.state for entry in ledger.requests()]


def refused(
    kind: type[errors.HardwareError], reason: str, match: str | None = None
) -> pytest.RaisesExc[errors.HardwareError]:
    """Expect an error of this class and reason."""
    return pytest.raises(kind, match=match, check=lambda error: error.reason == reason)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on stderr: one line of an error, and the progress bar before it."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert TOKEN not in text
    lines = [line for line in text.splitlines() if line.startswith("qhdm:")]
    assert len(lines) == 1, lines
    return lines[0]


@dataclass
class Chain:
    """Dependent requests, sent as the sampler sends them: each has inputs of the result before.

    Attributes:
        folder: of the job.
        length: requests in it.
        told: what the user was told.
    """

    folder: JobDirectory
    length: int = 3
    told: list[str] = field(default_factory=list)

    @property
    def spec(self) -> JobSpec:
        return self.folder.spec()

    @contextmanager
    def submitter(self) -> Iterator[Submitter]:
        """As another process has it: with a ledger and a login of its own."""
        spec = self.spec
        with opened(self.folder) as ledger:
            yield Submitter(
                ledger, self.service(), name=ledger.fact("tag"), limits=spec.limits,
                warn=self.told.append,
            )  # fmt: skip

    def run(self) -> np.ndarray:
        """Go on to the end; returns the results of all steps."""
        with self.submitter() as submitter:
            submitter.start()
            results, angles = [], np.full((2, 2), 0.3)
            for step in range(self.length):
                (result,) = submitter.run((step, 0), "encoder", [self.request(angles)])
                results.append(result["0"])
                angles = angles + result["0"] / 100
            submitter.finish()
        return np.array(results)

    def request(self, angles: np.ndarray) -> Request:
        return request(angles, self.spec.executed_shots)

    def entries(self) -> list[RequestRecord]:
        with opened(self.folder) as ledger:
            return ledger.requests()

    def change(self, *settings: str) -> None:
        """Change the specification, as `--set` does."""
        self.folder.write_spec(self.folder.spec(settings))

    def service(self) -> RuntimeService:
        return RuntimeService(self.spec)


def request(angles: np.ndarray, shots: int) -> Request:
    """Two qubits of ibm_hanoi, turned by angles (rows, 2), and an empty circuit beside."""
    x = ParameterVector("x", 2)
    circuits = []
    for turned in (True, False):
        circuit = QuantumCircuit(27)
        circuit.add_register(ClassicalRegister(2, REGISTER))
        for i in range(2 * turned):
            circuit.sx(i)
            circuit.rz(x[i], i)
            circuit.sx(i)
        circuit.measure([0, 1], [0, 1])
        circuits.append(circuit)
    return Request([(circuits[0], angles), (circuits[1], np.empty((1, 0)))], (0, 1), shots, 2.01)
