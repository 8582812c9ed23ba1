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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from qiskit_ibm_runtime.fake_provider import FakeHanoiV2
from runtime_jobs import ENDS, Job

from qhdm.hardware.simulator import DeviceSimulator

TOKEN = "a-token-that-nobody-may-see-4711"
CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/account:instance::"
OTHER_CRN = CRN.replace(":instance:", ":other:")
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
        # Otherwise the client looks through the whole stack of calls at each request.
        "USAGE_DATA_OPT_OUT": "True",
    }


def refuse_unless_loopback(variables: Mapping[str, str]) -> None:
    """Raise unless every variable points to this machine: no test talks to the real service."""
    for name in VARIABLES:
        host = urllib.parse.urlparse(variables.get(name, "")).hostname
        if host != "127.0.0.1":
            raise RuntimeError(f"{name} points to {host}, not to 127.0.0.1")
    if not variables.get("QISKIT_IBM_TOKEN", TOKEN) or "127.0.0.1" not in variables["NO_PROXY"]:
        raise RuntimeError("NO_PROXY does not name 127.0.0.1")


class RuntimeServer(ThreadingHTTPServer):
    """The service.

    Attributes:
        jobs: in the order they were made.
        requests: method and path of each, in order.
        faults: for a method and path ("POST /jobs"), or for all others ("*"), what to do with the
            next requests: `None` is nothing; an HTTP status answers with it and does nothing else;
            `drop` acts, then closes the connection without an answer; `refuse` closes it without
            acting; ("acts", status) acts and answers with the status; `empty` acts and answers
            nothing, `garbled` half.
        fates: of the next jobs: see `runtime_jobs`; `lost` has no result, None is good.
        held: jobs stay in the queue.
        lag: seconds until a job is listed.
        stubborn: a job that is cancelled completes all the same.
        reports_usage: tells the QPU seconds of jobs that have ended.
        usage_limit_reached: of the instance.
        status: of the backend.
        crns: of the instances that the account has.
        page: jobs in a page of the list.
        delay: seconds that a job runs.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *, noisy: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.backend = FakeHanoiV2()
        self.device = DeviceSimulator(self.backend.target, noisy=noisy)
        self.jobs: dict[str, Job] = {}
        self.requests: list[str] = []
        self.faults: dict[str, list[Any]] = {}
        self.fates: list[str | None] = []
        self.held = self.stubborn = False
        self.reports_usage = True
        self.lag = 0.0
        self.crns = [CRN]
        self.usage_limit_reached = False
        self.status = "active"
        self.backends = [BACKEND]
        self.sessions: dict[str, dict[str, Any]] = {}
        self.page = 20
        self.delay = 0.0
        self.lock = threading.RLock()
        self._execution = threading.Lock()
        self._tokens: set[str] = set()
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
                payload.get("crn", CRN),
                payload.get("tags", []),
                payload["params"],
                payload.get("session_id"),
                payload.get("cost"),
            )
            self.jobs[job.id] = job
            fate = self.fates.pop(0) if self.fates else None
        if fate in ENDS:
            job.end(fate)
        elif not self.held:
            threading.Thread(target=self.execute, args=(job, fate), daemon=True).start()
        return job

    def execute(self, job: Job, fate: str | None = None) -> None:
        job.status = "Running"
        time.sleep(self.delay)
        job.execute(self.device, self._execution, fate)

    def forget(self, job: Job) -> None:
        """Have a job no more."""
        job.crn = "nobody's"

    def new_token(self) -> str:
        """A token that is good until it is revoked."""
        now = int(time.time())
        claims = {"iat": now, "exp": now + 3600, "jti": str(len(self.requests))}
        token = jwt.encode(claims, "k" * 32, algorithm="HS256")
        self._tokens.add(token)
        return token

    def revoke(self) -> None:
        """Refuse all tokens that were given so far."""
        self._tokens.clear()

    def knows(self, authorization: str) -> bool:
        return authorization.removeprefix("Bearer ") in self._tokens


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
            # After a failed login the client waits a minute before the next.
            other = "*" if path != "/identity/token" else ""
            waiting = server.faults.get(f"{method} {path}") or server.faults.get(other, [])
            fault = waiting.pop(0) if waiting else None
        if fault == "refuse":
            self._hang_up()
            return
        if isinstance(fault, int):
            self._answer({"error": {"message": "as told", "code": fault}}, fault, retry=0)
            return
        content, status = self._respond(method, path, query, body)
        if fault == "drop":
            self._hang_up()
        elif isinstance(fault, tuple):
            self._answer({"error": {"message": "as told", "code": fault[1]}}, fault[1])
        elif fault in ("empty", "garbled"):
            text = content if isinstance(content, str) else json.dumps(content)
            self._answer(text[: len(text) // 2] if fault == "garbled" else "")
        else:
            self._answer(content, status)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, content: Any, status: int = 200, retry: int | None = None) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        data = b"" if status == 204 else data
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
            return {
                "access_token": server.new_token(),
                "refresh_token": "none",
                "token_type": "Bearer",
                "expires_in": 3600,
                "expiration": int(time.time()) + 3600,
            }, 200
        if path == "/v3/resources/search":
            return {
                "items": [
                    {
                        "crn": crn,
                        "service_plan_unique_id": "plan",
                        "name": "test",
                        "tags": [],
                        "doc": {"extensions": {"quantum": "yes"}},
                    }
                    for crn in server.crns
                ]
            }, 200
        if path == "/plan":
            return {
                "overview_ui": {"en": {"display_name": "Open"}},
                "metadata": {"pricing": {"type": "free"}},
            }, 200
        if not server.knows(self.headers.get("Authorization", "")):
            return {"error": {"message": "token expired or revoked", "code": 1}}, 401
        if self.headers.get("Service-CRN") not in server.crns:
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
                "max_ttl": 8 * 3600,
                "interactive_ttl": 60,
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
            payload = {**json.loads(body), "crn": self.headers["Service-CRN"]}
            session = server.sessions.get(payload.get("session_id"))
            if session and session["state"] == "closed":
                return {"error": {"message": "The session is closed.", "code": 1217}}, 400
            job = server.make_job(payload)
            return {"id": job.id, "backend": payload["backend"]}, 200
        if not parts:
            wanted, listed = set(query.get("tags", [])), time.monotonic() - server.lag
            with server.lock:
                found = [
                    job
                    for job in server.jobs.values()
                    if wanted <= set(job.tags)
                    and job.crn == self.headers["Service-CRN"]
                    and job.made <= listed
                ]
            if query.get("sort") != ["ASC"]:
                found.reverse()
            start = int(query.get("offset", ["0"])[0])
            stop = start + min(int(query.get("limit", ["20"])[0]), server.page)
            return {
                "jobs": [job.described(BACKEND) for job in found[start:stop]],
                "count": len(found),
            }, 200
        job = server.jobs.get(parts[0])
        if job is None or job.crn != self.headers["Service-CRN"]:
            return {"error": {"message": "job not found", "code": 404}}, 404
        if parts[1:] == ["results"]:
            return job.result, 200
        if parts[1:] == ["metrics"]:
            if not server.reports_usage:
                return {"usage": {"status": "pending", "qpu_charge_time_seconds": None}}, 200
            used = 1.5 if job.status == "Completed" else 0.0
            return {"usage": {"status": "final", "qpu_charge_time_seconds": used}}, 200
        if parts[1:] == ["cancel"]:
            if job.status in ("Completed", "Failed", "Cancelled"):
                return {"error": {"message": "has ended", "code": 409}}, 409
            if server.stubborn:
                threading.Thread(target=server.execute, args=(job,), daemon=True).start()
            else:
                job.status = "Cancelled"
            return "", 200
        params = {} if query.get("exclude_params") == ["true"] else {"params": job.params}
        return {**job.described(BACKEND), **params}, 200
