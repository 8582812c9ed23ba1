"""Noise levels, noisy images and the loss: by hand, as published, and as in diffusers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import (
    DDPMScheduler,
)
from diffusion_parts import CPU, KINDS, SHAPE, discrete, edm, every_kind, network, options
from reference import GOLDEN
from scipy.stats import kstest, norm
from tolerances import PUBLISHED_SCHEDULE, SAMPLER, SIGMAS

from qhdm.config import (
    Config,
    DataConfig,
    DiscreteConfig,
    EdmConfig,
    ModelConfig,
    load_config,
)
from qhdm.diffusion import Chain
from qhdm.diffusion.pixels import from_levels, to_uint8
from qhdm.diffusion.preconditioning import cosine_betas, linear_betas
from qhdm.diffusion.samplers import ddim_step
from qhdm.errors import ConfigError, SamplingError
from qhdm.seeds import Stream, derive_seed
from qhdm.training.trainer import Trainer


def test_cosine_schedule_follows_the_paper() -> None:
    """alphas_bar[t] = f(t + 1) / f(0), f(u) = cos^2((u/T + s) / (1 + s) pi/2), clipped."""
    betas, T, s = cosine_betas(1000), 1000, 0.008
    f = [math.cos((u / T + s) / (1 + s) * math.pi / 2) ** 2 for u in range(T + 1)]
    reference = [min(1 - f[i + 1] / f[i], 0.999) for i in range(T)]
    np.testing.assert_allclose(betas.numpy(), reference, atol=1e-12)
    assert betas[-1] == 0.999


def test_linear_schedule_scales_with_its_length() -> None:
    assert linear_betas(1000)[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])
    full = torch.cumprod(1 - linear_betas(1000), 0)[-1].log()
    short = torch.cumprod(1 - linear_betas(250), 0)[-1].log()
    assert float(short) == pytest.approx(float(full), rel=0.05)


@pytest.fixture(scope="module")
def published() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "diffusion.npz") as file:
        return dict(file)


def images(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2).double()


def test_schedules_and_weights_are_the_published_ones(published: dict[str, np.ndarray]) -> None:
    cosine, betas = discrete().levels, cosine_betas(1000)
    for name, ours in (
        ("betas", betas), ("alphas", 1 - betas), ("alphas_bar", cosine.a.square()),
        ("p2_loss_weight", cosine.weight), ("linear_betas", linear_betas(1000)),
        ("sqrt_alphas_bar", cosine.a), ("sqrt_1m_alphas_bar", cosine.b),
    ):  # fmt: skip
        np.testing.assert_allclose(ours, published[name], rtol=0, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(
        cosine.a.square()[:-1], published["alphas_bar"][:-1], rtol=PUBLISHED_SCHEDULE
    )
    np.testing.assert_allclose(cosine.weight, published["p2_loss_weight"], rtol=2e-3)
    np.testing.assert_allclose(linear_betas(1000), published["linear_betas"], rtol=1e-6)


def test_noisy_images_and_the_loss_are_the_published_ones(
    published: dict[str, np.ndarray],
) -> None:
    preconditioning = discrete()
    x_0, eps, predicted = (images(published[n]) for n in ("q_x0", "q_eps", "loss_pred"))
    levels = preconditioning.levels[torch.from_numpy(published["q_t"])]
    noisy = levels.noisy(x_0, eps)
    np.testing.assert_allclose(noisy, images(published["q_xt"]), rtol=0, atol=1e-5)
    losses = preconditioning.error(predicted, x_0, eps, levels)
    np.testing.assert_allclose(losses, published["loss_per_sample"], rtol=2e-3)


def test_the_ancestral_step_has_the_published_posterior(published: dict[str, np.ndarray]) -> None:
    """Mean and variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 6-7)."""
    x, x_0 = images(published["q_x0"]), images(published["loss_pred"])
    mean, log_variance = (images(published[name]) for name in ("post_mean", "post_logvar"))
    levels = discrete().levels
    for i, t in enumerate(published["post_t"].tolist()):
        part = slice(i, i + 1)
        a, a_next = float(levels.a[t]), float(levels.a[t - 1])
        sigmas = float(levels.sigma[t]), float(levels.sigma[t - 1])
        arguments = x[part] / a, x_0[part], *sigmas, 1.0
        without = a_next * ddim_step(*arguments, torch.zeros_like(x[part]))
        torch.testing.assert_close(without, mean[part], rtol=0, atol=PUBLISHED_SCHEDULE)
        noise = a_next * ddim_step(*arguments, torch.ones_like(x[part])) - without
        deviation = (log_variance[part] / 2).exp().expand_as(noise)
        torch.testing.assert_close(noise, deviation, rtol=2 * PUBLISHED_SCHEDULE, atol=0)


def test_noisy_images_have_the_right_moments() -> None:
    levels = discrete().levels[torch.full((20_000,), 400)]
    x_0 = torch.full((20_000, 1, 1, 1), 0.5)
    n = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    noisy = levels.noisy(x_0, n)
    assert float(noisy.mean()) == pytest.approx(0.5 * float(levels.a[0]), abs=0.02)
    assert float(noisy.var()) == pytest.approx(1 - float(levels.a[0]) ** 2, rel=0.03)


def test_noisy_images_are_those_of_diffusers() -> None:
    reference = DDPMScheduler(trained_betas=linear_betas(1000).numpy())
    x_0, eps = torch.randn(4, *SHAPE), torch.randn(4, *SHAPE)
    t = torch.tensor([0, 10, 500, 999])
    ours = discrete(schedule="linear").levels[t].noisy(x_0, eps)
    torch.testing.assert_close(ours, reference.add_noise(x_0, eps, t), atol=SAMPLER, rtol=0)


@pytest.mark.parametrize("prediction", ["eps", "x0"])
@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_loss_by_hand(prediction: str, loss: str) -> None:
    preconditioning = discrete(prediction=prediction, loss=loss, p2_gamma=0.5, p2_k=2.0)
    output, x_0, eps = (torch.randn(3, *SHAPE) for _ in range(3))
    levels = preconditioning.levels[torch.tensor([0, 30, 999])]
    losses = preconditioning.error(output, x_0, eps, levels)
    for i in range(3):
        bar = float(levels.a[i]) ** 2
        error = (output - (eps if prediction == "eps" else x_0))[i]
        mean = float(error.abs().mean() if loss == "l1" else error.square().mean())
        assert float(losses[i]) == pytest.approx(mean / (2 + bar / (1 - bar)) ** 0.5, rel=1e-5)


def test_edm_is_the_preconditioning_and_the_loss_of_the_paper() -> None:
    """D = c_skip x + c_out F(c_in x) and lambda |D - x_0|^2 (Karras et al. 2022, table 1)."""
    preconditioning, data = edm(sigma_data=0.4), 0.4
    sigma = torch.tensor([0.01, 0.3, 2.0, 80.0], dtype=torch.float64)
    levels = preconditioning.at(sigma)
    x_0, n, output = (torch.randn(4, *SHAPE, dtype=torch.float64) for _ in range(3))
    s = sigma[:, None, None, None]
    x, total = x_0 + s * n, s.square() + data**2
    torch.testing.assert_close(levels.noisy(x_0, n), x / total.sqrt())
    estimate = data**2 / total * x + s * data / total.sqrt() * output
    torch.testing.assert_close(levels.clean(levels.noisy(x_0, n), output), estimate)
    error = (total / (s * data).square() * (estimate - x_0).square()).mean(dim=(1, 2, 3))
    # The loss compares in float32, which the smallest level magnifies.
    ours = preconditioning.error(output, x_0.float(), n.float(), levels)
    torch.testing.assert_close(ours.double(), error, rtol=1e-5, atol=0)
    np.testing.assert_allclose(levels.time, sigma.log() / 4, rtol=1e-6)


@every_kind
def test_perfect_estimates_give_back_the_image(kind: str) -> None:
    levels = KINDS[kind]().sampling(50)
    x_0, n = (torch.randn(50, *SHAPE, dtype=torch.float64) for _ in range(2))
    z, u = levels.noisy(x_0, n), levels.target(x_0, n)
    # eps and z differ by a x_0: what rounding leaves of it is magnified by sigma.
    torch.testing.assert_close(levels.clean(z, u), x_0, atol=1e-14 * levels.sigma[0], rtol=1e-13)
    torch.testing.assert_close(z, (x_0 + levels.sigma[:, None, None, None] * n) * _like(levels.a))


def _like(coefficients: torch.Tensor) -> torch.Tensor:
    return coefficients[:, None, None, None]


def test_levels_of_a_batch_are_stratified_and_lognormal() -> None:
    """One in each of B equal parts of the distribution, evenly distributed within it."""
    preconditioning, B, within = edm(), 16, []
    for seed in range(100):
        levels = preconditioning.draw(B, torch.Generator().manual_seed(seed))
        quantile = norm.cdf(levels.sigma.log().numpy(), -0.8, 1.6) * B
        assert np.floor(quantile).tolist() == list(range(B))
        within.append(quantile - np.arange(B))
    within = np.array(within)
    assert kstest(within.ravel(), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(within[:, 0], within[:, 1])[0, 1]) < SIGMAS / 10
    one = [preconditioning.draw(1, torch.Generator().manual_seed(seed)) for seed in range(1000)]
    logs = np.array([float(levels.sigma.log()) for levels in one])
    assert kstest(logs, norm(-0.8, 1.6).cdf).pvalue > 0.01


def test_discrete_levels_are_drawn_as_before() -> None:
    levels = discrete().draw(5, torch.Generator().manual_seed(3))
    t = torch.randint(1000, (5,), generator=torch.Generator().manual_seed(3))
    assert torch.equal(levels.time, t)
    assert levels.time.dtype == torch.int64


def test_sampling_levels_of_edm_are_those_of_the_paper() -> None:
    """Equation 5, down to sigma_min; the step to 0 is the sampler's."""
    sigmas = edm().sampling(18).sigma.tolist()
    expected = [
        (80 ** (1 / 7) + i / 17 * (0.01 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)
    ]
    np.testing.assert_allclose(sigmas, expected, rtol=1e-12)
    assert edm().sampling(1).sigma.tolist() == pytest.approx([80.0])
    with pytest.raises(SamplingError, match=r"^steps: 0 "):
        edm().sampling(0)


def test_sections_say_which_levels_they_are_of(tmp_path: Path) -> None:
    """And EDM's levels are refused for a network that is told timesteps."""
    path = tmp_path / "config.yaml"

    def read(section: dict, model: dict) -> EdmConfig | DiscreteConfig:
        path.write_text(yaml.safe_dump({"diffusion": section, "model": model}))
        return load_config(path).diffusion

    published = {"dim": 10, "dim_mults": [1, 2, 3, 4, 5, 6]}
    assert read({"timesteps": 50}, published) == DiscreteConfig(timesteps=50)
    assert read({"prediction": "x0"}, published) == DiscreteConfig(prediction="x0")
    for section, key in (({"prediction": "edm"}, "prediction"), ({"p_mean": -1.0}, "p_mean")):
        with pytest.raises(ConfigError, match=rf"diffusion\.{key}: "):
            read(section, published)
    recommended = {"kind": "unet", "widths": [16, 48, 96, 128, 128]}
    assert read({}, recommended) == EdmConfig()
    assert read({"p_mean": -1.0}, recommended) == EdmConfig(p_mean=-1.0)
    assert read({"prediction": "eps"}, recommended) == DiscreteConfig()
    for values, key in (
        ({"sigma_min": 90.0}, "sigma_min"), ({"p_std": 0.0}, "p_std"), ({"rho": 0.5}, "rho"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"{key}: "):
            EdmConfig(**values)


def test_training_weighs_the_loss_by_the_learned_uncertainty() -> None:
    """d/dL of error e^-L + L at L = 0 is 1 - error; the loss that is logged is the error."""
    model = ModelConfig(kind="unet", widths=(16, 16), emb_dim=32, head_dim=8)
    config = Config(model=model, data=DataConfig(image_size=16))
    trainer = Trainer(config, None, CPU)
    x_0 = 0.5 * torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    loss = trainer.advance_on(x_0, torch.arange(6))
    # The same draws again: levels, hidden labels, noise. At the start, the network gives zeros.
    random = torch.Generator().manual_seed(derive_seed(config.seed, Stream.STEP, 0, 1))
    levels = trainer.preconditioning.draw(6, random)
    torch.rand(6, generator=random)
    n = torch.randn(x_0.shape, generator=random)
    error = levels.target(x_0, n).square().mean(dim=(1, 2, 3))
    assert float(loss) == pytest.approx(float(error.mean()), rel=1e-5)
    (weight,) = [w for name, w in trainer.model.named_parameters() if "log_variance" in name]
    log_variance = trainer.model.log_variance(levels.time)
    (expected,) = torch.autograd.grad(((1 - error) * log_variance).mean(), weight)
    assert float(expected.norm()) > 0
    torch.testing.assert_close(weight.grad, expected, atol=1e-7, rtol=1e-4)


def test_timesteps_descend_from_the_last() -> None:
    levels = discrete()
    assert levels.sampling(1000).time.tolist() == list(range(999, -1, -1))
    assert levels.sampling(4).time.tolist() == [999, 749, 499, 249]
    for steps in (0, 1001):
        with pytest.raises(SamplingError, match=f"^steps: {steps} "):
            levels.sampling(steps)
    with pytest.raises(SamplingError, match=r"^steps: 1001 "):
        Chain((network,), levels, options(steps=1001), [0], [0], SHAPE)


def test_pixels_round_trip() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    inside = from_levels(images, torch.device("cpu"))
    assert inside.shape == (1, 1, 16, 16)
    assert (float(inside.min()), float(inside.max())) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_uint8(inside), images)
    assert to_uint8(torch.full((1, 1, 1, 1), 7.0)).item() == 255
