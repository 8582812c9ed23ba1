"""Angles of OpenQASM 3 programs: affine forms of parameters, evaluated from syntax trees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add

from openqasm3 import ast
from qiskit.circuit import Parameter, ParameterExpression

_CONSTANTS = {
    **dict.fromkeys(("pi", "π"), math.pi),
    **dict.fromkeys(("tau", "τ"), math.tau),
    **dict.fromkeys(("euler", "ℇ"), math.e),
}


class ProgramError(Exception):
    """Why a node of a syntax tree is not read."""

    def __init__(self, node: ast.QASMNode, message: str) -> None:
        super().__init__(message)
        self.node, self.message = node, message


@dataclass(frozen=True)
class Angle:
    """An affine form of parameters, radians: offset + sum of coefficient x parameter.

    The offset is an integer where the expression contains only integers.
    """

    offset: float
    terms: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Angle) -> Angle:
        terms = dict(self.terms)
        for name, coefficient in other.terms.items():
            terms[name] = terms.get(name, 0.0) + coefficient
        return Angle(self.offset + other.offset, terms)

    def __mul__(self, factor: float) -> Angle:
        return Angle(self.offset * factor, {name: c * factor for name, c in self.terms.items()})

    def __truediv__(self, divisor: float) -> Angle:
        return Angle(self.offset / divisor, {name: c / divisor for name, c in self.terms.items()})

    def at(self, values: Mapping[str, Angle]) -> Angle:
        """The angle with other angles in place of its parameters."""
        return reduce(add, (values[name] * c for name, c in self.terms.items()), Angle(self.offset))

    def expression(self, parameters: Mapping[str, Parameter]) -> float | ParameterExpression:
        """The angle in Qiskit's parameters."""
        terms = [
            parameters[name] if coefficient == 1 else coefficient * parameters[name]
            for name, coefficient in self.terms.items()
            if coefficient
        ]
        return reduce(add, [*terms, self.offset] if self.offset or not terms else terms)


def parameter(name: str) -> Angle:
    """The angle that a parameter is."""
    return Angle(0, {name: 1.0})


def number_of(
    node: ast.QASMNode, value: ast.QASMNode | None, what: str, *, whole: bool = True
) -> float:
    """A number that is written as such."""
    sign = 1
    if isinstance(value, ast.UnaryExpression) and value.op.name == "-":
        sign, value = -1, value.expression
    if isinstance(value, ast.IntegerLiteral):
        return sign * value.value
    if isinstance(value, ast.FloatLiteral) and not whole and math.isfinite(value.value):
        return sign * value.value
    raise ProgramError(node, f"{what} must be a plain number")


def angle_of(node: ast.Expression, scope: Mapping[str, Angle]) -> Angle:
    """An affine expression of numbers and parameters; as an angle, an integer is real."""
    try:
        value = _value(node, scope)
        return Angle(float(value.offset), value.terms)
    except OverflowError:
        raise ProgramError(node, "a number too large for an angle") from None


def _value(node: ast.Expression, scope: Mapping[str, Angle]) -> Angle:
    match node:
        case ast.IntegerLiteral() | ast.FloatLiteral():
            value = Angle(node.value)
        case ast.Identifier() if node.name in scope:
            value = scope[node.name]
        case ast.Identifier() if node.name in _CONSTANTS:
            value = Angle(_CONSTANTS[node.name])
        case ast.Identifier():
            raise ProgramError(node, f"{node.name} is no parameter here")
        case ast.UnaryExpression() if node.op.name == "-":
            value = _value(node.expression, scope) * -1
        case ast.BinaryExpression() if node.op.name in ("+", "-", "*", "/"):
            left, right = _value(node.lhs, scope), _value(node.rhs, scope)
            value = _combined(node, left, right)
        case _:
            raise ProgramError(node, "angles are made of numbers and parameters with + - * / only")
    if not all(map(math.isfinite, (value.offset, *value.terms.values()))):
        raise ProgramError(node, "a number too large for an angle")
    return value


def _combined(node: ast.BinaryExpression, left: Angle, right: Angle) -> Angle:
    match node.op.name:
        case "+":
            return left + right
        case "-":
            return left + right * -1
        case "*" if not right.terms:
            return left * right.offset
        case "*" if not left.terms:
            return right * left.offset
        case "/" if not right.terms:
            return _quotient(node, left, right.offset)
    raise ProgramError(node, "the angle is not affine in its parameters")


def _quotient(node: ast.BinaryExpression, left: Angle, right: float) -> Angle:
    if not right:
        raise ProgramError(node, "division by 0")
    if left.terms or not (isinstance(left.offset, int) and isinstance(right, int)):
        return left / right
    if left.offset % right:  # OpenQASM drops the remainder, which is hardly intended
        raise ProgramError(
            node,
            f"{left.offset}/{right} divides integers, and is {int(left.offset / right)} in "
            f"OpenQASM; write {left.offset}.0/{right}",
        )
    return Angle(left.offset // right)
