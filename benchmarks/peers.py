"""Contestants of filters.py: one filter, forward and backward, by qhdm and its peers.

A contestant maps inputs (B, n), weights (P,) and gradients of the values (B, n) to values and both
gradients. Peers are imported when made.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhdm.quantum import Filter, expectation

#: Values and both gradients of sum(g * f(x, w)).
Result = tuple[Tensor, Tensor, Tensor]
Contestant = Callable[[Tensor, Tensor, Tensor], Result]


def gates(circuit_filter: Filter) -> list[tuple[str, list[int], str | None]]:
    """(name, qubits, name of the parameter or None) of each gate."""
    index = {qubit: i for i, qubit in enumerate(circuit_filter.circuit.qubits)}
    return [
        (
            entry.operation.name,
            [index[q] for q in entry.qubits],
            entry.operation.params[0].name if entry.operation.params else None,
        )
        for entry in circuit_filter.circuit.data
    ]


def named(circuit_filter: Filter, x: Any, w: Any) -> dict[str, Any]:
    """Values of the parameters by name, from inputs (..., n) and weights (P,)."""
    inputs = {p.name: x[..., i] for i, p in enumerate(circuit_filter.inputs)}
    return inputs | {p.name: w[i] for i, p in enumerate(circuit_filter.weights)}


def differentiated(function: Callable[[Tensor, Tensor], Tensor]) -> Contestant:
    """A contestant made from a function that torch differentiates."""

    def run(x: Tensor, w: Tensor, g: Tensor) -> Result:
        x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
        values = function(x, w)
        values.backward(g.to(values))
        assert x.grad is not None
        assert w.grad is not None
        return values.detach(), x.grad, w.grad

    return run


def z_signs(n: int) -> Tensor:
    """Eigenvalues of Z on each of n qubits, the first one most significant: (n, 2^n)."""
    return torch.tensor([[1.0 - 2 * (k >> (n - 1 - i) & 1) for k in range(2**n)] for i in range(n)])


def engine(circuit_filter: Filter, name: str) -> Contestant:
    return differentiated(lambda x, w: expectation(circuit_filter, x, w, engine=name))


def pennylane(circuit_filter: Filter, interface: str) -> Callable[[Any, Any], list[Any]]:
    """Values of all observables as a function of inputs and weights."""
    import pennylane as qml

    kinds = {"rx": qml.RX, "crz": qml.CRZ, "crx": qml.CRX}
    n = circuit_filter.circuit.num_qubits

    @qml.qnode(qml.device("default.qubit", wires=n), interface=interface, diff_method="backprop")
    def circuit(x, w):  # type: ignore[no-untyped-def]
        values = named(circuit_filter, x, w)
        for name, qubits, parameter in gates(circuit_filter):
            if parameter is None:
                qml.CNOT(wires=qubits)
            else:
                kinds[name](values[parameter], wires=qubits)
        return [qml.expval(qml.PauliZ(i)) for i in range(n)]

    return circuit


def pennylane_torch(circuit_filter: Filter) -> Contestant:
    circuit = pennylane(circuit_filter, "torch")
    return differentiated(lambda x, w: torch.stack(circuit(x, w), dim=1))


def pennylane_jax(circuit_filter: Filter) -> Contestant:
    import jax.numpy as jnp

    circuit = pennylane(circuit_filter, "jax")
    return jitted(lambda x, w: jnp.stack(circuit(x, w)))


def jitted(function: Callable[[Any, Any], Any]) -> Contestant:
    """A contestant made from a function of one sample that JAX compiles and differentiates."""
    import jax

    def weighted(x: Any, w: Any, g: Any) -> tuple[Any, Any]:
        values = jax.vmap(function, (0, None))(x, w)
        return (values * g).sum(), values

    compiled = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True))

    def run(x: Tensor, w: Tensor, g: Tensor) -> Result:
        (_, values), gradients = compiled(x.numpy(), w.numpy(), g.numpy())
        values, dx, dw = (torch.tensor(np.asarray(array)) for array in (values, *gradients))
        return values, dx, dw

    return run


def tensorcircuit(circuit_filter: Filter, light_cones: bool = False) -> Contestant:
    """From the probabilities of the state, or each observable from the gates in its light cone."""
    import jax.numpy as jnp
    import tensorcircuit as tc

    tc.set_backend("jax")
    n = circuit_filter.circuit.num_qubits
    signs = z_signs(n).numpy()

    def run(x: Any, w: Any) -> Any:
        circuit = tc.Circuit(n)
        values = named(circuit_filter, x, w)
        for name, qubits, parameter in gates(circuit_filter):
            angle = {} if parameter is None else {"theta": values[parameter]}
            getattr(circuit, name)(*qubits, **angle)
        if not light_cones:
            return signs @ jnp.abs(circuit.state()) ** 2
        options = {"reuse": False, "enable_lightcone": True}
        return jnp.stack([circuit.expectation_ps(z=[i], **options).real for i in range(n)])

    return jitted(run)


def pyqtorch(circuit_filter: Filter) -> Contestant:
    import pyqtorch as pyq

    n = circuit_filter.circuit.num_qubits
    kinds = {"crz": pyq.CRZ, "crx": pyq.CRX}
    operations = []
    for name, qubits, parameter in gates(circuit_filter):
        if name == "rx":
            operations.append(pyq.RX(qubits[0], parameter))
        elif name == "cx":
            operations.append(pyq.CNOT(*qubits))
        else:
            operations.append(kinds[name](*qubits, parameter))
    circuit = pyq.QuantumCircuit(n, operations).to(dtype=torch.complex64)
    signs = z_signs(n)

    def run(x: Tensor, w: Tensor) -> Tensor:
        state = pyq.zero_state(n, batch_size=len(x), dtype=torch.complex64)
        state = circuit.run(state, named(circuit_filter, x, w)).reshape(2**n, len(x))
        return (signs @ state.abs().square()).T

    return differentiated(run)


def deepquantum(circuit_filter: Filter) -> Contestant:
    import deepquantum as dq

    n = circuit_filter.circuit.num_qubits

    def run(x: Tensor, w: Tensor) -> Tensor:
        # Inputs and weights are both passed as data, the only batched input.
        circuit = dq.QubitCircuit(n)
        columns = []
        values = named(circuit_filter, x, w)
        for name, qubits, parameter in gates(circuit_filter):
            if parameter is None:
                circuit.cnot(*qubits)
                continue
            getattr(circuit, name)(*qubits, encode=True)
            columns.append(values[parameter].expand(len(x)))
        for qubit in range(n):
            circuit.observable(wires=qubit, basis="z")
        circuit(data=torch.stack(columns, dim=1))
        return circuit.expectation()

    return differentiated(run)


def qulacs(circuit_filter: Filter) -> Contestant:
    from qulacs import GeneralQuantumOperator, ParametricQuantumCircuit, QuantumState

    n = circuit_filter.circuit.num_qubits
    circuit = ParametricQuantumCircuit(n)
    sources: list[tuple[str, float]] = []

    def rotation(axis: str, qubit: int, parameter: str, scale: float) -> None:
        getattr(circuit, f"add_parametric_{axis}_gate")(qubit, 0.0)
        # qulacs rotates the other way round: exp(+i angle P / 2).
        sources.append((parameter, -scale))

    for name, qubits, parameter in gates(circuit_filter):
        if name == "rx":
            rotation("RX", qubits[0], parameter or "", 1.0)
        elif name == "cx":
            circuit.add_CNOT_gate(*qubits)
        else:
            # A controlled rotation is two halves around a CNOT; for X, in the Hadamard frame.
            control, target = qubits
            if name == "crx":
                circuit.add_H_gate(target)
            rotation("RZ", target, parameter or "", 0.5)
            circuit.add_CNOT_gate(control, target)
            rotation("RZ", target, parameter or "", -0.5)
            circuit.add_CNOT_gate(control, target)
            if name == "crx":
                circuit.add_H_gate(target)
    position = {p.name: i for i, p in enumerate((*circuit_filter.inputs, *circuit_filter.weights))}
    columns = torch.tensor([position[name] for name, _ in sources])
    scales = torch.tensor([scale for _, scale in sources], dtype=torch.float64)

    def run(x: Tensor, w: Tensor, g: Tensor) -> Result:
        values, flat = [], torch.zeros(len(x), len(position), dtype=torch.float64)
        for b in range(len(x)):
            angles = torch.cat([x[b], w]).double()[columns] * scales
            for k, angle in enumerate(angles.tolist()):
                circuit.set_parameter(k, angle)
            observable = GeneralQuantumOperator(n)
            for i in range(n):
                observable.add_operator(float(g[b, i]), f"Z {i}")
            gradient = torch.tensor(circuit.backprop(observable), dtype=torch.float64)
            flat[b].index_add_(0, columns, gradient * scales)
            state = QuantumState(n)
            circuit.update_quantum_state(state)
            zeros = [state.get_zero_probability(i) for i in range(n)]
            values.append(torch.tensor([2 * p - 1 for p in zeros], dtype=torch.float64))
        split = len(circuit_filter.inputs)
        return torch.stack(values), flat[:, :split], flat[:, split:].sum(0)

    return run


#: Packages needed, and makers, of the peers.
PEERS = {
    "tensorcircuit": ("tensorcircuit jax", tensorcircuit),
    "tensorcircuit cones": ("tensorcircuit jax", partial(tensorcircuit, light_cones=True)),
    "pennylane jax.jit": ("pennylane jax", pennylane_jax),
    "pennylane torch": ("pennylane", pennylane_torch),
    "pyqtorch": ("pyqtorch", pyqtorch),
    "deepquantum": ("deepquantum", deepquantum),
    "qulacs": ("qulacs", qulacs),
}


def contestants(circuit_filter: Filter) -> dict[str, Contestant]:
    """The engine's two methods, and the peers that are installed."""
    made = {name: engine(circuit_filter, name) for name in ("exact", "exact:statevector")}
    for label, (packages, make) in PEERS.items():
        if all(map(find_spec, packages.split())):
            made[label] = make(circuit_filter)
    return made
