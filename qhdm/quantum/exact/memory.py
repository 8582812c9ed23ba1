"""Check that the machine has the memory for a simulation before it starts."""

from __future__ import annotations

import psutil

from qhdm.errors import EngineError


def require_memory(needed: int, what: str, remedy: str) -> None:
    """Refuse a simulation that does not fit into memory.

    Args:
        needed: bytes.
        what: needs them, for the message.
        remedy: what else can be done.

    Raises:
        EngineError: less is available.
    """
    available = psutil.virtual_memory().available
    if needed > available:
        raise EngineError(
            f"{what}: needs {needed / 2**30:,.0f} GiB of memory, {available / 2**30:,.1f} GiB are "
            f"available; use fewer qubits, or {remedy}"
        )
