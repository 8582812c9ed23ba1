"""OpenQASM 3 from anyone: what a file may cost and hold is settled before a circuit is made of it.

Text that would take long to parse is refused (limits.py); `openqasm3` parses it; the syntax tree is
checked against what a filter may hold (openqasm_check.py) and written out by the rules of the
specification (openqasm_flatten.py); `qiskit_qasm3_import` then makes the circuit.
"""

from __future__ import annotations

import contextlib
import io
import re

import openqasm3
from openqasm3 import ast
from qiskit.circuit import QuantumCircuit
from qiskit_qasm3_import import ConversionError
from qiskit_qasm3_import.converter import ConvertVisitor
from qiskit_qasm3_import.state import State

from qhdm.errors import CircuitError, shortened
from qhdm.quantum.files.limits import check_text
from qhdm.quantum.files.openqasm_check import ProgramCheck
from qhdm.quantum.files.openqasm_flatten import flattened


def read_openqasm3(
    text: str, source: str, *, max_qubits: int
) -> tuple[QuantumCircuit, dict[str, int]]:
    """A circuit from OpenQASM 3.

    Measurements are kept; the caller decides about them.

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
    program = _parse(text, source)
    check = ProgramCheck(source, max_qubits)
    check.visit(program)
    converter = _Converter()
    try:
        return converter.convert(flattened(program, check.places)).circuit, check.inputs
    except ConversionError as error:
        place = re.match(r"(\d+),\d+: ", str(error))
        where = f"{source}:{place[1]}" if place else source
        message = str(error).removeprefix(place[0] if place else "")
        raise CircuitError(f"{where}: {shortened(message)}") from None
    except Exception as error:  # Qiskit raises many kinds for what it cannot build
        raise CircuitError(
            f"{source}:{converter.line}: Qiskit cannot build this ({type(error).__name__}); write "
            "it in plainer gates and angles"
        ) from None


class _Converter(ConvertVisitor):
    """Qiskit's converter, which remembers the statement that it is at."""

    line = 1

    def visit(self, node: ast.QASMNode, context: State | None = None) -> State:
        if isinstance(node, ast.Statement) and node.span:
            self.line = node.span.start_line
        return super().visit(node, context)


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
