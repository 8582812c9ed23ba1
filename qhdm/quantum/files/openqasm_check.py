"""What a syntax tree of OpenQASM 3 may hold and cost, before a circuit is made of it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from openqasm3 import ast
from openqasm3.visitor import QASMVisitor
from qiskit.circuit.library import get_standard_gate_name_mapping

from qhdm.errors import CircuitError, shortened
from qhdm.quantum.files.openqasm_flatten import (
    angles_of,
    controls_of,
    exponent_of,
    integer_value,
    parameters_in,
)

#: Gates after all definitions are written out, controls counted at what they cost to make. The
#: circuit itself is held to fewer (qhdm.quantum.files.load).
MAX_WORK = 200_000
#: Terms that nested definitions may make of one angle.
MAX_TERMS = 1000
#: Definitions within definitions.
MAX_DEPTH = 100
#: Controls that `ctrl @` may add to a gate, and qubits of one that a fractional `pow` may change.
MAX_CONTROLS = 16
MAX_POWER_QUBITS = 4

#: Standard gates of OpenQASM whose names in Qiskit are others.
_OTHER_NAMES = {"U": "u", "CX": "cx", "phase": "p", "cphase": "cp"}
#: Gates that the language has, and those of stdgates.inc.
_BUILT_IN = ("U",)
_STDGATES = (
    *("p", "x", "y", "z", "h", "s", "sdg", "t", "tdg", "sx", "rx", "ry", "rz", "cx", "cy", "cz"),
    *("cp", "crx", "cry", "crz", "ch", "swap", "ccx", "cswap", "cu", "CX", "phase", "cphase"),
    *("id", "u1", "u2", "u3"),
)
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


@dataclass
class _Cost:
    """What one call of a gate comes to.

    Attributes:
        gates: written out.
        terms: of its largest angle.
        qubits, angles: that it takes; angles are None where that is not known.
        depth: definitions within definitions.
    """

    gates: int = 1
    terms: int = 1
    qubits: int = 1
    angles: int | None = None
    depth: int = 0


@dataclass
class ProgramCheck(QASMVisitor[None]):
    """Refuses a syntax tree that holds more than a filter may, or would cost too much to build.

    Args:
        source: the file it came from, for messages.
        max_qubits: of all registers together.

    Attributes:
        inputs: the line of each free parameter's declaration (1-based).
    """

    source: str
    max_qubits: int
    inputs: dict[str, int] = field(default_factory=dict)
    registers: dict[str, int] = field(default_factory=dict)
    declared: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_BUILT_IN, 0))
    gates: dict[str, _Cost] = field(default_factory=dict)
    measured: set[tuple[str, int]] = field(default_factory=set)
    work: int = 0
    qubits: int = 0

    def fail(self, node: ast.QASMNode, message: str) -> NoReturn:
        line = f":{_line(node)}" if node.span else ""
        raise CircuitError(f"{self.source}{line}: {shortened(message)}")

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
        for name in _STDGATES:
            self._declare(node, name)

    def visit_IODeclaration(self, node: ast.IODeclaration) -> None:  # noqa: N802
        number = isinstance(node.type, ast.FloatType | ast.AngleType)
        if node.io_identifier is not ast.IOKeyword.input or not number:
            self.fail(node, "only `input float` and `input angle` declare parameters")
        self._declare(node, node.identifier.name)
        self.inputs[node.identifier.name] = _line(node)

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
            self._measure(node.init_expression)
        self._register(node, node.identifier.name, node.type.size)

    def visit_QuantumGateDefinition(self, node: ast.QuantumGateDefinition) -> None:  # noqa: N802
        total = _Cost(gates=0, qubits=len(node.qubits), angles=len(node.arguments))
        if total.qubits > self.max_qubits:
            self.fail(node, f"a gate on {total.qubits} qubits; at most {self.max_qubits} are read")
        for statement in node.body:
            if not isinstance(statement, ast.QuantumGate | ast.QuantumPhase):
                self.fail(statement, "a gate definition holds gates alone")
            cost = self._call(statement)
            total.gates += cost.gates
            total.terms = max(total.terms, cost.terms)
            total.depth = max(total.depth, cost.depth + 1)
            operands = [qubit.name for qubit in statement.qubits if hasattr(qubit, "name")]
            if len(set(operands)) < len(operands):
                self.fail(statement, "a qubit twice in one gate; name different qubits")
        self._declare(node, node.name.name)
        self.gates[node.name.name] = total
        if total.depth > MAX_DEPTH:
            self.fail(node, f"more than {MAX_DEPTH} definitions within definitions; write some out")
        self._bound(node, total)

    def visit_QuantumGate(self, node: ast.QuantumGate) -> None:  # noqa: N802
        self._statement(node)

    def visit_QuantumPhase(self, node: ast.QuantumPhase) -> None:  # noqa: N802
        self._statement(node)

    def visit_QuantumBarrier(self, node: ast.QuantumBarrier) -> None:  # noqa: N802
        for qubit in node.qubits:
            self.places(qubit)

    def visit_QuantumMeasurementStatement(  # noqa: N802
        self, node: ast.QuantumMeasurementStatement
    ) -> None:
        self.work += self._measure(node.measure)

    def _register(self, node: ast.Statement, name: str, size: ast.Expression | None) -> None:
        if size is not None and not isinstance(size, ast.IntegerLiteral):
            self.fail(node, "the size of a register must be a plain number")
        count = 1 if size is None else size.value
        if not 1 <= count <= self.max_qubits:
            self.fail(node, f"a register of {count}; 1 to {self.max_qubits} are read")
        self._declare(node, name)
        self.registers[name] = count

    def _declare(self, node: ast.QASMNode, name: str) -> None:
        if name in self.declared:
            line = self.declared[name]
            self.fail(node, f"{name} is already defined" + (f" in line {line}" if line else ""))
        self.declared[name] = _line(node)

    def _statement(self, node: ast.QuantumGate | ast.QuantumPhase) -> None:
        cost = self._call(node)
        self.work += cost.gates * self._act(node)
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
            name = node.name.name
            if name not in self.declared:
                self.fail(node, f"gate {name!r} is not defined")
            called = self.gates.get(name) or _standard(name) or called
            if node.duration is not None:
                self.fail(node, "gates with durations are not read")
            given = len(node.arguments)
            if called.angles is not None and called.angles != given:
                takes = f"{called.angles} angle{'s' * (called.angles != 1)}"
                self.fail(node, f"{name} takes {takes}, not {given}")
        terms = max([1, *(self._terms(angle) for angle in angles_of(node))])
        controls, times = 0, 1
        for modifier in reversed(node.modifiers):  # the last acts first
            value = modifier.argument
            if modifier.modifier is ast.GateModifierName.pow:
                times *= self._repetitions(node, modifier, called.qubits + controls)
            elif modifier.modifier is not ast.GateModifierName.inv:
                if value is not None and not isinstance(value, ast.IntegerLiteral):
                    self.fail(node, "the number of controls must be a plain number")
                controls += controls_of(modifier)
        if controls > MAX_CONTROLS:
            self.fail(node, f"{controls} controls; at most {MAX_CONTROLS} are read")
        operands = called.qubits + controls
        if called.angles is not None and operands != len(node.qubits):
            self.fail(
                node,
                f"acts on {operands} qubit{'s' * (operands != 1)}, given are {len(node.qubits)}",
            )
        # A controlled gate is synthesised gate by gate.
        gates = called.gates * (1 + 8 * controls * controls) * times
        return _Cost(gates, called.terms * terms, depth=called.depth)

    def _repetitions(
        self, node: ast.QuantumGate | ast.QuantumPhase, power: ast.QuantumGateModifier, qubits: int
    ) -> int:
        """How many times a power applies what it acts on."""
        value = power.argument
        number = value.expression if isinstance(value, ast.UnaryExpression) else value
        if not isinstance(number, ast.IntegerLiteral | ast.FloatLiteral):
            self.fail(node, "the exponent of pow must be a plain number")
        if number.value > MAX_WORK:
            self.fail(node, f"an exponent above {MAX_WORK:,}")
        if exponent_of(power).is_integer():
            return max(1, abs(int(exponent_of(power))))
        if qubits > MAX_POWER_QUBITS:
            self.fail(node, f"a fractional pow is read of gates on up to {MAX_POWER_QUBITS} qubits")
        if any(True for angle in angles_of(node) for _ in parameters_in(angle)):
            self.fail(
                node,
                "a fractional pow is read of gates with plain numbers alone: which root it takes "
                "would depend on the value; write the fraction into the angles",
            )
        return 1

    def _terms(self, angle: ast.Expression) -> int:
        """Terms of an angle, which must be arithmetic of numbers and parameters."""
        if isinstance(angle, ast.FloatLiteral) and not math.isfinite(angle.value):
            self.fail(angle, "a number too large for an angle")
        if isinstance(angle, ast.BinaryExpression) and angle.op.name in _ARITHMETIC:
            if angle.op.name == "/":
                self._exact(angle)
            return self._terms(angle.lhs) + self._terms(angle.rhs)
        if isinstance(angle, ast.UnaryExpression) and angle.op.name == "-":
            return self._terms(angle.expression)
        if isinstance(angle, ast.Identifier | ast.IntegerLiteral | ast.FloatLiteral):
            return 1
        self.fail(angle, "angles are made of numbers and parameters with + - * / alone")

    def _exact(self, division: ast.BinaryExpression) -> None:
        """Refuse the division of integers with a remainder, which OpenQASM drops."""
        above, below = integer_value(division.lhs), integer_value(division.rhs)
        if below == 0:
            self.fail(division, "division by 0")
        if above is not None and below is not None and above % below:
            self.fail(
                division,
                f"{above}/{below} divides integers, and is {int(above / below)} in OpenQASM; write "
                f"{above}.0/{below}",
            )

    def _act(self, node: ast.QuantumGate | ast.QuantumPhase) -> int:
        """How many times a statement applies its gate, over registers."""
        operands = [self.places(qubit) for qubit in node.qubits]
        width = max([1, *map(len, operands)])
        for i in range(width):
            together = [operand[min(i, len(operand) - 1)] for operand in operands if operand]
            for position, (name, index) in enumerate(together):
                if (name, index) in together[:position]:
                    self.fail(node, f"{name}[{index}] twice in one gate; name different qubits")
        after = next((q for operand in operands for q in operand if q in self.measured), None)
        if after:
            self.fail(
                node,
                f"a gate on {after[0]}[{after[1]}] follows a measurement; measurements may stand "
                "at the end alone",
            )
        return width

    def _measure(self, node: ast.QuantumMeasurement) -> int:
        """How many qubits are measured."""
        qubits = self.places(node.qubit)
        self.measured.update(qubits)
        return max(1, len(qubits))

    def places(self, node: ast.QASMNode) -> list[tuple[str, int]]:
        """The qubits that an operand names: register and index; none of an unknown register."""
        indices: list[ast.IndexElement] = []
        if isinstance(node, ast.IndexedIdentifier):
            name, indices = node.name.name, node.indices
        elif isinstance(node, ast.Identifier):
            name = node.name
        else:
            self.fail(node, "qubits are named by their register alone")
        if name.startswith("$"):
            self.fail(
                node, "physical qubits are not read: <Z_i> is read by the order of a register"
            )
        if name not in self.registers:
            return []
        size = self.registers[name]
        if not indices:
            return [(name, index) for index in range(size)]
        if len(indices) > 1 or (isinstance(indices[0], list) and len(indices[0]) > 1):
            self.fail(node, "a register has one index")
        return [(name, index) for index in self._indices(node, name, indices[0])]

    def _indices(self, node: ast.QASMNode, name: str, element: ast.IndexElement) -> Sequence[int]:
        """The indices, from 0 up, that `element` selects of a register."""
        size = self.registers[name]

        def number(value: ast.QASMNode) -> int:
            sign = 1
            if isinstance(value, ast.UnaryExpression) and value.op.name == "-":
                sign, value = -1, value.expression
            if not isinstance(value, ast.IntegerLiteral):
                self.fail(node, "indices are plain numbers")
            return sign * value.value

        def index(value: ast.QASMNode) -> int:
            given = number(value)
            if not -size <= given < size:
                self.fail(node, f"there is no {name}[{given}]; {name} has indices 0 to {size - 1}")
            return given % size

        if isinstance(element, ast.DiscreteSet):
            return [index(value) for value in element.values]
        (only,) = element
        if not isinstance(only, ast.RangeDefinition):
            return [index(only)]
        step = 1 if only.step is None else number(only.step)
        if not step:
            self.fail(node, "the step of a range is not 0")
        first = 0 if step > 0 else size - 1
        start = first if only.start is None else index(only.start)
        end = size - 1 - first if only.end is None else index(only.end)
        return range(start, end + (1 if step > 0 else -1), step)  # the end is part of the range


def _standard(name: str) -> _Cost | None:
    """The cost of a gate of the standard library."""
    gate = get_standard_gate_name_mapping().get(_OTHER_NAMES.get(name, name))
    return None if gate is None else _Cost(qubits=gate.num_qubits, angles=len(gate.params))


def _line(node: ast.QASMNode) -> int:
    return node.span.start_line if node.span else 0
