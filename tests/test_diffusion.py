"""The forward process, the loss and the samplers; diffusers is the independent implementation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from reference import GOLDEN
from tolerances import PUBLISHED_SCHEDULE, SAMPLER

from qhdm.config import DiffusionConfig, SamplerOptions
from qhdm.diffusion import Chain, Schedule, generate, per_sample_loss, trace
from qhdm.diffusion.generate import guided_denoiser
from qhdm.diffusion.pixels import from_uint8, to_uint8
from qhdm.diffusion.samplers import ImageNoise, ddim_step, states, timesteps_of
from qhdm.diffusion.schedule import cosine_betas, linear_betas
from qhdm.errors import SamplingError

SHAPE = (3, 8, 8)


def make_schedule(**changes: object) -> Schedule:
    return Schedule(DiffusionConfig(**changes))


def network(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """A smooth stand-in for a trained network: any function of its inputs will do here."""
    time = (t.double() / 1000).to(x)[:, None, None, None]
    return torch.tanh(0.7 * x + 0.3 * time) + 0.05 * label[:, None, None, None].to(x)


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
    cosine, linear = make_schedule(), make_schedule(schedule="linear")
    for name, ours in (
        ("betas", cosine.betas), ("alphas_bar", cosine.alphas_bar),
        ("p2_loss_weight", cosine.p2_weight), ("linear_betas", linear.betas),
        ("sqrt_alphas_bar", cosine.alphas_bar.sqrt()),
        ("sqrt_1m_alphas_bar", (1 - cosine.alphas_bar).sqrt()), ("alphas", 1 - cosine.betas),
    ):  # fmt: skip
        np.testing.assert_allclose(ours, published[name], rtol=0, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(
        cosine.alphas_bar[:-1], published["alphas_bar"][:-1], rtol=PUBLISHED_SCHEDULE
    )
    np.testing.assert_allclose(cosine.p2_weight, published["p2_loss_weight"], rtol=2e-3)
    np.testing.assert_allclose(linear.betas, published["linear_betas"], rtol=1e-6)


def test_q_sample_and_loss_are_the_published_ones(published: dict[str, np.ndarray]) -> None:
    schedule = make_schedule()
    x_0, eps, predicted = (images(published[n]) for n in ("q_x0", "q_eps", "loss_pred"))
    t = torch.from_numpy(published["q_t"])
    x_t = schedule.q_sample(x_0, t, eps)
    np.testing.assert_allclose(x_t, images(published["q_xt"]), rtol=0, atol=1e-5)
    losses = per_sample_loss(schedule, predicted, x_0, eps, t)
    np.testing.assert_allclose(losses, published["loss_per_sample"], rtol=2e-3)


def test_the_ancestral_step_has_the_published_posterior(published: dict[str, np.ndarray]) -> None:
    """Mean and variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 6-7)."""
    x, x_0 = images(published["q_x0"]), images(published["loss_pred"])
    mean, log_variance = (images(published[name]) for name in ("post_mean", "post_logvar"))
    bars = make_schedule().alphas_bar.tolist()
    for i, t in enumerate(published["post_t"]):
        part = slice(i, i + 1)
        arguments = x[part], x_0[part], bars[t], bars[t - 1], 1.0
        without = ddim_step(*arguments, torch.zeros_like(x[part]))
        torch.testing.assert_close(without, mean[part], rtol=0, atol=PUBLISHED_SCHEDULE)
        noise = ddim_step(*arguments, torch.ones_like(x[part])) - without
        deviation = (log_variance[part] / 2).exp().expand_as(noise)
        torch.testing.assert_close(noise, deviation, rtol=2 * PUBLISHED_SCHEDULE, atol=0)


def test_the_full_chain_takes_the_posterior_step_and_ends_at_the_estimate() -> None:
    """What the published sampler does at t = 0 to x is never seen: it returns the estimate too."""
    schedule = make_schedule(timesteps=20)
    estimates: list[tuple[int, torch.Tensor]] = []

    def denoise(x: torch.Tensor, t: int) -> torch.Tensor:
        estimates.append((t, (x / 2).clamp(-1, 1)))
        return estimates[-1][1]

    *_, last = states(schedule, denoise, ImageNoise(0, [0], SHAPE), sampler="ddpm", steps=20)
    final = last.x
    assert [t for t, _ in estimates] == list(range(19, -1, -1))
    assert torch.equal(final, estimates[-1][1])


def test_q_sample_has_the_right_moments() -> None:
    schedule = make_schedule()
    x_0 = torch.full((20_000, 1, 1, 1), 0.5)
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    t = torch.full((20_000,), 400)
    x_t = schedule.q_sample(x_0, t, eps)
    bar = float(schedule.alphas_bar[400])
    assert float(x_t.mean()) == pytest.approx(0.5 * bar**0.5, abs=0.02)
    assert float(x_t.var()) == pytest.approx(1 - bar, rel=0.03)


def test_q_sample_is_what_diffusers_adds() -> None:
    schedule = make_schedule(schedule="linear")
    reference = DDPMScheduler(trained_betas=schedule.betas.numpy())
    x_0, eps = torch.randn(4, *SHAPE), torch.randn(4, *SHAPE)
    t = torch.tensor([0, 10, 500, 999])
    torch.testing.assert_close(
        schedule.q_sample(x_0, t, eps), reference.add_noise(x_0, eps, t), atol=SAMPLER, rtol=0
    )


@pytest.mark.parametrize("prediction", ["eps", "x0"])
@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_loss_by_hand(prediction: str, loss: str) -> None:
    schedule = make_schedule(prediction=prediction, loss=loss, p2_gamma=0.5, p2_k=2.0)
    output, x_0, eps = (torch.randn(3, *SHAPE) for _ in range(3))
    t = torch.tensor([0, 30, 999])
    losses = per_sample_loss(schedule, output, x_0, eps, t)
    for i in range(3):
        bar = float(schedule.alphas_bar[t[i]])
        error = (output - (eps if prediction == "eps" else x_0))[i]
        mean = float(error.abs().mean() if loss == "l1" else error.square().mean())
        assert float(losses[i]) == pytest.approx(mean / (2 + bar / (1 - bar)) ** 0.5, rel=1e-5)


def test_perfect_predictions_give_back_the_image() -> None:
    x_0, eps = torch.rand(2, *SHAPE) * 2 - 1, torch.randn(2, *SHAPE)
    for prediction, output in (("eps", eps), ("x0", x_0)):
        schedule = make_schedule(prediction=prediction)
        t = torch.tensor([300, 300])
        x_t = schedule.q_sample(x_0, t, eps)
        recovered = schedule.to_x0(output, x_t, float(schedule.alphas_bar[300]))
        torch.testing.assert_close(recovered, x_0, atol=1e-5, rtol=0)


def diffusers_scheduler(sampler: str, schedule: Schedule, eta: float):
    common = {
        "trained_betas": schedule.betas.numpy(),
        "timestep_spacing": "trailing",
        "prediction_type": "epsilon" if schedule.prediction == "eps" else "sample",
    }
    if sampler == "dpm++":
        # Dynamic thresholding at quantile 1, bounded by 1, is clipping to [-1, 1].
        return DPMSolverMultistepScheduler(
            **common,
            algorithm_type="dpmsolver++",
            solver_order=2,
            thresholding=True,
            dynamic_thresholding_ratio=1.0,
            sample_max_value=1.0,
            final_sigmas_type="zero",
            lower_order_final=False,
        )
    if sampler == "ddpm":
        reference = DDPMScheduler(**common, variance_type="fixed_small", clip_sample=True)
    else:
        reference = DDIMScheduler(**common, clip_sample=True, set_alpha_to_one=True)
    # diffusers accumulates the betas in float32, which costs the last timesteps 5e-5.
    reference.alphas_cumprod = schedule.alphas_bar
    return reference


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
    schedule = make_schedule(prediction=prediction, schedule=kind)
    reference = diffusers_scheduler(sampler, schedule, eta)
    reference.set_timesteps(steps)
    times = timesteps_of(schedule, steps)
    assert reference.timesteps.tolist() == times

    labels = torch.tensor([0, 1])
    denoise = guided_denoiser(network, schedule, labels, 1.0)
    ours: list[torch.Tensor] = []

    def recording(x: torch.Tensor, t: int) -> torch.Tensor:
        ours.append(x)
        return denoise(x, t)

    noise = ImageNoise(0, [0, 1], SHAPE)
    *_, last = states(schedule, recording, noise, sampler=sampler, steps=steps, eta=eta)
    final = last.x

    # Each step of diffusers starts from our x_t, with the noise that we drew.
    noise = ImageNoise(0, [0, 1], SHAPE)
    noise.draw(torch.device("cpu"))
    noisy = sampler == "ddpm" or eta > 0
    for i, t in enumerate(times):
        x = ours[i]
        expected = ours[i + 1] if i + 1 < steps else final
        output = network(x, torch.full((2,), t), labels)
        z = noise.draw(torch.device("cpu")) if noisy and i + 1 < steps else None
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


def ddpm_step_with(reference, output, t, x, z):
    """diffusers' DDPM step with the given noise in place of its own."""
    stepped = reference.step(output, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
    if z is None:
        return stepped  # diffusers' own noise is scaled by 1e-10 at the end
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return stepped + reference._get_variance(t) ** 0.5 * (z - drawn)


def test_ddpm_is_ddim_with_eta_one() -> None:
    schedule = make_schedule()
    x, x_0 = torch.randn(2, *SHAPE).double(), torch.rand(2, *SHAPE).double() * 2 - 1
    t = 500
    bar, bar_next = float(schedule.alphas_bar[t]), float(schedule.alphas_bar[t - 1])
    beta = float(schedule.betas[t])
    # Ho et al. 2020, eq. 7
    mean = (bar_next**0.5 * beta * x_0 + (1 - beta) ** 0.5 * (1 - bar_next) * x) / (1 - bar)
    z = torch.randn(2, *SHAPE).double()
    variance = (1 - bar_next) / (1 - bar) * beta
    stepped = ddim_step(x, x_0, bar, bar_next, 1.0, z)
    torch.testing.assert_close(stepped, mean + variance**0.5 * z, atol=1e-10, rtol=0)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_an_image_depends_on_its_seed_and_index_alone(sampler: str) -> None:
    schedule = make_schedule(timesteps=100)

    def make(indices: list[int], batch_size: int, seed: int = 3) -> np.ndarray:
        options = SamplerOptions(sampler=sampler, steps=10, guidance=1.0, seed=seed)
        labels = [i % 3 for i in indices]
        return generate(Chain(network, schedule, options, labels, indices, SHAPE, batch_size))

    whole = make([0, 1, 2, 3, 4], 5)
    np.testing.assert_array_equal(make([0, 1, 2, 3, 4], 2), whole)
    np.testing.assert_array_equal(make([3], 1)[0], whole[3])
    assert (make([3], 1, seed=4)[0] != whole[3]).any()
    assert (whole[0] != whole[3]).any()


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_a_chain_resumes_at_any_state_and_its_trajectory_is_the_same(sampler: str) -> None:
    options = SamplerOptions(sampler=sampler, steps=6, guidance=2.0, seed=1)
    chain = Chain(network, make_schedule(timesteps=100), options, [0, 2], [4, 5], SHAPE)
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
    assert list(way.timesteps) == timesteps_of(chain.schedule, 6)
    for i, evaluation in enumerate(evaluations):
        np.testing.assert_array_equal(way.x_t[i], to_uint8(evaluation.x_t))
        np.testing.assert_array_equal(way.x_0[i], to_uint8(evaluation.x_0))


def test_late_evaluations_have_their_own_network() -> None:
    """Counted over resumption, too: the last k of all steps."""
    seen: list[str] = []

    def named(name: str) -> Callable[..., torch.Tensor]:
        def run(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            seen.append(name)
            return network(x, t, label)

        return run

    options = SamplerOptions(sampler="ddim", steps=5, guidance=1.0)
    schedule = make_schedule(timesteps=100)
    chain = Chain(named("early"), schedule, options, [0], [0], SHAPE, late=(named("late"), 2))
    first, *_ = chain
    seen.clear()
    assert len(list(chain)) == 5
    assert seen == ["early"] * 3 + ["late"] * 2
    seen.clear()
    assert len(list(dataclasses.replace(chain, start=first.state))) == 4
    assert seen == ["early"] * 2 + ["late"] * 2


def test_guidance_runs_both_passes_as_one_batch() -> None:
    schedule = make_schedule()
    calls = []

    def counting(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        calls.append(label.tolist())
        return network(x, t, label)

    labels, x = torch.tensor([2, 0]), torch.randn(2, *SHAPE)
    guided = guided_denoiser(counting, schedule, labels, 3.0)(x, 10)
    assert calls == [[2, 0, -1, -1]]
    t = torch.full((2,), 10)
    conditional, unconditional = network(x, t, labels), network(x, t, torch.full((2,), -1))
    output = unconditional + 3 * (conditional - unconditional)
    reference = schedule.to_x0(output, x, float(schedule.alphas_bar[10])).clamp(-1, 1)
    torch.testing.assert_close(guided, reference)


def test_timesteps_descend_from_the_last() -> None:
    schedule = make_schedule()
    assert timesteps_of(schedule, 1000) == list(range(999, -1, -1))
    assert timesteps_of(schedule, 4) == [999, 749, 499, 249]
    for steps in (0, 1001):
        with pytest.raises(SamplingError, match=f"^steps: {steps} "):
            timesteps_of(schedule, steps)
    with pytest.raises(SamplingError, match=r"^steps: 1001 "):
        Chain(network, schedule, SamplerOptions(steps=1001, guidance=1.0), [0], [0], SHAPE)


def test_pixels_round_trip() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    inside = from_uint8(images, torch.device("cpu"))
    assert inside.shape == (1, 1, 16, 16)
    assert (float(inside.min()), float(inside.max())) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_uint8(inside), images)
    assert to_uint8(torch.full((1, 1, 1, 1), 7.0)).item() == 255
