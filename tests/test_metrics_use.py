"""How much networks use their filters and labels, where it is known what they do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Cli, succeeded
from networks import small_released, trained_a_little

from qhdm import data
from qhdm.config import Config, DataConfig, load_config
from qhdm.data import Batches
from qhdm.diffusion import make_preconditioning
from qhdm.metrics import read_evaluation
from qhdm.metrics import use as meter
from qhdm.metrics.denoising import NoisyImages, denoising_losses
from qhdm.metrics.records import Use
from qhdm.metrics.tables import use_tables
from qhdm.models import DiffusionNetwork, build_model
from qhdm.models.hybrid import HybridActivation
from qhdm.models.named_filters import filter_layers
from qhdm.runs.directory import RunDirectory
from qhdm.training.log import read_metrics
from qhdm.training.loop import fit
from qhdm.training.trainer import Trainer
from qhdm.training.use import circuit_use

CONFIGS = Path(__file__).parent.parent / "configs"
PLACES = {"encoder.1.blocks.0.hybrid", "vertex.block1.hybrid"}


def recommended(*settings: str) -> Config:
    small = [
        "data.root=bundled",
        "data.image_size=16",
        "model.widths=[12,12,16]",
        "model.head_dim=8",
    ]
    filters = [
        "quantum.encoder.levels=[1]",
        "quantum.encoder.filters=2",
        "quantum.vertex.filters=2",
    ]
    return data.resolved(load_config(CONFIGS / "quickstart.yaml", [*small, *filters, *settings]))


def published(*settings: str) -> Config:
    return data.resolved(small_released("qcunet_fqconv", "data.root=bundled", *settings))


@pytest.fixture(scope="module")
def patches() -> data.Dataset:
    test = data.load(DataConfig(root="bundled", image_size=16)).split("test")
    return test.where(np.arange(len(test)) < 4)


def network_of(config: Config, scale: float = 1.0) -> DiffusionNetwork:
    """A network in general position, the values of whose filters are scaled."""
    network = trained_a_little(build_model(config))
    for module in network.modules():
        if isinstance(module, HybridActivation):
            module.quantum_scale *= scale
    assert isinstance(network, DiffusionNetwork)
    return network.eval().requires_grad_(False)


def uses_of(
    network: DiffusionNetwork, config: Config, patches: data.Dataset, **more: int
) -> dict[tuple[str, str], Use]:
    noisy = NoisyImages(make_preconditioning(config), patches.images, patches.labels, levels=2)
    uses = meter.measure_use(network, config, noisy, draws=2, **more)
    return {(one.place, one.replaced): one for one in uses}


def test_a_network_that_ignores_its_filters_does_not_use_them(patches: data.Dataset) -> None:
    config = recommended()
    uses = uses_of(network_of(config, scale=0.0), config, patches)
    assert {place for place, _ in uses} == {*PLACES, "all", "label"}
    for place in (*PLACES, "all"):
        for replaced in ("filters", "angles"):
            use = uses[place, replaced]
            assert (use.loss, use.error, use.prediction) == (0, 0, 0)
        assert uses[place, "channels"].prediction > 0


@pytest.mark.parametrize("kind", ["circuit", "frozen", "linear"])
def test_use_grows_with_what_filters_add(kind: str, patches: data.Dataset) -> None:
    config = recommended(f"quantum.filter={kind}")
    less, more = (
        uses_of(network_of(config, scale), config, patches) for scale in (0.1, 1.0)
    )  # fmt: skip
    for place in (*PLACES, "all"):
        for replaced in ("filters", "angles"):
            assert 0 < 3 * less[place, replaced].prediction < more[place, replaced].prediction


def test_means_keep_what_filters_add_on_average(patches: data.Dataset) -> None:
    """Filters at their mean are exactly a constant: replacing them once more changes nothing."""
    config = recommended("quantum.filter=cosine")
    network = network_of(config)
    assert uses_of(network, config, patches)["all", "filters"].prediction > 0
    for layer in filter_layers(network):
        hybrid = network.get_submodule(layer.place)
        assert isinstance(hybrid, HybridActivation)
        hybrid.gain.zero_()
    constant = uses_of(network, config, patches)
    assert constant["all", "filters"].prediction == pytest.approx(0, abs=1e-6)
    assert constant["all", "channels"].prediction > 1e-3
    assert not any(replaced == "angles" for _, replaced in constant)  # a cosine has no weights


def test_progress_is_shown_on_request(
    patches: data.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recommended()
    network, noise = network_of(config), make_preconditioning(config)
    for progress in (False, True):
        uses_of(network, config, patches, progress=progress)
        denoising_losses(network, noise, patches.images, patches.labels, progress=progress)
        written = capsys.readouterr().err
        for title in ("means of filters", "use of filters", "denoising held-out images"):
            assert (title in written) is progress


@pytest.mark.parametrize("config", [recommended(), published()], ids=["recommended", "published"])
def test_batches_do_not_change_it_and_the_network_stays(
    config: Config, patches: data.Dataset
) -> None:
    network = network_of(config)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    noise = make_preconditioning(config)
    loss = denoising_losses(network, noise, patches.images, patches.labels)
    one, several = (uses_of(network, config, patches, batch_size=size) for size in (8, 3))
    assert one.keys() == several.keys()
    for part, use in one.items():
        assert use.loss == pytest.approx(several[part].loss, abs=1e-5)
        assert use.error == pytest.approx(several[part].error, abs=1e-5)
        assert use.prediction == pytest.approx(several[part].prediction, rel=1e-3, abs=1e-6)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    again = denoising_losses(network, noise, patches.images, patches.labels)
    assert np.array_equal(loss, again)


def test_where_all_channels_are_filters_there_is_no_control(patches: data.Dataset) -> None:
    config = recommended("model.kind=fullqvunet", "model.widths=[12,12]", "model.head_dim=4")
    assert {part for part in uses_of(network_of(config), config, patches) if part[0] == "all"} == {
        ("all", "filters"),
        ("all", "angles"),
    }


def test_the_published_blocks_are_measured(patches: data.Dataset) -> None:
    config = published("released.discard_second_pass=false")
    network = network_of(config)
    uses = uses_of(network, config, patches)
    places = {place for place, _ in uses} - {"all", "label"}
    assert places == {layer.place for layer in filter_layers(network)}
    assert {"vertex.block1.conv1", "vertex.block2.conv2"} <= places
    assert all(uses[place, "channels"].prediction > 0 for place in places)
    # Filters of the released code that are never evaluated.
    released = published("released.discard_second_pass=true")
    uses = uses_of(network_of(released), released, patches)
    assert ("vertex.block1.conv1", "filters") in uses
    assert not any(place.startswith("vertex") and "conv2" in place for place, _ in uses)


def test_a_classical_network_has_a_label_alone(patches: data.Dataset) -> None:
    config = recommended("model.kind=unet")
    network = network_of(config)
    assert {*uses_of(network, config, patches)} == {
        ("label", "hidden labels"),
        ("label", "shuffled labels"),
    }
    blind = network_of(config)
    blind.label_emb.scale = 0.0
    for use in uses_of(blind, config, patches).values():
        assert (use.loss, use.prediction) == (0, 0)
    shown = recommended("model.kind=unet", "train.label_dropout=0", "sample.guidance=1")
    assert {*uses_of(network, shown, patches)} == {("label", "shuffled labels")}


def test_the_change_of_the_loss_is_that_of_two_losses(patches: data.Dataset) -> None:
    config = recommended("model.kind=unet")
    network, noise = network_of(config), make_preconditioning(config)
    use = uses_of(network, config, patches)["label", "hidden labels"]
    hidden = np.full(len(patches), -1)
    own, other = (
        denoising_losses(network, noise, patches.images, labels, levels=2)
        for labels in (patches.labels, hidden)
    )
    assert use.loss == pytest.approx(other.mean() / own.mean() - 1)
    # The jackknife of the ratio, which the error approximates.
    left_out = [np.delete(other, i).mean() / np.delete(own, i).mean() for i in range(len(own))]
    jackknife = (len(own) - 1) ** 0.5 * np.std(left_out)
    assert use.error == pytest.approx(jackknife, rel=0.5)


def test_training_logs_the_use_of_the_prediction(tmp_path: Path, patches: data.Dataset) -> None:
    """At checkpoints; a network whose filters are muted uses nothing, to the bit."""
    config = recommended("train.batch_size=4", "train.steps=3", "train.log_every=1",
                         "train.checkpoint_every=2", "train.precision=float32")  # fmt: skip
    run = RunDirectory.create(config, tmp_path / "run")
    fit(run, patches, device=torch.device("cpu"))
    records = read_metrics(run.path / "metrics.jsonl")
    logged = {r["step"]: r["circuit_use_prediction"] for r in records if len(r) > 5}
    assert logged.keys() == {2, 3}
    assert all(0 < value < 1 for value in logged.values())

    batches = Batches(patches, batch_size=4, seed=config.seed, augment=config.data.augment)
    trainer = Trainer(config, batches, torch.device("cpu"))
    trainer.restore(run.latest_checkpoint())
    assert circuit_use(trainer) == {"circuit_use_prediction": logged[3]}
    for module in trainer.ema.model.modules():
        if isinstance(module, HybridActivation):
            module.quantum_scale = 0.0
    assert circuit_use(trainer) == {"circuit_use_prediction": 0.0}
    classical = recommended("model.kind=unet", "train.batch_size=4")
    assert circuit_use(Trainer(classical, batches, torch.device("cpu"))) == {}


def test_the_command_measures_and_shows_it(
    cli: Cli, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "EVALUATIONS", 6)
    out = tmp_path / "use.json"
    shown = succeeded(cli("evaluate", tiny_run, "--metrics", "use", "--num", 3, "--out", out))
    record = read_evaluation(out)
    assert record.groups == ("use",)
    circuit, label = record.metrics
    (everywhere,) = (u for u in record.use if (u.place, u.replaced) == ("all", "filters"))
    (control,) = (u for u in record.use if (u.place, u.replaced) == ("all", "channels"))
    assert (circuit.name, circuit.value, circuit.error) == (
        "circuit use", everywhere.loss, everywhere.error,
    )  # fmt: skip
    assert circuit.baseline == control.loss
    assert (label.name, label.num) == ("label use", 3)
    filters, labels = use_tables(record)
    for table in (filters, labels):
        assert table.markdown() in shown
    assert filters.rows[-1][0] == "all"
    assert [row[0] for row in labels.rows] == ["label"]
