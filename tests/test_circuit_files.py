"""Circuit files: what is read, what is refused, and that names alone decide what is bound."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from filters import HEADER, assert_same, draw, qiskit_values, read, read_qpy
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit import qasm3
from qiskit.circuit import Parameter, ParameterVector, QuantumCircuit
from tolerances import FLOAT64

from qhdm.config import is_circuit_file
from qhdm.errors import CircuitError
from qhdm.hardware.runtime import find_backend
from qhdm.quantum import build_filter, expectation
from qhdm.quantum.analysis.transpile import to_isa
from qhdm.quantum.files.load import SUFFIXES, find_filter, load_filter
from qhdm.quantum.files.openqasm import read_openqasm3
from qhdm.quantum.files.save import named_circuit, to_openqasm3, write_filter

CIRCUITS = Path(__file__).parent.parent / "circuits"
#: A filter that is good up to here: lines 3 to 7.
GOOD = "input float[64] x0;\ninput angle w0;\nqubit[2] q;\nrx(x0) q[0];\nry(w0) q[0];\n"


@pytest.mark.parametrize("name", ["hqconv", "fqconv", "basic"])
def test_the_gallery_holds_what_the_builders_build(name: str, tmp_path: Path) -> None:
    built, loaded = build_filter(name), load_filter(CIRCUITS / f"{name}.qasm")
    assert [p.name for p in loaded.weights] == [f"w{i:03d}" for i in range(len(built.weights))]
    assert to_openqasm3(named_circuit(built)) == to_openqasm3(loaded.circuit)
    assert_same(built, loaded)
    # `qhdm circuits export NAME --out FILE` makes the very file.
    write_filter(built, tmp_path / "again.qasm")
    assert (tmp_path / "again.qasm").read_text() == (CIRCUITS / f"{name}.qasm").read_text()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_written_filters_are_read_back(suffix: str, tmp_path: Path) -> None:
    filter = build_filter("hqconv", qubits=8, layers=2)
    path = tmp_path / f"mine{suffix}"
    write_filter(filter, path)
    loaded = find_filter(str(path))
    assert loaded.name == "mine"
    assert len(loaded.inputs) == len(loaded.observables) == 8
    assert_same(filter, loaded)
    assert is_circuit_file(str(path))


def test_parameter_vectors_are_found_by_their_numbers(tmp_path: Path) -> None:
    """Qiskit writes x[0] as _x_0_, and sorts x_10_ before x_2_: numbers must decide."""
    filter = build_filter("fqconv", layers=1)
    path = tmp_path / "stock.qasm"
    path.write_text(qasm3.dumps(filter.circuit))
    assert "_x_10_" in path.read_text()
    assert_same(filter, load_filter(path))
    assert_same(filter, read_qpy(tmp_path, filter.circuit))


def test_the_rzz_that_qiskit_defines_is_read_as_one(tmp_path: Path) -> None:
    """OpenQASM has no RZZ; as CX, RZ, CX, every output of a ring would seem to see all qubits."""
    x, w = ParameterVector("x", 6), ParameterVector("w", 18)
    ring = QuantumCircuit(6)
    for q in range(6):
        ring.rx(x[q], q)
    for q in range(6):
        ring.rzz(w[q], q, (q + 1) % 6)
        ring.rxx(w[6 + q], q, (q + 1) % 6)
        ring.ry(w[12 + q], q)
    (tmp_path / "ring.qasm").write_text(qasm3.dumps(ring))
    loaded = load_filter(tmp_path / "ring.qasm")
    assert loaded.circuit.count_ops()["rzz"] == 12
    assert "cx" not in loaded.circuit.count_ops()
    assert_same(loaded, read_qpy(tmp_path, ring))


@pytest.mark.parametrize(
    "body",
    [
        "cx a, b; rz(t) a; cx a, b;",
        "cx a, b; rz(t) b; cx b, a;",
        "cx a, b; rx(t) b; cx a, b;",
        "negctrl @ x a, b; rz(t) b; negctrl @ x a, b;",
    ],
)
def test_other_gates_between_cx_stay_as_they_are(body: str, tmp_path: Path) -> None:
    loaded = read(
        tmp_path,
        f"gate rzz(t) a, b {{ {body} }}\ninput float x0;\ninput float w0;\nqubit[2] q;\n"
        "rx(x0) q[0];\nh q[1];\nrzz(w0) q[0], q[1];\n",
    )
    assert "rzz" not in loaded.circuit.count_ops()
    x, w = draw(loaded)
    assert expectation(loaded, x, w)[0].tolist() == pytest.approx(
        qiskit_values(loaded, x[0], w), abs=FLOAT64
    )


def test_arguments_of_defined_gates_keep_their_order(tmp_path: Path) -> None:
    """The stock reader would bind them in the alphabetical order of the definition."""
    body = (
        "gate turn(b, a) q { rx(b) q; ry(2 * a) q; }\ninput float x0;\ninput float w0;\n"
        "qubit[1] q;\nturn(x0, w0) q[0];\n"
    )
    loaded = read(tmp_path, body)
    x, w = draw(loaded)
    value = x[0, 0].cos() * (2 * w[0]).cos()  # <Z> after RX(x) and RY(2 w) on |0>
    torch.testing.assert_close(expectation(loaded, x, w)[0, 0], value, atol=FLOAT64, rtol=0)


def test_final_measurements_are_dropped(tmp_path: Path) -> None:
    loaded = read(tmp_path, GOOD + "bit[2] c;\nc = measure q;\n")
    assert loaded.circuit.count_ops() == {"rx": 1, "ry": 1}
    assert len(loaded.observables) == 1  # one for each input


def test_modifiers_ranges_and_broadcasts(tmp_path: Path) -> None:
    body = (
        "input float x0;\ninput float x1;\ninput float w0;\nqubit[3] q;\nrx(x0) q[0:1];\n"
        "ry(x1 / 2 + 0.1) q;\nctrl @ rz(w0) q[0], q[1];\nnegctrl(2) @ x q[0], q[1], q[2];\n"
        "inv @ s q[{0, 2}];\npow(0.5) @ x q[1];\nctrl @ ctrl @ ry(-w0) q[2], q[1], q[0];\n"
    )
    loaded = read(tmp_path, body)
    x, w = draw(loaded)
    assert expectation(loaded, x, w)[0].tolist() == pytest.approx(
        qiskit_values(loaded, x[0], w), abs=FLOAT64
    )


@pytest.mark.parametrize(
    "angle", ["1/2*w0", "3/2", "-1/2*w0", "pi*(1/2)", "(1 + 2)/4 + w0", "1/-3"]
)
def test_integers_are_not_divided_with_a_remainder(angle: str, tmp_path: Path) -> None:
    """OpenQASM drops the remainder: 1/2*w0 is 0, and nobody means that."""
    for body in (f"rx({angle}) q[0];", f"gphase({angle});"):
        with pytest.raises(CircuitError, match=r"mine\.qasm:8: .*\.0/"):
            read(tmp_path, GOOD + body)
    own = f"gate g(w0) q {{ rx({angle}) q; }}\n"
    with pytest.raises(CircuitError, match=r"mine\.qasm:3: "):
        read(tmp_path, own + GOOD)


@pytest.mark.parametrize(("angle", "factor"), [("4/2*w0", 2), ("1.0/2*w0", 0.5), ("w0/2", 0.5)])
def test_exact_and_real_divisions_are_read(angle: str, factor: float, tmp_path: Path) -> None:
    body = f"input float x0;\ninput float w0;\nqubit q;\nrx(x0) q;\nrx({angle}) q;\n"
    filter = read(tmp_path, body)
    x, w = draw(filter)
    right = np.cos(float(x[0, 0]) + factor * float(w[0]))
    assert float(expectation(filter, x, w)) == pytest.approx(right, abs=FLOAT64)


def test_an_integer_given_as_an_angle_is_divided_like_one(tmp_path: Path) -> None:
    own = "gate g(a) q { rx(a/2) q; }\ngate h2(a) q { g(a) q; }\n"
    body = (
        own + "input float x0;\nqubit q;\nrx(x0) q;\nh2(1) q;\nh2(2 - 1) q;\nctrl(0) @ g(-1) q;\n"
    )
    filter = read(tmp_path, body)
    value = float(expectation(filter, torch.tensor([[0.3]]), torch.zeros(0)))
    assert value == pytest.approx(np.cos(0.3 + 0.5 + 0.5 - 0.5), abs=1e-6)


def test_deep_definitions_cost_what_they_hold(tmp_path: Path) -> None:
    """200 definitions within definitions are one gate, whose angle doubles each time."""
    own = "gate g0(a) q { rx(a / 1024) q; }\n" + "".join(
        f"gate g{i}(a) q {{ g{i - 1}({'a + a' if i <= 10 else 'a'}) q; }}\n" for i in range(1, 201)
    )
    filter = read(tmp_path, own + "input float x0;\nqubit q;\ng200(x0 - x0 / 2) q;\n")
    assert len(filter.circuit.data) == 1
    value = float(expectation(filter, torch.tensor([[0.6]]), torch.zeros(0)))
    assert value == pytest.approx(np.cos(0.3), abs=1e-6)


def test_calls_over_registers_are_made_one_after_the_other(tmp_path: Path) -> None:
    """The first qubit is shared: g(a, b0) g(a, b1) is not each gate of g over the register."""
    g = "gate g a, b { ry(0.4) a; cx a, b; }\n"
    inputs = "input float x0;\ninput float x1;\ninput float x2;\nqubit a;\nqubit[2] b;\n"
    start = "rx(x0) a;\nrx(x1) b[0];\nrx(x2) b[1];\n"
    assert_same(
        read(tmp_path, g + inputs + start + "g a, b;\n"),
        read(tmp_path, inputs + start + "ry(0.4) a;\ncx a, b[0];\nry(0.4) a;\ncx a, b[1];\n"),
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("gate g q { x q; }\ngate g q { y q; }\n" + GOOD, ":4: g is already defined in line 3"),
        ("gate x q { y q; }\n" + GOOD, ":3: x is already defined in line 2"),
        ("gate U(a) q { rx(a) q; }\n" + GOOD, ":3: U is already defined"),
        (GOOD + "gate w0 q { x q; }", ":8: w0 is already defined in line 4"),
        (GOOD + "gate q a { x a; }", ":8: q is already defined in line 5"),
    ],
)
def test_names_are_defined_once(body: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(CircuitError) as refused:
        read(tmp_path, body)
    assert words in str(refused.value)


def test_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "bom.qasm").write_text(HEADER + GOOD, encoding="utf-8-sig")
    assert len(load_filter(tmp_path / "bom.qasm").weights) == 1


def test_openqasm2_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openqasm3.parse", NotImplemented)
    text = "// mine\n/* of * old */\nOPENQASM 2.0;\nqreg q[2];\n" + "cx q[0],q[1];\n" * 9000
    with pytest.raises(CircuitError, match=r":3: OpenQASM 2 .*qiskit\.qasm2\.load.*qasm3\.dump"):
        read(tmp_path, text, header="")


def test_a_filter_has_inputs(tmp_path: Path) -> None:
    with pytest.raises(CircuitError, match=r"mine\.qasm: .*\bx0\b"):
        read(tmp_path, "input float w0;\nqubit q;\nrx(w0) q;\n")


GATES = "gate g0(a) q { rx(a) q; }\n" + "".join(
    f"gate g{i}(a) q {{ g{i - 1}(a) q; g{i - 1}(a) q; }}\n" for i in range(1, 41)
)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (GOOD + "for int i in [0:1000000000] { x q[0]; }", ":8: loops are not read"),
        (GOOD + "while (true) { x q[0]; }", ":8: loops are not read"),
        (GOOD + "bit c;\nif (c) { x q[0]; }", ":9: classical conditions"),
        (GOOD + "reset q;", ":8: reset is not a unitary gate"),
        (GOOD + "let a = q;", ":8: aliases"),
        (GOOD + "def f(qubit a) { x a; }", ":8: subroutines"),
        (GOOD + "pragma anything", ":8: a pragma"),
        (GOOD + "bit c;\nc = measure q[0];\nx q[0];", ":10: a gate on q[0] follows a"),
        (GOOD + "bit c = measure q[1];\nx q;", ":9: a gate on q[1] follows a measurement"),
        (GOOD + "foo q[0];", ":8: gate 'foo' is not defined"),
        (GOOD + "rx(x0 q[0];", ":8: at 'q': not valid OpenQASM 3"),
        (GOOD + "rx(x0) q[0]", ":8: unexpected end: not valid OpenQASM 3"),
        (GOOD + "rx(x0) q[0];\n# %\n", ":9: not valid OpenQASM 3"),
        (GOOD + "rx(w0 * x0) q[0];", ":8: the angle is not affine"),
        (GOOD + "rx(2 ** 9999999999) q[0];", ":8: angles are made of"),
        (GOOD + f"rx({'-' * 300}w0) q[0];", ":8: more than 100 operators in one statement"),
        (GOOD + f"rx(x0{'+1' * 400}) q[0];", ":8: more than 100 operators in one statement"),
        (GOOD + "rx(1e999) q[0];", ":8: a number too large"),
        (GOOD + "rx(x0 + 1e308 * 10) q[0];", ":8: a number too large"),
        (GOOD + "rx(x0 / (1e308 * 10)) q[0];", ":8: a number too large"),
        (GOOD + "pow(0.5) @ U(1, 2, 1.1e306) q[0];", ":8: Qiskit cannot build this"),
        (GOOD + "rx(1 / w0) q[0];", ":8: the angle is not affine"),
        (GOOD + "rx(w1) q[0];", ":8: w1 is no parameter here"),
        (GOOD + "gate g a { rx(x0) a; }", ":8: x0 is no parameter here"),
        (GOOD + "x r[0];", ":8: r is not a register of qubits"),
        (GOOD + "bit[3] c;\nc = measure q;", ":9: as many qubits"),
        (GOOD + "qubit[3] r;\ncx q, r;", ":9: registers of different sizes"),
        (GOOD + f"pow(-{'9' * 400}) @ x q[0];", ":8: comes to more than 200,000 gates"),
        (GOOD + f"rx({'9' * 5000}) q[0];", "mine.qasm"),
        (GOOD + "rx(x0 / 0) q[0];", ":8: division by 0"),
        (GOOD + "pow(w0) @ rx(1) q[0];", ":8: the exponent of pow"),
        (GOOD + "ctrl(1000000) @ x q[0], q[1];", ":8: acts on 1000001 qubits"),
        (GOOD + "ctrl(-1) @ x q[0];", ":8: -1 controls"),
        ("qubit[20] q;\nctrl(19) @ x " + ",".join(f"q[{i}]" for i in range(20)) + ";",
         ":4: more than 16 controls"),
        (GOOD + "rx(x0) q[2];", ":8: there is no q[2]; q has indices 0 to 1"),
        (GOOD + "rx(x0) q[0:1000000000000];", ":8: there is no q[1000000000000]"),
        (GOOD + "rx(x0) q[1 + 0];", ":8: an index must be a plain number"),
        (GOOD + "cx q[0], q[0];", ":8: q[0] twice in one gate"),
        (GOOD + "cx q[-1], q;", ":8: q[1] twice in one gate"),
        (GOOD + "gate g a, b { cx b, b; }", ":8: a qubit twice in one gate"),
        (GOOD + "rx(x0, x0) q[0];", ":8: rx takes 1 angle, not 2"),
        (GOOD + "gate g(a, b) p { rx(a) p; }\ng(x0) q[0];", ":9: g takes 2 angles, not 1"),
        (GOOD + "ctrl @ x q[0];", ":8: acts on 2 qubits, given are 1"),
        (GOOD + f"{'a' * 500} q[0];", f":8: gate '{'a' * 56}... is not defined"),
        ("input float x0;\ninput float w0;\nqubit q;\nrx(x0) q;", ":4: parameter w0 is used by no"),
        ("input float x0;\ninput float w0;\nqubit q;\nrx(x0) q;\ngphase(w0);", ":4: parameter w0"),
        ("input float theta;\nqubit q;\nrx(theta) q;", ":3: parameter theta is neither"),
        ("input float x0;\ninput float x00;\nqubit q;\nrx(x0 + x00) q;", ":4: parameters x0 and"),
        ("input float x1;\nqubit q;\nrx(x1) q;", "there is no input x0, though there is one input"),
        ("input int x0;\nqubit q;", ":3: only `input float`"),
        ("qubit[1000000000] q;", ":3: a register of 1000000000"),
        ("qubit[20] a;\nqubit[20] b;", ":4: declares 40 qubits"),
        ("qubit[2 * 3] q;", ":3: the size of a register must be a plain number"),
        ("bit[1000000000] c;", ":3: a register of 1000000000"),
        ("rx(1) $1000000000;", ":3: physical qubits"),
        ('include "/etc/passwd";', ":3: only stdgates.inc"),
        (GATES + GOOD + "g40(x0) q[0];", "gates when written out"),
        (" " * 300_000, "larger than"),
        ("", "has no qubits"),
    ],
)  # fmt: skip
def test_what_is_no_filter_is_refused_with_its_line(
    body: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CircuitError) as refused:
        read(tmp_path, body)
    assert words in str(refused.value)
    assert str(tmp_path / "mine.qasm") in str(refused.value)
    assert capfd.readouterr().err == ""  # the parser prints nothing of its own


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (f"rx({'(' * 3000}x0{')' * 3000}) q[0];", ":8: more than 32 brackets within brackets"),
        (f"rx({'(' * 120_000}x0{')' * 120_000}) q[0];", ":8: more than 32 brackets within"),
        (f"rx(x0{'+1' * 40_000}) q[0];", ":8: more than 100 operators in one statement"),
        (f"rx(x0{'/*;*/+1' * 20_000}) q[0];", ":8: more than 100 operators in one statement"),
        (f"rx(x0 {'// ; */' * 9}\n{'+ 1' * 40_000}) q[0];", ":9: more than 100 operators"),
        (f"rx(x0{'+1' * 99}) q[0];\n" * 1000, ":210: more than 20,000 operators in all"),
        ("gate g q { x q; }\n" * 2000, ":1008: more than 1,000 gate definitions"),
        ("x q[0];\n" * 30_000, "more than 13,000 statements"),
        (f"barrier {'q,' * 100_000} q;", ":8: more than 5,000 words and signs in one statement"),
        # What would hide brackets from the run over the tokens, but not from the parser:
        ("pragma /*\nrx((((x0)))) q[0]; // */", ":8: a pragma is not read"),
        ("1e5pragma /*\nrx((((x0)))) q[0]; // */", ":8: '1e5pragma' is not a number"),
        ("cal { /* }\nrx((((x0)))) q[0]; // */", ":8: calibrations are not read"),
        ("@note /*\nrx((((x0)))) q[0]; // */", ":8: annotations are not read"),
    ],
)
def test_text_that_would_take_long_to_parse_is_refused_before(
    body: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(text: str) -> NoReturn:
        raise AssertionError

    monkeypatch.setattr("openqasm3.parse", parse)
    with pytest.raises(CircuitError) as refused:
        read(tmp_path, GOOD + body)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_bounds_leave_room_for_what_is_exported(tmp_path: Path) -> None:
    filter = build_filter("hqconv", layers=5)
    write_filter(filter, tmp_path / "export.qasm")
    # Comments hold nothing that counts.
    comments = f"/* {'(' * 1000}*/\n// {'+' * 6000}\n"
    text = comments + (tmp_path / "export.qasm").read_text()
    assert_same(filter, read(tmp_path, text, header=""))
    # An ISA circuit passes the bounds, too, and is refused for its physical qubits alone.
    isa = to_openqasm3(to_isa(named_circuit(filter), find_backend("fake_fez")).circuit)
    assert isa.count(";") > 1000
    with pytest.raises(CircuitError, match="physical qubits"):
        read(tmp_path, isa, header="")


def test_names_are_shortened_in_messages(tmp_path: Path) -> None:
    name = "a" * 5000
    circuit = QuantumCircuit(1)
    circuit.rx(Parameter(name), 0)
    for refuse in (
        lambda: read_qpy(tmp_path, circuit),
        lambda: read(tmp_path, f"input float {name};\nqubit q;\nrx({name}) q;\n"),
    ):
        with pytest.raises(CircuitError, match=r"a{57}\.\.\.") as refused:
            refuse()
        assert len(str(refused.value)) < 300


def test_gates_are_counted_with_definitions_written_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "gate ten(a) q { " + "rx(a) q; " * 10 + "}\ngate more(a) q { ten(a) q; ten(a) q; }\n"
    body += GOOD + "more(x0) q;\n"
    monkeypatch.setattr("qhdm.quantum.files.load.MAX_GATES", 42)  # 2 + 2 x 2 x 10
    assert len(read(tmp_path, body).weights) == 1
    monkeypatch.setattr("qhdm.quantum.files.load.MAX_GATES", 41)
    with pytest.raises(CircuitError, match=r"\b41\b"):
        read(tmp_path, body)


def test_files_that_are_no_circuits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CircuitError, match=r"absent\.qasm: "):
        find_filter(str(tmp_path / "absent.qasm"))
    with pytest.raises(CircuitError, match=r"qiskit\.qasm2\.load"):
        read(tmp_path, 'OPENQASM 2.0;\ninclude "qelib1.inc";\nqreg q[2];\n', header="")
    (tmp_path / "mine.qasm").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CircuitError, match="UTF-8"):
        load_filter(tmp_path / "mine.qasm")
    with pytest.raises(CircuitError, match="give neither"):
        find_filter(str(CIRCUITS / "basic.qasm"), layers=3)
    with pytest.raises(CircuitError, match="known are hqconv"):
        find_filter("mine")


PIECES = [*"rxq0[]();,@{}w=$+-*/. \n", "gate ", "qubit ", "ctrl ", "let ", "for ", "measure "]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_any_text_is_a_circuit_or_refused(text: str) -> None:
    with contextlib.suppress(CircuitError):
        read_openqasm3(HEADER + GOOD + text, "mine.qasm", max_qubits=8)


def test_gates_that_borrow_a_name_are_not_taken_for_it(tmp_path: Path) -> None:
    body = (
        "gate id q { x q; }\ngate rx(a) q { U(a, 0, 0) q; }\ninput float x0;\nqubit q;\n"
        "rx(x0) q;\nid q;\n"
    )
    loaded = read(tmp_path, body, header="OPENQASM 3.0;\ngate x q { U(pi, 0, pi) q; }\n")
    x, w = draw(loaded)
    assert expectation(loaded, x, w)[0, 0].item() == pytest.approx(-np.cos(x[0, 0].item()))
