"""Exported filters, read back with the stock parsers: the same <Z_i> as the model's layer."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Cli
from PIL import Image
from qiskit import qasm2, qasm3, qpy
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import Statevector
from safetensors.torch import load_file
from tolerances import EXPORT

from qhdm.cli import main
from qhdm.errors import ExportError, HardwareError
from qhdm.export import Export, export, read_inputs
from qhdm.hardware.runtime import find_backend
from qhdm.models.named_filters import NamedFilter, named_filters
from qhdm.quantum import build_filter, expectation
from qhdm.quantum.files.load import load_filter
from qhdm.quantum.layer import QuantumConv2d
from qhdm.run import load_model

X = np.linspace(-3, 3, 12)

#: Run with nothing but qiskit and numpy: values of every exported filter, as one JSON object.
FRESH = """
import json, sys
from pathlib import Path
import numpy as np
from qiskit import qasm3, qasm2
from qiskit.quantum_info import SparsePauliOp, Statevector

folder, found = Path(sys.argv[1]), {}
for path in sorted(folder.glob("*.json")):
    sidecar = json.loads(path.read_text())
    inputs = dict(zip(sidecar["inputs"], np.linspace(-3, 3, 12)))
    free = qasm3.loads(path.with_suffix(".qasm").read_text())
    bound = free.assign_parameters(inputs)
    other = qasm2.loads(path.with_name(path.stem + "_openqasm2.qasm").read_text())
    for kind, circuit in (("openqasm3", bound), ("openqasm2", other)):
        state, values = Statevector(circuit), []
        for terms in sidecar["observables"]:
            labels = [(s.replace("Z", ""), c) for s, c in terms.items()]
            operator = SparsePauliOp.from_sparse_list(
                [("Z", [int(qubit)], c) for qubit, c in labels], num_qubits=sidecar["qubits"]
            )
            values.append(state.expectation_value(operator).real)
        found.setdefault(path.stem, {})[kind] = values
assert not {"torch", "qhdm"} & set(sys.modules)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def exported(cli: Cli, trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that `qhdm export` writes of the tiny run."""
    folder = tmp_path_factory.mktemp("export")
    np.save(folder / "inputs.npy", X)
    done = cli(
        "export", trained_run, "--out", folder / "out", "--inputs", folder / "inputs.npy",
        "--backend", "fake_fez", "--draw",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "vertex_block1_conv1_filter0: fqconv_12x1" in done.stdout
    assert "Rz(w000)" in done.stdout.replace(" ", "")
    return folder / "out"


@pytest.fixture(scope="module")
def layers(trained_run: Path) -> dict[str, list[float]]:
    """Values of the model's own layers on a patch of X, by the name of the exported filter."""
    model, _ = load_model(trained_run)
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, QuantumConv2d):
            patch = torch.as_tensor(X).reshape(2, 2, 3).permute(2, 0, 1)  # (h, w, c) to (C, H, W)
            values = layer.double()(patch.repeat(layer.count, 1, 1)[None])[0]
            for f in range(layer.count):
                own = values[3 * f : 3 * f + 3].permute(1, 2, 0).flatten().tolist()
                place = name.removesuffix(".quantum").replace("encoder.", "encoder")
                found[f"{place.replace('.', '_')}_filter{f}"] = own
    return found


def sidecar_of(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def z_values(circuit: QuantumCircuit, qubits: list[int]) -> list[float]:
    """<Z> of some qubits of a circuit on many, of which few are active."""
    index = {qubit: i for i, qubit in enumerate(circuit.qubits)}
    active = sorted({index[q] for entry in circuit.data for q in entry.qubits})
    small = QuantumCircuit(len(active))
    for entry in circuit.data:
        small.append(entry.operation, [active.index(index[q]) for q in entry.qubits])
    probabilities = [
        Statevector(small).probabilities([active.index(qubit)]) if qubit in active else (1, 0)
        for qubit in qubits
    ]
    return [float(p[0] - p[1]) for p in probabilities]


def by_name(circuit: QuantumCircuit, values: dict[str, float]) -> QuantumCircuit:
    return circuit.assign_parameters({p.name: values[p.name] for p in circuit.parameters})


def test_a_fresh_python_with_qiskit_alone_finds_the_values_of_the_layers(
    exported: Path, layers: dict[str, list[float]], tmp_path: Path
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", FRESH, str(exported)],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == layers.keys()
    assert len(found) == 10
    for name, values in found.items():
        assert values["openqasm3"] == pytest.approx(layers[name], abs=EXPORT)
        assert values["openqasm2"] == pytest.approx(layers[name], abs=EXPORT)
        assert max(map(abs, layers[name])) > 0.01


def test_qpy_and_isa_circuits_give_the_same_values(
    exported: Path, layers: dict[str, list[float]]
) -> None:
    for name in ("vertex_block1_conv2_filter1", "encoder1_block1_conv1_filter0"):
        sidecar = sidecar_of(exported, name)
        inputs = dict(zip(sidecar["inputs"], X, strict=True))
        with (exported / f"{name}.qpy").open("rb") as file:
            (circuit,) = qpy.load(file)
        assert z_values(by_name(circuit, inputs), list(range(12))) == pytest.approx(
            layers[name], abs=EXPORT
        )
        assert sidecar["isa"]["backend"] == "fake_fez"
        physical = sidecar["isa"]["physical_qubits"]
        assert physical != list(range(12))  # reading qubit i would be wrong
        with (exported / f"{name}_isa.qpy").open("rb") as file:
            (isa,) = qpy.load(file)
        assert isa.num_qubits == sidecar["isa"]["device_qubits"] == 156
        text = qasm3.loads((exported / f"{name}_isa.qasm").read_text())
        for form in (isa, text):
            assert {entry.operation.name for entry in form.data} <= {"rz", "sx", "x", "cz"}
            assert z_values(by_name(form, inputs), physical) == pytest.approx(
                layers[name], abs=EXPORT
            )


def test_the_sidecar_says_what_circuits_do_not(exported: Path, tiny_run: Path) -> None:
    name = "vertex_block1_conv1_filter1"
    sidecar = sidecar_of(exported, name)
    assert (sidecar["place"], sidecar["filter"]) == ("vertex.block1.conv1", 1)
    assert sidecar["inputs"] == [f"x{i:02d}" for i in range(12)]
    assert list(sidecar["weights"]) == [f"w{i:03d}" for i in range(24)]
    assert sidecar["observables"] == [{f"Z{i}": 1.0} for i in range(12)]
    assert sidecar["source"]["step"] == 20
    assert "qiskit" in sidecar["source"]["versions"]
    for file, entry in sidecar["files"].items():
        assert entry["sha256"] == hashlib.sha256((exported / file).read_bytes()).hexdigest()
    # The averaged weights, as `qhdm sample` takes them, in radians.
    theta = load_file(tiny_run / "checkpoints" / "step_0000020" / "ema.safetensors")
    own = theta["vertex.block1.conv1.quantum.connector.theta"][1].double()
    assert list(sidecar["weights"].values()) == pytest.approx(
        (sidecar["angle_scale"] * own).tolist(), abs=1e-12
    )
    with Image.open(exported / sidecar["drawing"]) as picture:
        assert picture.width > 400
        assert len(picture.convert("L").getcolors()) > 3


def test_free_weights_are_kept_and_read_as_a_filter(
    tiny_run: Path, layers: dict[str, list[float]], tmp_path: Path
) -> None:
    assert main(["export", str(tiny_run), "--out", str(tmp_path / "out"), "--free-weights"]) == 0
    name = "vertex_block2_conv1_filter0"
    weights = sidecar_of(tmp_path / "out", name)["weights"]
    filter = load_filter(tmp_path / "out" / f"{name}.qasm")
    assert [weight.name for weight in filter.weights] == list(weights)
    w = torch.tensor(list(weights.values()), dtype=torch.float64)
    values = expectation(filter, torch.as_tensor(X)[None], w)[0]
    assert values.tolist() == pytest.approx(layers[name], abs=EXPORT)


def test_binding_by_position_would_be_wrong(exported: Path) -> None:
    """Why names are padded: stock names sort _x_10_ before _x_2_."""
    padded = qasm3.loads((exported / "vertex_block1_conv1_filter0.qasm").read_text())
    names = [parameter.name for parameter in padded.parameters]
    assert names == sorted(names) == [f"x{i:02d}" for i in range(12)]
    stock = qasm3.loads(qasm3.dumps(build_filter("fqconv", layers=1).circuit))
    inputs = [p.name for p in stock.parameters if p.name.startswith("_x_")]
    assert inputs != [f"_x_{i}_" for i in range(12)]


@pytest.mark.parametrize("ansatz", ["hqconv", "basic", "hqconv_released"])
def test_every_family_is_exported(ansatz: str, tmp_path: Path) -> None:
    """crx is the gate that qasm2.dumps writes and plain qasm2.loads refuses."""
    filter = build_filter(ansatz, layers=2)
    weights = np.random.default_rng(3).uniform(0, 6, len(filter.weights))
    placed = NamedFilter("vertex.block1.conv1", 0, filter, weights)
    backend = find_backend("fake_fez")
    what = Export(source={}, inputs=X, backend=backend, free_weights=True)
    export([placed], tmp_path / "out", what)
    x = torch.as_tensor(X)[None]
    values = expectation(filter, x, torch.as_tensor(weights))[0].tolist()
    stem = tmp_path / "out" / "vertex_block1_conv1_filter0"
    sidecar = json.loads(stem.with_suffix(".json").read_text())
    bound = dict(zip(sidecar["inputs"], X, strict=True)) | sidecar["weights"]
    text = stem.with_name(f"{stem.name}_openqasm2.qasm").read_text()
    assert z_values(qasm2.loads(text), list(range(12))) == pytest.approx(values, abs=EXPORT)
    free = qasm3.loads(stem.with_suffix(".qasm").read_text())
    assert z_values(by_name(free, bound), list(range(12))) == pytest.approx(values, abs=EXPORT)
    isa = qasm3.loads(stem.with_name(f"{stem.name}_isa.qasm").read_text())
    physical = sidecar["isa"]["physical_qubits"]
    assert z_values(by_name(isa, bound), physical) == pytest.approx(values, abs=EXPORT)


def test_compiled_isa_circuits_have_fewer_gates_and_the_same_values(tmp_path: Path) -> None:
    filter = build_filter("fqconv", layers=1)
    weights = np.random.default_rng(3).uniform(0, 6, len(filter.weights))
    placed = NamedFilter("vertex.block1.conv1", 0, filter, weights)
    values = expectation(filter, torch.as_tensor(X)[None], torch.as_tensor(weights))[0].tolist()
    gates = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        export([placed], folder, Export({}, backend=find_backend("fake_fez"), compile=compiled))
        stem = folder / "vertex_block1_conv1_filter0"
        isa = json.loads(stem.with_suffix(".json").read_text())["isa"]
        gates.append(isa["two_qubit_gates"])
        circuit = qasm3.loads(stem.with_name(f"{stem.name}_isa.qasm").read_text())
        bound = {f"x{i:02d}": value for i, value in enumerate(X)}
        physical = isa["physical_qubits"]
        assert z_values(by_name(circuit, bound), physical) == pytest.approx(values, abs=EXPORT)
    assert gates[1] < gates[0]


def test_an_export_is_whole_or_absent(tmp_path: Path) -> None:
    filter = build_filter("basic", qubits=2, layers=1)
    placed = NamedFilter("vertex.block1.conv1", 0, filter, np.zeros(2))

    def fail(circuit: QuantumCircuit, path: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export([placed], tmp_path / "out", Export(source={}, draw=fail))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ExportError, match="nothing to export"):
        export([], tmp_path / "out", Export(source={}))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    with pytest.raises(ExportError, match="--out"):
        export([placed], tmp_path / "full", Export(source={}))
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    assert read_inputs("zeros", 12).tolist() == [0] * 12
    file = tmp_path / "inputs.npy"
    for values, words in (
        (np.zeros(11), r"must hold \(12,\) angles, holds \(11,\)"),
        (np.zeros((2, 12)), r"holds \(2, 12\)"),
        (np.full(12, np.nan), "finite"),
        (np.array(["a"] * 12), "real numbers"),
        (np.array([{}] * 12), "real numbers"),  # pickled: never read
    ):
        np.save(file, values, allow_pickle=True)
        with pytest.raises(ExportError, match=words):
            read_inputs(str(file), 12)
    with pytest.raises(ExportError, match="no such file"):
        read_inputs(str(tmp_path / "absent.npy"), 12)
    for values in (np.linspace(-3, 3, 12), np.arange(12, dtype=">i2"), np.ones(12, "f4")):
        np.save(file, values)
        assert (read_inputs(str(file), 12) == values).all()


def header(shape: str, kind: str = "<f8") -> bytes:
    """Of a NumPy file (version 1.0)."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04junk", "not a NumPy array file"),
        (b"", "not a NumPy array file"),
        (b"\x93NUMPY\x09\x00", "not a NumPy array file"),
        (header("(12")[:-40] + b"\n", "not a NumPy array file"),
        (header("(12"), "not a NumPy array file"),
        (header("(10**12,)"), "not a NumPy array file"),
        (header("(1000000000000,)"), r"must hold \(12,\) angles, holds \(1000000000000,\)"),
        (header("(12,)", "<U99999999") + bytes(96), "must hold finite real numbers"),
        (header("(12,)") + bytes(95), "cut short"),
    ],
)
def test_damaged_inputs_are_refused_in_one_line(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "inputs.npy").write_bytes(content)
    with pytest.raises(ExportError, match=words) as refused:
        read_inputs(str(tmp_path / "inputs.npy"), 12)
    assert "\n" not in str(refused.value)


def test_backends_that_cannot_be_had_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HardwareError, match="fake_fez"):
        find_backend("fake_fezz")
    monkeypatch.setenv("HOME", "/nowhere")  # no saved account
    monkeypatch.delenv("QISKIT_IBM_TOKEN", raising=False)
    with pytest.raises(HardwareError, match=r"ibm_fez: .*account.*fake"):
        find_backend("ibm_fez")


def test_names_of_places() -> None:
    model = torch.nn.ModuleDict(
        {"encoder": torch.nn.ModuleList([torch.nn.ModuleDict({"quantum": _layer()})])}
    )
    assert [item.name for item in named_filters(model)] == ["encoder0_filter0", "encoder0_filter1"]


def _layer() -> QuantumConv2d:
    return QuantumConv2d(3 * 2, build_filter("fqconv", layers=1))


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        ((".", "--out", "out"), "not a run directory", 1),
        (("RUN", "--out", "RUN"), "exists already and is not empty", 1),
        (("RUN", "--out", "out", "--inputs", "absent.npy"), "no such file", 1),
        (("RUN", "--out", "out", "--backend", "fake_fes"), "no such fake device", 13),
    ],
)
def test_export_refuses_in_one_line(
    arguments: tuple[str, ...],
    words: str,
    code: int,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *(str(tiny_run) if a == "RUN" else a for a in arguments)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert words in err
    assert list(tmp_path.iterdir()) == []
