"""Noise levels, the loss and the samplers; diffusers is the independent implementation."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
)
from reference import GOLDEN
from scipy.stats import kstest, norm
from tolerances import PUBLISHED_SCHEDULE, SAMPLER, SIGMAS

from qhdm.config import (
    Config,
    DataConfig,
    DiscreteConfig,
    EdmConfig,
    ModelConfig,
    SamplerOptions,
    load_config,
)
from qhdm.diffusion import Chain, Preconditioning, generate, trace
from qhdm.diffusion.pixels import from_uint8, to_uint8
from qhdm.diffusion.preconditioning import Discrete, Edm, cosine_betas, linear_betas
from qhdm.diffusion.samplers import ImageNoise, ddim_step, states
from qhdm.errors import ConfigError, SamplingError
from qhdm.seeds import Stream, derive_seed
from qhdm.training.trainer import Trainer

SHAPE = (3, 8, 8)
CPU = torch.device("cpu")


def discrete(**changes: object) -> Discrete:
    return Discrete(DiscreteConfig(**changes), CPU)


def edm(**changes: object) -> Edm:
    return Edm(EdmConfig(**changes), CPU)


KINDS: dict[str, Callable[[], Preconditioning]] = {
    "edm": edm,
    "eps": lambda: discrete(),
    "x0": lambda: discrete(prediction="x0", schedule="linear"),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def options(**changes: object) -> SamplerOptions:
    plain = {"sampler": "dpm++", "steps": 6, "guidance": 1.0, "guidance_interval": None}
    return SamplerOptions(**{**plain, "guide": None, **changes})


def network(z: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """A smooth stand-in for a trained network: any function of its inputs will do here."""
    time = (time.double() / 1000).to(z)[:, None, None, None]
    return torch.tanh(0.7 * z + 0.3 * time) + 0.05 * label[:, None, None, None].to(z)


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


def test_the_full_chain_takes_the_posterior_step_and_ends_at_the_estimate() -> None:
    """What the published sampler does at t = 0 to x is never seen: it returns the estimate too."""
    sigmas = discrete(timesteps=20).sampling(20).sigma.tolist()
    estimates: list[torch.Tensor] = []

    def denoise(x: torch.Tensor, i: int) -> torch.Tensor:
        assert i == len(estimates)
        estimates.append((x / 2).clamp(-1, 1))
        return estimates[-1]

    *_, last = states(sigmas, denoise, ImageNoise(0, [0], SHAPE), sampler="ddpm")
    assert last.step == len(estimates) == 20
    assert torch.equal(last.x, estimates[-1])


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


#: Dynamic thresholding at quantile 1, bounded by 1, is clipping to [-1, 1].
SOLVER = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "thresholding": True,
    "dynamic_thresholding_ratio": 1.0,
    "sample_max_value": 1.0,
    "final_sigmas_type": "zero",
    "lower_order_final": False,
}


def diffusers_scheduler(sampler: str, prediction: str, betas: torch.Tensor):
    common = {
        "trained_betas": betas.numpy(),
        "timestep_spacing": "trailing",
        "prediction_type": "epsilon" if prediction == "eps" else "sample",
    }
    if sampler == "dpm++":
        return DPMSolverMultistepScheduler(**common, **SOLVER)
    if sampler == "ddpm":
        reference = DDPMScheduler(**common, variance_type="fixed_small", clip_sample=True)
    else:
        reference = DDIMScheduler(**common, clip_sample=True, set_alpha_to_one=True)
    # diffusers accumulates the betas in float32, which costs the last timesteps 5e-5.
    reference.alphas_cumprod = torch.cumprod(1 - betas, 0)
    return reference


def evaluations(chain: Chain) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """x before and after each evaluation, as x_0 + sigma n."""
    every = list(chain)
    return [evaluation.x for evaluation in every], [evaluation.state.x for evaluation in every]


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize("prediction", ["eps", "x0"])
@pytest.mark.parametrize(
    ("sampler", "eta", "steps"),
    [
        ("ddpm", 0.0, 1000),
        ("ddpm", 0.0, 50),
        ("ddim", 0.0, 20),
        ("ddim", 0.5, 20),
        # diffusers' DDIM steps by T // steps: the two agree where steps divides T.
        ("ddim", 1.0, 25),
        ("dpm++", 0.0, 20),
        ("dpm++", 0.0, 7),
    ],
)
def test_samplers_agree_with_diffusers_step_by_step(
    sampler: str, eta: float, steps: int, prediction: str, kind: str
) -> None:
    betas = {"cosine": cosine_betas, "linear": linear_betas}[kind](1000)
    reference = diffusers_scheduler(sampler, prediction, betas)
    reference.set_timesteps(steps)
    preconditioning = discrete(prediction=prediction, schedule=kind)
    asked = options(sampler=sampler, steps=steps, eta=eta)
    chain = Chain((network,), preconditioning, asked, [0, 1], [0, 1], SHAPE)
    assert reference.timesteps.tolist() == chain.levels.time.tolist()
    before, after = evaluations(chain)

    # Each step of diffusers starts from our x_t, with the noise that we drew.
    noise = ImageNoise(0, [0, 1], SHAPE)
    noise.draw(CPU)
    noisy = sampler == "ddpm" or eta > 0
    scales = [*chain.levels.a.tolist(), 1.0]  # to the units of diffusers
    for i, t in enumerate(chain.levels.time.tolist()):
        x, expected = scales[i] * before[i], scales[i + 1] * after[i]
        output = network(x, torch.full((2,), t), torch.tensor([0, 1]))
        z = noise.draw(CPU) if noisy and i + 1 < steps else None
        if sampler == "dpm++":
            stepped = reference.step(output, t, x).prev_sample
        elif sampler == "ddim":
            # diffusers keeps the raw eps after clipping x_0 unless told otherwise.
            stepped = reference.step(
                output, t, x, eta=eta, use_clipped_model_output=True,
                variance_noise=torch.zeros_like(x) if z is None else z,
            ).prev_sample  # fmt: skip
        else:
            stepped = ddpm_step_with(reference, output, t, x, z)
        torch.testing.assert_close(expected, stepped, atol=SAMPLER, rtol=0)


@pytest.mark.parametrize("steps", [7, 20])
@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_edm_samplers_agree_with_diffusers_step_by_step(sampler: str, steps: int) -> None:
    common = {"sigma_min": 0.01, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
    if sampler == "dpm++":
        reference = EDMDPMSolverMultistepScheduler(**common, **SOLVER)
    else:
        reference = EDMEulerScheduler(**common, final_sigmas_type="zero")
    reference.set_timesteps(steps)

    def within(z: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Its estimates of x_0 are within [-1, 1], as diffusers' Euler does not clip."""
        a, s = ((4 * time).exp()[:, None, None, None] for _ in range(2))
        x = z * (s.square() + 0.25).sqrt()
        clean = torch.tanh(0.7 * z + label[:, None, None, None])
        return (clean - 0.25 / (a.square() + 0.25) * x) / (0.5 * s) * (s.square() + 0.25).sqrt()

    asked = options(sampler=sampler, steps=steps)
    chain = Chain((within,), edm(), asked, [0, 1], [0, 1], SHAPE)
    np.testing.assert_allclose(reference.sigmas, [*chain.levels.sigma, 0.0], rtol=1e-6)
    before, after = evaluations(chain)
    assert max(float(x.abs().max()) for x in after[-1:]) < 1
    for i, time in enumerate(reference.timesteps):
        z = reference.scale_model_input(before[i], time)
        torch.testing.assert_close(z, before[i] * chain.levels.a[i], atol=SAMPLER, rtol=0)
        output = within(z, chain.levels.time[i].expand(2), torch.tensor([0, 1]))
        stepped = reference.step(output, time, before[i]).prev_sample
        # In units of the images and noise together, as x is up to 300.
        scale = (1 + float(reference.sigmas[i + 1]) ** 2) ** -0.5
        torch.testing.assert_close(scale * after[i], scale * stepped, atol=SAMPLER, rtol=0)


def ddpm_step_with(reference, output, t, x, z):
    """diffusers' DDPM step with the given noise in place of its own."""
    stepped = reference.step(output, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
    if z is None:
        return stepped  # diffusers' own noise is scaled by 1e-10 at the end
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return stepped + reference._get_variance(t) ** 0.5 * (z - drawn)


def test_ddpm_is_ddim_with_eta_one() -> None:
    levels, t = discrete().levels, 500
    x, x_0 = torch.randn(2, *SHAPE).double(), torch.rand(2, *SHAPE).double() * 2 - 1
    bar, bar_next = float(levels.a[t] ** 2), float(levels.a[t - 1] ** 2)
    beta = float(cosine_betas(1000)[t])
    # Ho et al. 2020, eq. 7
    mean = (bar_next**0.5 * beta * x_0 + (1 - beta) ** 0.5 * (1 - bar_next) * x) / (1 - bar)
    z = torch.randn(2, *SHAPE).double()
    variance = (1 - bar_next) / (1 - bar) * beta
    sigma, sigma_next = levels.sigma[[t, t - 1]].tolist()
    stepped = bar_next**0.5 * ddim_step(x / bar**0.5, x_0, sigma, sigma_next, 1.0, z)
    torch.testing.assert_close(stepped, mean + variance**0.5 * z, atol=1e-10, rtol=0)


#: A Gaussian data set of two channels, for which the best estimate is known.
MEAN = torch.tensor([0.5, -0.25], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)


def best_estimate(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """E[x_0 | x] = mean + C (C + sigma^2)^-1 (x - mean)."""
    gain = COVARIANCE @ torch.linalg.inv(COVARIANCE + sigma**2 * torch.eye(2).double())
    mean = MEAN[:, None, None]
    return mean + torch.einsum("ij,bjhw->bihw", gain, x.double() - mean)


@every_kind
@pytest.mark.parametrize(
    ("sampler", "eta", "steps", "bias"),
    [
        ("dpm++", 0, 50, 0.01),
        ("ddim", 0, 200, 0.02),
        ("ddim", 0.5, 200, 0.02),
        ("ddpm", 0, 200, 0.03),
    ],
)
def test_samplers_reach_the_distribution_of_the_data(
    sampler: str, eta: float, steps: int, bias: float, kind: str
) -> None:
    """Its covariance up to sampling error and a bias, relative, that falls with the steps."""
    levels = KINDS[kind]().sampling(steps)
    sigmas = levels.sigma.tolist()

    def denoise(x: torch.Tensor, i: int) -> torch.Tensor:
        best = best_estimate(x, sigmas[i])
        u = levels[i].p * best + levels[i].q * (x - best) / sigmas[i]  # E[u | z]
        return levels[i].clean(levels[i].a * x.double(), u)

    noise = ImageNoise(0, [0], (2, 160, 160))
    *_, last = states(sigmas, denoise, noise, sampler=sampler, eta=eta)
    pixels = last.x.double().flatten(2)[0]
    N, variances = pixels.shape[1], COVARIANCE.diag()
    assert ((pixels.mean(dim=1) - MEAN).abs() < SIGMAS * (variances / N).sqrt()).all()
    squares = torch.outer(variances, variances) + COVARIANCE.square()
    error = (pixels.cov() - COVARIANCE).abs()
    print((error / COVARIANCE).max(), (SIGMAS * (squares / N).sqrt() / COVARIANCE).max())
    assert (error < SIGMAS * (squares / N).sqrt() + bias * COVARIANCE).all()


def test_dpm_solver_is_of_second_order_and_euler_of_first() -> None:
    """Against the exact end of the probability flow of Gaussian data, x - mean shrinking alike."""
    start = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)[:, None, None, None] * 80

    class Start(ImageNoise):
        def draw(self, device: torch.device) -> torch.Tensor:
            return start / 80

    def error(sampler: str, steps: int) -> float:
        sigmas = edm(sigma_min=1e-4).sampling(steps).sigma.tolist()
        variance = 0.25
        *_, last = states(
            sigmas,
            lambda x, i: variance / (variance + sigmas[i] ** 2) * x,
            Start(0, [0], SHAPE),
            sampler=sampler,
        )
        exact = start * (variance / (variance + 80**2)) ** 0.5
        return float((last.x - exact).abs().max())

    for sampler, order in (("dpm++", 2), ("ddim", 1)):
        errors = [error(sampler, steps) for steps in (50, 100, 200)]
        orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
        assert orders == pytest.approx([order] * 2, abs=0.25), (sampler, errors)


@every_kind
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_an_image_depends_on_its_seed_and_index_alone(sampler: str, kind: str) -> None:
    preconditioning = KINDS[kind]()

    def make(indices: list[int], batch_size: int, seed: int = 3) -> np.ndarray:
        asked = options(sampler=sampler, steps=10, seed=seed)
        labels = [i % 3 for i in indices]
        chain = Chain((network,), preconditioning, asked, labels, indices, SHAPE, batch_size)
        return generate(chain)

    whole = make([0, 1, 2, 3, 4], 5)
    np.testing.assert_array_equal(make([0, 1, 2, 3, 4], 2), whole)
    np.testing.assert_array_equal(make([3], 1)[0], whole[3])
    assert (make([3], 1, seed=4)[0] != whole[3]).any()
    assert (whole[0] != whole[3]).any()


@every_kind
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_a_chain_resumes_at_any_state_and_its_trajectory_is_the_same(
    sampler: str, kind: str
) -> None:
    asked = options(sampler=sampler, guidance=2.0, seed=1)
    chain = Chain((network,), KINDS[kind](), asked, [0, 2], [4, 5], SHAPE)
    evaluations = list(chain)
    assert len(evaluations) == len(chain) == 6
    end = evaluations[-1].state.x
    for evaluation in evaluations[:-1]:
        rest = dataclasses.replace(chain, start=evaluation.state)
        *_, last = rest
        assert len(rest) == 6 - evaluation.state.step
        torch.testing.assert_close(last.state.x, end, atol=0, rtol=0)
    way = trace(chain)
    np.testing.assert_array_equal(way.images, generate(chain))
    assert list(way.sigmas) == chain.levels.sigma.tolist()
    for i, (evaluation, sigma) in enumerate(zip(evaluations, way.sigmas, strict=True)):
        noisy = evaluation.x / (1 + sigma**2) ** 0.5  # of unit variance, but for the image's
        np.testing.assert_array_equal(way.x_t[i], to_uint8(noisy))
        np.testing.assert_array_equal(way.x_0[i], to_uint8(evaluation.x_0))


def test_late_evaluations_have_their_own_network() -> None:
    """Counted over resumption, too: the last k of all steps."""
    seen: list[str] = []

    def named(name: str) -> tuple[Callable[..., torch.Tensor]]:
        def run(z: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            seen.append(name)
            return network(z, time, label)

        return (run,)

    asked, late = options(sampler="ddim", steps=5), (named("late"), 2)
    chain = Chain(named("early"), edm(), asked, [0], [0], SHAPE, late=late)
    first, *_ = chain
    seen.clear()
    assert len(list(chain)) == 5
    assert seen == ["early"] * 3 + ["late"] * 2
    seen.clear()
    assert len(list(dataclasses.replace(chain, start=first.state))) == 4
    assert seen == ["early"] * 2 + ["late"] * 2


def weak(z: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Another network, to be guided by."""
    return 0.8 * network(z, time, label) + 0.1


@every_kind
@pytest.mark.parametrize("guide", [None, "model"])
def test_guidance_is_its_formula_within_the_interval(guide: str | None, kind: str) -> None:
    """D = G + w (D_main - G), clipped; two passes without the label are one batch."""
    calls: list[list[int]] = []

    def counting(z: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        calls.append(label.tolist())
        return network(z, time, label)

    preconditioning, steps = KINDS[kind](), 5
    sigmas = preconditioning.sampling(steps).sigma.tolist()
    asked = options(
        guidance=3.0, guide=guide, steps=steps, guidance_interval=(sigmas[3], sigmas[1])
    )
    networks = (counting,) if guide is None else (counting, weak)
    chain = Chain(networks, preconditioning, asked, [2, 0], [0, 1], SHAPE)
    labels, none = torch.tensor([2, 0]), torch.full((2,), -1)
    x = torch.randn(2, *SHAPE)
    for i, sigma in enumerate(sigmas):
        calls.clear()
        guided = chain.denoise(sigma * x, i, labels=labels, indices=[0, 1])
        on = sigmas[3] <= sigma <= sigmas[1]
        assert calls == [[2, 0, -1, -1] if on and guide is None else [2, 0]]
        assert on == asked.guided_at(sigma) == (i in (1, 2, 3))
        level = chain.levels[i]
        z, time = level.a * (sigma * x), level.time.expand(2)
        main = level.clean(z, network(z, time, labels))
        other = level.clean(z, network(z, time, none) if guide is None else weak(z, time, labels))
        expected = (other + 3 * (main - other) if on else main).clamp(-1, 1)
        tolerance = 1e-5 * max(1.0, sigma if kind == "eps" else 1.0)
        torch.testing.assert_close(guided, expected, atol=tolerance, rtol=1e-5)


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
    inside = from_uint8(images, torch.device("cpu"))
    assert inside.shape == (1, 1, 16, 16)
    assert (float(inside.min()), float(inside.max())) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_uint8(inside), images)
    assert to_uint8(torch.full((1, 1, 1, 1), 7.0)).item() == 255
