"""OpenQASM 3 from untrusted sources: its cost and content are checked before a circuit is made.

Text that would take long to parse is refused (limits.py), `openqasm3` parses it, and a circuit is
made of the syntax tree if it contains only gates and final measurements (openqasm_reader.py).
"""

from __future__ import annotations

import contextlib
import io
import re

import openqasm3
from openqasm3 import ast
from qiskit.circuit import QuantumCircuit

from qhdm.errors import CircuitError, shortened
from qhdm.quantum.files.limits import check_text
from qhdm.quantum.files.openqasm_reader import ProgramReader


def read_openqasm3(
    text: str, source: str, *, max_qubits: int
) -> tuple[QuantumCircuit, dict[str, int]]:
    """The gates of an OpenQASM 3 program; final measurements are dropped.

    Args:
        text: the program.
        source: the file it came from, for messages.
        max_qubits: of all registers together.

    Returns:
        The circuit, its free parameters named as in the text, and the line of each declaration
        (1-based).

    Raises:
        CircuitError: naming the line: not OpenQASM 3, or more than gates and final measurements,
            or larger than the limits.
    """
    check_text(text, source)
    reader = ProgramReader(source, max_qubits)
    return reader.read(_parse(text, source)), reader.inputs


def _parse(text: str, source: str) -> ast.Program:
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the parser prints what it also raises
            return openqasm3.parse(text)
    except RecursionError:
        raise CircuitError(f"{source}: nested too deeply; write the expressions out") from None
    except Exception as error:  # the parser raises many kinds, most without a message
        raise CircuitError(f"{_place(error, text, source)}: not valid OpenQASM 3") from None


def _place(error: BaseException | None, text: str, source: str) -> str:
    """`file:line` of a syntax error, as far as the parser gives it, and what stands there."""
    while error is not None:
        for item in (error, *error.args):
            token = getattr(item, "offendingToken", None)
            if token is not None:
                if token.text == "<EOF>":
                    return f"{source}:{len(text.splitlines())}: unexpected end"
                return f"{source}:{token.line}: at {shortened(token.text)!r}"
        line = re.match(r"L(\d+):", str(error))
        if line:
            return f"{source}:{line[1]}"
        error = error.__cause__
    return source
