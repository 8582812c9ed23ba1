"""IBM's service on 127.0.0.1: what its client asks for, executed by Aer, with faults on demand.

It speaks the REST calls of qiskit-ibm-runtime 0.51: the client is the real one, redirected by
environment variables alone.
"""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from ibm_quantum_schemas.common import CompressedTensorModel
from ibm_quantum_schemas.executor.version_2_0 import (
    ItemMetadataModel,
    MetadataModel,
    QuantumProgramResultItemModel,
    QuantumProgramResultModel,
)
from qiskit_ibm_runtime.fake_provider import FakeHanoiV2
from qiskit_ibm_runtime.quantum_program.converters.converters_2_0 import passthrough_data_to_2_0
from qiskit_ibm_runtime.quantum_program.params_converters import QUANTUM_PROGRAM_PARAMS_CONVERTERS

from qhdm.hardware.local import LocalDevice
from qhdm.hardware.runtime import execute

TOKEN = "a-token-that-nobody-may-see-4711"
CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/account:instance::"
BACKEND = "ibm_hanoi"
#: What redirects the client; each must point to this machine.
VARIABLES = ("QISKIT_IBM_URL", "IAM_URL", "GLOBAL_SEARCH_URL", "GLOBAL_CATALOG_URL")
_PREFIX = "/experimental/api/v1"


def environment(port: int) -> dict[str, str]:
    """The variables that send the client to this server."""
    here = f"http://127.0.0.1:{port}"
    return {
        "QISKIT_IBM_URL": here + _PREFIX,
        "QISKIT_IBM_TOKEN": TOKEN,
        "QISKIT_IBM_INSTANCE": CRN,
        "IAM_URL": here,
        "GLOBAL_SEARCH_URL": here,
        "GLOBAL_CATALOG_URL": here,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def refuse_unless_loopback(variables: Mapping[str, str]) -> None:
    """Raise unless every variable points to this machine: no test talks to the real service."""
    for name in VARIABLES:
        host = urllib.parse.urlparse(variables.get(name, "")).hostname
        if host != "127.0.0.1":
            raise RuntimeError(f"{name} points to {host}, not to 127.0.0.1")
    if not variables.get("QISKIT_IBM_TOKEN", TOKEN) or "127.0.0.1" not in variables["NO_PROXY"]:
        raise RuntimeError("NO_PROXY does not name 127.0.0.1")


@dataclass
class Job:
    """A job as the service knows it."""

    id: str
    tags: list[str]
    params: dict[str, Any]
    session: str | None
    max_seconds: int | None
    status: str = "Queued"
    reason: str = ""
    code: int | None = None
    result: str = ""
    done: threading.Event = field(default_factory=threading.Event)


class RuntimeServer(ThreadingHTTPServer):
    """The service.

    Attributes:
        jobs: in the order they were made.
        requests: method and path of each, in order.
        faults: for a method and path ("POST /jobs"), what to do with the next requests: `None` is
            nothing; an HTTP status answers with it; `drop` acts, then closes the connection without
            an answer; `refuse` closes it without acting.
        fates: of the next jobs: `failed`, `cancelled`, `too long`, `lost` or None.
        held: jobs stay in the queue.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *, noisy: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.backend = FakeHanoiV2()
        self.device = LocalDevice(self.backend.target, noisy=noisy)
        self.jobs: dict[str, Job] = {}
        self.requests: list[str] = []
        self.faults: dict[str, list[Any]] = {}
        self.fates: list[str | None] = []
        self.held = False
        self.usage_limit_reached = False
        self.status = "active"
        self.backends = [BACKEND]
        self.sessions: dict[str, dict[str, Any]] = {}
        self.page = 20
        self.delay = 0.0
        self.lock = threading.RLock()
        self._execution = threading.Lock()
        threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed hang up: no news."""

    @property
    def port(self) -> int:
        return self.server_address[1]

    def make_job(self, payload: dict[str, Any]) -> Job:
        with self.lock:
            job = Job(
                f"job{len(self.jobs):04d}",
                payload.get("tags", []),
                payload["params"],
                payload.get("session_id"),
                payload.get("cost"),
            )
            self.jobs[job.id] = job
            fate = self.fates.pop(0) if self.fates else None
        if fate in ("failed", "cancelled", "too long"):
            job.status = {"failed": "Failed"}.get(fate, "Cancelled")
            job.reason = {"failed": "a qubit is broken", "too long": "ran too long"}.get(fate, "")
            job.code = {"failed": 1100, "too long": 1305}.get(fate)
            job.result = "Traceback: words of the service"
            job.done.set()
        elif not self.held:
            threading.Thread(target=self.execute, args=(job, fate == "lost"), daemon=True).start()
        return job

    def execute(self, job: Job, lost: bool = False) -> None:
        job.status = "Running"
        time.sleep(self.delay)
        converter = QUANTUM_PROGRAM_PARAMS_CONVERTERS[job.params["schema_version"]]
        with self._execution:
            program, _ = converter.decoder(converter.model.model_validate(job.params))
            for item in program.items:
                if hasattr(item, "samplex"):
                    item.samplex.finalize()
            result = execute(program, self.device)
            model = QuantumProgramResultModel(
                data=[
                    QuantumProgramResultItemModel(
                        results={
                            key: CompressedTensorModel.from_numpy(value)
                            for key, value in item.items()
                        },
                        metadata=ItemMetadataModel(),
                    )
                    for item in result
                ],
                metadata=MetadataModel(chunk_timing=[]),
                passthrough_data=passthrough_data_to_2_0(program.passthrough_data),
                semantic_role=program._semantic_role,
            )
        job.result = "" if lost else model.model_dump_json()
        if job.status == "Running":
            job.status = "Completed"
        job.done.set()


def _json_of(backend: FakeHanoiV2, name: str) -> Any:
    """One of the fake device's own files: what the real service answers."""
    return json.loads((Path(backend.dirname) / getattr(backend, name)).read_text())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RuntimeServer

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PATCH(self) -> None:
        self._handle("PATCH")

    def do_DELETE(self) -> None:
        self._handle("DELETE")

    def _handle(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        parsed = urllib.parse.urlparse(self.path)
        path = parsed.path.removeprefix(_PREFIX)
        query = urllib.parse.parse_qs(parsed.query)
        server = self.server
        with server.lock:
            server.requests.append(f"{method} {path}")
            waiting = server.faults.get(f"{method} {path}", [])
            fault = waiting.pop(0) if waiting else None
        if fault == "refuse":
            self._hang_up()
            return
        if isinstance(fault, int):
            self._answer({"error": {"message": "as told", "code": fault}}, fault, retry=0)
            return
        answer = self._respond(method, path, query, body)
        if fault == "drop":
            self._hang_up()
            return
        self._answer(*answer)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, content: Any, status: int = 200, retry: int | None = None) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if retry is not None and status == 429:
                self.send_header("Retry-After", str(retry))
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client was killed

    def _respond(self, method: str, path: str, query: dict, body: bytes) -> tuple[Any, int]:
        server, parts = self.server, path.strip("/").split("/")
        if path == "/identity/token":
            form = urllib.parse.parse_qs(body.decode())
            if form.get("apikey") != [TOKEN]:
                return {"errorCode": "BXNIM0415E", "errorMessage": "API key not found"}, 400
            now = int(time.time())
            token = jwt.encode({"iat": now, "exp": now + 3600}, "k" * 32, algorithm="HS256")
            return {
                "access_token": token,
                "refresh_token": "none",
                "token_type": "Bearer",
                "expires_in": 3600,
                "expiration": now + 3600,
            }, 200
        if path == "/v3/resources/search":
            return {
                "items": [
                    {
                        "crn": CRN,
                        "service_plan_unique_id": "plan",
                        "name": "test",
                        "tags": [],
                        "doc": {"extensions": {"quantum": "yes"}},
                    }
                ]
            }, 200
        if path == "/plan":
            return {
                "overview_ui": {"en": {"display_name": "Open"}},
                "metadata": {"pricing": {"type": "free"}},
            }, 200
        if self.headers.get("Service-CRN") != CRN:
            return {"error": {"message": "no such instance", "code": 1}}, 403
        if path == "/backends":
            return {
                "devices": [
                    {"name": name, "qubits": 27, "queue_length": 0, "status": {"name": "online"}}
                    for name in server.backends
                ]
            }, 200
        if parts[0] == "backends" and parts[1] in server.backends:
            return self._backend(parts[2]), 200
        if path == "/instances/usage":
            return {
                "usage_limit_seconds": 600,
                "usage_consumed_seconds": 0,
                "usage_limit_reached": server.usage_limit_reached,
            }, 200
        if parts[0] == "sessions":
            return self._session(method, parts[1:], body)
        if parts[0] == "jobs":
            return self._jobs(method, parts[1:], query, body)
        return {"error": {"message": "not found", "code": 404}}, 404

    def _backend(self, what: str) -> Any:
        backend = self.server.backend
        if what == "configuration":
            return {**_json_of(backend, "conf_filename"), "backend_name": BACKEND}
        if what == "properties":
            return _json_of(backend, "props_filename")
        return {
            "state": self.server.status != "off",
            "status": self.server.status,
            "length_queue": 0,
            "backend_version": "1.0.0",
        }

    def _session(self, method: str, parts: list[str], body: bytes) -> tuple[Any, int]:
        sessions = self.server.sessions
        if method == "POST":
            name = f"session{len(sessions)}"
            sessions[name] = {
                "id": name,
                "state": "open",
                "accepting_jobs": True,
                "backend_name": BACKEND,
                "mode": json.loads(body)["mode"],
            }
            return sessions[name], 200
        if parts[0] not in sessions:
            return {"error": {"message": "session not found", "code": 404}}, 404
        if method in ("PATCH", "DELETE"):
            sessions[parts[0]] |= {"state": "closed", "accepting_jobs": False}
        return sessions[parts[0]], 200

    def _jobs(self, method: str, parts: list[str], query: dict, body: bytes) -> tuple[Any, int]:
        server = self.server
        if method == "POST" and not parts:
            payload = json.loads(body)
            session = server.sessions.get(payload.get("session_id"))
            if session and session["state"] == "closed":
                return {"error": {"message": "The session is closed.", "code": 1217}}, 400
            job = server.make_job(payload)
            return {"id": job.id, "backend": payload["backend"]}, 200
        if not parts:
            wanted = set(query.get("tags", []))
            with server.lock:
                found = [j for j in server.jobs.values() if wanted <= set(j.tags)]
            if query.get("sort") != ["ASC"]:
                found.reverse()
            start = int(query.get("offset", ["0"])[0])
            stop = start + min(int(query.get("limit", ["20"])[0]), server.page)
            return {
                "jobs": [self._described(j) for j in found[start:stop]],
                "count": len(found),
            }, 200
        job = server.jobs.get(parts[0])
        if job is None:
            return {"error": {"message": "job not found", "code": 404}}, 404
        if parts[1:] == ["results"]:
            return job.result, 200
        if parts[1:] == ["metrics"]:
            used = 1.5 if job.status == "Completed" else 0.0
            return {"usage": {"status": "final", "qpu_charge_time_seconds": used}}, 200
        if parts[1:] == ["cancel"]:
            if job.status in ("Completed", "Failed", "Cancelled"):
                return {"error": {"message": "has ended", "code": 409}}, 409
            job.status = "Cancelled"
            return "", 200
        return self._described(job), 200

    def _described(self, job: Job) -> dict[str, Any]:
        state = {"status": job.status, "reason": job.reason, "reason_code": job.code}
        return {
            "id": job.id,
            "backend": BACKEND,
            "state": state,
            "status": job.status,
            "program": {"id": "executor"},
            "created": "2026-01-01T00:00:00.000Z",
            "tags": job.tags,
            "session_id": job.session,
        }
