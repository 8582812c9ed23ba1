"""Samplers and guidance; diffusers is the independent implementation."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
)
from diffusion_parts import CPU, KINDS, SHAPE, discrete, edm, every_kind, network, options
from tolerances import SAMPLER, SIGMAS

from qhdm.diffusion import Chain, generate, trace
from qhdm.diffusion.pixels import to_uint8
from qhdm.diffusion.preconditioning import cosine_betas, linear_betas
from qhdm.diffusion.samplers import ImageNoise, ddim_step, states


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


def evaluations(chain: Chain, eta: float = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """x before and after each evaluation, as x_0 + sigma n, of a sampler that starts around zero.

    That is how diffusers starts.
    """
    every = list(chain)
    before = [evaluation.x for evaluation in every]
    after = [evaluation.state.x for evaluation in every]
    # What is left of the mean to which the start is moved, after the step.
    sigma, below = [*chain.levels.sigma.tolist(), 0.0][:2]
    added = eta * below * (1 - (below / sigma) ** 2) ** 0.5
    after[0] = after[0] - (below**2 - added**2) ** 0.5 / sigma * every[0].x_0
    return before, after


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
    before, after = evaluations(chain, eta=1 if sampler == "ddpm" else eta)

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


@every_kind
@pytest.mark.parametrize(
    ("sampler", "eta"), [("dpm++", 0), ("ddim", 0), ("ddim", 0.5), ("ddpm", 0)]
)
def test_samplers_reach_the_mean_colour(sampler: str, eta: float, kind: str) -> None:
    """Images of one colour each: n pixels together have little noise at the first level, too."""
    mean, spread, N, n = -0.6, 0.2, 300, 64 * 64
    sigmas = KINDS[kind]().sampling(50).sigma.tolist()

    def denoise(x: torch.Tensor, i: int) -> torch.Tensor:
        colour = x.mean(dim=(1, 2, 3), keepdim=True) - mean
        return (mean + colour / (1 + sigmas[i] ** 2 / n / spread**2)).expand_as(x)

    noise = ImageNoise(0, range(N), (1, 64, 64))
    *_, last = states(sigmas, denoise, noise, sampler=sampler, eta=eta)
    colours = last.x.mean(dim=(1, 2, 3))
    # Begun around zero, EDM's images have a mean of -0.5.
    assert float(colours.mean()) == pytest.approx(mean, abs=SIGMAS * spread / N**0.5)
    assert float(colours.std()) == pytest.approx(spread, rel=SIGMAS / (2 * N) ** 0.5 + 0.05)


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
