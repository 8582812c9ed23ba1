"""Averages of the weights: profiles, other lengths, snapshots, weights by name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Cli, refused
from reference import GOLDEN
from safetensors.torch import load_file
from scipy.optimize import brentq
from torch import nn
from torch.nn.utils import parameters_to_vector

import qhdm
from qhdm import data
from qhdm.config import Config, EmaConfig, PowerEmaConfig, load_config
from qhdm.errors import ConfigError, RunError, SamplingError
from qhdm.run import load_model
from qhdm.runs.directory import RunDirectory
from qhdm.runs.profiles import coefficients
from qhdm.training.callbacks import Callback
from qhdm.training.ema import Ema, PowerEma, ema_decay
from qhdm.training.trainer import Trainer

CPU = torch.device("cpu")


def walk(steps: int, size: int = 6) -> np.ndarray:
    """Weights (steps, size) that drift, as those of a training."""
    return np.random.default_rng(0).standard_normal((steps, size)).cumsum(axis=0)


def averages(weights: np.ndarray, config: PowerEmaConfig) -> Iterator[list[np.ndarray]]:
    """The running averages after each step, in float64, for each length."""
    model = nn.Linear(weights.shape[1], 1, bias=False, dtype=torch.float64)
    ema = PowerEma(model, config)
    for step, row in enumerate(weights, 1):
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(row))
        ema.update(model, step)
        yield [averaged.weight[0].detach().numpy().copy() for averaged in ema.models.values()]


@pytest.mark.parametrize("every", [1, 4])
def test_power_averages_are_sums_over_the_profile(every: int) -> None:
    """A step weighs as much as the integral of tau^gamma over the steps that it stands for."""
    config = PowerEmaConfig(std=(0.05, 0.1, 0.2), update_every=every)
    weights = walk(400)
    *_, last = averages(weights, config)
    ends = np.arange(0, 401, every)
    for std, averaged in zip(config.std, last, strict=True):
        gamma = brentq(lambda g, std=std: (g + 1) / ((g + 2) ** 2 * (g + 3)) - std**2, 0, 1e4)
        profile = np.diff((ends / 400) ** (gamma + 1))
        np.testing.assert_allclose(averaged, profile @ weights[ends[1:] - 1], rtol=1e-6, atol=0)
        spread = np.sqrt(np.cov(ends[1:] / 400, aweights=profile, ddof=0))
        assert spread == pytest.approx(std, rel=0.01)  # what gives the length its name


@pytest.mark.parametrize(("snapshots", "error"), [(8, 0.02), (32, 0.003)])
def test_other_lengths_are_reconstructed(snapshots: int, error: float) -> None:
    """Against averages that were tracked; more snapshots come closer (EDM2, appendix C)."""
    tracked = (0.05, 0.065, 0.08, 0.1)
    weights = walk(3200)
    history = list(averages(weights, PowerEmaConfig(std=tracked)))
    steps = [3200 * (i + 1) // snapshots for i in range(snapshots)]
    kept = [(step, std) for step in steps for std in (0.05, 0.1)]
    values = np.array([history[step - 1][tracked.index(std)] for step, std in kept])
    spread = np.linalg.norm(history[-1][0] - history[-1][-1])
    for std, direct in zip(tracked, history[-1], strict=True):
        combination = coefficients(kept, 3200, std)
        assert combination.sum() == pytest.approx(1, abs=1e-12)
        combined = combination @ values
        bound = 1e-9 if std in (0.05, 0.1) else error
        assert np.linalg.norm(combined - direct) < bound * spread


@pytest.fixture
def config(tiny_yaml: Path) -> Config:
    """A training of 20 steps with snapshots at steps 4, 8, 12, 16 and 20."""
    config = data.resolved(load_config(tiny_yaml))
    train = replace(config.train, lr=1e-2, ema=PowerEmaConfig(update_every=2, snapshots=5))
    return replace(config, train=train)


def files(run: Path) -> dict[str, bytes]:
    """All weights of a run."""
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*.safetensors"))}


def test_resuming_changes_no_bit_of_averages_and_snapshots(config: Config, tmp_path: Path) -> None:
    class Crash(Callback):
        def on_step(self, step: int) -> None:
            if step == 18:
                raise KeyboardInterrupt

    qhdm.train(config, out=tmp_path / "whole", callbacks=[])
    with pytest.raises(KeyboardInterrupt):
        qhdm.train(config, out=tmp_path / "parts", callbacks=[Crash()])
    run = RunDirectory.open(tmp_path / "parts")
    assert run.last_step() == 15
    assert [path.name[-2:] for path in run.snapshots()] == ["04", "08", "12", "16"]
    stale = run.snapshots()[-1] / "ema.safetensors"
    stale.write_bytes(b"of a training that is not repeated")
    qhdm.resume(tmp_path / "parts", callbacks=[])
    whole = files(tmp_path / "whole")
    assert files(tmp_path / "parts") == whole
    assert {"snapshots/step_0000004/ema-0.1.safetensors",
            "checkpoints/step_0000020/ema-0.1.safetensors"} <= whole.keys()  # fmt: skip
    other = replace(config.train, ema=PowerEmaConfig(std=(0.1, 0.05)))
    with pytest.raises(ConfigError, match=r"^--set train\.ema: "):
        qhdm.resume(tmp_path / "parts", config=replace(config, train=other))


def test_weights_by_name(config: Config, cli: Cli, tmp_path: Path) -> None:
    """The file of each, float32 or halved; a reconstruction is what tracking would have given."""
    ema = PowerEmaConfig(std=(0.1, 0.2), update_every=1, snapshots=5)
    config = replace(config, train=replace(config.train, ema=ema))
    run = qhdm.train(config, out=tmp_path / "run", callbacks=[])
    path = RunDirectory.open(tmp_path / "run")
    last = path.latest_checkpoint()

    def parameters(weights: str) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in run.network(weights).named_parameters()}

    for weights, file in {
        "ema": last / "ema.safetensors",
        "model": last / "model.safetensors",
        "ema:0.2": last / "ema-0.2.safetensors",
        "step:8": path.snapshots()[1] / "ema.safetensors",
        "step:15": path.checkpoint_path(15) / "ema.safetensors",
    }.items():
        expected = load_file(file)
        assert all(torch.equal(p, expected[name]) for name, p in parameters(weights).items())

    train = replace(config.train, ema=PowerEmaConfig(std=(0.15,), update_every=1))
    direct = qhdm.train(replace(config, train=train), out=tmp_path / "direct", callbacks=[])
    tracked, middle, short, long = (
        parameters_to_vector(network.parameters())
        for network in (direct.network(), *map(run.network, ("ema:0.15", "ema", "ema:0.2")))
    )
    assert 0 < torch.dist(middle, tracked) < 0.05 * torch.dist(short, long)

    for weights in ("ema:0.3", "ema:0.04", "step:7", "ema:-", "step:²", "last"):
        with pytest.raises(
            SamplingError, match=r"^weights: .*0\.1 to 0\.2.* 4, 8, 12, 15, 16, 20$"
        ):
            load_model(path, weights=weights)
    with pytest.raises(ConfigError, match=r"weights: "):
        qhdm.Sampling(weights="last")
    refused(cli("sample", path.path, "--weights", "ema:0.3"), "weights", "0.1 to 0.2")
    refused(cli("sample", path.path, "--weights", "last"), "weights", "step:4000")


def test_a_damaged_snapshot_is_named(config: Config, tmp_path: Path) -> None:
    run = qhdm.train(config, out=tmp_path / "run", callbacks=[])
    snapshot = RunDirectory.open(tmp_path / "run").snapshots()[2]
    file = snapshot / "ema.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for weights in ("ema:0.08", "step:12"):
        with pytest.raises(RunError, match=rf"step_0000012/ema\.safetensors: .*delete {snapshot}"):
            run.network(weights)
    run.network("step:16")
    shutil.rmtree(snapshot)  # the remedy
    run.network("ema:0.08")


def test_older_averages_have_no_other_lengths(tiny_run: Path) -> None:
    with pytest.raises(SamplingError, match=r"^weights: ema:0\.08: .*ema, model, step:N"):
        load_model(tiny_run, weights="ema:0.08")


def test_ema_decay_follows_its_formula() -> None:
    config = EmaConfig()
    assert [ema_decay(step, config) for step in (0, 50, 100, 101)] == [0.0] * 4
    assert ema_decay(102, config) == pytest.approx(1 - 2 ** (-2 / 3))
    assert ema_decay(110, config) == pytest.approx(1 - 10 ** (-2 / 3))
    assert ema_decay(60_000, config) == 0.995


def test_ema_decay_is_the_published_one() -> None:
    with np.load(GOLDEN / "diffusion.npz") as published:
        decays = [ema_decay(int(step), EmaConfig()) for step in published["ema_steps"]]
        # float32 there
        np.testing.assert_allclose(decays, published["ema_decay"], rtol=0, atol=1e-6)


def test_ema_averages_as_defined() -> None:
    config = EmaConfig(decay=0.9, every=2, after=4)
    model = nn.Linear(1, 1, bias=False)
    ema = Ema(model, config)
    expected = model.weight.item()
    for step in range(1, 13):
        with torch.no_grad():
            model.weight.fill_(step)
        ema.update(model, step)
        if step <= 4:
            expected = step
        elif step % 2 == 0:
            decay = ema_decay(step - 1, config)  # the step's number counts from 0
            expected = decay * expected + (1 - decay) * step
        assert ema.model.weight.item() == pytest.approx(expected, rel=1e-6)


def test_ema_of_a_short_run_is_the_model(tiny_yaml: Path) -> None:
    settings = ["train.ema.every=10", "train.ema.after=100"]
    trainer = Trainer(data.resolved(load_config(tiny_yaml, settings)), None, CPU)
    trainer.advance_on(torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.long))
    averaged = trainer.ema.model.state_dict()
    assert all(torch.equal(averaged[name], w) for name, w in trainer.model.state_dict().items())
