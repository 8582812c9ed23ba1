"""A page in headless Chromium, by its DevTools protocol: what it asks for and complains of."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

#: Nothing of the browser's own business; sandboxes are not allowed in most containers.
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
_PATIENCE = 60  # seconds


@dataclass
class Page:
    """A page that has been loaded.

    Attributes:
        requests: addresses that it asked for, itself and those within it left out.
        complaints: errors and warnings of its console.
    """

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    _socket: ClientConnection | None = None
    _last: int = 0
    _loaded: bool = False

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        assert self._socket is not None
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while (message := self._receive()).get("id") != self._last:
            pass
        return message["result"]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, path: Path) -> None:
        """Load a file, and wait until all that belongs to it is there."""
        for domain in ("Network", "Log", "Runtime", "Page"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=path.as_uri())
        while not self._loaded:
            self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self._socket is not None
        message: dict[str, Any] = json.loads(self._socket.recv(timeout=_PATIENCE))
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not url.startswith("data:") and parameters["type"] != "Document":
                self.requests.append(url)
        elif method == "Log.entryAdded":
            self.complaints.append(parameters["entry"]["text"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(parameters))
        elif method == "Page.loadEventFired":
            self._loaded = True
        return message


@contextmanager
def opened(path: Path, profile: Path, *, width: int = 1200) -> Iterator[Page]:
    """`path` in a browser window of that width, with a new profile."""
    assert CHROMIUM
    process = subprocess.Popen(
        [CHROMIUM, *_OPTIONS, f"--window-size={width},1000", f"--user-data-dir={profile}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with connect(_address(profile), max_size=None, open_timeout=_PATIENCE) as browser:
            session = Page(_socket=browser)
            target = session.call("Target.createTarget", url="about:blank")["targetId"]
        address = f"{_address(profile).rpartition('/devtools/')[0]}/devtools/page/{target}"
        with connect(address, max_size=None, open_timeout=_PATIENCE) as socket:
            page = Page(_socket=socket)
            page.open(path)
            yield page
    finally:
        process.terminate()
        process.wait(_PATIENCE)


def _address(profile: Path) -> str:
    """Where the browser listens: it writes port and path to a file of its profile."""
    file, end = profile / "DevToolsActivePort", time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if file.exists() and len(lines := file.read_text().split()) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.05)
    raise TimeoutError(f"{CHROMIUM} does not start")
