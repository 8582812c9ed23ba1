"""Audits as plain text: one filter in full, or several side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from qhdm.quantum.analysis.audit import Audit, DeviceCost, conclusions
from qhdm.quantum.analysis.expressibility import Estimate, GradientVariance, Measures
from qhdm.quantum.exact.plan import Group, StatevectorPlan
from qhdm.quantum.exact.tree import Network


def describe(facts: Audit) -> str:
    """Gates, live weights, light cones, components, the cost of simulation, and what follows."""
    audited = facts.filter
    circuit = audited.circuit
    cones = [f"{len(c)}/{len(facts.reach(m))}" for m, c in enumerate(facts.cones)]
    lines = [
        f"{audited.name}: {circuit.num_qubits} qubits, depth {circuit.depth()}, "
        f"{len(facts.program.ops)} gates of which {facts.wide_gates} on two qubits or more "
        f"({', '.join(f'{name} {count}' for name, count in facts.gates.most_common())})",
        f"inputs {len(audited.inputs)}, outputs {len(audited.observables)}, "
        f"weights {len(audited.weights)} of which {len(audited.present_weights)} in gates and "
        f"{len(facts.live)} live",
        f"light cones (gates/qubits per output): {', '.join(cones)}",
        f"connected components: {len(facts.components)}: "
        f"{', '.join(map(_qubits, facts.components))}",
        "exact simulation, real multiply-adds per sample in a forward pass:",
    ]
    for group, state in zip(facts.plan.groups, facts.statevector.groups, strict=True):
        lines += _method(group, state)
    lines.append(f"  in all {facts.cost:,} (as state vectors {facts.statevector_cost:,})")
    texts = conclusions(facts)
    if texts:
        lines += ["so:", *(f"  * {text}" for text in texts)]
    return "\n".join(lines)


def describe_device(name: str, costs: Sequence[DeviceCost]) -> str:
    """The components of a filter on a device."""
    lines = [f"on {name} (each component transpiled separately):"]
    lines += [
        f"  {_qubits(cost.qubits)}: {cost.two_qubit_gates} two-qubit gates in "
        f"{cost.two_qubit_depth} layers, depth {cost.depth}"
        for cost in costs
    ]
    two = sum(cost.two_qubit_gates for cost in costs)
    depth = max(cost.two_qubit_depth for cost in costs)
    lines.append(f"  in all {two} two-qubit gates, at most {depth} layers of them")
    return "\n".join(lines)


def describe_measures(measures: Measures) -> str:
    """Expressibility and entangling capability, with their intervals."""
    n, pairs = measures.qubits, measures.pairs
    width, equal = (0.0 if value < 1e-9 else value for value in measures.haar)
    return "\n".join(
        [
            f"over random inputs and weights ({pairs} pairs of states of {n} qubits; 95 % "
            "bootstrap intervals):",
            f"  expressibility, KL from Haar in 75 bins of equal width: "
            f"{_estimate(measures.expressibility)} (Haar-random states: {width:.3g})",
            f"  expressibility, KL from Haar in 75 bins of equal weight: "
            f"{_estimate(measures.expressibility_equal)} (Haar-random states: {equal:.3g})",
            f"  entangling capability, mean Meyer-Wallach Q: {_estimate(measures.capability)}",
        ]
    )


def describe_gradients(label: str, gradients: GradientVariance) -> str:
    """One line on the variance of gradients."""
    return (
        f"  {label}: gradient variance {_estimate(gradients.variance)} "
        f"(<Z> of output {gradients.output}, {gradients.weights} weights)"
    )


def compare(columns: Sequence[Sequence[tuple[str, str]]]) -> str:
    """Rows of (label, value) of several filters as one table, a column each."""
    labels = [label for label, _ in columns[0]]
    cells = [labels, *([value for _, value in column] for column in columns)]
    widths = [max(map(len, cell)) for cell in cells]
    lines = []
    for row in zip(*cells, strict=True):
        first, *others = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)


def summary(
    facts: Audit,
    *,
    device: tuple[str, Sequence[DeviceCost]] | None = None,
    measures: Measures | None = None,
    gradients: GradientVariance | None = None,
) -> list[tuple[str, str]]:
    """The facts of a filter as rows of a table.

    Args:
        facts: of the filter.
        device: a backend's name, and the costs of the components there.
        measures, gradients: where they were taken.
    """
    audited, sizes = facts.filter, Counter(map(len, facts.components))
    reach = [len(facts.reach(m)) for m in range(len(facts.cones))]
    rows = [
        ("", audited.name),
        ("qubits", str(audited.circuit.num_qubits)),
        ("depth", str(audited.circuit.depth())),
        ("gates", str(len(facts.program.ops))),
        ("on two or more qubits", str(facts.wide_gates)),
        ("inputs, outputs", f"{len(audited.inputs)}, {len(audited.observables)}"),
        ("weights", str(len(audited.weights))),
        ("live weights", str(len(facts.live))),
        ("qubits an output sees", _range(reach)),
        (
            "components",
            " + ".join(f"{count} x {size}" for size, count in sorted(sizes.items())[::-1]),
        ),
        ("qubits of largest block simulated", str(max(facts.blocks))),
        ("multiply-adds per sample", f"{facts.cost:,}"),
        ("as state vectors", f"{facts.statevector_cost:,}"),
    ]
    if device is not None:
        name, costs = device
        rows += [
            (f"{name}: two-qubit gates", str(sum(cost.two_qubit_gates for cost in costs))),
            (f"{name}: layers of them", str(max(cost.two_qubit_depth for cost in costs))),
            (f"{name}: depth", str(max(cost.depth for cost in costs))),
        ]
    if measures is not None:
        rows += [
            ("KL from Haar, equal width", _estimate(measures.expressibility)),
            ("KL from Haar, equal weight", _estimate(measures.expressibility_equal)),
            ("mean Meyer-Wallach Q", _estimate(measures.capability)),
        ]
    if gradients is not None:
        rows.append(("gradient variance", _estimate(gradients.variance)))
    return rows


def _estimate(estimate: Estimate) -> str:
    # What is below rounding is 0.
    value, low, high = (
        0.0 if number < 1e-9 else number for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _method(group: Group, state: Group) -> list[str]:
    copies = f"{len(group.qubits)} x " if len(group.qubits) > 1 else ""
    head = f"  {copies}{_count(group.size, 'qubit')}: "
    plan = group.plan
    if isinstance(plan, StatevectorPlan):
        return [f"{head}state vector, {len(plan.units)} fused unitaries: {group.cost:,}"]
    return [
        f"{head}network of {_count(len(plan.network.blocks), 'block')}: {group.cost:,} "
        f"(as a state vector {state.cost:,})",
        *_blocks(plan.network, group.qubits),
    ]


def _blocks(network: Network, components: Sequence[tuple[int, ...]]) -> list[str]:
    """The blocks of equal components, on the circuit's own qubits."""
    lines = []
    for index, block in enumerate(network.blocks):
        bonds = Counter(a + b - index for a, b in network.ends if index in (a, b))
        text = ", ".join(
            f"{_count(count, 'cut')} to block {other}" for other, count in sorted(bonds.items())
        )
        places = [_qubits(tuple(part[i] for i in block.qubits)) for part in components]
        operators = _count(len(block.operators), "operator")
        lines.append(
            f"    block {index}: qubits {' or '.join(places)}, {operators}"
            + (f", {text}" if text else "")
        )
    late = [measured for measured in network.measured if measured.late]
    if late:
        lines.append(
            f"    {_count(len(late), 'output')} conjugated by gates at the end that no other "
            "output sees"
        )
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _qubits(qubits: tuple[int, ...]) -> str:
    return "{" + ", ".join(map(str, qubits)) + "}"
