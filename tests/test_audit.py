"""Audits and measures against circuits whose answers are known."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Cli
from PIL import Image
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp, Statevector, random_statevector

from qhdm.cli import main
from qhdm.errors import CircuitError
from qhdm.hardware.runtime import find_backend
from qhdm.quantum import Filter, build_filter, expectation
from qhdm.quantum.analysis.audit import audit, conclusions, device_costs
from qhdm.quantum.analysis.expressibility import (
    gradient_variance,
    haar_divergence,
    haar_quantile,
    measure,
    meyer_wallach,
    pair_fidelities,
    random_states,
)
from qhdm.quantum.analysis.text import describe
from qhdm.quantum.ir.connectivity import on_qubits
from qhdm.quantum.ir.lowering import lower

CIRCUITS = Path(__file__).parent.parent / "circuits"


def filter_of(circuit: QuantumCircuit, weights: list[Parameter], observed: int = 0) -> Filter:
    z = SparsePauliOp.from_sparse_list([("Z", [observed], 1.0)], num_qubits=circuit.num_qubits)
    return Filter("mine", circuit, (), tuple(weights), (z,))


def states(*vectors: np.ndarray) -> list[torch.Tensor]:
    return [torch.as_tensor(np.array(vectors), dtype=torch.complex64)]


def test_the_released_filter_is_found_out(cli: Cli) -> None:
    done = cli("circuits", "inspect", "hqconv_released")
    assert done.returncode == 0, done.stderr
    assert "weights 84 of which 12 in gates and 12 live" in done.stdout
    assert "only 12 of 84 weights are live; 72 are in no gate" in done.stdout
    assert "12 wires, but one independent 3-qubit circuit and nine single qubits" in done.stdout
    assert "outputs 0, 1, 2, 3, 5, 6, 7, 9, 10, 11 depend on no weight" in done.stdout
    # Blocks are named by the circuit's own qubits.
    blocks = re.findall(r"block \d+: qubits (.*?), \d+ operator", done.stdout)
    singles = " or ".join(f"{{{i}}}" for i in (1, 2, 3, 5, 6, 7, 9, 10, 11))
    assert blocks == ["{0}", "{4}", "{8}", singles]
    assert "9 x 1 qubit: network of 1 block: " in done.stdout


def test_fqconv_is_four_circuits() -> None:
    facts = audit(build_filter("fqconv"))
    assert "12 wires, but four independent 3-qubit circuits: no entanglement" in describe(facts)
    assert facts.blocks == (3, 3, 3, 3)
    assert facts.reach(0) == (0, 4, 8)
    assert facts.inputs_seen(0) == [0, 4, 8]
    assert len(facts.live) == 72


def test_gates_that_no_output_sees_are_told_from_absent_ones() -> None:
    a, b, c = (Parameter(name) for name in "abc")
    circuit = QuantumCircuit(2)
    circuit.ry(a, 0)
    circuit.rz(b, 0)  # after the last gate that does not commute with Z: unseen
    facts = audit(filter_of(circuit, [a, b, c]))
    assert facts.live == (0,)
    (text,) = [text for text in conclusions(facts) if "live" in text]
    assert "1 are in no gate and 1 are in gates that no output sees" in text


def test_light_cones_of_audits_hold_what_moves_the_output() -> None:
    """An input or weight outside the cone has no gradient, one inside has."""
    filter = build_filter("hqconv_released", layers=2)
    facts = audit(filter)
    x = torch.rand(1, 12, dtype=torch.float64, requires_grad=True)
    w = torch.rand(len(filter.weights), dtype=torch.float64, requires_grad=True)
    for output in range(12):
        gx, gw = torch.autograd.grad(expectation(filter, x, w)[0, output], (x, w))
        for gradient, seen in ((gx[0], facts.inputs_seen), (gw, facts.weights_seen)):
            assert (gradient.abs() > 1e-12).nonzero().flatten().tolist() == seen(output)


def test_components_are_costed_on_the_device_apart() -> None:
    filter = build_filter("fqconv", layers=1)
    facts = audit(filter)
    costs = device_costs(facts, find_backend("fake_fez"))
    assert [cost.qubits for cost in costs] == list(facts.components)
    # Six controlled rotations on three qubits take two CZ each, and qubits of a heavy-hexagon
    # lattice have no triangles: some more to swap.
    assert all(12 <= cost.two_qubit_gates <= 24 for cost in costs)
    assert all(cost.two_qubit_depth <= cost.two_qubit_gates < cost.depth for cost in costs)


def test_a_component_is_cut_out_whole() -> None:
    filter = build_filter("fqconv", layers=1)
    parts = [on_qubits(filter.circuit, part) for part in audit(filter).components]
    assert sum(len(part.data) for part in parts) == len(filter.circuit.data)
    values = {p: 0.1 + 0.3 * i for i, p in enumerate(filter.circuit.parameters)}
    whole = Statevector(filter.circuit.assign_parameters(values))
    own = [
        Statevector(part.assign_parameters({p: values[p] for p in part.parameters}))
        for part in parts
    ]
    for qubit in range(12):
        z = own[qubit % 4].probabilities([qubit // 4])
        assert whole.probabilities([qubit]) == pytest.approx(z, abs=1e-12)


def test_meyer_wallach_of_known_states() -> None:
    ghz = np.zeros(8)
    ghz[[0, 7]] = math.sqrt(0.5)
    product = np.kron(np.kron([0.6, 0.8], [1, 1j]), [1, 0]) / math.sqrt(2)
    # W: each qubit is |1> with probability 1/3, purity 5/9: Q = 2 (1 - 5/9).
    w = np.zeros(8)
    w[[1, 2, 4]] = math.sqrt(1 / 3)
    found = meyer_wallach(states(ghz, product, w)).tolist()
    assert found == pytest.approx([1, 0, 8 / 9], abs=1e-6)
    # A GHZ state of three qubits beside two in a product: 3 of 5 qubits are mixed.
    beside = [*states(ghz), *states(np.kron([1, 0], [0.6, 0.8]))]
    assert meyer_wallach(beside).tolist() == pytest.approx([3 / 5], abs=1e-6)


def test_haar_random_states_are_at_the_floor() -> None:
    vectors = [random_statevector(8, seed=i).data for i in range(4000)]
    fidelities = pair_fidelities(states(*vectors)).double().numpy()
    assert fidelities.mean() == pytest.approx(1 / 8, abs=0.01)
    quantiles = np.sort(haar_quantile(fidelities, 3))
    # Kolmogorov-Smirnov against the uniform distribution, at the 0.1 % level.
    assert np.abs(quantiles - np.linspace(0, 1, 2000)).max() < 1.95 / math.sqrt(2000)
    for equal in (False, True):
        # 75 bins and 2000 samples: the expected divergence of the Haar histogram is 74 / 4000.
        assert haar_divergence(fidelities, 3, equal=equal) < 2 * 74 / 4000


def test_divergence_of_known_histograms() -> None:
    # All pairs equal: the last bin alone, of Haar probability (1/75)^(N - 1).
    for qubits in (1, 2, 12):
        expected = (2**qubits - 1) * math.log(75)
        assert haar_divergence(np.ones(100), qubits) == pytest.approx(expected, rel=1e-9)
        assert haar_divergence(np.ones(100), qubits, equal=True) == pytest.approx(math.log(75))
    # One qubit: Haar fidelities are uniform, so half of the bins, filled equally, are log 2 away.
    half = np.linspace(0, 37.5 / 75, 7500, endpoint=False)
    assert haar_divergence(half[half < 37 / 75], 1) == pytest.approx(math.log(75 / 37), abs=1e-3)


def test_a_rotation_about_one_axis_has_the_known_fidelities() -> None:
    """RY on |0>: F = cos^2((a - b) / 2) has the arcsine distribution."""
    a = Parameter("a")
    circuit = QuantumCircuit(1)
    circuit.ry(a, 0)
    found = measure(filter_of(circuit, [a]), pairs=20_000)
    edges = np.linspace(0, 1, 76)
    p = np.diff(2 / math.pi * np.arcsin(np.sqrt(edges)))
    expected = float((p * np.log(p * 75)).sum())
    assert found.expressibility.value == pytest.approx(expected, abs=0.01)
    assert found.expressibility.low < expected < found.expressibility.high
    assert found.capability.value == pytest.approx(0, abs=1e-6)


def test_random_states_are_those_of_the_circuit() -> None:
    filter = build_filter("hqconv", qubits=4, layers=2)
    program = lower(filter)
    ((part, found),) = random_states(program, 2, torch.Generator().manual_seed(5)).items()
    assert part == (0, 1, 2, 3)
    random = torch.Generator().manual_seed(5)
    x = 2 * math.pi * torch.rand(2, 4, generator=random)
    w = 2 * math.pi * torch.rand(2, len(filter.weights), generator=random)
    for sample in range(2):
        values = [*x[sample].tolist(), *w[sample].tolist()]
        expected = Statevector(filter.assign(values)).data
        assert abs(np.vdot(expected, found[sample].numpy())) == pytest.approx(1, abs=1e-5)


def test_gradient_variance_of_a_rotation() -> None:
    """<Z> = cos a, of gradient -sin a and variance 1/2; and it is a product over n qubits."""
    a = [Parameter(f"a{i}") for i in range(3)]
    circuit = QuantumCircuit(3)
    for i in range(3):
        circuit.ry(a[i], i)
    found = gradient_variance(filter_of(circuit, a), samples=4000)
    assert (found.weights, found.qubits) == (1, 3)
    assert found.variance.low < 0.5 < found.variance.high
    for i in range(2):
        circuit.cx(i, i + 1)
    # <Z_2> = cos a0 cos a1 cos a2: each gradient has variance 1/8.
    found = gradient_variance(filter_of(circuit, a, observed=2), samples=4000)
    assert found.weights == 3
    assert found.variance.value == pytest.approx(1 / 8, abs=0.01)


def test_a_circuit_without_weights_has_no_gradients() -> None:
    circuit = QuantumCircuit(1)
    circuit.h(0)
    assert gradient_variance(filter_of(circuit, [])).weights == 0


def test_measures_are_reproducible_and_bounded() -> None:
    filter = build_filter("basic", qubits=4, layers=1)
    one, other = measure(filter, pairs=50, seed=1), measure(filter, pairs=50, seed=1)
    assert one.expressibility_equal == other.expressibility_equal
    assert one.capability == other.capability != measure(filter, pairs=50, seed=2).capability
    with pytest.raises(CircuitError, match=r"\b16\b"):
        measure(build_filter("basic", qubits=18, layers=1))


def test_inspect_of_files_and_runs(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["circuits", "inspect", str(CIRCUITS / "reuploading.qasm")]) == 0
    assert "weights 60 of which 60 in gates and 60 live" in capsys.readouterr().out
    assert main(["circuits", "inspect", str(tiny_run), "--backend", "fake_fez"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("vertex and encoder\nfqconv_12x1: 12 qubits")
    assert "on fake_fez (each component transpiled separately)" in out


def test_measuring_leaves_a_picture(cli: Cli, tmp_path: Path) -> None:
    done = cli(
        "circuits", "inspect", "basic", "--qubits", "4", "--layers", "1", "--measure",
        "--pairs", "50", "--gradients", "20", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 qubits, 1 layers: gradient variance" in done.stdout
    assert "4 qubits, 5 layers: gradient variance" in done.stdout
    assert "expressibility, KL from Haar" in done.stdout
    with Image.open(tmp_path / "basic_4x1_measures.png") as picture:
        assert picture.width > 1000
    assert (tmp_path / "basic_4x1_measures.png").stat().st_size < 150_000


def test_filters_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    mine = str(CIRCUITS / "reuploading.qasm")
    assert main(["circuits", "compare", "hqconv", "hqconv_released", mine, "--layers", "3"]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    table = {cells[0].strip(): [c.strip() for c in cells[1:] if c.strip()] for cells in rows}
    assert table["live weights"] == ["84", "12", "60"]
    assert table["components"] == ["1 x 12", "1 x 3 + 9 x 1", "3 x 4"]
    assert table[""] == ["hqconv_12x3", "hqconv_released_12x3", "reuploading"]


def test_export_overwrites_when_told_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.qasm"
    file.write_text("mine")
    command = ["circuits", "export", "basic", "--out"]
    assert main([*command, str(file)]) == 1
    assert "mine.qasm: exists already; name another file, or give" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert main([*command, str(file), "--force"]) == 0
    assert file.read_text() == (CIRCUITS / "basic.qasm").read_text()
    (tmp_path / "folder.qpy").mkdir()
    assert main([*command, str(tmp_path / "folder.qpy"), "--force"]) == 1
    assert "is a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("inspect", "absent.qasm"), "absent.qasm: no such file"),
        (("inspect", "hqcnv"), "known are hqconv"),
        (("inspect", "."), "not a run directory"),
        (("inspect", "RUN", "--layers", "2"), "give neither qubits nor layers"),
        (("inspect", "basic", "--plot", "a.png"), "give both"),
        (("export", "basic", "--out", "a.txt"), "must end in .qasm"),
    ],
)
def test_circuits_refuses_in_one_line(
    arguments: tuple[str, ...],
    words: str,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["circuits", *(str(tiny_run) if a == "RUN" else a for a in arguments)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert words in err
