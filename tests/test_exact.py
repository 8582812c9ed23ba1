"""The exact engine against Qiskit's Statevector, Aer, PennyLane, and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.circuit.library import PauliEvolutionGate, RZXGate, XXPlusYYGate
from qiskit.quantum_info import SparsePauliOp, Statevector
from tolerances import FLOAT32, FLOAT64
from torch.utils._python_dispatch import TorchDispatchMode

from qhdm.errors import CircuitError
from qhdm.quantum import Filter, build_filter, expectation
from qhdm.quantum.ansatz import ANSATZE
from qhdm.quantum.exact.engine import plan_of
from qhdm.quantum.exact.plan import make_plan


def draw(filter: Filter, batch: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random inputs (B, n) and weights (P,), float64, over more than a full turn."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, len(filter.inputs), generator=random, dtype=torch.float64) * 3
    w = torch.rand(len(filter.weights), generator=random, dtype=torch.float64) * 4 * math.pi
    return x, w


def bind(filter: Filter, x: torch.Tensor, w: torch.Tensor) -> QuantumCircuit:
    values = dict(zip(filter.inputs, x.tolist(), strict=True))
    values |= dict(zip(filter.weights, w.tolist(), strict=True))
    present = filter.circuit.parameters
    return filter.circuit.assign_parameters({p: v for p, v in values.items() if p in present})


def by_statevector(filter: Filter, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    rows = []
    for sample in x:
        state = Statevector(bind(filter, sample, w))
        rows.append([state.expectation_value(o).real for o in filter.observables])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("ansatz", list(ANSATZE))
def test_values_agree_with_statevector(ansatz: str, layers: int) -> None:
    filter = build_filter(ansatz, qubits=12, layers=layers)
    x, w = draw(filter, 2, seed=layers)
    reference = by_statevector(filter, x, w)
    for engine in ("exact", "exact:statevector"):
        values = expectation(filter, x, w, engine=engine)
        torch.testing.assert_close(values, reference, atol=FLOAT64, rtol=0)
    single = expectation(filter, x.float(), w.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), reference, atol=FLOAT32, rtol=0)


def test_values_agree_with_aer() -> None:
    from qiskit_aer import AerSimulator

    filter = build_filter("hqconv", qubits=8, layers=2)
    x, w = draw(filter, 3)
    simulator = AerSimulator(method="statevector")
    circuits = []
    for sample in x:
        # Rebased first: Aer 0.18 is not to be trusted with parameterised controlled rotations.
        circuit = bind(filter, sample, w).decompose()
        circuit.save_statevector()
        circuits.append(circuit)
    result = simulator.run(circuits).result()
    rows = [
        [result.get_statevector(i).expectation_value(o).real for o in filter.observables]
        for i in range(len(circuits))
    ]
    torch.testing.assert_close(
        expectation(filter, x, w), torch.tensor(rows, dtype=torch.float64), atol=FLOAT64, rtol=0
    )


def test_values_agree_with_pennylane() -> None:
    qml = pytest.importorskip("pennylane")
    filter = build_filter("fqconv", qubits=12, layers=1)
    x, w = draw(filter, 1)
    gates = {"rx": qml.RX, "crz": qml.CRZ, "crx": qml.CRX}
    index = {qubit: i for i, qubit in enumerate(filter.circuit.qubits)}

    @qml.qnode(qml.device("default.qubit", wires=12))
    def circuit():
        for entry in bind(filter, x[0], w).data:
            gates[entry.operation.name](
                float(entry.operation.params[0]), wires=[index[q] for q in entry.qubits]
            )
        return [qml.expval(qml.PauliZ(i)) for i in range(12)]

    reference = torch.tensor(np.array(circuit()), dtype=torch.float64)
    torch.testing.assert_close(expectation(filter, x, w)[0], reference, atol=FLOAT64, rtol=0)


@pytest.mark.parametrize("engine", ["exact", "exact:statevector"])
@pytest.mark.parametrize(
    ("ansatz", "qubits"),
    [
        ("hqconv", 8),
        ("hqconv", 12),
        ("fqconv", 12),
        ("basic", 4),
        ("product", 3),
        ("hqconv_released", 12),
    ],
)
def test_gradients_by_gradcheck(ansatz: str, qubits: int, engine: str) -> None:
    filter = build_filter(ansatz, qubits=qubits, layers=2)
    x, w = draw(filter, 2)
    x.requires_grad_()
    w.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, w: expectation(filter, x, w, engine=engine), (x, w), fast_mode=True, atol=1e-6
    )


def test_methods_have_equal_gradients_at_full_size() -> None:
    filter = build_filter("hqconv", qubits=12, layers=3)
    x, w = draw(filter, 4)
    gradients = []
    for engine in ("exact:network", "exact:statevector"):
        inputs, weights = x.clone().requires_grad_(), w.clone().requires_grad_()
        values = expectation(filter, inputs, weights, engine=engine)
        (values * torch.arange(1.0, 13).double()).sum().backward()
        gradients.append((inputs.grad, weights.grad))
    for network, statevector in zip(*gradients, strict=True):
        torch.testing.assert_close(network, statevector, atol=FLOAT64, rtol=0)


@pytest.mark.parametrize("engine", ["exact", "exact:statevector"])
@pytest.mark.parametrize(("ansatz", "qubits"), [("hqconv", 12), ("basic", 6)])
def test_second_derivatives_by_gradgradcheck(ansatz: str, qubits: int, engine: str) -> None:
    filter = build_filter(ansatz, qubits=qubits, layers=2)
    x, w = draw(filter, 2)
    x.requires_grad_()
    w.requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x, w: expectation(filter, x, w, engine=engine), (x, w), fast_mode=True, atol=1e-5
    )


def test_filters_with_different_weights_are_one_batch() -> None:
    filter = build_filter("fqconv", qubits=12, layers=2)
    x, w = zip(*(draw(filter, 4, seed=seed) for seed in range(3)), strict=True)
    together = expectation(filter, torch.stack(x), torch.stack(w))
    for i in range(3):
        apart = expectation(filter, x[i], w[i])
        torch.testing.assert_close(together[i], apart, atol=FLOAT64, rtol=0)


def test_fqconv_is_four_polynomials() -> None:
    (group,) = make_plan(build_filter("fqconv", qubits=12, layers=3)).groups
    assert group.size == 3
    assert len(group.qubits) == 4
    assert group.network is not None
    (block,) = group.network.blocks
    assert block.cuts == []
    assert group.cost == 4 * 3 * 27  # three Z, of 27 coefficients each


def test_hqconv_is_three_blocks_whose_last_links_are_not_cut() -> None:
    (group,) = make_plan(build_filter("hqconv", qubits=12, layers=3)).groups
    network = group.network
    assert network is not None
    assert [block.qubits for block in network.blocks] == [
        (0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)
    ]  # fmt: skip
    assert sorted(network.ends) == [(0, 1)] * 2 + [(1, 2)] * 2  # two layers of three
    assert [len(m.keys) > 1 for m in network.measured] == [i in (4, 8) for i in range(12)]
    # Entries of messages that vanish whatever the weights are not computed.
    assert group.cost < 0.6 * network.cost
    assert group.cost < 130_000


def test_plans_are_made_once_and_chosen_by_cost() -> None:
    shallow = build_filter("hqconv", qubits=12, layers=3)
    assert plan_of(shallow) is plan_of(shallow)
    assert make_plan(shallow).groups[0].network is not None
    deep = build_filter("hqconv", qubits=12, layers=6)
    assert make_plan(deep).groups[0].network is None
    with pytest.raises(CircuitError, match=r"^basic_12x1: "):
        make_plan(build_filter("basic", qubits=12, layers=1), "network")


def test_planning_runs_no_torch() -> None:
    with Operators() as operators:
        make_plan(build_filter("hqconv", qubits=12, layers=3))
    assert operators.names == []


def test_dead_weights_have_no_gradient() -> None:
    filter = build_filter("hqconv_released", qubits=12, layers=3)
    x, w = draw(filter, 2)
    w.requires_grad_()
    expectation(filter, x, w).square().sum().backward()
    assert w.grad is not None
    assert int((w.grad != 0).sum()) == 12


@pytest.mark.parametrize("ansatz", ["basic", "reuploading"])
def test_state_vectors_in_pieces_have_the_gradients_of_the_whole(
    ansatz: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that are no multiple of a piece, and gates that differ from sample to sample."""
    x, w = ParameterVector("x", 2), ParameterVector("w", 4)
    circuit = QuantumCircuit(6)
    for layer in range(2):
        for qubit in range(6):
            circuit.rx(x[qubit % 2] + w[layer], qubit)
        for qubit in range(6):
            circuit.cry(w[2 + layer], qubit, (qubit + 1) % 6)
    observables = SparsePauliOp("ZIIIII"), SparsePauliOp("IXIYII")
    own = Filter("reuploading", circuit, tuple(x), tuple(w), observables)
    filter = build_filter("basic", qubits=6, layers=2) if ansatz == "basic" else own
    results = []
    for amplitudes in (2**18, 2**9, 2**6):
        monkeypatch.setattr("qhdm.quantum.exact.statevector._CACHE", amplitudes)
        inputs, weights = (t.requires_grad_() for t in draw(filter, 37))
        values = expectation(filter, inputs, weights, engine="exact:statevector")
        values.square().sum().backward()
        results.append([values.detach(), inputs.grad, weights.grad])
    torch.testing.assert_close(results[1], results[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(results[2], results[0], atol=1e-10, rtol=0)


def test_half_precision_is_computed_in_float32() -> None:
    filter = build_filter("fqconv", qubits=12, layers=1)
    x, w = draw(filter, 2)
    rounded = x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = expectation(filter, rounded, w.float())
    assert values.dtype == torch.bfloat16
    reference = by_statevector(filter, rounded.double(), w)
    torch.testing.assert_close(values.double(), reference, atol=2**-8, rtol=0)


#: Operators whose result the host must read before it can go on, or whose shape depends on values.
WAITING = {
    "_local_scalar_dense", "equal", "is_nonzero", "item", "masked_select", "nonzero",
    "repeat_interleave", "unique", "_unique2", "unique_dim", "unique_consecutive",
}  # fmt: skip


class Operators(TorchDispatchMode):
    """Records the operators of a call."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        if func.overloadpacket.__name__ in ("index", "index_put", "_index_put_impl_"):
            indices = [i for i in args[1] if i is not None]
            if any(i.dtype == torch.bool for i in indices):
                self.names.append("nonzero")  # what a mask becomes
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layers", [3, 6])
@pytest.mark.parametrize("ansatz", list(ANSATZE))
def test_no_operator_waits_for_values(ansatz: str, layers: int) -> None:
    """What a CUDA graph needs: shapes and the sequence of operators do not depend on values."""
    filter = build_filter(ansatz, qubits=12, layers=layers)
    calls = []
    for seed in (0, 1):
        x, w = (t.requires_grad_() for t in draw(filter, 2, seed=seed))
        expectation(filter, x, w).sum().backward()  # constants are converted in the first call
        with Operators() as operators:
            expectation(filter, x, w).sum().backward()
        calls.append(operators.names)
    assert len(calls[0]) > 10
    assert not WAITING & set(calls[0])
    assert calls[0] == calls[1]


def test_a_call_of_hqconv_is_few_operators() -> None:
    filter = build_filter("hqconv", qubits=12, layers=3)
    x, w = (t.float().requires_grad_() for t in draw(filter, 512))
    expectation(filter, x.detach(), w.detach())
    with Operators() as operators:
        expectation(filter, x, w).sum().backward()
    assert len(operators.names) < 720, len(operators.names)


# Random circuits: any standard gate, affine angles, inputs anywhere, any Pauli observable.

ONE_ANGLE = ["rx", "ry", "rz", "p", "crx", "cry", "crz", "cp", "rxx", "ryy", "rzz", "rzx"]
FIXED = ["h", "x", "y", "z", "s", "sdg", "t", "sx", "cx", "cy", "cz", "ch", "swap", "iswap", "ccx"]


@st.composite
def random_filters(draw: st.DrawFn) -> Filter:
    n = draw(st.integers(2, 5))
    x, w = ParameterVector("x", 3), ParameterVector("w", 4)
    circuit = QuantumCircuit(n)
    for _ in range(draw(st.integers(1, 14))):
        name = draw(st.sampled_from([*ONE_ANGLE, *FIXED, "u", "xx_plus_yy", "open_crx"]))
        order = draw(st.permutations(range(n)))
        parameter = draw(st.sampled_from([*x, *w]))
        angle = draw(st.sampled_from([1.0, -0.5, 2.0])) * parameter + draw(st.floats(-3, 3))
        if name == "ccx" and n < 3:
            continue
        if name == "u":
            circuit.u(angle, w[0], -1 * w[1], order[0])
        elif name == "xx_plus_yy":
            circuit.append(XXPlusYYGate(angle, w[2]), order[:2])
        elif name == "open_crx":
            circuit.crx(angle, order[0], order[1], ctrl_state=0)
        elif name == "rzx":
            circuit.append(RZXGate(angle), order[:2])
        elif name in ONE_ANGLE:
            arity = 1 if name in ("rx", "ry", "rz", "p") else 2
            getattr(circuit, name)(angle, *order[:arity])
        else:
            arity = 3 if name == "ccx" else 1 if FIXED.index(name) < 8 else 2
            getattr(circuit, name)(*order[:arity])
    strings = st.text("IXYZ", min_size=n, max_size=n)
    observables = tuple(
        SparsePauliOp(draw(st.lists(strings, min_size=1, max_size=3)), None).simplify()
        for _ in range(draw(st.integers(1, 3)))
    )
    return Filter("random", circuit, tuple(x), tuple(w), observables)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(random_filters())
def test_random_circuits_agree_with_statevector(filter: Filter) -> None:
    x, w = draw(filter, 2)
    reference = by_statevector(filter, x, w)
    for engine in ("exact", "exact:statevector"):
        values = expectation(filter, x, w, engine=engine)
        torch.testing.assert_close(values, reference, atol=1e-10, rtol=0)


@st.composite
def random_trees(draw: st.DrawFn) -> Filter:
    """Circuits that have networks: an embedding, then gates along the edges of a tree."""
    n = draw(st.integers(2, 7))
    x, w = ParameterVector("x", n), ParameterVector("w", 12)
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        start = draw(st.sampled_from(["rx", "ry", "h p", "none"]))
        if start == "h p":
            circuit.h(qubit)
            circuit.p(2 * x[qubit] - 0.3, qubit)
        elif start != "none":
            getattr(circuit, start)(x[qubit] + 0.1, qubit)
    edges = [(draw(st.integers(0, qubit - 1)), qubit) for qubit in range(1, n)]
    for k in range(draw(st.integers(1, 12))):
        a, b = draw(st.permutations(draw(st.sampled_from(edges))))
        name = draw(st.sampled_from(["crx", "crz", "rxx", "rzz", "ry", "cx", "iswap"]))
        if name == "ry":
            circuit.ry(w[k], a)
        elif name in ("cx", "iswap"):
            getattr(circuit, name)(a, b)
        else:
            getattr(circuit, name)(w[k] - 1, a, b)
    strings = st.text("IXYZ", min_size=n, max_size=n)
    observables = tuple(SparsePauliOp(draw(strings)) for _ in range(draw(st.integers(1, 4))))
    return Filter("tree", circuit, tuple(x), tuple(w), observables)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(random_trees())
def test_random_networks_agree_with_statevector(filter: Filter) -> None:
    x, w = draw(filter, 2)
    reference = by_statevector(filter, x, w)
    try:
        values = expectation(filter, x, w, engine="exact:network")
    except CircuitError as error:
        assert "has no network" in str(error)  # noqa: PT017 (bonds too large: a valid answer)
        values = expectation(filter, x, w)
    torch.testing.assert_close(values, reference, atol=1e-10, rtol=0)


def custom(circuit: QuantumCircuit, **changes: object) -> Filter:
    x, w = ParameterVector("x", 2), ParameterVector("w", 2)
    fields = {
        "name": "custom",
        "circuit": circuit,
        "inputs": tuple(x),
        "weights": tuple(w),
        "observables": (SparsePauliOp("ZI"), SparsePauliOp("IZ")),
    }
    return Filter(**{**fields, **changes})


def test_gates_of_one_name_are_not_confused() -> None:
    """Evolution gates and custom gates share names and types, not matrices."""
    x, w = ParameterVector("x", 2), ParameterVector("w", 2)
    own = [QuantumCircuit(2, name="own"), QuantumCircuit(2, name="own")]
    own[0].rxx(w[0], 0, 1)
    own[1].ry(w[1], 1)
    circuit = QuantumCircuit(2)
    circuit.rx(x[0], 0)
    circuit.ry(x[1], 1)
    circuit.append(PauliEvolutionGate(SparsePauliOp("XX"), w[0]), [0, 1])
    circuit.append(PauliEvolutionGate(SparsePauliOp("ZY"), w[1]), [0, 1])
    for part in own:
        circuit.append(part.to_gate(), [1, 0])
    filter = custom(circuit, inputs=tuple(x), weights=tuple(w))
    x_, w_ = draw(filter, 3)
    reference = by_statevector(filter, x_, w_)
    torch.testing.assert_close(expectation(filter, x_, w_), reference, atol=1e-10, rtol=0)


def test_unusable_circuits_are_refused() -> None:
    x, w = torch.zeros(1, 2), torch.zeros(2)
    measured = QuantumCircuit(2, 1)
    measured.measure(0, 0)
    with pytest.raises(CircuitError, match=r"^custom: measure .*0"):
        expectation(custom(measured), x, w)

    stranger = QuantumCircuit(2)
    stranger.rx(ParameterVector("y", 1)[0], 0)
    with pytest.raises(CircuitError, match=r"y\[0\]"):
        expectation(custom(stranger), x, w)

    names = ParameterVector("x", 2)
    squared = QuantumCircuit(2)
    squared.rx(names[0] * names[1], 0)
    with pytest.raises(CircuitError, match="is not affine"):
        expectation(custom(squared, inputs=tuple(names)), x, w)

    wide = custom(QuantumCircuit(2), observables=(SparsePauliOp("ZZZ"),))
    with pytest.raises(CircuitError, match=r"\b3 .*\b2\b"):
        expectation(wide, x, w)

    skew = custom(QuantumCircuit(2), observables=(SparsePauliOp("ZZ", [1j]),))
    with pytest.raises(CircuitError, match="not Hermitian"):
        expectation(skew, x, w)


def test_wrong_calls_are_refused() -> None:
    filter = build_filter("basic", qubits=2, layers=1)
    x, w = torch.zeros(3, 2), torch.zeros(2)
    with pytest.raises(CircuitError, match=r"^engine 'exct': .*exact"):
        expectation(filter, x, w, engine="exct")
    with pytest.raises(CircuitError, match=r"\(B, 2\).*\(2,\)"):
        expectation(filter, x, torch.zeros(3))
    with pytest.raises(CircuitError, match="takes inputs"):
        expectation(filter, x[None], w)
    with pytest.raises(CircuitError, match="real floating-point"):
        expectation(filter, x.long(), w)
