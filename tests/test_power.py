"""What comparisons can find: designs on known distributions, effects in small trained networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import Cli, call, refused, succeeded

from qhdm.comparison.cells import cells_of
from qhdm.comparison.power import PLANTS, Planted, describe_power
from qhdm.comparison.spec import load_grid
from qhdm.comparison.statistics import Spread, significant, t_power, t_test
from qhdm.config import load_config
from qhdm.models import build_model
from qhdm.models.hybrid import HybridActivation

CONFIGS = Path(__file__).parent.parent / "configs"
SMALL = {
    "data.root": "bundled",
    "data.image_size": 16,
    "model.widths": [8, 16],
    "model.head_dim": 8,
    "quantum.encoder.levels": [0],
    "quantum.encoder.filters": 2,
    "train.precision": "float32",
    "train.steps": 30,
    "train.batch_size": 8,
    "train.checkpoint_every": 30,
    "train.sample_every": 30,
    "train.device": "cpu",
    "sample.steps": 1,
    "sample.num": 1,
}
#: Losses of seeds 0..9: of a seed and a variant, both normal, in percent.
SEED, OWN = 3.0, 0.5


def drawn(variants: int, seeds: int, number: int = 0) -> dict[str, dict[int, float]]:
    random = np.random.default_rng(number)
    common = random.normal(1.0, SEED / 100, seeds)
    return {
        f"v{i}": dict(enumerate(common + 0.1 * i + random.normal(0, OWN / 100, seeds)))
        for i in range(variants)
    }


def test_significance_is_that_of_the_t_test() -> None:
    rows = np.random.default_rng(0).normal(0.5, 1, (200, 4))
    tests = [t_test(row) for row in rows]
    expected = [np.sign(test.mean) * (test.p < 0.05) for test in tests]
    assert significant(rows, 0.05).tolist() == expected
    assert set(expected) == {0, 1}


@pytest.mark.parametrize(("effect", "n"), [(0.0, 3), (1.0, 5), (2.0, 5), (8.0, 2)])
def test_power_is_the_share_of_samples_that_are_significant(effect: float, n: int) -> None:
    rows = np.random.default_rng(1).normal(effect, 1, (40_000, n))
    share = np.mean(significant(rows, 0.05) == 1)
    assert t_power(effect, n, 0.05) == pytest.approx(share, abs=0.01)


def test_the_spread_of_differences_is_measured() -> None:
    """Pairing over seeds removes what seeds have in common, and differences of variants."""
    spreads = [Spread.of("v0", drawn(8, 10, number)) for number in range(30)]
    equal = np.mean([spread.equal_seeds**2 for spread in spreads]) ** 0.5
    other = np.mean([spread.other_seeds**2 for spread in spreads]) ** 0.5
    assert 100 * equal == pytest.approx(2**0.5 * OWN, rel=0.1)
    assert 100 * other == pytest.approx(2**0.5 * np.hypot(SEED, OWN), rel=0.15)
    alone = Spread.of("v0", drawn(1, 10))
    assert alone.equal_seeds is None
    assert list(alone.paired()) == []


def test_designs_flag_nulls_as_often_as_they_claim_and_find_what_the_model_says() -> None:
    sets = [Spread.of("v0", drawn(4, 6, number)) for number in range(40)]
    effect = 2 * 2**0.5 * OWN / 100
    for n, designs in enumerate(zip(*(spread.paired() for spread in sets), strict=True), 2):
        flagged = np.mean([one.flagged(0.05) for one in designs])
        found = np.mean([one.found(dict.fromkeys(range(6), effect), 0.05) for one in designs])
        assert flagged == pytest.approx(0.05, abs=0.02)
        assert found == pytest.approx(t_power(2.0, n, 0.05), abs=0.06)
    flagged = np.mean([next(spread.repaired()).flagged(0.05) for spread in sets])
    assert flagged == pytest.approx(0.05, abs=0.03)


def test_designs_pair_different_seeds() -> None:
    losses = {"v0": {3: 1.0, 5: 2.0, 6: 4.0, 9: 9.0}}
    (designs,) = Spread.of("v0", losses).repaired()
    assert designs.seeds.shape == (12, 2)  # 6 choices of two, each with the others in 2 orders
    assert (designs.differences != 0).all()
    # Variants at equal seeds: each seed's own residual, with both signs, in every choice.
    pair = {"v0": losses["v0"], "v1": {3: 1.0, 5: 1.0, 6: 1.0}}
    two, three = Spread.of("v0", pair).paired()
    assert (two.seeds.shape, three.seeds.shape) == ((3 * 4, 2), (8, 3))
    residual = np.array([-4 / 3, -1 / 3, 5 / 3]) / 4 * 1.5**0.5  # of 0, 1, 3, mean loss 4
    signs = np.sign(three.differences)
    np.testing.assert_allclose(three.differences, signs * np.abs(residual))
    assert len(set(map(tuple, signs))) == 8


def test_the_report_says_whether_the_check_is_passed() -> None:
    spread = Spread.of("v0", drawn(4, 6))
    seeds = range(6)
    big = Planted("big", 0.02, {seed: 0.02 + 0.0001 * seed for seed in seeds})
    small = Planted("small", 0.02, {seed: 0.002 + 0.0001 * seed for seed in seeds})
    assert ": passed." in describe_power(spread, [big], tests=3)
    assert ": failed." in describe_power(spread, [big, small], tests=3)
    text = describe_power(spread, [big], tests=3)
    assert "p < 0.05\n" in text
    assert "p < 0.017 (the first step of Holm's method for 3 variants)" in text
    assert "n = 6 |" in text
    assert "n = 8 *" in text


def test_damping_filters_removes_their_values_and_nothing_else() -> None:
    settings = [f"{key}={value}" for key, value in SMALL.items()]
    config = load_config(CONFIGS / "eurosat32.yaml", [*settings, "data.classes=[a, b]"])
    network, damped = build_model(config), build_model(config)
    with torch.no_grad():
        for model in (network, damped):
            model.conv_out.gain.fill_(1.0)
    PLANTS["filters damped"](damped, 1.0, 0)
    arguments = torch.randn(2, 3, 16, 16), torch.zeros(2), torch.tensor([0, 1])
    assert not torch.equal(network(*arguments), damped(*arguments))
    for module in network.modules():
        if isinstance(module, HybridActivation):
            module.register_buffer("mean", torch.zeros_like(module.mean))
            module.quantum.register_forward_hook(lambda *given: torch.zeros_like(given[-1]))
    torch.testing.assert_close(network(*arguments), damped(*arguments), atol=0, rtol=0)


def test_noise_on_weights_is_of_their_own_size() -> None:
    config = load_config(CONFIGS / "eurosat32.yaml", ["data.classes=[a, b]"])
    network, noisy, again = (build_model(config) for _ in range(3))
    PLANTS["noise on weights"](noisy, 0.25, 7)
    PLANTS["noise on weights"](again, 0.25, 7)
    for (name, weight), changed, same in zip(
        network.named_parameters(), noisy.parameters(), again.parameters(), strict=True
    ):
        assert torch.equal(changed, same)
        if weight.numel() > 1000:
            size = ((changed - weight).square().mean() / weight.square().mean()).detach()
            assert float(size) ** 0.5 == pytest.approx(0.25, rel=0.1), name


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small variants, trained with two seeds, and evaluated."""
    folder = tmp_path_factory.mktemp("power")
    spec = {
        "name": "small",
        "base": str(CONFIGS / "eurosat32.yaml"),
        "seeds": [0, 1],
        "baseline": "unet",
        "variants": {"unet": {"model.kind": "unet"}, "hybrid": {}},
        "settings": SMALL,
        "evaluate": {"num": 10, "metrics": ["loss"], "device": "cpu", "weights": "model"},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def test_effects_are_planted_in_trained_networks(cli: Cli, comparison: Path) -> None:
    out = comparison.parent / "out"
    power = ("compare", comparison, "--out", out, "--power")
    refused(cli(*power), "--power", "hybrid", "`loss`")
    refused(cli(*power, "--only", "unet"), "--power", "unet", "`loss`")
    refused(cli(*power, "--only", "unet", "hybrid"), "--power", "one variant")
    for cell in cells_of(load_grid(comparison), out):
        cell.create()
        job = cell.job(comparison.parent / "log")
        assert job is not None
        for command in job.commands:  # what `qhdm compare` would start
            succeeded(call(*command[3:]))
    printed = succeeded(cli(*power))
    text = (out / "power.md").read_text()
    assert text in printed
    assert text.startswith("# Power: effects planted in hybrid, 2 seeds\n")
    assert "between variants at equal seeds" in text
    rises = {
        cells[1].strip(): float(cells[2].split()[0])
        for line in text.splitlines()
        if (cells := line.split("|"))[1:] and "weights by" in line
    }
    assert len(rises) >= 4
    for rise, asked in zip(rises.values(), (0.5, 1, 2, 5), strict=False):
        assert rise == pytest.approx(asked, rel=0.5)
    assert "filters damped by" in text
