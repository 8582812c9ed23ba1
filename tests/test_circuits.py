"""The built-in circuits, gate by gate, and what connects them."""

from __future__ import annotations

from typing import get_args

import pytest
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import Statevector

from qhdm.errors import CircuitError
from qhdm.quantum import build_filter
from qhdm.quantum.ansatz import ANSATZE
from qhdm.quantum.ir.connectivity import components
from qhdm.quantum.ir.light_cones import light_cone
from qhdm.quantum.ir.lowering import lower
from qhdm.quantum.options import ENGINES, EngineName

NAMES = list(ANSATZE)


def gates_of(ansatz: str, *, qubits: int = 12, layers: int = 1) -> list[tuple]:
    """(gate, qubits, parameter names) of the ansatz, without the embedding."""
    filter = build_filter(ansatz, qubits=qubits, layers=layers)
    index = {qubit: i for i, qubit in enumerate(filter.circuit.qubits)}
    gates = [
        (g.operation.name, *(index[q] for q in g.qubits), *(p.name for p in g.operation.params))
        for g in filter.circuit.data
    ]
    embedding, rest = gates[:qubits], gates[qubits:]
    assert embedding == [("rx", i, f"x[{i}]") for i in range(qubits)]
    return rest


def crz_crx(control: int, target: int, at: int) -> list[tuple]:
    return [("crz", control, target, f"w[{at}]"), ("crx", control, target, f"w[{at + 1}]")]


RINGS = [
    # control, target, first weight: as the design lists them for wires 8..11, 4..7, 0..3.
    (8, 11, 0), (11, 10, 2), (10, 9, 4), (9, 8, 6),
    (4, 7, 8), (7, 6, 10), (6, 5, 12), (5, 4, 14),
    (0, 3, 16), (3, 2, 18), (2, 1, 20), (1, 0, 22),
]  # fmt: skip


def test_hqconv_is_rings_and_links() -> None:
    expected = [gate for pair in [*RINGS, (4, 8, 24), (0, 4, 26)] for gate in crz_crx(*pair)]
    assert gates_of("hqconv") == expected


def test_hqconv_released_is_links_that_read_the_first_weights() -> None:
    assert gates_of("hqconv_released") == [*crz_crx(4, 8, 0), *crz_crx(0, 4, 2)]
    second = gates_of("hqconv_released", layers=2)[4:]
    assert second == [*crz_crx(4, 8, 28), *crz_crx(0, 4, 30)]


def test_fqconv_couples_blocks_qubit_by_qubit() -> None:
    expected = []
    for j, (targets, controls) in enumerate([((8, 9, 10, 11), (0, 1, 2, 3)),
                                             ((4, 5, 6, 7), (8, 9, 10, 11)),
                                             ((0, 1, 2, 3), (4, 5, 6, 7))]):  # fmt: skip
        for gate, offset in (("crz", 0), ("crx", 4)):
            for k in range(4):
                pair = controls[3 - k], targets[3 - k]
                expected.append((gate, *pair, f"w[{8 * j + offset + k}]"))
    assert gates_of("fqconv") == expected


def test_basic_is_rotations_and_a_ring_of_cnots() -> None:
    expected = [("rx", i, f"w[{i}]") for i in range(3)]
    assert gates_of("basic", qubits=4)[:3] == expected
    assert gates_of("basic", qubits=4)[4:] == [
        ("cx", 0, 1), ("cx", 1, 2), ("cx", 2, 3), ("cx", 3, 0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ansatz", "per_layer"),
    [("hqconv", 28), ("fqconv", 24), ("basic", 12), ("product", 12), ("hqconv_released", 28)],
)
def test_weights_per_layer(ansatz: str, per_layer: int) -> None:
    for layers in (1, 2, 3):
        filter = build_filter(ansatz, qubits=12, layers=layers)
        assert len(filter.weights) == per_layer * layers
        assert len(filter.inputs) == len(filter.observables) == 12


def test_hqconv_exists_at_multiples_of_four() -> None:
    assert len(build_filter("hqconv", qubits=4, layers=1).weights) == 8
    assert len(build_filter("hqconv", qubits=16, layers=1).weights) == 32 + 6


@pytest.mark.parametrize(
    ("ansatz", "qubits", "layers", "words"),
    [
        ("hqconv", 6, 1, "multiple of 4"),
        ("fqconv", 8, 1, "multiple of 12"),
        ("hqconv", 0, 1, "multiple of 4"),
        ("basic", 4, 0, "at least one layer"),
        ("hqcnv", 12, 1, "known are hqconv"),
    ],
)
def test_impossible_sizes_are_refused(ansatz: str, qubits: int, layers: int, words: str) -> None:
    with pytest.raises(CircuitError, match=words):
        build_filter(ansatz, qubits=qubits, layers=layers)


def test_every_engine_has_a_name_in_configurations() -> None:
    assert get_args(EngineName) == tuple(ENGINES)


def test_components() -> None:
    assert components(build_filter("fqconv").circuit) == [
        (0, 4, 8), (1, 5, 9), (2, 6, 10), (3, 7, 11)
    ]  # fmt: skip
    assert components(build_filter("hqconv").circuit) == [tuple(range(12))]
    released = components(build_filter("hqconv_released").circuit)
    assert released[0] == (0, 4, 8)
    assert len(released) == 10


def test_last_links_of_hqconv_change_two_outputs_alone() -> None:
    ops = lower(build_filter("hqconv", qubits=12, layers=3)).ops
    links = set(range(len(ops) - 4, len(ops)))
    seeing = {i for i in range(12) if links & set(light_cone(ops, (0, 1 << i)))}
    assert seeing == {4, 8}
    # X on a control does not commute with the gate.
    assert links & set(light_cone(ops, (1 << 0, 0)))


def test_light_cones_hold_all_that_matters() -> None:
    """Dropping what is outside the cone does not change the expectation value."""
    filter = build_filter("basic", qubits=6, layers=1)
    ops = lower(filter).ops
    for i in range(6):
        cone = light_cone(ops, (0, 1 << i))
        reduced = QuantumCircuit(6)
        for index in cone:
            entry = filter.circuit.data[index]
            reduced.append(
                entry.operation, [filter.circuit.find_bit(q).index for q in entry.qubits]
            )
        binding = {p: 0.1 + 0.7 * k for k, p in enumerate(filter.parameters)}
        expected = [
            Statevector(circuit.assign_parameters(binding, strict=False)).expectation_value(
                filter.observables[i]
            )
            for circuit in (filter.circuit, reduced)
        ]
        assert abs(expected[0] - expected[1]) < 1e-12


def test_barriers_connect_nothing() -> None:
    circuit = build_filter("fqconv").circuit.copy()
    circuit.barrier()
    assert len(components(circuit)) == 4
