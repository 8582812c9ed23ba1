"""OpenQASM 3 from anyone: what a file may cost and hold is settled before a circuit is made of it.

What would take long to parse is refused on the text (qhdm.quantum.openqasm_text); `openqasm3` parses
it; the syntax tree is checked here against a list of what a filter may hold; `qiskit_qasm3_import`
then makes the circuit.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import openqasm3
from openqasm3 import ast
from openqasm3.visitor import QASMVisitor
from qiskit.circuit import QuantumCircuit
from qiskit_qasm3_import import ConversionError, convert

from qhdm.errors import CircuitError
from qhdm.quantum.openqasm_text import check_text

#: Gates after all definitions are written out, controls counted at what they cost to make. The
#: circuit itself is held to fewer (qhdm.quantum.library).
MAX_WORK = 200_000
#: Terms that nested definitions may make of one angle.
MAX_TERMS = 1000
#: Controls that `ctrl @` may add to a gate, and qubits of a gate that `pow` may change.
MAX_CONTROLS = 16
MAX_POWER_QUBITS = 4

_ARITHMETIC = {"+", "-", "*", "/"}
_REFUSED = {
    ast.ForInLoop: "loops are not read; write the gates out",
    ast.WhileLoop: "loops are not read; write the gates out",
    ast.BranchingStatement: "classical conditions are not read; a filter is gates alone",
    ast.SwitchStatement: "classical conditions are not read; a filter is gates alone",
    ast.QuantumReset: "reset is not a unitary gate; a filter is gates alone",
    ast.AliasStatement: "aliases are not read; name the qubits by their register",
    ast.ConstantDeclaration: "constants are not read; write their values",
    ast.SubroutineDefinition: "subroutines are not read; use gate definitions",
    ast.Box: "boxes are not read; write the gates alone",
    ast.DelayInstruction: "delays are not read; a filter is gates alone",
}


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
    check = _Check(source, max_qubits)
    check.visit(program)
    try:
        return convert(program), check.inputs
    except ConversionError as error:
        place = re.match(r"(\d+),\d+: ", str(error))
        where = f"{source}:{place[1]}" if place else source
        raise CircuitError(
            f"{where}: {str(error).removeprefix(place[0] if place else '')}"
        ) from None
    except Exception as error:  # Qiskit raises many kinds for what it cannot build
        raise CircuitError(f"{source}: not a circuit Qiskit can build: {error}") from None


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
                return f"{source}:{token.line}: at {token.text!r}"
        line = re.match(r"L(\d+):", str(error))
        if line:
            return f"{source}:{line[1]}"
        error = error.__cause__
    return source


@dataclass
class _Cost:
    """What one call of a gate comes to: gates written out, and terms of its largest angle."""

    gates: int = 1
    terms: int = 1
    qubits: int = 1


@dataclass
class _Check(QASMVisitor[None]):
    """Refuses a syntax tree that holds more than a filter may, or would cost too much to build.

    Gate parameters are renamed on the way: `qiskit_qasm3_import` (0.6) binds the arguments of a
    call in the alphabetical order of the definition's parameters, not in their own.
    """

    source: str
    max_qubits: int
    inputs: dict[str, int] = field(default_factory=dict)
    registers: dict[str, int] = field(default_factory=dict)
    gates: dict[str, _Cost] = field(default_factory=dict)
    work: int = 0
    qubits: int = 0

    def fail(self, node: ast.QASMNode, message: str) -> NoReturn:
        line = f":{node.span.start_line}" if node.span else ""
        raise CircuitError(f"{self.source}{line}: {message}")

    def generic_visit(self, node: ast.QASMNode, context: None = None) -> None:
        name = re.sub(r"(?<!^)([A-Z])", r" \1", type(node).__name__).lower()
        self.fail(node, _REFUSED.get(type(node), f"a {name} is not read; a filter is gates alone"))

    def visit_Program(self, node: ast.Program) -> None:  # noqa: N802 (named after the node)
        if node.version and node.version.split(".")[0] != "3":
            self.fail(node, f"is OpenQASM {node.version}; only OpenQASM 3 holds free parameters")
        for statement in node.statements:
            if isinstance(statement, ast.Statement) and statement.annotations:
                self.fail(statement, "annotations are not read; leave them out")
            self.visit(statement)

    def visit_Include(self, node: ast.Include) -> None:  # noqa: N802
        if node.filename != "stdgates.inc":
            self.fail(node, f"only stdgates.inc is included, not {node.filename!r}")

    def visit_IODeclaration(self, node: ast.IODeclaration) -> None:  # noqa: N802
        number = isinstance(node.type, ast.FloatType | ast.AngleType)
        if node.io_identifier is not ast.IOKeyword.input or not number:
            self.fail(node, "only `input float` and `input angle` declare parameters")
        self.inputs[node.identifier.name] = node.span.start_line if node.span else 0

    def visit_QubitDeclaration(self, node: ast.QubitDeclaration) -> None:  # noqa: N802
        self._register(node, node.qubit.name, node.size)
        self.qubits += self.registers[node.qubit.name]
        if self.qubits > self.max_qubits:
            self.fail(node, f"declares {self.qubits} qubits; at most {self.max_qubits} are read")

    def visit_ClassicalDeclaration(self, node: ast.ClassicalDeclaration) -> None:  # noqa: N802
        if not isinstance(node.type, ast.BitType):
            self.fail(node, "classical variables other than bits are not read")
        if node.init_expression is not None:
            if not isinstance(node.init_expression, ast.QuantumMeasurement):
                self.fail(node, "classical values are not read")
            self._width([node.init_expression.qubit])
        self._register(node, node.identifier.name, node.type.size)

    def visit_QuantumGateDefinition(self, node: ast.QuantumGateDefinition) -> None:  # noqa: N802
        names = {argument.name: f"_p{i:04d}" for i, argument in enumerate(node.arguments)}
        total = _Cost(gates=0, qubits=len(node.qubits))
        if total.qubits > self.max_qubits:
            self.fail(node, f"a gate on {total.qubits} qubits; at most {self.max_qubits} are read")
        for statement in node.body:
            if not isinstance(statement, ast.QuantumGate | ast.QuantumPhase):
                self.fail(statement, "a gate definition holds gates alone")
            cost = self._call(statement)
            total.gates += cost.gates
            total.terms = max(total.terms, cost.terms)
            for angle in _arguments(statement):
                for identifier in _identifiers(angle):
                    identifier.name = names.get(identifier.name, identifier.name)
        for argument in node.arguments:
            argument.name = names[argument.name]
        self.gates[node.name.name] = total
        self._bound(node, total)

    def visit_QuantumGate(self, node: ast.QuantumGate) -> None:  # noqa: N802
        self._statement(node)

    def visit_QuantumPhase(self, node: ast.QuantumPhase) -> None:  # noqa: N802
        self._statement(node)

    def visit_QuantumBarrier(self, node: ast.QuantumBarrier) -> None:  # noqa: N802
        self._width(node.qubits)

    def visit_QuantumMeasurementStatement(  # noqa: N802
        self, node: ast.QuantumMeasurementStatement
    ) -> None:
        self.work += self._width([node.measure.qubit])

    def _register(self, node: ast.Statement, name: str, size: ast.Expression | None) -> None:
        if size is not None and not isinstance(size, ast.IntegerLiteral):
            self.fail(node, "the size of a register must be a plain number")
        count = 1 if size is None else size.value
        if not 1 <= count <= self.max_qubits:
            self.fail(node, f"a register of {count}; 1 to {self.max_qubits} are read")
        self.registers[name] = count

    def _statement(self, node: ast.QuantumGate | ast.QuantumPhase) -> None:
        cost = self._call(node)
        self.work += cost.gates * self._width(node.qubits)
        self._bound(node, _Cost(self.work, cost.terms))

    def _bound(self, node: ast.QASMNode, cost: _Cost) -> None:
        if cost.gates > MAX_WORK:
            self.fail(node, f"comes to {cost.gates:,} gates when written out; use fewer")
        if cost.terms > MAX_TERMS:
            self.fail(node, f"an angle of {cost.terms:,} terms when written out; use fewer")

    def _call(self, node: ast.QuantumGate | ast.QuantumPhase) -> _Cost:
        """The cost of one application of a gate, without broadcasting over registers."""
        called = _Cost(qubits=len(node.qubits))
        if isinstance(node, ast.QuantumGate):
            called = self.gates.get(node.name.name, called)
            if node.duration is not None:
                self.fail(node, "gates with durations are not read")
        terms = max([1, *(self._terms(angle) for angle in _arguments(node))])
        controls = 0
        for modifier in node.modifiers:
            value = modifier.argument
            if modifier.modifier is ast.GateModifierName.pow:
                sign = isinstance(value, ast.UnaryExpression)
                number = value.expression if sign else value  # type: ignore[union-attr]
                if not isinstance(number, ast.IntegerLiteral | ast.FloatLiteral):
                    self.fail(node, "the exponent of pow must be a plain number")
                if called.qubits > MAX_POWER_QUBITS:
                    self.fail(node, f"pow is read of gates on up to {MAX_POWER_QUBITS} qubits")
            elif modifier.modifier is not ast.GateModifierName.inv:
                if value is not None and not isinstance(value, ast.IntegerLiteral):
                    self.fail(node, "the number of controls must be a plain number")
                controls += 1 if value is None else value.value
        if controls > MAX_CONTROLS:
            self.fail(node, f"{controls} controls; at most {MAX_CONTROLS} are read")
        # A controlled gate is synthesised gate by gate.
        return _Cost(called.gates * (1 + 8 * controls * controls), called.terms * terms)

    def _terms(self, angle: ast.Expression) -> int:
        """Terms of an angle, which must be arithmetic of numbers and parameters."""
        if isinstance(angle, ast.FloatLiteral) and not math.isfinite(angle.value):
            self.fail(angle, "a number too large for an angle")
        if isinstance(angle, ast.BinaryExpression) and angle.op.name in _ARITHMETIC:
            return self._terms(angle.lhs) + self._terms(angle.rhs)
        if isinstance(angle, ast.UnaryExpression) and angle.op.name == "-":
            return self._terms(angle.expression)
        if isinstance(angle, ast.Identifier | ast.IntegerLiteral | ast.FloatLiteral):
            return 1
        self.fail(angle, "angles are made of numbers and parameters with + - * / alone")

    def _width(self, qubits: Sequence[ast.QASMNode]) -> int:
        """On how many qubits of a register at most a statement acts at once."""
        width = 1
        for qubit in qubits:
            indices: list[ast.IndexElement] = []
            if isinstance(qubit, ast.IndexedIdentifier):
                name, indices = qubit.name.name, qubit.indices
            elif isinstance(qubit, ast.Identifier):
                name = qubit.name
            else:
                self.fail(qubit, "qubits are named by their register alone")
            if name.startswith("$"):
                self.fail(
                    qubit, "physical qubits are not read: <Z_i> is read by the order of a register"
                )
            single = any(
                isinstance(i, list) and isinstance(i[0], ast.IntegerLiteral) for i in indices
            )
            width = max(width, 1 if single else self.registers.get(name, 1))
        return width


def _arguments(node: ast.QuantumGate | ast.QuantumPhase) -> list[ast.Expression]:
    return [node.argument] if isinstance(node, ast.QuantumPhase) else node.arguments


def _identifiers(angle: ast.Expression) -> Iterator[ast.Identifier]:
    if isinstance(angle, ast.Identifier):
        yield angle
    elif isinstance(angle, ast.BinaryExpression):
        yield from _identifiers(angle.lhs)
        yield from _identifiers(angle.rhs)
    elif isinstance(angle, ast.UnaryExpression):
        yield from _identifiers(angle.expression)
