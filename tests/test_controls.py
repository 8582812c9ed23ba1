"""What stands where filters would, for comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from qiskit.quantum_info import SparsePauliOp
from tolerances import FLOAT64

from qhdm.config import Config, load_config
from qhdm.data import EUROSAT_CLASSES
from qhdm.errors import CircuitError
from qhdm.models import build_model
from qhdm.models.baselines import (
    Perceptron,
    SparseLinear,
    check_baseline,
    connectivity,
    cyclic_diagonals,
    hidden_units,
)
from qhdm.models.counts import count_parameters, quantum_parameters
from qhdm.quantum import build_filter, expectation
from qhdm.quantum.layer import PatchTiling, QuantumConv2d
from qhdm.reproduction.network.blocks import HybridConv2d

CONTROLS = ("frozen", "cosine", "linear", "perceptron", "identity")


@pytest.fixture
def config(tiny_yaml: Path) -> Config:
    return of(tiny_yaml, "circuit")


def of(tiny_yaml: Path, control: str, *settings: str) -> Config:
    classes = f"data.classes=[{','.join(EUROSAT_CLASSES)}]"
    return load_config(tiny_yaml, [classes, f"quantum.filter={control}", *settings])


def output(model: torch.nn.Module, side: int = 16) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, side, side, generator=random)
    return model(x, torch.tensor([3, 70]), torch.tensor([1, 4]))


def in_place_of_filters(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {n: m.quantum for n, m in model.named_modules() if isinstance(m, HybridConv2d)}


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_has_no_trained_circuit_and_is_where_the_filters_were(
    tiny_yaml: Path, config: Config, control: str
) -> None:
    circuits, model = build_model(config), build_model(of(tiny_yaml, control))

    assert list(in_place_of_filters(model)) == list(in_place_of_filters(circuits)) != []
    assert not any(parameter.requires_grad for parameter in quantum_parameters(model))
    output(model).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == ("theta" in name), name
    assert not torch.equal(output(model), output(circuits)) or control == "frozen"


def test_frozen_is_the_circuit_untrained(tiny_yaml: Path, config: Config) -> None:
    torch.testing.assert_close(
        output(build_model(of(tiny_yaml, "frozen"))), output(build_model(config)), atol=0, rtol=0
    )


def test_linear_has_as_many_parameters_as_the_circuit(tiny_yaml: Path, config: Config) -> None:
    *_, hybrid = count_parameters(build_model(config))
    *_, classical = count_parameters(build_model(of(tiny_yaml, "linear")))
    assert classical.quantum == 0
    assert classical.classical == hybrid.classical + hybrid.quantum


def test_linear_is_its_matrix() -> None:
    """84 weights: seven of the twelve cyclic diagonals, all of the same variance."""
    layer = SparseLinear((12, 12), cyclic_diagonals(84), [], count=2).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    matrices = torch.zeros(2, 12, 12, dtype=torch.float64)
    for place in range(84):
        row, diagonal = place % 12, place // 12
        matrices[:, row, (row + diagonal) % 12] = layer.weight[:, place].detach()
    assert int((matrices != 0).sum()) == 2 * 84
    expected = torch.stack([x[f] @ matrices[f].T for f in range(2)])
    torch.testing.assert_close(layer(x), expected, atol=FLOAT64, rtol=0)
    torch.manual_seed(0)
    wide = SparseLinear((12, 12), cyclic_diagonals(84), [], count=2000)(torch.randn(2000, 1, 12))
    assert float(wide.detach().std()) == pytest.approx(1, rel=0.05)


def test_linear_refuses_more_weights_than_a_map_of_the_patch_has(tiny_yaml: Path) -> None:
    config = of(tiny_yaml, "linear", "quantum.vertex.ansatz=hqconv", "quantum.vertex.layers=6")
    with pytest.raises(CircuitError, match=r"^quantum\.filter: .*168"):
        build_model(config)


def test_perceptrons_join_what_the_circuit_joins() -> None:
    """Gradients of outputs by inputs vanish where those of the circuit do, and nowhere else."""
    circuit_filter = build_filter("fqconv")
    layer = Perceptron(circuit_filter, count=1).double()
    x, w = torch.randn(12, dtype=torch.float64), torch.rand(72, dtype=torch.float64)

    def jacobian(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return torch.autograd.functional.jacobian(function, x)

    ours = jacobian(lambda x: layer(x[None, None])[0, 0])
    theirs = jacobian(lambda x: expectation(circuit_filter, x[None], w)[0])
    assert torch.equal(ours.abs() > 1e-9, theirs.abs() > 1e-9)
    assert int((ours != 0).sum()) == 4 * 9


@pytest.mark.parametrize(
    ("ansatz", "layers", "hidden", "weights"),
    [("fqconv", 3, 3, 72), ("hqconv", 3, 4, 96), ("fqconv", 1, 1, 24), ("product", 3, 2, 48)],
)
def test_perceptrons_have_about_as_many_weights_as_the_circuit(
    ansatz: str, layers: int, hidden: int, weights: int
) -> None:
    circuit_filter = build_filter(ansatz, layers=layers)
    assert hidden_units(circuit_filter) == hidden
    layer = Perceptron(circuit_filter, count=5)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 5 * weights


def test_observables_of_two_components_are_outputs_of_both() -> None:
    circuit_filter = build_filter("product", qubits=3, layers=1)
    ZZI = SparsePauliOp("ZZI")  # qubits 2 and 1
    both = replace(circuit_filter, observables=(*circuit_filter.observables[:2], ZZI))
    assert sorted(connectivity(both)) == [([0], [0]), ([1], [1, 2]), ([2], [2])]


def test_a_perceptron_is_its_formula() -> None:
    torch.manual_seed(0)
    layer = Perceptron(build_filter("hqconv"), count=2000)
    x = torch.randn(2000, 1, 12)
    first, second = (
        part.weight.detach().reshape(2000, *shape)
        for part, shape in ((layer.hidden, (4, 12)), (layer.output, (4, 12)))
    )
    hidden = torch.nn.functional.silu(first @ x[:, 0, :, None]) / 0.596
    expected = (second * hidden).sum(1)
    torch.testing.assert_close(layer(x)[:, 0].detach(), expected, atol=1e-4, rtol=1e-4)
    assert float(expected.std()) == pytest.approx(1, rel=0.05)


def test_perceptrons_refuse_circuits_with_hardly_any_weights() -> None:
    """Of 12 joined qubits, one hidden unit has 24 weights."""
    whole = build_filter("basic", layers=1)
    values = dict.fromkeys(whole.weights[11:], 0.5)
    circuit = whole.circuit.assign_parameters(values)
    few = replace(whole, circuit=circuit, weights=whole.weights[:11])
    with pytest.raises(CircuitError, match=r"^quantum\.filter: .* 11 "):
        check_baseline("perceptron", few)
    check_baseline("perceptron", whole)


def test_cosine_is_what_the_circuit_without_entanglement_computes(tiny_yaml: Path) -> None:
    """`product` with weights of zero, by the exact engine."""
    product = QuantumConv2d(3, build_filter("product", qubits=12, layers=2)).double()
    with torch.no_grad():
        product.connector.theta.zero_()
    model = build_model(of(tiny_yaml, "cosine"))
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    for cosine in in_place_of_filters(model).values():
        torch.testing.assert_close(cosine(x), product(x), atol=FLOAT64, rtol=0)


def test_product_adds_its_weights() -> None:
    filter = build_filter("product", qubits=3, layers=2)
    x = torch.randn(4, 3, dtype=torch.float64)
    w = torch.rand(6, dtype=torch.float64) * 2 * math.pi
    expected = (x + w[:3] + w[3:]).cos()
    torch.testing.assert_close(expectation(filter, x, w), expected, atol=FLOAT64, rtol=0)


def test_identity_passes_the_channels(tiny_yaml: Path) -> None:
    x = torch.randn(2, 6, 4, 8)
    assert torch.equal(PatchTiling(torch.nn.Identity(), count=2)(x), x)
    for identity in in_place_of_filters(build_model(of(tiny_yaml, "identity"))).values():
        assert torch.equal(identity(x), x)
