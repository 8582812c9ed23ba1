"""Gradients on Aer against the exact engine; training, sampling and the commands on it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Cli
from PIL import Image
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.quantum_info import SparsePauliOp
from safetensors.torch import load_file
from tolerances import FLOAT64, SIGMAS

import qhdm
from qhdm import data
from qhdm.cli import main
from qhdm.config import Config, DataConfig, Sampling, load_config
from qhdm.errors import ConfigError, SamplingError
from qhdm.models import build_model
from qhdm.quantum import Filter, build_filter, expectation
from qhdm.quantum.aer import engine as aer_engine
from qhdm.quantum.aer.engine import AerEngine
from qhdm.quantum.aer.gradients import shift_rule
from qhdm.quantum.engines import Engine, make_engine
from qhdm.quantum.ir.lowering import _trigonometric
from qhdm.quantum.options import Aer, SpsaOptions
from qhdm.runs.directory import RunDirectory
from qhdm.training import estimate
from qhdm.training.estimate import describe_circuits
from qhdm.training.loop import fit, resumed

CPU = torch.device("cpu")
CONFIGS = Path(__file__).parent.parent / "configs"
CLASSES = f"data.classes=[{','.join(data.EUROSAT_CLASSES)}]"


def gradients(
    filter: Filter, engine: Engine | str, *, batch: int = 3, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of sum(g * values) for two filters: (2, B, n) and (2, P), float64."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(2, batch, len(filter.inputs), generator=random, dtype=torch.float64)
    w = torch.rand(2, len(filter.weights), generator=random, dtype=torch.float64) * 6
    g = torch.randn(2, batch, len(filter.observables), generator=random, dtype=torch.float64)
    x.requires_grad_()
    w.requires_grad_()
    by_x, by_w = torch.autograd.grad((expectation(filter, x, w, engine=engine) * g).sum(), (x, w))
    return by_x, by_w


def shared() -> Filter:
    """Angles that share parameters, and observables that span components."""
    x, w = ParameterVector("x", 3), ParameterVector("w", 3)
    circuit = QuantumCircuit(4)
    for q in range(4):
        circuit.ry(x[q % 3] + w[0], q)
    circuit.crx(2 * w[1] - x[0], 0, 1)
    circuit.cp(w[1], 2, 3)
    circuit.rzz(w[2] / 2, 0, 1)
    circuit.rx(w[2], 3)
    strings = (
        SparsePauliOp("IIZZ"),
        SparsePauliOp.from_list([("ZIIZ", 0.5), ("XZYX", -1.5)]),
        SparsePauliOp("IIII"),
    )
    return Filter("shared", circuit, tuple(x), tuple(w), strings)


FILTERS = [
    build_filter("hqconv", qubits=8, layers=1),
    build_filter("fqconv", qubits=12, layers=1),
    build_filter("basic", qubits=4, layers=2),
    build_filter("hqconv_released", qubits=12, layers=1),
    shared(),
]


@pytest.mark.parametrize("gradient", ["exact", "shift"])
@pytest.mark.parametrize("filter", FILTERS, ids=lambda f: f.name)
def test_gradients_without_shots_are_those_of_the_exact_engine(
    filter: Filter, gradient: str
) -> None:
    found = gradients(filter, AerEngine(Aer(gradient=gradient)))
    for ours, exact in zip(found, gradients(filter, "exact"), strict=True):
        torch.testing.assert_close(ours, exact, atol=FLOAT64, rtol=0)


@pytest.mark.parametrize(
    ("name", "terms"),
    [("rx", 2), ("rzz", 2), ("p", 2), ("cp", 2), ("crx", 4), ("crz", 4), ("rzx", 2)],
)
def test_shift_rules_have_as_few_terms_as_they_can(name: str, terms: int) -> None:
    trig = _trigonometric(get_standard_gate_name_mapping()[name])
    assert trig is not None
    assert len(shift_rule(trig).shifts) == terms


def test_shift_gradients_scatter_as_shots_do() -> None:
    """A slope is sum c_i f_i: its standard error is at most sqrt(sum c_i^2 / shots), 0.71 /
    sqrt(shots) for two terms and 0.61 / sqrt(shots) for four.
    """
    filter = build_filter("hqconv", qubits=4, layers=1)
    shots, B = 400, 50
    x = torch.full((B, 4), 0.4, dtype=torch.float64)
    w = torch.linspace(0.3, 5, 8, dtype=torch.float64)
    slopes = []
    for engine in (AerEngine(Aer(shots=shots, gradient="shift")), "exact"):
        inputs, weights = x.clone().requires_grad_(), w.clone().requires_grad_()
        values = expectation(filter, inputs, weights, engine=engine)
        slopes.append(torch.autograd.grad(values[:, 2].sum(), (inputs, weights)))
    (by_x, by_w), (exact_x, exact_w) = slopes
    assert (by_x - exact_x).abs().max() < SIGMAS * math.sqrt(0.5 / shots)
    assert (by_w - exact_w).abs().max() < SIGMAS * math.sqrt(0.375 / shots) * math.sqrt(B)
    # Unbiased: the mean over the batch, whose draws are independent.
    assert (by_x - exact_x).mean(0).abs().max() < SIGMAS * math.sqrt(0.5 / shots / B)
    assert (by_x - exact_x).abs().max() > 0


@pytest.mark.parametrize("shots", [None, 200])
def test_spsa_is_right_on_average(shots: int | None) -> None:
    """The mean of many averages lies within its own scatter of the exact gradient, up to the bias
    of central differences, c^2 / 6 of a third derivative.
    """
    filter = build_filter("hqconv", qubits=4, layers=1)
    c, repeats = 0.1, 30
    engine = AerEngine(
        Aer(shots=shots, gradient="spsa", spsa=SpsaOptions(averages=20, perturbation=c))
    )
    exact = torch.cat([t.flatten() for t in gradients(filter, "exact")])
    found = torch.stack(
        [torch.cat([t.flatten() for t in gradients(filter, engine)]) for _ in range(repeats)]
    )
    error = found.std(0) / math.sqrt(repeats)
    assert bool(((found.mean(0) - exact).abs() < SIGMAS * error + c**2).all())
    assert torch.nn.functional.cosine_similarity(found.mean(0), exact, dim=0) > 0.9


def test_spsa_sees_components_apart_and_repeats_its_draws() -> None:
    filter = build_filter("fqconv", qubits=12, layers=1)
    options = Aer(gradient="spsa", spsa=SpsaOptions(averages=50, perturbation=0.05))
    one, other = (gradients(filter, AerEngine(options)) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)
    exact = torch.cat([t.flatten() for t in gradients(filter, "exact")])
    found = torch.cat([t.flatten() for t in one])
    assert torch.nn.functional.cosine_similarity(found, exact, dim=0) > 0.6


def test_cost_counts_what_runs() -> None:
    filter = build_filter("fqconv", qubits=12, layers=1)
    # Per component of three qubits: three inputs with two terms, six weights with four.
    assert AerEngine(Aer(gradient="shift")).cost(filter).backward == 4 * (3 * 2 + 6 * 4)
    spsa = Aer(gradient="spsa", spsa=SpsaOptions(averages=3))
    assert AerEngine(spsa).cost(filter).backward == 4 * 2 * 3
    assert AerEngine().cost(filter).backward == 0


# Training.


def with_settings(tiny_yaml: Path, *settings: str) -> Config:
    small = ["quantum.engine=aer", "quantum.vertex.filters=1", "train.batch_size=2"]
    return load_config(tiny_yaml, [CLASSES, *small, *settings])


@pytest.fixture(scope="module")
def images() -> data.Dataset:
    return data.load(DataConfig(root="bundled", image_size=16)).split("train")


@pytest.mark.parametrize(
    "settings",
    [
        ["quantum.aer.shots=20", "quantum.aer.gradient=shift"],
        ["quantum.aer.gradient=spsa", "quantum.aer.spsa.averages=2"],
    ],
    ids=["shift", "spsa"],
)
def test_resumed_training_on_aer_is_bit_identical(
    settings: list[str], tiny_yaml: Path, images: data.Dataset, tmp_path: Path
) -> None:
    settings = [*settings, "model.kind=qvunet", "model.dim_mults=[1,2,2,2]"]
    config = with_settings(tiny_yaml, *settings, "train.steps=4")
    whole = RunDirectory.create(config, tmp_path / "whole")
    fit(whole, images, device=CPU)
    half = with_settings(tiny_yaml, *settings, "train.steps=2")
    parts = RunDirectory.create(half, tmp_path / "parts")
    fit(parts, images, device=CPU)
    fit(resumed(parts, config), images, device=CPU)
    one, other = (load_file(r.latest_checkpoint() / "model.safetensors") for r in (whole, parts))
    for key in one:
        assert torch.equal(one[key], other[key]), key


def test_a_model_on_aer_computes_what_the_exact_one_does(tiny_yaml: Path) -> None:
    settings = ["quantum.aer.gradient=shift", "model.dim_mults=[1,2,2,2]", "model.kind=qvunet"]
    found = []
    for engine in ("aer", "exact"):
        config = with_settings(tiny_yaml, *settings, f"quantum.engine={engine}")
        model = build_model(config)
        random = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, 16, 16, generator=random)
        output = model(x, torch.tensor([3, 70]), torch.tensor([0, 1]))
        output.square().mean().backward()
        weights = {n: p.grad for n, p in model.named_parameters() if n.endswith("theta")}
        found.append((output.detach(), weights))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=1e-4)
    for name, gradient in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], gradient, atol=1e-5, rtol=1e-3)


def test_cost_of_a_step_as_formula_and_number(tiny_yaml: Path) -> None:
    config = with_settings(tiny_yaml, "quantum.aer.gradient=shift", "quantum.aer.shots=32")
    # Encoder: 16 patches x 2 blocks; vertex: 16 patches x 4 convolutions; batch 2.
    text = describe_circuits(config)
    assert f"circuits per step: {2 * 96 * (4 + 120):,} of 32 shots, engine aer" in text
    assert "batch 2 x 96 evaluations per image x (4 for values, of 4 components, + 120 for" in text
    free = describe_circuits(with_settings(tiny_yaml))
    assert f"circuits per step: {2 * 96 * 4:,}, without shots" in free


def test_time_on_aer_is_that_of_a_few_circuits_scaled(
    tiny_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients may take thousands of circuits for an image: none is run to time a step."""
    config = with_settings(tiny_yaml, "quantum.aer.gradient=shift", "train.steps=10")
    monkeypatch.setattr(aer_engine, "BackwardPass", None)
    assert "estimated time: about" in estimate.describe_time(config, CPU)
    monkeypatch.setattr(estimate, "_timed_step", lambda trainer, batch: 100.0)
    monkeypatch.setattr(estimate, "_seconds_per_circuit", lambda engine, filter: 0.5)
    seconds = 100 + 2 * 96 * (4 + 120) * 0.5
    assert f"(10 steps of {seconds:.3g} s, timed" in estimate.describe_time(config, CPU)


def test_dry_run_checks_first_and_times_last(
    tiny_yaml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(tiny_yaml), "--dry-run", "--set", "quantum.engine=aer"]
    assert main([*command, "--set", "quantum.aer.noise=none.json"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "no such calibration file" in err

    def interrupt(config: Config, device: torch.device) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(estimate, "describe_time", interrupt)
    assert main(command) == 130
    assert "circuits per step: 5,120, without shots" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["quantum.aer.shots=0"], r"quantum\.aer\.shots"),
        (["quantum.aer.method=statvector"], "did you mean statevector"),
        (
            ["quantum.aer.noise=fake_fez", "quantum.aer.method=matrix_product_state"],
            r"quantum\.aer\.method: matrix_product_state has no device noise",
        ),
        (
            ["quantum.aer.noise=fake_fez", "quantum.aer.method=statevector"],
            r"quantum\.aer\.shots: noise on state vectors is sampled",
        ),
        (["quantum.aer.spsa.perturbation=2"], r"quantum\.aer\.spsa\.perturbation"),
    ],
)
def test_configurations_that_cannot_be_are_refused(
    settings: list[str], words: str, tiny_yaml: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        with_settings(tiny_yaml, *settings)


def test_configured_options_reach_the_engine() -> None:
    config = load_config(CONFIGS / "aer_quickstart.yaml")
    engine = make_engine(config.quantum.engine_options)
    assert isinstance(engine, AerEngine)
    assert engine.options == Aer(shots=256, gradient="shift")
    noisy = load_config(CONFIGS / "noise_aware.yaml").quantum.aer
    assert (noisy.noise, noisy.gradient) == ("fake_torino", "exact")


# Sampling and the commands.


def test_samples_on_aer_do_not_depend_on_the_batch(tiny_run: Path) -> None:
    pipeline = qhdm.Run.open(tiny_run, device="cpu")
    asked = Sampling(steps=3, seed=4, engine=Aer(shots=64))
    classes = ["Forest", "River", "Pasture"]
    exact = pipeline.sample(Sampling(steps=3, seed=4), labels=classes)
    together = pipeline.sample(asked, labels=classes)
    apart = pipeline.sample(asked, labels=classes, batch_size=1)
    # Convolutions round differently by batch, which may move a shot: some grey levels.
    moved = np.abs(together.astype(int) - apart)
    assert moved.max() <= 8
    assert moved.mean() < 0.1
    assert (together != exact).any()
    late = pipeline.sample(dataclasses.replace(asked, engine_steps=1), labels=classes)
    assert np.abs(late.astype(int) - exact).mean() < np.abs(together.astype(int) - exact).mean()
    ideal = pipeline.sample(Sampling(steps=3, seed=4, engine=Aer()), labels=["Forest"])
    assert np.abs(ideal.astype(int) - exact[:1]).max() <= 1
    with pytest.raises(SamplingError, match=r"^engine_steps: 4 .* 3 "):
        pipeline.sample(dataclasses.replace(asked, engine_steps=4), labels=classes)


def test_sampling_command_writes_both_grids(cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
    done = cli(
        "sample", tiny_run, "--class", "Forest", "--num", 1, "--steps", 2, "--engine", "aer",
        "--shots", 32, "--engine-steps", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    exact, grid = (Path(line.split(": ", 1)[1]) for line in lines[-2:])
    assert grid.parent == exact.parent
    assert "aer_32shots_last1" in grid.name
    sizes = set()
    for path in (exact, grid):
        with Image.open(path) as picture:
            sizes.add(picture.size)
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shots", "5"], "shots: only with engine aer"),
        (["--engine-steps", "5"], "engine_steps: only with another engine"),
        (["--engine", "aer", "--shots", "0"], "--shots: 0 "),
        (["--engine", "aer", "--noise", "none.json"], "no such calibration file"),
        (["--engine", "aer", "--engine-steps", "9"], "engine_steps: 9 is not between 1 and"),
    ],
)
def test_sampling_refusals(
    arguments: list[str], words: str, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set((tiny_run / "samples").iterdir())
    try:
        code = main(["sample", str(tiny_run), *arguments])
    except SystemExit as usage:
        code = int(usage.code or 0)
    assert code != 0
    assert words in capsys.readouterr().err
    assert set((tiny_run / "samples").iterdir()) == before


def test_options_of_aer_are_refused_before_a_run_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(tmp_path / "none"), "--shots", "100"]) == 1
    assert "shots: only with engine aer" in capsys.readouterr().err


def test_train_command_says_what_a_step_costs(cli: Cli, tiny_yaml: Path, tmp_path: Path) -> None:
    settings = ["quantum.engine=aer", "quantum.vertex.filters=1", "train.batch_size=2"]
    sets = [part for s in [*settings, "train.steps=1", "sample.num=1"] for part in ("--set", s)]
    done = cli("train", tiny_yaml, "--out", tmp_path / "run", *sets)
    assert done.returncode == 0, done.stderr
    assert "circuits per step: 768, without shots, engine aer" in done.stdout


def test_a_run_that_cannot_start_leaves_nothing(
    tiny_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    for setting, words in (
        ("quantum.aer.device=GPU", "aer device: GPU asked for"),
        ("quantum.aer.noise=none.json", "no such calibration file"),
    ):
        sets = ["--set", "quantum.engine=aer", "--set", setting]
        assert main(["train", str(tiny_yaml), "--out", str(out), *sets]) == 1
        assert words in capsys.readouterr().err
        assert not out.exists()
