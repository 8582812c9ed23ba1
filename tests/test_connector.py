"""The Qiskit network, its torch connector, and the layer that tiles a feature map."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from qiskit.primitives import StatevectorEstimator
from qiskit.quantum_info import SparsePauliOp
from qiskit_aer.primitives import EstimatorV2 as StockAerEstimator
from qiskit_machine_learning.connectors import TorchConnector
from qiskit_machine_learning.neural_networks import EstimatorQNN
from tolerances import FLOAT32, FLOAT64
from torch import nn

from qhdm.errors import CircuitError
from qhdm.quantum import Filter, build_filter, expectation
from qhdm.quantum.aer.estimator import AerEstimator
from qhdm.quantum.connector import FilterConnector, FilterQNN
from qhdm.quantum.engines import bound, make_engine
from qhdm.quantum.layer import QuantumConv2d
from qhdm.quantum.options import ENGINES, Aer, Exact


def small_filters() -> list[Filter]:
    return [
        build_filter("hqconv", qubits=4, layers=1),
        build_filter("hqconv_released", qubits=8, layers=1),
        build_filter("basic", qubits=2, layers=3),
    ]


@pytest.mark.parametrize("filter", small_filters(), ids=lambda f: f.name)
def test_values_and_jacobians_agree_with_the_stock_network(filter: Filter) -> None:
    """The stock network: default estimator, default (parameter-shift) gradient."""
    ours = FilterQNN(filter)
    stock = EstimatorQNN(
        circuit=filter.circuit,
        observables=list(filter.observables),
        input_params=ours.input_params,
        weight_params=ours.weight_params,
        input_gradients=True,
        default_precision=0.0,
    )
    x = torch.randn(2, len(filter.inputs), dtype=torch.float64)
    w = torch.rand(len(filter.weights), dtype=torch.float64) * 2 * math.pi
    live = w[filter.present_weights].numpy()
    values = torch.as_tensor(stock.forward(x.numpy(), live))
    torch.testing.assert_close(expectation(filter, x, w), values, atol=FLOAT64, rtol=0)
    torch.testing.assert_close(
        torch.as_tensor(ours.forward(x.numpy(), live)), values, atol=FLOAT64, rtol=0
    )
    by_x, by_w = stock.backward(x.numpy(), live)
    exact_x, exact_w = torch.autograd.functional.jacobian(
        lambda x, w: expectation(filter, x, w), (x, w)
    )
    for b in range(2):
        torch.testing.assert_close(exact_x[b, :, b], torch.as_tensor(by_x[b]), atol=FLOAT64, rtol=0)
        torch.testing.assert_close(
            exact_w[b][:, filter.present_weights], torch.as_tensor(by_w[b]), atol=FLOAT64, rtol=0
        )


def test_one_pub_for_all_observables() -> None:
    class Counting(StatevectorEstimator):
        pubs: list[int] = []  # noqa: RUF012

        def run(self, pubs, *, precision=None):
            pubs = list(pubs)
            self.pubs.append(len(pubs))
            return super().run(pubs, precision=precision)

    filter = build_filter("hqconv", qubits=4, layers=1)
    estimator = Counting()
    FilterQNN(filter, estimator=estimator).forward([[0.1] * 4] * 5, [0.2] * 8)
    assert estimator.pubs == [1]


def test_exact_and_stock_paths_agree() -> None:
    filter = build_filter("hqconv", qubits=4, layers=1)
    exact = FilterConnector(filter, count=2)
    stock = FilterConnector(filter, count=2, estimator=StatevectorEstimator())
    stock.load_state_dict(exact.state_dict())
    x = torch.randn(2, 2, 4)
    gradients = []
    for connector in (exact, stock):
        assert isinstance(connector, TorchConnector)
        inputs = x.clone().requires_grad_()
        connector(inputs).square().sum().backward()
        gradients.append((inputs.grad, connector.theta.grad))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=FLOAT32, rtol=FLOAT32)


def test_theta_is_in_turns() -> None:
    filter = build_filter("basic", qubits=2, layers=1)
    connector = FilterConnector(filter)
    assert list(connector.state_dict()) == ["theta"]
    assert bool(((connector.theta >= 0) & (connector.theta < 1)).all())
    x = torch.randn(1, 3, 2)
    reference = expectation(filter, x[0], 2 * math.pi * connector.theta[0])
    torch.testing.assert_close(connector(x)[0], reference)


def test_layer_reads_and_writes_the_right_pixels() -> None:
    """Against one circuit per patch, indexed by the definition."""
    filter = build_filter("hqconv", qubits=12, layers=1)
    layer = QuantumConv2d(3 * 2, filter).double()
    x = torch.randn(2, 6, 4, 6, dtype=torch.float64)
    y = layer(x)
    assert y.shape == x.shape
    for b, f, i, j in [(0, 0, 0, 0), (1, 1, 1, 2), (0, 1, 0, 1), (1, 0, 1, 0)]:
        angles, outputs = torch.zeros(12).double(), torch.zeros(12).double()
        for h in range(2):
            for w in range(2):
                for c in range(3):
                    place = (b, 3 * f + c, 2 * i + h, 2 * j + w)
                    angles[3 * (2 * h + w) + c] = x[place]
                    outputs[3 * (2 * h + w) + c] = y[place]
        reference = expectation(filter, angles[None], layer.connector.weight[f])[0]
        torch.testing.assert_close(outputs, reference, atol=FLOAT64, rtol=0)
    assert layer.circuits(4, 6) == 2 * 2 * 3


def test_layer_refuses_a_filter_of_another_size() -> None:
    with pytest.raises(CircuitError, match=r"^hqconv_8x1: .*12.* 8 and 8"):
        QuantumConv2d(3, build_filter("hqconv", qubits=8, layers=1))
    filter = build_filter("hqconv", qubits=12, layers=1)
    one = Filter("one", filter.circuit, filter.inputs, filter.weights, (SparsePauliOp("Z" * 12),))
    with pytest.raises(CircuitError, match=r"^one: .*12 and 1"):
        QuantumConv2d(3, one)


def test_copies_share_the_circuit() -> None:
    layer = QuantumConv2d(3, build_filter("fqconv", qubits=12, layers=1))
    copied = copy.deepcopy(layer)
    assert copied.connector.filter is layer.connector.filter
    assert copied.connector.theta is not layer.connector.theta


class DerivedEstimator(StockAerEstimator):
    pass


@pytest.mark.parametrize("kind", [StockAerEstimator, DerivedEstimator])
def test_estimators_of_aer_get_a_circuit_that_they_bind_correctly(
    kind: type[StockAerEstimator],
) -> None:
    """Aer's own estimator is wrong by up to 1.4 on parameterised controlled rotations."""
    for filter in (*small_filters(), build_filter("fqconv", layers=1)):
        network = FilterQNN(filter, estimator=kind())
        generator = torch.Generator().manual_seed(3)
        x = 6 * torch.rand(3, len(filter.inputs), generator=generator, dtype=torch.float64)
        w = 6 * torch.rand(len(filter.weights), generator=generator, dtype=torch.float64)
        values = torch.as_tensor(network.forward(x.numpy(), w[filter.present_weights].numpy()))
        torch.testing.assert_close(values, expectation(filter, x, w), atol=FLOAT64, rtol=0)


def test_a_connector_over_an_estimator_of_aer_learns_the_same() -> None:
    filter = build_filter("hqconv", qubits=4, layers=1)
    stock, exact = FilterConnector(filter, estimator=StockAerEstimator()), FilterConnector(filter)
    stock.load_state_dict(exact.state_dict())
    inputs = torch.randn(1, 2, 4)
    gradients = []
    for connector in (stock, exact):
        x = inputs.clone().requires_grad_()
        gradients.append(torch.autograd.grad(connector(x).square().sum(), (x, connector.theta)))
    for ours, right in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, right, atol=FLOAT32, rtol=0)


ENGINES_OF_EVERY_KIND: list[Exact | Aer] = [
    *ENGINES.values(),
    *(Aer(gradient=gradient, shots=shots) for gradient in ("shift", "spsa") for shots in (None, 9)),
    Aer(method="matrix_product_state", shots=9),
]


@pytest.mark.parametrize("options", ENGINES_OF_EVERY_KIND)
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_an_empty_batch_has_empty_values(options: Exact | Aer, shape: tuple[int, ...]) -> None:
    filter, engine = build_filter("hqconv", qubits=4, layers=1), make_engine(options)
    P = len(filter.weights)
    x = torch.zeros(*shape, 4, dtype=torch.float64, requires_grad=True)
    w = torch.ones(*shape[:-1], P, requires_grad=True)
    values = expectation(filter, x, w, engine=engine)
    assert (values.shape, values.dtype) == ((*shape, 4), torch.float64)
    values.sum().backward()
    assert x.grad is not None
    assert w.grad is not None
    assert not w.grad.any()
    if len(shape) == 2:
        assert bound(filter, w, engine=engine)(x).shape == (*shape, 4)


@pytest.mark.parametrize("frozen", [False, True])
def test_compiled_graphs_leave_the_circuits_out(frozen: bool) -> None:
    """Circuits have complex tensors, which the compiler handles badly: it must not see any."""
    layer = QuantumConv2d(3, "hqconv", layers=1)
    network = nn.Sequential(nn.Conv2d(3, 3, 1), layer, nn.Conv2d(3, 3, 1))
    if frozen:
        layer.connector.freeze()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(network, backend=backend)
    counts = []
    for _ in range(3):
        x = torch.randn(2, 3, 4, 4, requires_grad=True)
        torch.testing.assert_close(compiled(x), network(x))
        if not frozen:
            compiled(x).sum().backward()
            assert layer.connector.theta.grad.any()
        counts.append(len(graphs))
    assert counts[0] == counts[-1] >= 2  # compiled once, before and after the circuits
    values = [node.meta.get("example_value") for graph in graphs for node in graph.graph.nodes]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    assert tensors
    assert not any(tensor.is_complex() for tensor in tensors)


def test_an_empty_batch_in_modules_and_networks() -> None:
    filter = build_filter("hqconv", qubits=4, layers=1)
    x = torch.zeros(2, 0, 4)
    for options in ({}, {"engine": "aer"}, {"estimator": AerEstimator()}):
        bank = FilterConnector(filter, count=2, **options)
        assert bank(x).shape == (2, 0, 4)
        bank.freeze()
        assert bank(x).shape == (2, 0, 4)
    for estimator in (None, AerEstimator(), StatevectorEstimator()):
        network = FilterQNN(filter, estimator=estimator)
        assert network.forward(np.zeros((0, 4)), np.zeros(len(filter.weights))).shape == (0, 4)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_no_tensor_is_refused_with_the_remedy(engine: str) -> None:
    filter = build_filter("hqconv", qubits=4, layers=1)
    x, w = np.zeros((3, 4)), np.zeros(len(filter.weights))
    for inputs, weights, words in (
        (x, torch.as_tensor(w), "inputs .*ndarray"),
        (torch.as_tensor(x), w, "weights .*ndarray"),
        (x.tolist(), w, "inputs .*list"),
        (torch.as_tensor(x), None, "weights .*NoneType"),
    ):
        with pytest.raises(CircuitError, match=rf"^hqconv_4x1: {words}.*torch\.as_tensor"):
            expectation(filter, inputs, weights, engine=engine)


@pytest.mark.parametrize("shape", [(1, 6, 4, 4), (1, 12, 5, 4), (1, 12, 4, 3), (12, 4, 4)])
def test_maps_that_filters_do_not_tile_are_refused(shape: tuple[int, ...]) -> None:
    layer = QuantumConv2d(12, "fqconv", layers=1)
    with pytest.raises(CircuitError, match=r"\(B, 12, H, W\)"):
        layer(torch.zeros(shape))
    with pytest.raises(CircuitError, match=r"^channels: 4 "):
        QuantumConv2d(4, "fqconv")
