"""A checked OpenQASM 3 program without definitions, each modifier with its specified value.

Qiskit's converter (`qiskit_qasm3_import` 0.6) and the gates of Qiskit 2.6 cannot be trusted with
what a file defines: `ctrl @` looks gates up by name (of a file's own `x` it makes a CNOT), U, u2
and u3 lack the phases of the specification, which a control makes visible, arguments are bound in
alphabetical order, and a controlled `cu` is inverted without its phase. So calls are written out
here, by the rules of the specification,

    ctrl @ (b a) = (ctrl @ b)(ctrl @ a)    inv @ (b a) = (inv @ a)(inv @ b)    pow(k) @ a = a ... a

until only gates of the language and of stdgates.inc are left, with controls and inverses of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from openqasm3 import ast

#: A register and an index, or a qubit of a definition.
Place = tuple[str, int]

#: Names that stand for numbers.
CONSTANTS = {"pi", "π", "tau", "τ", "euler", "ℇ"}


@dataclass(frozen=True)
class _Gate:
    """A gate of the language, or the phase e^(i angle) if it is called gphase.

    Attributes:
        name: of the gate.
        angles: radians.
        targets: the qubits it acts on.
        controls: each with whether it is closed (`ctrl`) or open (`negctrl`), outermost first.
        inverse: whether it is inverted, after the power.
        power: a fraction, or None.
    """

    name: str
    angles: tuple[ast.Expression, ...]
    targets: tuple[Place, ...]
    controls: tuple[tuple[Place, bool], ...] = ()
    inverse: bool = False
    power: float | None = None


def flattened(
    program: ast.Program, places: Callable[[ast.QASMNode], Sequence[Place]]
) -> ast.Program:
    """Write out a program that has been checked (`openqasm_check`).

    Args:
        program: as checked.
        places: the qubits that an operand names.

    Returns:
        Declarations and gates; statements keep the spans that they have in the text.
    """
    return _Flattener(places).program(program)


def angles_of(node: ast.QuantumGate | ast.QuantumPhase) -> list[ast.Expression]:
    """The angles that a gate is called with."""
    return [node.argument] if isinstance(node, ast.QuantumPhase) else node.arguments


def parameters_in(angle: ast.Expression) -> Iterator[str]:
    """The names of the parameters in an angle, as often as they occur."""
    if isinstance(angle, ast.Identifier):
        if angle.name not in CONSTANTS:
            yield angle.name
    elif isinstance(angle, ast.BinaryExpression):
        yield from parameters_in(angle.lhs)
        yield from parameters_in(angle.rhs)
    elif isinstance(angle, ast.UnaryExpression):
        yield from parameters_in(angle.expression)


def exponent_of(modifier: ast.QuantumGateModifier) -> float:
    """The exponent of a `pow`, which is a plain number."""
    value, sign = modifier.argument, 1.0
    if isinstance(value, ast.UnaryExpression):
        value, sign = value.expression, -1.0
    assert isinstance(value, ast.IntegerLiteral | ast.FloatLiteral)
    return sign * value.value


def controls_of(modifier: ast.QuantumGateModifier) -> int:
    """The number of qubits that a modifier adds to a gate, which is a plain number."""
    if modifier.modifier not in (ast.GateModifierName.ctrl, ast.GateModifierName.negctrl):
        return 0
    assert modifier.argument is None or isinstance(modifier.argument, ast.IntegerLiteral)
    return 1 if modifier.argument is None else modifier.argument.value


def integer_value(angle: ast.Expression) -> int | None:
    """The value of an expression of integers alone, whose divisions have no remainder."""
    if isinstance(angle, ast.IntegerLiteral):
        return angle.value
    if isinstance(angle, ast.UnaryExpression):
        value = integer_value(angle.expression)
        return None if value is None else -value
    if isinstance(angle, ast.BinaryExpression):
        left, right = integer_value(angle.lhs), integer_value(angle.rhs)
        if left is None or right is None:
            return None
        match angle.op.name:
            case "+":
                return left + right
            case "-":
                return left - right
            case "*":
                return left * right
        return left // right if right else None
    return None


class _Flattener:
    def __init__(self, places: Callable[[ast.QASMNode], Sequence[Place]]) -> None:
        self._places = places
        self._definitions: dict[str, ast.QuantumGateDefinition] = {}
        self._statements: list[ast.Statement | ast.Pragma] = []
        self._powers = 0

    def program(self, program: ast.Program) -> ast.Program:
        for statement in program.statements:
            if isinstance(statement, ast.QuantumGateDefinition):
                self._definitions[statement.name.name] = statement
            elif isinstance(statement, ast.QuantumGate | ast.QuantumPhase):
                for operands in self._broadcast(statement):
                    for gate in self._written_out(statement, operands, {}):
                        self._statements.append(_node(gate, _element, statement))
            else:
                if isinstance(statement, ast.QubitDeclaration) and statement.size is None:
                    statement.size = ast.IntegerLiteral(1)  # every qubit has an index
                self._statements.append(statement)
        return ast.Program(self._statements, program.version)

    def _broadcast(self, node: ast.QuantumGate | ast.QuantumPhase) -> Iterator[tuple[Place, ...]]:
        """The qubits of each application of a gate, over registers."""
        operands = [self._places(qubit) for qubit in node.qubits]
        for i in range(max([1, *map(len, operands)])):
            yield tuple(operand[i if len(operand) > 1 else 0] for operand in operands)

    def _written_out(
        self,
        node: ast.QuantumGate | ast.QuantumPhase,
        operands: Sequence[Place],
        values: Mapping[str, ast.Expression],
    ) -> list[_Gate]:
        """One call: its operands are qubits, and `values` are those of the parameters around it."""
        angles = tuple(_substituted(angle, values) for angle in angles_of(node))
        first = sum(map(controls_of, node.modifiers))
        gates = self._called(node, angles, tuple(operands[first:]))
        for modifier in reversed(node.modifiers):  # the last acts first
            if modifier.modifier is ast.GateModifierName.inv:
                gates = _inverted(gates)
            elif modifier.modifier is ast.GateModifierName.pow:
                gates = self._raised(gates, exponent_of(modifier), operands[first:], node)
            else:
                before, first = first, first - controls_of(modifier)
                closed = modifier.modifier is ast.GateModifierName.ctrl
                gates = _controlled(gates, [(c, closed) for c in operands[first:before]])
        return gates

    def _called(
        self,
        node: ast.QuantumGate | ast.QuantumPhase,
        angles: tuple[ast.Expression, ...],
        targets: tuple[Place, ...],
    ) -> list[_Gate]:
        """A gate without its modifiers."""
        if isinstance(node, ast.QuantumPhase):
            return [_Gate("gphase", angles, ())]
        definition = self._definitions.get(node.name.name)
        if definition is not None:
            # Parameters of gates are angles: as one, an integer is divided like any real number.
            values = {
                parameter.name: _real(angle)
                for parameter, angle in zip(definition.arguments, angles, strict=True)
            }
            homes = {q.name: t for q, t in zip(definition.qubits, targets, strict=True)}
            gates: list[_Gate] = []
            for inner in definition.body:
                assert isinstance(inner, ast.QuantumGate | ast.QuantumPhase)
                operands = [homes[q.name] for q in inner.qubits if isinstance(q, ast.Identifier)]
                gates += self._written_out(inner, operands, values)
            return gates
        match node.name.name, angles:
            case "U", (theta, _, _):  # the specification's is e^(i theta/2) times Qiskit's
                return [_phase(theta, 0.5), _Gate("U", angles, targets)]
            case "u3", (_, phi, lam):  # Rz(phi) Ry(theta) Rz(lam)
                return [_phase(phi, -0.5), _phase(lam, -0.5), _Gate("U", angles, targets)]
            case "u2", (phi, lam):
                right = (_product(ast.Identifier("pi"), 0.5), phi, lam)
                return [_phase(phi, -0.5), _phase(lam, -0.5), _Gate("U", right, targets)]
        return [_Gate(node.name.name, angles, targets)]

    def _raised(
        self, gates: list[_Gate], power: float, qubits: Sequence[Place], node: ast.Statement
    ) -> list[_Gate]:
        """A product of gates to a power, on all the qubits it acts on."""
        if power.is_integer():
            return (_inverted(gates) if power < 0 else gates) * abs(int(power))
        # A definition without parameters, of whose matrix Qiskit takes the principal value.
        self._powers += 1
        name = f"pow {self._powers}"  # no file can define this
        local = {place: ast.Identifier(f"q{i}") for i, place in enumerate(qubits)}
        body = [_node(gate, local.__getitem__, node) for gate in gates]
        definition = ast.QuantumGateDefinition(
            ast.Identifier(name), [], list(local.values()), list(body)
        )
        definition.span = node.span
        self._statements.append(definition)
        return [_Gate(name, (), tuple(qubits), power=power)]


def _inverted(gates: list[_Gate]) -> list[_Gate]:
    return [
        replace(gate, angles=(_product(gate.angles[0], -1.0),))
        if gate.name == "gphase"
        else replace(gate, inverse=not gate.inverse)
        for gate in reversed(gates)
    ]


def _controlled(gates: list[_Gate], controls: list[tuple[Place, bool]]) -> list[_Gate]:
    if not controls:
        return gates
    (place, closed), *others = controls
    controlled: list[_Gate] = []
    for gate in gates:
        if gate.name != "gphase":
            controlled.append(replace(gate, controls=(*controls, *gate.controls)))
            continue
        # On its control, a phase is U(0, 0, angle); where that is open, the other way round.
        (angle,), zero = gate.angles, ast.FloatLiteral(0.0)
        signed = angle if closed else _product(angle, -1.0)
        controlled.append(_Gate("U", (zero, zero, signed), (place,), tuple(others)))
        if not closed:
            controlled += _controlled([gate], others)
    return controlled


def _node(
    gate: _Gate, where: Callable[[Place], ast.QASMNode], origin: ast.Statement
) -> ast.QuantumGate | ast.QuantumPhase:
    """A gate as a statement, with the span of the one it comes from."""
    node: ast.QuantumGate | ast.QuantumPhase
    if gate.name == "gphase":
        node = ast.QuantumPhase([], gate.angles[0], [])
    else:
        kinds = ast.GateModifierName
        modifiers = [
            ast.QuantumGateModifier(kinds.ctrl if closed else kinds.negctrl)
            for _, closed in gate.controls
        ]
        if gate.inverse:
            modifiers.append(ast.QuantumGateModifier(kinds.inv))
        if gate.power is not None:
            modifiers.append(ast.QuantumGateModifier(kinds.pow, _number(gate.power)))
        qubits = [where(place) for place in (*(c for c, _ in gate.controls), *gate.targets)]
        node = ast.QuantumGate(modifiers, ast.Identifier(gate.name), list(gate.angles), qubits)  # type: ignore[arg-type]
    node.span = origin.span
    return node


def _element(place: Place) -> ast.IndexedIdentifier:
    register, index = place
    return ast.IndexedIdentifier(ast.Identifier(register), [[ast.IntegerLiteral(index)]])


def _substituted(angle: ast.Expression, values: Mapping[str, ast.Expression]) -> ast.Expression:
    if isinstance(angle, ast.Identifier):
        return values.get(angle.name, angle)
    if isinstance(angle, ast.BinaryExpression):
        left, right = _substituted(angle.lhs, values), _substituted(angle.rhs, values)
        return ast.BinaryExpression(angle.op, left, right)
    if isinstance(angle, ast.UnaryExpression):
        return ast.UnaryExpression(angle.op, _substituted(angle.expression, values))
    return angle


def _real(angle: ast.Expression) -> ast.Expression:
    value = integer_value(angle)
    return angle if value is None else _number(float(value))


def _number(value: float) -> ast.Expression:
    size = ast.FloatLiteral(abs(value))
    return ast.UnaryExpression(ast.UnaryOperator["-"], size) if value < 0 else size


def _product(angle: ast.Expression, factor: float) -> ast.Expression:
    return ast.BinaryExpression(ast.BinaryOperator["*"], angle, _number(factor))


def _phase(angle: ast.Expression, factor: float) -> _Gate:
    return _Gate("gphase", (_product(angle, factor),), ())
