"""The filter as a Qiskit neural network, and the torch module around it."""

from __future__ import annotations

import math

import torch
from qiskit.primitives import BaseEstimatorV2
from qiskit_machine_learning.connectors import TorchConnector
from qiskit_machine_learning.connectors.torch_connector import _TorchNNFunction
from qiskit_machine_learning.neural_networks import EstimatorQNN
from torch import Tensor, nn

from qhdm.quantum.engines import Bound, Engine, as_engine, bound, expectation
from qhdm.quantum.filter import Filter


class FilterQNN(EstimatorQNN):
    """`EstimatorQNN` of a filter, with three defaults corrected.

    Input gradients are on (off, they drop the upstream gradient silently), the precision is 0
    (otherwise noise is added to exact values), and all observables of a circuit are in one PUB.

    Args:
        circuit_filter: circuit and observables; weights that the circuit does not contain are left
            out (`Filter.present_weights`).
        estimator: evaluates values and parameter-shift gradients; None is Qiskit's exact
            reference estimator. One of Aer's is given the circuit in rotations and CNOTs, since it
            binds parameters of controlled rotations wrongly (`qhdm.quantum.aer.rebase`).
    """

    def __init__(self, circuit_filter: Filter, *, estimator: BaseEstimatorV2 | None = None) -> None:
        self.filter = circuit_filter
        circuit = circuit_filter.circuit
        if _is_aer(estimator):
            from qhdm.quantum.aer.rebase import rebased

            circuit = rebased(circuit)
        super().__init__(
            circuit=circuit,
            estimator=estimator,
            observables=list(circuit_filter.observables),
            input_params=list(circuit_filter.inputs),
            weight_params=[circuit_filter.weights[i] for i in circuit_filter.present_weights],
            input_gradients=True,
            default_precision=0.0,
        )

    def _forward(self, input_data, weights):  # type: ignore[no-untyped-def]  # stock signature
        values, _ = self._preprocess_forward(input_data, weights)
        # Observables (m, 1) broadcast against parameter sets (B,): one PUB, values (m, B).
        pub = (self._circuit, [[observable] for observable in self._observables], values)
        result = self.estimator.run([pub], precision=self._default_precision).result()
        return result[0].data.evs.reshape(len(self._observables), -1).T


def _is_aer(estimator: BaseEstimatorV2 | None) -> bool:
    """Whether an estimator is Aer's own, or derived from it; looked up without importing Aer."""
    return any(kind.__module__.startswith("qiskit_aer.") for kind in type(estimator).__mro__)


class FilterConnector(TorchConnector):
    """F filters of one circuit as a torch module: (F, B, n) to (F, B, m).

    A `TorchConnector` over an `EstimatorQNN`. With the exact engine, forward and backward stay in
    torch, on the tensor's device and in its precision; with `aer`, the network's estimator is
    Aer's. In neither is the (batch x outputs x parameters) Jacobian built. With any other
    estimator, the stock path of the connector is taken.

    The trainable parameter is `theta` (F, P), in turns: the circuit is fed 2 pi theta, so that an
    exported circuit is plain. `weight` gives the angles in radians.

    Args:
        circuit_filter: the circuit and its observables.
        count: F.
        engine: evaluates the filters when no estimator is given; an engine or its name.
        estimator: a Qiskit estimator to use instead of an engine.

    Example:
        >>> bank = FilterConnector(build_filter("fqconv"), count=2)
        >>> bank(torch.rand(2, 5, 12)).shape
        torch.Size([2, 5, 12])
    """

    theta: nn.Parameter

    def __init__(
        self,
        circuit_filter: Filter,
        *,
        count: int = 1,
        engine: Engine | str = "exact",
        estimator: BaseEstimatorV2 | None = None,
    ) -> None:
        chosen = as_engine(engine)
        super().__init__(FilterQNN(circuit_filter, estimator=estimator or chosen.estimator))
        # The stock parameter holds the weights of one network, registered under two names.
        del self._parameters["weight"], self._parameters["_weights"]
        self.filter = circuit_filter
        self.engine = chosen
        self.theta = nn.Parameter(torch.rand(count, len(circuit_filter.weights)))
        self._stock = estimator is not None
        self._bound: Bound | None = None

    def freeze(self) -> None:
        """Compute once what depends on the weights alone: they must not change until `thaw`."""
        if not self._stock:
            self._bound = bound(self.filter, self.weight.detach(), engine=self.engine)

    def thaw(self) -> None:
        """The opposite of `freeze`."""
        self._bound = None

    @property
    def weight(self) -> Tensor:
        """The circuits' weights, (F, P), radians."""
        return 2 * math.pi * self.theta

    def forward(self, input_data: Tensor | None = None) -> Tensor:
        """Evaluate the filters on inputs (F, B, n), radians; returns (F, B, m)."""
        if input_data is None:
            raise TypeError("a filter has inputs: forward needs a tensor (F, B, n)")
        if self._bound is not None:
            return self._bound(input_data)
        if not self._stock:
            return expectation(self.filter, input_data, self.weight, engine=self.engine)
        weights = self.weight[:, self.filter.present_weights]
        outputs = [
            _TorchNNFunction.apply(x, w, self.neural_network, False)
            for x, w in zip(input_data, weights, strict=True)
        ]
        return torch.stack(outputs).to(input_data.dtype)

    def extra_repr(self) -> str:
        return f"{self.filter.name}, count={self.theta.shape[0]}, engine={self.engine.name}"
