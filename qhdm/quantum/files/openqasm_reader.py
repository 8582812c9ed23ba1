"""A circuit from the syntax tree of an OpenQASM 3 program, which may come from anyone.

Only gates and final measurements are read. Definitions are written out here (openqasm_gates.py)
and not by `qiskit_qasm3_import`, whose converter (0.6) binds the arguments of a definition in
alphabetical order, looks controlled gates up by name (of a file's own `x` it makes a CNOT) and
drops the phases of the specification, which a control makes visible.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from openqasm3 import ast
from qiskit.circuit import Gate, Parameter, QuantumCircuit

from qhdm.errors import CircuitError, shortened
from qhdm.quantum.files.openqasm_angles import Angle, ProgramError, angle_of, number_of, parameter
from qhdm.quantum.files.openqasm_gates import (
    GPHASE,
    STDGATES,
    Definition,
    PlacedGate,
    U,
    controlled,
    inverted,
    joined,
    root,
)

#: Gates written out at all levels of definitions, each at what it costs to make
#: (`PlacedGate.cost`). The circuit itself is held to fewer (qhdm.quantum.files.load).
MAX_WORK = 200_000
#: Controls of a gate, and qubits of one that a fractional `pow` may change.
MAX_CONTROLS = 16
MAX_POWER_QUBITS = 4

_REFUSED = {
    ast.ForInLoop: "loops are not read; write the gates out",
    ast.WhileLoop: "loops are not read; write the gates out",
    ast.BranchingStatement: "classical conditions are not read; a filter consists of gates only",
    ast.SwitchStatement: "classical conditions are not read; a filter consists of gates only",
    ast.QuantumReset: "reset is not a unitary gate; a filter consists of gates only",
    ast.AliasStatement: "aliases are not read; name the qubits by their register",
    ast.ConstantDeclaration: "constants are not read; write their values",
    ast.SubroutineDefinition: "subroutines are not read; use gate definitions",
    ast.Box: "boxes are not read; write only the gates",
    ast.DelayInstruction: "delays are not read; a filter consists of gates only",
}

_Call = ast.QuantumGate | ast.QuantumPhase


class ProgramReader:
    """Reads a program statement by statement.

    Args:
        source: the file that it came from, for messages.
        max_qubits: of all registers together.

    Attributes:
        inputs: the line of each free parameter's declaration (1-based).
    """

    def __init__(self, source: str, max_qubits: int) -> None:
        self.inputs: dict[str, int] = {}
        self._source, self._max_qubits = source, max_qubits
        self._parameters: dict[str, Parameter] = {}
        self._scope: dict[str, Angle] = {}
        #: The line in which each name is defined; 0 of those of the language.
        self._lines = {"U": 0}
        self._gates = {"U": U}
        self._qubits: dict[str, range] = {}
        self._bits: dict[str, range] = {}
        self._operations: list[tuple[Gate, tuple[int, ...]]] = []
        self._measured: set[int] = set()
        self._work = 0

    def read(self, program: ast.Program) -> QuantumCircuit:
        """The circuit of all statements.

        Raises:
            CircuitError: naming the line: it is not a circuit of gates and final measurements, or
                larger than the limits.
        """
        try:
            if program.version and program.version.split(".")[0] != "3":
                raise ProgramError(
                    program, f"is OpenQASM {program.version}; only OpenQASM 3 is read"
                )
            for statement in program.statements:
                self._read(statement)
        except ProgramError as error:
            line = f":{error.node.span.start_line}" if error.node.span else ""
            raise CircuitError(f"{self._source}{line}: {shortened(error.message)}") from None
        circuit = QuantumCircuit(self._num_qubits)
        for operation, qubits in self._operations:
            circuit.append(operation, qubits)
        return circuit

    def _read(self, node: ast.QASMNode) -> None:
        match node:
            case ast.Include(filename="stdgates.inc"):
                for name in STDGATES:
                    self._declare(node, name)
                self._gates |= STDGATES
            case ast.Include():
                raise ProgramError(node, f"only stdgates.inc is included, not {node.filename!r}")
            case ast.IODeclaration():
                self._declare_input(node)
            case ast.QubitDeclaration():
                self._declare_qubits(node)
            case ast.ClassicalDeclaration():
                self._declare_bits(node)
            case ast.QuantumGateDefinition():
                self._define(node)
            case ast.QuantumGate() | ast.QuantumPhase():
                self._apply(node)
            case ast.QuantumBarrier():
                for operand in node.qubits:
                    self._selected(operand, self._qubits)
            case ast.QuantumMeasurementStatement():
                self._measure(node.measure, node.target)
            case _:
                name = re.sub(r"(?<!^)([A-Z])", r" \1", type(node).__name__).lower()
                other = f"a {name} is not read; a filter consists of gates only"
                raise ProgramError(node, _REFUSED.get(type(node), other))

    # Declarations.

    @property
    def _num_qubits(self) -> int:
        return sum(map(len, self._qubits.values()))

    def _declare(self, node: ast.QASMNode, name: str) -> None:
        if name in self._lines:
            line = self._lines[name]
            raise ProgramError(
                node, f"{name} is already defined" + (f" in line {line}" if line else "")
            )
        self._lines[name] = node.span.start_line if node.span else 0

    def _declare_input(self, node: ast.IODeclaration) -> None:
        number = isinstance(node.type, ast.FloatType | ast.AngleType)
        if node.io_identifier is not ast.IOKeyword.input or not number:
            raise ProgramError(node, "only `input float` and `input angle` declare parameters")
        name = node.identifier.name
        self._declare(node, name)
        self.inputs[name] = self._lines[name]
        self._parameters[name] = Parameter(name)
        self._scope[name] = parameter(name)

    def _declare_qubits(self, node: ast.QubitDeclaration) -> None:
        start = self._num_qubits
        size = self._size(node, node.size)
        self._declare(node, node.qubit.name)
        if start + size > self._max_qubits:
            raise ProgramError(
                node, f"declares {start + size} qubits; at most {self._max_qubits} are read"
            )
        self._qubits[node.qubit.name] = range(start, start + size)

    def _declare_bits(self, node: ast.ClassicalDeclaration) -> None:
        if not isinstance(node.type, ast.BitType):
            raise ProgramError(node, "classical variables other than bits are not read")
        size = self._size(node, node.type.size)
        self._declare(node, node.identifier.name)
        self._bits[node.identifier.name] = range(size)
        if node.init_expression is not None:
            if not isinstance(node.init_expression, ast.QuantumMeasurement):
                raise ProgramError(node, "classical values are not read")
            self._measure(node.init_expression, node.identifier)

    def _size(self, node: ast.QASMNode, size: ast.Expression | None) -> int:
        count = 1 if size is None else number_of(node, size, "the size of a register")
        if not 1 <= count <= self._max_qubits:
            raise ProgramError(node, f"a register of {count}; 1 to {self._max_qubits} are read")
        return int(count)

    def _define(self, node: ast.QuantumGateDefinition) -> None:
        parameters = tuple(name.name for name in node.arguments)
        index = {qubit.name: i for i, qubit in enumerate(node.qubits)}
        if len(index) > self._max_qubits:
            raise ProgramError(
                node, f"a gate on {len(index)} qubits; at most {self._max_qubits} are read"
            )
        if len(index) < len(node.qubits) or len(set(parameters)) < len(parameters):
            raise ProgramError(node, "a name twice in one definition")
        scope = {name: parameter(name) for name in parameters}
        gates: list[PlacedGate] = []
        for statement in node.body:
            if not isinstance(statement, _Call):
                raise ProgramError(statement, "a gate definition consists of gates only")
            operands = []
            for operand in statement.qubits:
                if not isinstance(operand, ast.Identifier) or operand.name not in index:
                    raise ProgramError(
                        statement, "a gate of a definition acts on its own qubits only"
                    )
                operands.append(index[operand.name])
            if len(set(operands)) < len(operands):
                raise ProgramError(statement, "a qubit twice in one gate; name different qubits")
            gates += [gate.on(operands) for gate in self._call(statement, scope)]
        self._declare(node, node.name.name)
        self._gates[node.name.name] = Definition(parameters, len(index), joined(gates))

    # Gates and measurements.

    def _apply(self, node: _Call) -> None:
        """A gate on qubits or, qubit by qubit, on registers."""
        gates = self._call(node, self._scope)
        operands = [self._selected(operand, self._qubits) for operand in node.qubits]
        width = max([1, *map(len, operands)])
        if {*map(len, operands)} - {1, width}:
            raise ProgramError(node, "registers of different sizes in one gate")
        self._spend(node, gates, width)
        for i in range(width):
            qubits = [operand[i if len(operand) > 1 else 0] for operand in operands]
            for position, qubit in enumerate(qubits):
                if qubit in qubits[:position]:
                    raise ProgramError(
                        node, f"{self._name(qubit)} twice in one gate; name different ones"
                    )
                if qubit in self._measured:
                    raise ProgramError(
                        node,
                        f"a gate on {self._name(qubit)} follows a measurement; measurements are "
                        "only allowed at the end",
                    )
            try:
                for gate in gates:
                    if not gate.is_phase:  # of the whole circuit, and nothing shows it
                        placed = gate.on(qubits)
                        operation = placed.operation(self._parameters)
                        self._operations.append((operation, placed.operands))
            except Exception as error:  # Qiskit raises many kinds for what it cannot build
                raise _unbuildable(node, error) from None

    def _measure(self, node: ast.QuantumMeasurement, target: ast.QASMNode | None) -> None:
        qubits = self._selected(node.qubit, self._qubits)
        if target is not None and len(self._selected(target, self._bits)) != len(qubits):
            raise ProgramError(node, "as many qubits must be measured as there are bits")
        self._measured.update(qubits)

    def _call(self, node: _Call, scope: Mapping[str, Angle]) -> list[PlacedGate]:
        """A call written out, on its operands 0, 1, ..., of which those of modifiers come first."""
        if isinstance(node, ast.QuantumPhase):
            name, arguments, definition = "gphase", [node.argument], GPHASE
        else:
            name, arguments = node.name.name, node.arguments
            if name not in self._gates:
                raise ProgramError(node, f"gate {name!r} is not defined")
            if node.duration is not None:
                raise ProgramError(node, "gates with durations are not read")
            definition = self._gates[name]
        takes, given = len(definition.parameters), len(arguments)
        if takes != given:
            raise ProgramError(node, f"{name} takes {takes} angle{'s' * (takes != 1)}, not {given}")
        counts = [self._controls(node, modifier) for modifier in node.modifiers]
        first, operands = sum(counts), sum(counts) + definition.qubits
        if operands != len(node.qubits):
            s = "s" * (operands != 1)
            raise ProgramError(node, f"acts on {operands} qubit{s}, given are {len(node.qubits)}")
        angles = [angle_of(argument, scope) for argument in arguments]
        self._spend(node, definition.gates)
        gates = definition.call(angles, range(first, operands))
        for modifier, count in reversed(list(zip(node.modifiers, counts, strict=True))):
            if modifier.modifier is ast.GateModifierName.inv:
                gates = inverted(gates)
            elif modifier.modifier is ast.GateModifierName.pow:
                gates = self._power(node, modifier, gates, range(first, operands))
            closed = modifier.modifier is ast.GateModifierName.ctrl
            for control in reversed(range(first - count, first)):
                gates = controlled(gates, control, closed=closed)
            first -= count
            self._spend(node, gates)
        if max((len(gate.controls) for gate in gates), default=0) > MAX_CONTROLS:
            raise ProgramError(
                node, f"more than {MAX_CONTROLS} controls when written out; use fewer"
            )
        return gates

    def _controls(self, node: _Call, modifier: ast.QuantumGateModifier) -> int:
        """The number of qubits that a modifier adds to a gate."""
        if modifier.modifier not in (ast.GateModifierName.ctrl, ast.GateModifierName.negctrl):
            return 0
        if modifier.argument is None:
            return 1
        count = int(number_of(node, modifier.argument, "the number of controls"))
        if count < 0:
            raise ProgramError(node, f"{count} controls; there are none or more")
        return count

    def _power(
        self,
        node: _Call,
        modifier: ast.QuantumGateModifier,
        gates: list[PlacedGate],
        qubits: Sequence[int],
    ) -> list[PlacedGate]:
        exponent = number_of(node, modifier.argument, "the exponent of pow", whole=False)
        if exponent == exponent // 1:
            times = abs(int(exponent))
            self._spend(node, gates, times)
            return (inverted(gates) if exponent < 0 else gates) * times
        if len(qubits) > MAX_POWER_QUBITS:
            raise ProgramError(
                node, f"a fractional pow is read of gates on up to {MAX_POWER_QUBITS} qubits"
            )
        if any(angle.terms for gate in gates for angle in gate.angles):
            raise ProgramError(
                node,
                "a fractional pow is read of gates with plain numbers only: which root it takes "
                "would depend on the value; write the fraction into the angles",
            )
        try:
            return [root(gates, exponent, qubits)]
        except Exception as error:  # of angles so large that rounding leaves no unitary
            raise _unbuildable(node, error) from None

    def _spend(self, node: ast.QASMNode, gates: Sequence[PlacedGate], times: int = 1) -> None:
        self._work += times * (1 + sum(gate.cost for gate in gates))
        if self._work > MAX_WORK:
            raise ProgramError(
                node, f"comes to more than {MAX_WORK:,} gates when written out; use fewer"
            )

    # Operands.

    def _name(self, qubit: int) -> str:
        name, register = next((n, r) for n, r in self._qubits.items() if qubit in r)
        return f"{name}[{qubit - register.start}]"

    def _selected(self, node: ast.QASMNode, registers: Mapping[str, range]) -> Sequence[int]:
        """The elements of a register that an operand names."""
        indices: list[ast.IndexElement] = []
        if isinstance(node, ast.IndexedIdentifier):
            name, indices = node.name.name, node.indices
        elif isinstance(node, ast.Identifier):
            name = node.name
        else:
            raise ProgramError(node, "qubits are named by their register only")
        if name.startswith("$"):
            raise ProgramError(
                node, "physical qubits are not read: <Z_i> is read by the order of a register"
            )
        if name not in registers:
            kind = "qubits" if registers is self._qubits else "bits"
            raise ProgramError(node, f"{name} is not a register of {kind}")
        register = registers[name]
        if not indices:
            return register
        elements = indices[0].values if isinstance(indices[0], ast.DiscreteSet) else indices[0]
        if len(indices) > 1 or (len(elements) > 1 and elements is indices[0]):
            raise ProgramError(node, "a register has one index")

        def index(value: ast.QASMNode) -> int:
            given, size = int(number_of(node, value, "an index")), len(register)
            if not -size <= given < size:
                raise ProgramError(
                    node, f"there is no {name}[{given}]; {name} has indices 0 to {size - 1}"
                )
            return given % size

        only = elements[0]
        if not isinstance(only, ast.RangeDefinition):
            return [register[index(element)] for element in elements]
        step = 1 if only.step is None else int(number_of(node, only.step, "the step of a range"))
        if not step:
            raise ProgramError(node, "the step of a range is not 0")
        first, last = (0, len(register) - 1)[:: 1 if step > 0 else -1]
        start = first if only.start is None else index(only.start)
        end = last if only.end is None else index(only.end)
        return [register[i] for i in range(start, end + (1 if step > 0 else -1), step)]


def _unbuildable(node: ast.QASMNode, error: Exception) -> ProgramError:
    return ProgramError(
        node,
        f"Qiskit cannot build this ({type(error).__name__}); write it in plainer gates and angles",
    )
