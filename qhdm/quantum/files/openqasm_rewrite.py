"""A checked OpenQASM 3 program, rewritten so that Qiskit's converter gives the specified values.

Left alone, `qiskit_qasm3_import` (0.6) and the gates of Qiskit differ from the specification:

* `ctrl @` looks gates up by name: of a file's own `x` it makes a CNOT. Gates that a file defines
  are renamed.
* U(θ, φ, λ) of the specification is e^{iθ/2} times Qiskit's, and its u2 and u3 are
  Rz(φ) Ry(θ) Rz(λ); a control makes the phase visible. Definitions with the phase take their place.
* Qiskit (2.6) inverts a controlled `cu` wrongly: its phase is lost. Gates are inverted before they
  are controlled.
* Arguments of a call are bound in the alphabetical order of the definition's parameters, not in
  their own. Parameters are renamed.
* `pow` of gates with free parameters is not converted, and a fractional power of a rotation scales
  its angle, which is another branch than the specification's principal value. Whole powers become
  repetitions, and others are taken of a definition, of which Qiskit takes the principal value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

import openqasm3
from openqasm3 import ast

#: Names that stand for numbers.
CONSTANTS = {"pi", "π", "tau", "τ", "euler", "ℇ"}

#: Bodies are rewritten before their names are known: U is Qiskit's in that of U.
_U = "gate U(t, p, l) q { gphase(t / 2); U(t, p, l) q; }"
_U2_U3 = """
gate u2(p, l) q { rz(l) q; ry(pi / 2) q; rz(p) q; }
gate u3(t, p, l) q { rz(l) q; ry(t) q; rz(p) q; }
"""


def with_specified_values(program: ast.Program) -> ast.Program:
    """Rewrite a program that has been checked (`qhdm.quantum.files.openqasm`), in place.

    Statements keep the spans that they have in the text.
    """
    rewriter = _Rewriter()
    rewriter.add(_U)
    for statement in program.statements:
        rewriter.add_statement(statement)
        if isinstance(statement, ast.Include):
            rewriter.add(_U2_U3)
    program.statements = list(rewriter.statements)
    return program


def angles_of(node: ast.QuantumGate | ast.QuantumPhase) -> list[ast.Expression]:
    """The angles that a gate is called with."""
    return [node.argument] if isinstance(node, ast.QuantumPhase) else node.arguments


def identifiers(angle: ast.Expression) -> Iterator[ast.Identifier]:
    """The parameters in an angle, as often as they stand there."""
    if isinstance(angle, ast.Identifier):
        if angle.name not in CONSTANTS:
            yield angle
    elif isinstance(angle, ast.BinaryExpression):
        yield from identifiers(angle.lhs)
        yield from identifiers(angle.rhs)
    elif isinstance(angle, ast.UnaryExpression):
        yield from identifiers(angle.expression)


def exponent(modifier: ast.QuantumGateModifier) -> float:
    """The exponent of a `pow`, which is a plain number."""
    value, sign = modifier.argument, 1.0
    if isinstance(value, ast.UnaryExpression):
        value, sign = value.expression, -1.0
    assert isinstance(value, ast.IntegerLiteral | ast.FloatLiteral)
    return sign * value.value


def controls_of(modifier: ast.QuantumGateModifier) -> int:
    """The qubits that a modifier adds to a gate; their number is plain."""
    if modifier.modifier not in (ast.GateModifierName.ctrl, ast.GateModifierName.negctrl):
        return 0
    assert modifier.argument is None or isinstance(modifier.argument, ast.IntegerLiteral)
    return 1 if modifier.argument is None else modifier.argument.value


def _inverse_first(modifiers: list[ast.QuantumGateModifier]) -> list[ast.QuantumGateModifier]:
    """Equal modifiers that invert before they control; the only `pow` is the last."""
    controls = [m for m in modifiers if controls_of(m)]
    inverses = [m for m in modifiers if m.modifier is ast.GateModifierName.inv]
    powers = [m for m in modifiers if m.modifier is ast.GateModifierName.pow]
    return [*controls, *inverses[: len(inverses) % 2], *powers]


class _Rewriter:
    """Statements so far, and the names that gates have in them."""

    def __init__(self) -> None:
        self.statements: list[ast.Statement | ast.Pragma] = []
        self._names: dict[str, str] = {}
        self._numbers = count()

    def add(self, definitions: str) -> None:
        """Add definitions given as text."""
        for statement in openqasm3.parse(definitions).statements:
            self.add_statement(statement)

    def add_statement(self, statement: ast.Statement | ast.Pragma) -> None:
        """Add a statement, with the definitions that it needs before it."""
        if isinstance(statement, ast.QuantumGateDefinition):
            # No identifier holds an @: nobody else has these names, in the file or in Qiskit.
            name = f"{statement.name.name}@{next(self._numbers)}"
            angles = {a.name: f"_p{next(self._numbers):06d}" for a in statement.arguments}
            statement.body = [
                self._rewritten(inner, angles)
                for inner in statement.body
                if isinstance(inner, ast.QuantumGate | ast.QuantumPhase)  # the check lets no other
            ]
            for argument in statement.arguments:
                argument.name = angles[argument.name]
            self._names[statement.name.name] = name
            statement.name = ast.Identifier(name)
        elif isinstance(statement, ast.QuantumGate | ast.QuantumPhase):
            statement = self._rewritten(statement, {})
        self.statements.append(statement)

    def _rewritten(
        self, node: ast.QuantumGate | ast.QuantumPhase, angles: Mapping[str, str]
    ) -> ast.QuantumGate | ast.QuantumPhase:
        node = self._without_powers(node)
        node.modifiers = _inverse_first(node.modifiers)
        for identifier in (i for angle in angles_of(node) for i in identifiers(angle)):
            identifier.name = angles.get(identifier.name, identifier.name)
        if isinstance(node, ast.QuantumGate):
            node.name = ast.Identifier(self._names.get(node.name.name, node.name.name))
        return node

    def _without_powers(
        self, node: ast.QuantumGate | ast.QuantumPhase
    ) -> ast.QuantumGate | ast.QuantumPhase:
        """Put what a `pow` acts on into a definition, and repeat it where the power is whole."""
        for at, modifier in reversed(list(enumerate(node.modifiers))):
            if modifier.modifier is not ast.GateModifierName.pow:
                continue
            outside, node.modifiers = node.modifiers[:at], node.modifiers[at + 1 :]
            power = exponent(modifier)
            controls = sum(map(controls_of, outside))
            if power.is_integer():
                inverse = [ast.QuantumGateModifier(ast.GateModifierName.inv)] if power < 0 else []
                node.modifiers = inverse + node.modifiers
                node = self._repeated(node, controls, int(abs(power)))
            else:
                node = self._repeated(node, controls, 1)
                outside.append(modifier)
            node.modifiers = outside
        return node

    def _repeated(
        self, node: ast.QuantumGate | ast.QuantumPhase, controls: int, times: int
    ) -> ast.QuantumGate:
        """A call of a new definition that applies `node` so many times.

        The first operands are those of controls, which modify the call.
        """
        free = sorted({i.name for angle in angles_of(node) for i in identifiers(angle)})
        arguments = [ast.Identifier(name) for name in free if times]
        places = [ast.Identifier(f"q{i}") for i in range(len(node.qubits) - controls)]
        name = f"pow {next(self._numbers)}"
        call = ast.QuantumGate([], ast.Identifier(name), list(arguments), node.qubits)
        call.span = node.span
        node.qubits = list(places)
        definition = ast.QuantumGateDefinition(
            ast.Identifier(name), [ast.Identifier(a.name) for a in arguments], places, [node]
        )
        definition.span = node.span
        self.add_statement(definition)
        definition.body *= times
        return call
