"""Engines against each other: `qhdm circuits verify` finds what is wrong, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from qiskit.circuit import Parameter, ParameterVector, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp
from tolerances import FLOAT64

from qhdm.cli import main
from qhdm.errors import CircuitError, EngineError
from qhdm.quantum import Filter, build_filter, expectation
from qhdm.quantum.analysis import cross_check
from qhdm.quantum.files.load import find_filter


def test_verify_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["circuits", "verify", "hqconv", "--qubits", "4", "--layers", "1"]) == 0
    out = capsys.readouterr().out
    assert "exact and aer" in out
    assert "aer and statevector" in out


def test_verify_finds_an_engine_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    filter = build_filter("basic", qubits=4, layers=1)
    assert all(pair.largest < 1e-8 for pair in cross_check.verify(filter, ["exact", "aer"]))
    with pytest.raises(CircuitError, match="at least two"):
        cross_check.verify(filter, ["exact", "exact"])
    with pytest.raises(CircuitError, match="engine 'aar': unknown"):
        cross_check.verify(filter, ["exact", "aar"])
    original = cross_check.expectation
    monkeypatch.setattr(
        cross_check,
        "expectation",
        lambda f, x, w, engine: original(f, x, w * 1.001, engine=engine),
    )
    code = main(["circuits", "verify", "basic", "--qubits", "4", "--engines", "exact,statevector"])
    assert code == 1
    assert "exact and statevector disagree by" in capsys.readouterr().err


def test_verify_is_right_where_angles_repeat_and_run_fast() -> None:
    """Parameters used several times, and with factors, are waves of higher frequency."""
    a, b = ParameterVector("a", 2), ParameterVector("b", 2)
    circuit = QuantumCircuit(2, name="fast")
    for turn in range(4):
        circuit.rx(a[0] + 7 * a[1], 0)
        circuit.ry(20 * b[0], 1)
        circuit.crz(b[turn % 2], 0, 1)
        circuit.ry(3 * a[turn % 2], 0)
    observables = (SparsePauliOp("ZZ"), SparsePauliOp("XI") + 0.5 * SparsePauliOp("YZ"))
    filter = Filter("fast", circuit, tuple(a), tuple(b), observables)
    for seed in range(3):
        (pair,) = cross_check.verify(filter, ["exact", "statevector"], seed=seed)
        assert pair.values < FLOAT64
        assert pair.gradients < FLOAT64
    file = find_filter(str(Path(__file__).parent.parent / "circuits" / "reuploading.qasm"))
    (pair,) = cross_check.verify(file, ["exact", "statevector"], batch=1)
    assert pair.largest < FLOAT64


def test_verify_sees_one_wrong_slope(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one weight, in an engine whose values are right."""
    filter = build_filter("hqconv", qubits=4, layers=1)

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, w: torch.Tensor) -> torch.Tensor:
            return w.clone()

        @staticmethod
        def backward(ctx: Any, upstream: torch.Tensor) -> torch.Tensor:
            return upstream + 1e-5 * torch.eye(len(upstream))[3]

    monkeypatch.setattr(
        cross_check,
        "expectation",
        lambda f, x, w, engine: expectation(f, x, Wrong.apply(w), engine=engine),
    )
    (pair,) = cross_check.verify(filter, ["exact", "statevector"])
    assert pair.values < FLOAT64
    assert pair.gradients > cross_check.TOLERANCE


def test_verify_takes_filters_without_inputs_or_weights() -> None:
    a, b = Parameter("a"), Parameter("b")
    observables = (SparsePauliOp("ZI"), SparsePauliOp("IX"))
    for inputs, weights in (((a,), ()), ((), (b,)), ((), ()), ((a,), (b,))):
        circuit = QuantumCircuit(2)
        circuit.h(0)
        for parameter in (*inputs, *weights):
            circuit.ry(parameter, 0)
        circuit.cx(0, 1)
        filter = Filter("small", circuit, inputs, weights, observables)
        engines = ["exact", "exact:statevector", "aer", "statevector"]
        found = cross_check.verify(filter, engines)
        assert all(pair.largest < FLOAT64 for pair in found)
    unread = Filter("unread", circuit, (a, Parameter("dead")), (b,), observables)
    assert all(p.largest < FLOAT64 for p in cross_check.verify(unread, ["exact", "statevector"]))
    blind = Filter("blind", circuit, (a,), (b,), ())
    with pytest.raises(CircuitError, match=r"^blind: "):
        cross_check.verify(blind, ["exact", "statevector"])
    with pytest.raises(CircuitError, match=r"^blind: "):
        expectation(blind, torch.zeros(1, 1), torch.zeros(1))


def test_states_that_do_not_fit_are_refused_beforehand(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["circuits", "verify", "basic", "--qubits", "40"]) == 1
    words = "basic_40x3: engine statevector on 40 qubits: needs 49,152 GiB of memory"
    assert words in capsys.readouterr().err
    wide = build_filter("basic", qubits=40, layers=1)
    with pytest.raises(EngineError, match=r"\b40\b.* GiB"):
        expectation(
            wide, torch.zeros(1, 40), torch.zeros(len(wide.weights)), engine="exact:statevector"
        )
