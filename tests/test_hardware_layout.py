"""Devices that are broken in places, or of which figures are missing: where circuits stand."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import Pauli, Statevector
from qiskit.transpiler import InstructionProperties, QubitProperties, Target
from qiskit_ibm_runtime.fake_provider import FakeHanoiV2

from qhdm import errors
from qhdm.cli import main
from qhdm.hardware.compilation import Compiler
from qhdm.hardware.isa import PackedCircuit, make_isa
from qhdm.hardware.packing import rate, tree_layout
from qhdm.hardware.runtime import snapshot
from qhdm.quantum import build_filter
from qhdm.quantum.analysis.transpile import to_isa
from qhdm.quantum.devices.calibration import Calibration, find_calibration, left_out, working_part
from qhdm.quantum.devices.noise import place

#: What is missing of a device, or broken.
KINDS = (
    "coupling unknown", "coupling broken", "readout unknown", "readout broken", "gate unknown",
    "t1", "t2",
)  # fmt: skip


def changed(target: Target, errors: dict[tuple[str, tuple[int, ...]], float | None]) -> Target:
    """A copy of a target with other errors."""
    other = copy.deepcopy(target)
    for (name, qubits), error in errors.items():
        time = target[name][qubits].duration
        other.update_instruction_properties(name, qubits, InstructionProperties(time, error))
    return other


def without_time(target: Target, times: dict[int, str]) -> Target:
    """A copy of a target whose qubits lack a T1 or T2."""
    other = copy.deepcopy(target)
    qubits = list(target.qubit_properties)
    for qubit, key in times.items():
        known = {"t1": qubits[qubit].t1, "t2": qubits[qubit].t2, key: None}
        qubits[qubit] = QubitProperties(**known)
    other.qubit_properties = qubits
    return other


def uses(circuit: QuantumCircuit) -> set[tuple[str, tuple[int, ...]]]:
    return {
        (entry.operation.name, tuple(circuit.find_bit(q).index for q in entry.qubits))
        for entry in circuit.data
        if entry.operation.name != "barrier"
    }


def bound(name: str) -> tuple[QuantumCircuit, Any]:
    filter = build_filter(name, layers=1)
    w = np.random.default_rng(0).uniform(0, 2 * np.pi, len(filter.weights))
    return filter.circuit.assign_parameters(dict(zip(filter.weights, w, strict=True))), filter


def laid_out(name: str, target: Target, *, packing: int = len(KINDS)) -> PackedCircuit:
    circuit, filter = bound(name)
    return make_isa(circuit, filter.inputs, target, packing=packing, most=packing, seed=0)


@pytest.mark.parametrize("name", ["fqconv", "hqconv"])
def test_circuits_stand_on_nothing_that_is_broken_or_unknown(name: str) -> None:
    """Each copy, where it would stand, loses a figure of another kind."""
    target = snapshot("fake_fez").target
    before = laid_out(name, target)
    stands = uses(before.circuit)
    figures: dict[tuple[str, tuple[int, ...]], float | None] = {}
    times: dict[int, str] = {}
    for region, kind in zip(before.regions, KINDS, strict=True):
        qubit = min(region)
        pair = min(q for n, q in stands if n == "cz" and set(q) <= set(region))
        figures |= {
            "coupling unknown": {("cz", p): None for p in (pair, pair[::-1])},
            "coupling broken": {("cz", p): 1.0 for p in (pair, pair[::-1])},
            "readout unknown": {("measure", (qubit,)): None},
            "readout broken": {("measure", (qubit,)): 1.0},
            "gate unknown": {("sx", (qubit,)): None},
        }.get(kind, {})
        if kind in ("t1", "t2"):
            times[qubit] = kind
    target = without_time(changed(target, figures), times)
    after = laid_out(name, target)
    assert figures.keys() <= stands | {("cz", pair[::-1]) for n, pair in stands if n == "cz"}
    assert not uses(after.circuit) & figures.keys()
    lost = {q for _, qubits in figures if len(qubits) == 1 for q in qubits} | times.keys()
    assert not lost & {q for _, qubits in uses(after.circuit) for q in qubits}
    # By the new figures every copy of the old circuit is broken, and none of the new one.
    rating = rate(before.circuit, before.regions, target)
    assert rating.costs == (math.inf,) * len(KINDS)
    assert rate(after.circuit, after.regions, target).broken == ()
    assert rate(after.circuit, after.regions, target).costs == pytest.approx(after.cost)


def test_the_transpiler_does_not_route_through_what_is_broken() -> None:
    """A chain of four on a line of five whose middle couplings lose their figures has no place."""
    manila = find_calibration("fake_manila").target
    circuit = QuantumCircuit(2)
    circuit.cx(0, 1)
    free = set(map(frozenset, ((0, 1), (1, 2), (2, 3), (3, 4))))
    for pair in ((0, 1), (1, 2), (2, 3), (3, 4)):  # whichever is the best: all but one are lost
        figures = {
            ("cx", qubits): None
            for other in free - {frozenset(pair)}
            for qubits in (tuple(other), tuple(other)[::-1])
        }
        device = Calibration("line", changed(manila, figures))
        assert place(circuit, device)[0].physical == pair
    chain = build_filter("basic", qubits=4, layers=1).circuit
    broken = Calibration("line", changed(manila, {("cx", (1, 2)): None, ("cx", (2, 1)): None}))
    with pytest.raises(errors.EngineError, match="2 of 8 cx"):
        place(chain.assign_parameters(np.ones(chain.num_parameters)), broken)

    backend = FakeHanoiV2()
    circuit = bound("hqconv")[0]
    edges = {(n, q) for n, q in uses(to_isa(circuit, backend).circuit) if n == "cx"}
    name, pair = min(edges)
    for qubits in (pair, pair[::-1]):
        backend.target.update_instruction_properties(name, qubits, InstructionProperties(1e-7, 1.0))
    again = uses(to_isa(circuit, backend).circuit)
    assert not again & {(name, pair), (name, pair[::-1])}


def test_a_filter_of_rings_lies_on_a_tree_if_it_is_compiled() -> None:
    circuit, filter = bound("hqconv")
    target = snapshot("fake_fez").target
    plain, compiled = (
        Compiler(target, seed=0, compilation=mode).lay_out(circuit)[0] for mode in ("off", "exact")
    )
    assert compiled.figures.gates < plain.figures.gates
    assert compiled.cost < plain.cost
    assert compiled.before == plain.figures
    x = np.random.default_rng(1).uniform(0, 2 * np.pi, 12)
    angles = dict(zip(filter.inputs, x, strict=True))
    exact, values = (
        [
            Statevector(whole.assign_parameters(angles)).expectation_value(Pauli("Z"), [i]).real
            for i in on
        ]
        for whole, on in ((circuit, range(12)), (compiled.circuit.circuit, compiled.circuit.ends))
    )
    np.testing.assert_allclose(values, exact, atol=1e-9)


def test_devices_without_a_circuits_tree_keep_the_layout_of_the_transpiler() -> None:
    star = QuantumCircuit(5)
    for leaf in range(1, 5):
        star.cz(0, leaf)
    target = snapshot("fake_fez").target  # no qubit has more than three neighbours
    assert tree_layout(star, target) is None
    line = QuantumCircuit(3)
    line.cz(0, 1)
    line.cz(1, 2)
    line.cz(2, 0)  # the ring that is cut
    ends = tree_layout(line, target)
    assert ends is not None
    pairs = {frozenset(pair) for pair in target["cz"]}
    assert {frozenset(ends[:2]), frozenset(ends[1:])} <= pairs


def test_devices_without_any_figures_are_ideal() -> None:
    target = snapshot("aer").target
    assert left_out(target) == ""
    assert uses_of_target(working_part(target)) == uses_of_target(target)
    assert laid_out("fqconv", target, packing=1).cost == (0.0,)


def uses_of_target(target: Target) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, qubits) for name in target.operation_names for qubits in target[name]}


def test_a_gate_without_a_time_takes_as_long_as_others() -> None:
    """A missing duration would be QPU seconds that no estimate knows of."""
    target = snapshot("fake_fez").target
    before = laid_out("fqconv", target, packing=1)
    other = copy.deepcopy(target)
    timeless = {(name, qubits) for name, qubits in uses(before.circuit) if name == "measure"}
    for name, qubits in timeless:
        error = target[name][qubits].error
        other.update_instruction_properties(name, qubits, InstructionProperties(None, error))
    after = laid_out("fqconv", other, packing=1)
    assert timeless <= uses(after.circuit)
    assert after.duration >= before.duration


@pytest.mark.parametrize(
    ("words", "code", "shown"),
    [
        (["noise", "fake_torino"], 0, "not used, as broken or without figures: 22 of 300 cz"),
        (["noise", "fake_kingston"], 0, "qubits 96, 112, 113, 131, 146; 24 of 352 cz"),
        (["circuits", "inspect", "fqconv", "--backend", "fake_kyoto"], 1, "144 of 144 ecr"),
        (["circuits", "inspect", "hqconv", "--backend", "fake_manila"], 1, "5 qubits"),
    ],
)
def test_commands_say_what_is_not_used(
    words: list[str], code: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == code
    out, error = capsys.readouterr()
    assert shown in (error if code else out)
    assert error.count("\n") == (code != 0)
