"""The held-out denoising loss: the loss of training, with noise that is common to all networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Cli, refused, succeeded
from networks import small_released, trained_a_little

from qhdm import data
from qhdm.config import Config, DataConfig, load_config
from qhdm.data import Batches, Dataset
from qhdm.diffusion import NULL_LABEL, make_preconditioning
from qhdm.diffusion.pixels import from_levels
from qhdm.metrics import read_evaluation
from qhdm.metrics.denoising import NoisyBatch, NoisyImages, denoising_losses, held_out, loss_name
from qhdm.models import DiffusionNetwork, build_model
from qhdm.models.filters import on_engine
from qhdm.quantum.options import Aer
from qhdm.run import Run
from qhdm.seeds import Stream, derive_seed
from qhdm.training.trainer import Trainer

CONFIGS = Path(__file__).parent.parent / "configs"
CPU = torch.device("cpu")
COMMON = ["data.root=bundled", "train.batch_size=8", "train.precision=float32"]


def recommended(*settings: str) -> Config:
    """A small hybrid of the recommended kind."""
    small = [
        "data.image_size=16",
        "model.widths=[12,12,16]",
        "model.head_dim=8",
        "quantum.encoder.levels=[1]",
    ]
    return load_config(CONFIGS / "quickstart.yaml", [*small, *COMMON, *settings])


CONFIGURATIONS = {
    "edm": recommended(),
    "eps": recommended("diffusion={prediction: eps, loss: l1}"),
    "x0": recommended("diffusion={prediction: x0}"),
    "published": small_released("qcunet_fqconv", *COMMON),
}


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def config(request: pytest.FixtureRequest) -> Config:
    return data.resolved(CONFIGURATIONS[request.param])


@pytest.fixture(scope="module")
def patches() -> Dataset:
    return data.load(DataConfig(root="bundled", image_size=16)).split("test")


def network_of(config: Config) -> DiffusionNetwork:
    network = trained_a_little(build_model(config))
    assert isinstance(network, DiffusionNetwork)
    return network.eval().requires_grad_(False)


def losses(network: DiffusionNetwork, config: Config, patches: Dataset, **more: int) -> np.ndarray:
    noise = make_preconditioning(config)
    return denoising_losses(network, noise, patches.images, patches.labels, **more)


def test_it_is_the_loss_of_a_training_step(config: Config, patches: Dataset) -> None:
    trainer = Trainer(config, Batches(patches, batch_size=8, seed=0, augment=False), CPU)
    trained_a_little(trainer.model)
    images, labels = trainer.batches.batch(0, slice(8))
    random = torch.Generator().manual_seed(derive_seed(config.seed, Stream.STEP, 0, 1))
    levels = trainer.preconditioning.draw(8, random)
    hidden = torch.rand(8, generator=random) < config.train.label_dropout
    x_0 = from_levels(images, CPU)
    n = torch.randn(x_0.shape, generator=random)
    label = torch.as_tensor(labels).masked_fill(hidden, NULL_LABEL)
    batch = NoisyBatch(
        trainer.preconditioning, 0, np.arange(8), np.zeros(8, int), x_0, n, levels, label
    )
    with torch.no_grad():
        error = batch.error(batch.output(trainer.model))
    assert error.mean() == pytest.approx(float(trainer.advance()), rel=1e-6)


def test_it_is_the_mean_over_levels_and_batches_do_not_change_it(
    config: Config, patches: Dataset
) -> None:
    network = network_of(config)
    several = losses(network, config, patches, seed=3, levels=3, batch_size=4)
    assert several.shape == (len(patches),)
    assert several.dtype == np.float64
    noisy = NoisyImages(make_preconditioning(config), patches.images, patches.labels, 3, 3)
    with torch.no_grad():
        single = [batch.error(batch.output(network)) for batch in noisy.batches(len(patches))]
    np.testing.assert_allclose(several, np.mean(single, axis=0), rtol=1e-5)
    assert not np.allclose(several, losses(network, config, patches, seed=4, levels=3))


def test_noise_is_common_to_networks(patches: Dataset) -> None:
    """A small change of a network changes losses far less than other noise does."""
    config = data.resolved(CONFIGURATIONS["edm"])
    network, other = network_of(config), network_of(config)
    with torch.no_grad():
        other.conv_out.weight *= 1 + 1e-3 * torch.randn(other.conv_out.weight.shape)
    before = losses(network, config, patches)
    paired = np.std(losses(other, config, patches) - before)
    assert 0 < paired < 0.05 * np.std(losses(network, config, patches, seed=1) - before)


def test_levels_are_stratified_and_images_keep_their_noise(patches: Dataset) -> None:
    config = data.resolved(CONFIGURATIONS["edm"])
    noise, N = make_preconditioning(config), len(patches)
    batches = list(NoisyImages(noise, patches.images, patches.labels).batches(N))
    for batch in batches:
        normal = (batch.levels.sigma.log() - config.diffusion.p_mean) / config.diffusion.p_std
        strata = (torch.special.ndtr(normal) * N).floor().sort().values
        assert strata.tolist() == list(range(N))
        assert not torch.equal(batch.levels.sigma, batch.levels.sigma.sort().values)
    assert not torch.equal(batches[0].n, batches[1].n)
    fewer = next(NoisyImages(noise, patches.images[:3], patches.labels[:3]).batches(7))
    assert fewer.images.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert torch.equal(fewer.n[:3], batches[0].n[:3])
    assert torch.equal(fewer.n[3:6], batches[1].n[:3])


def test_shots_depend_on_the_image_alone(patches: Dataset) -> None:
    config = data.resolved(CONFIGURATIONS["edm"])
    network = network_of(config)
    noisy = on_engine(network, Aer(shots=4))
    some = patches.where(np.arange(len(patches)) < 3)
    shots = losses(noisy, config, some, levels=1)
    np.testing.assert_allclose(
        losses(noisy, config, some, levels=1, batch_size=2), shots, rtol=1e-5
    )
    assert not np.allclose(losses(network, config, some, levels=1), shots, rtol=1e-3)


def test_names_of_losses_tell_what_can_be_compared() -> None:
    names = {loss_name(config) for config in CONFIGURATIONS.values()}
    assert len(names) == len(CONFIGURATIONS)
    sampling = recommended("diffusion.sigma_max=40", "model.kind=unet", "seed=3")
    assert loss_name(sampling) == loss_name(CONFIGURATIONS["edm"])
    assert loss_name(recommended("diffusion.p_mean=-1.0")) != loss_name(CONFIGURATIONS["edm"])


def test_a_run_is_measured_without_images(cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
    """No classifier is trained and nothing sampled; the record says what was measured."""
    out = tmp_path / "loss.json"
    done = cli("evaluate", tiny_run, "--metrics", "loss", "--num", 7, "--out", out)
    succeeded(done)
    record = read_evaluation(out)
    (metric,) = record.metrics
    assert record.extractor is None
    assert record.generated.sampler is None
    assert (metric.name, metric.split, metric.num, metric.better) == (
        "denoising loss", "test", 7, "lower",
    )  # fmt: skip
    assert metric.label in done.stdout
    assert "generated" not in done.stdout
    assert not (tiny_run / "evaluations").exists()

    run = Run.open(tiny_run, device="cpu")
    test = held_out(data.load(run.config.data).split("test"), 7)
    own = losses(run.model, run.config, test)
    assert metric.value == pytest.approx(own.mean())
    assert metric.error == pytest.approx(own.std(ddof=1) / 7**0.5)
    shots = ("--engine", "aer", "--shots", 16)
    noisy = cli("evaluate", tiny_run, "--metrics", "loss", "--num", 7, *shots, "--out", out)
    refused(noisy, "loss.json: ")


def test_images_have_no_loss(cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
    done = cli("evaluate", tiny_run, "--images", tmp_path, "--metrics", "loss", "memorisation")
    refused(done, "metrics: ")
