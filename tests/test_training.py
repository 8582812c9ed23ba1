"""Training: EMA, checkpoints, resuming, previews, and what stops it."""

from __future__ import annotations

import json
import math
import platform
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import qiskit
import torch
from safetensors.torch import load_file

import qhdm
from qhdm import data
from qhdm.config import Config, ModelConfig, TrainConfig, load_config
from qhdm.device import resolve_device
from qhdm.distributed import World
from qhdm.errors import ConfigError, EngineError, RunError, TrainingError
from qhdm.runs.checkpoints import load_training_state, load_weights
from qhdm.runs.directory import RunDirectory
from qhdm.training.callbacks import Callback, PreviewGrid, ProgressBar, TensorBoard
from qhdm.training.estimate import describe_counts, describe_time
from qhdm.training.log import MetricsLog, read_metrics
from qhdm.training.loop import fit, resumed
from qhdm.training.precision import precision_of
from qhdm.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture
def config(tiny_yaml: Path) -> Config:
    classes = ",".join(data.EUROSAT_CLASSES)
    return load_config(tiny_yaml, [f"data.classes=[{classes}]"])


def with_settings(tiny_yaml: Path, *settings: str) -> Config:
    classes = ",".join(data.EUROSAT_CLASSES)
    return load_config(tiny_yaml, [f"data.classes=[{classes}]", *settings])


@pytest.fixture(scope="module")
def images() -> data.Dataset:
    from qhdm.config import DataConfig

    return data.load(DataConfig(root="bundled", image_size=16)).split("train")


def weights(run: RunDirectory, name: str) -> dict[str, torch.Tensor]:
    return load_file(run.latest_checkpoint() / f"{name}.safetensors")


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def test_interrupted_and_resumed_training_is_bit_identical(
    tiny_yaml: Path, images: data.Dataset, tmp_path: Path
) -> None:
    """20 steps == 10 + resume + 10: weights, averages and the log."""
    config = with_settings(tiny_yaml)
    whole = RunDirectory.create(config, tmp_path / "whole")
    fit(whole, images, device=CPU)

    half = with_settings(tiny_yaml, "train.steps=10")
    parts = RunDirectory.create(half, tmp_path / "parts")
    fit(parts, images, device=CPU)
    assert parts.last_step() == 10
    fit(resumed(parts, config), images, device=CPU)

    assert whole.last_step() == parts.last_step() == 20
    for name in ("model", "ema"):
        assert_equal(weights(whole, name), weights(parts, name))
    losses = [
        [(r["step"], r["loss"]) for r in read_metrics(run.path / "metrics.jsonl")]
        for run in (whole, parts)
    ]
    assert losses[0] == losses[1]


def test_two_runs_with_one_seed_are_equal_and_with_another_differ(
    config: Config, tiny_yaml: Path, images: data.Dataset
) -> None:
    def after_three(config: Config) -> dict[str, torch.Tensor]:
        batches = data.Batches(images, batch_size=8, seed=config.seed, augment=True)
        trainer = Trainer(config, batches, CPU)
        for _ in range(3):
            trainer.advance()
        return trainer.model.state_dict()

    one = after_three(config)
    assert_equal(one, after_three(config))
    other = after_three(with_settings(tiny_yaml, "seed=2"))
    assert not torch.equal(one["init_conv.weight"], other["init_conv.weight"])


def test_loss_falls_on_one_batch(config: Config, images: data.Dataset) -> None:
    trainer = Trainer(config, None, CPU)
    x_0 = torch.as_tensor(images.images[:8]).permute(0, 3, 1, 2) / 127.5 - 1
    labels = torch.as_tensor(images.labels[:8])
    losses = [float(trainer.advance_on(x_0, labels)) for _ in range(30)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_gradient_norms_are_those_of_the_parts_before_clipping(
    tiny_yaml: Path, images: data.Dataset
) -> None:
    """Against the gradient itself, which a loose bound leaves as it is and a tight one shortens."""

    def norms(clip: float) -> tuple[dict[str, float], dict[str, float]]:
        config = with_settings(tiny_yaml, f"train.grad_clip={clip}")
        trainer = Trainer(config, data.Batches(images, batch_size=8, seed=1, augment=True), CPU)
        trainer.advance()
        parts: dict[str, list[torch.Tensor]] = {"grad_norm_classical": [], "grad_norm_quantum": []}
        for name, parameter in trainer.model.named_parameters():
            assert parameter.grad is not None
            kind = "quantum" if name.endswith("theta") else "classical"
            parts[f"grad_norm_{kind}"].append(parameter.grad.flatten())
        left = {name: float(torch.cat(grads).norm()) for name, grads in parts.items()}
        return {name: float(norm) for name, norm in trainer.gradient_norms.items()}, left

    loose, left = norms(1e6)
    assert loose == pytest.approx(left, rel=1e-5)
    tight, left = norms(1e-3)
    assert tight == pytest.approx(loose, rel=1e-5)
    assert math.hypot(*left.values()) == pytest.approx(1e-3, rel=1e-3)


def test_run_directory_holds_all_it_should(
    config: Config, images: data.Dataset, tmp_path: Path
) -> None:
    run = RunDirectory.create(config, tmp_path / "run")
    called: list[tuple[object, ...]] = []

    class Recorder(Callback):
        def on_start(self, run: RunDirectory, step: int) -> None:
            called.append(("start", step))

        def on_step(self, step: int) -> None:
            called.append(("step", step))

        def on_checkpoint(self, step: int, path: Path) -> None:
            called.append(("checkpoint", step, path.name, path.exists()))

        def on_preview(self, step: int, images: np.ndarray, labels: Sequence[int]) -> None:
            called.append(("preview", step, images, labels))

        def on_end(self) -> None:
            called.append(("end",))

    fit(run, images, device=CPU, callbacks=[Recorder(), PreviewGrid(), ProgressBar()])
    assert called[0] == ("start", 0)
    assert called[-1] == ("end",)
    assert [step for kind, *step in called if kind == "step"] == [[s] for s in range(1, 21)]
    assert ("checkpoint", 20, "step_0000020", True) in called
    pictures = [c for c in called if c[0] == "preview"]
    assert RunDirectory.open(run.path).config == config
    versions = json.loads((run.path / "versions.json").read_text())
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions["qiskit"] == qiskit.__version__
    assert versions["numpy"] == np.__version__
    assert versions["python"] == platform.python_version()
    assert versions["qhdm"] == qhdm.__version__
    assert {"qiskit-machine-learning", "qiskit-aer", "safetensors"} <= versions.keys()
    records = read_metrics(run.path / "metrics.jsonl")
    assert [r["step"] for r in records] == [5, 10, 15, 20]
    assert all(math.isfinite(r["loss"]) and r["steps_per_second"] > 0 for r in records)
    assert [c.name for c in run.checkpoints()] == ["step_0000015", "step_0000020"]
    names = sorted(path.name for path in (run.path / "samples").iterdir())
    assert names == ["step_0000010.png", "step_0000020.png"]
    _, _, shown, labels = pictures[-1]
    assert shown.shape == (20, 16, 16, 3)
    assert shown.dtype == np.uint8
    assert labels == [c for c in range(10) for _ in range(2)]


def test_the_command_is_a_caller_of_the_library(
    tiny_run: Path, tiny_yaml: Path, tmp_path: Path
) -> None:
    run = qhdm.train(load_config(tiny_yaml), out=tmp_path / "run", callbacks=[])
    for name in ("model", "ema"):
        assert_equal(
            weights(RunDirectory.open(tiny_run), name), weights(RunDirectory.open(run.path), name)
        )
    ema = weights(RunDirectory.open(run.path), "ema")
    assert_equal(ema, dict(run.network().state_dict()))


def test_a_launch_that_starts_again_continues_its_run(tiny_yaml: Path, tmp_path: Path) -> None:
    """As torchrun starts it: the same launch, with the same arguments."""
    config, out = with_settings(tiny_yaml, "train.steps=6"), tmp_path / "run"
    world = World(launch="job 1", restarts=3)
    with pytest.raises(ConfigError, match=r"^--out: "):
        qhdm.train(config, callbacks=[], world=world)
    qhdm.train(config, out=out, callbacks=[], world=world)
    run = RunDirectory.open(out)
    before = weights(run, "model")
    shutil.rmtree(run.checkpoint_path(6))
    assert run.last_step() == 5
    started: list[int] = []

    class Started(Callback):
        def on_start(self, run: RunDirectory, step: int) -> None:
            started.append(step)

    qhdm.train(config, out=out, callbacks=[Started()], world=world)
    assert started == [5]
    assert_equal(weights(run, "model"), before)
    with pytest.raises(RunError, match=r"run: .*--out"):
        qhdm.train(config, out=out, callbacks=[], world=World(launch="job 2"))


def test_circuits_that_the_engine_cannot_run_are_refused_before_anything_is_written(
    tiny_yaml: Path, tmp_path: Path
) -> None:
    for setting in ("quantum.aer.device=GPU", "quantum.aer.noise=none.json"):
        config = with_settings(tiny_yaml, "quantum.engine=aer", setting)
        with pytest.raises(EngineError):
            qhdm.train(config, out=tmp_path / "run", callbacks=[])
        assert not (tmp_path / "run").exists()


def test_options_that_change_a_step(tiny_yaml: Path, images: data.Dataset) -> None:
    x_0 = torch.as_tensor(images.images[:4]).permute(0, 3, 1, 2) / 127.5 - 1
    labels = torch.as_tensor(images.labels[:4])

    def first_step(*settings: str) -> tuple[float, torch.Tensor]:
        trainer = Trainer(with_settings(tiny_yaml, *settings), None, CPU)
        loss = float(trainer.advance_on(x_0, labels))
        return loss, trainer.model.final_conv.weight.detach().clone()

    plain_loss, plain = first_step()
    clipped_loss, clipped = first_step("train.grad_clip=1e-9", "train.eps=1e-3")
    assert clipped_loss == plain_loss
    fresh = Trainer(with_settings(tiny_yaml), None, CPU).model.final_conv.weight
    moved = [float((weights - fresh.detach()).abs().max()) for weights in (clipped, plain)]
    assert moved[0] < 1e-6 < moved[1]
    bf16_loss, _ = first_step("train.precision=bf16")
    assert bf16_loss != plain_loss
    assert bf16_loss == pytest.approx(plain_loss, rel=0.05)
    hidden_loss, _ = first_step("train.label_dropout=0.99")
    assert hidden_loss != plain_loss


def test_a_loss_that_is_not_finite_stops_and_saves_nothing(
    tiny_yaml: Path, images: data.Dataset, tmp_path: Path
) -> None:
    """The step named is the first bad one, and what is kept of it is its batch."""
    run = RunDirectory.create(with_settings(tiny_yaml, "train.lr=1e30"), tmp_path / "run")
    batches = data.Batches(images, batch_size=8, seed=1, augment=True)
    trainer = Trainer(run.config, batches, CPU)
    while math.isfinite(float(trainer.advance())):
        assert trainer.step < 5
    with pytest.raises(TrainingError, match=rf"^step {trainer.step}: .*train\.lr"):
        fit(run, images, device=CPU)
    assert run.checkpoints() == []
    kept = json.loads((run.path / "diverged.json").read_text())
    assert kept["step"] == trainer.step
    indices = batches.indices(trainer.step - 1)
    assert kept["images"] == [{"index": int(i), "name": images.names[i]} for i in indices]
    assert not math.isfinite(float(kept["loss"]))


def test_a_resumed_run_takes_the_learning_rate_it_is_given(
    tiny_yaml: Path, images: data.Dataset, tmp_path: Path
) -> None:
    run = RunDirectory.create(with_settings(tiny_yaml, "train.steps=5"), tmp_path / "run")
    fit(run, images, device=CPU)
    before = weights(run, "model")
    still = with_settings(tiny_yaml, "train.steps=6", "train.lr=1e-30")
    fit(resumed(run, still), images, device=CPU)
    assert_equal(before, weights(run, "model"))


def test_angles_have_a_learning_rate_of_their_own(
    tiny_yaml: Path, images: data.Dataset, tmp_path: Path
) -> None:
    """Adam moves a weight by the rate in its first step; resuming may change the rates."""
    config = with_settings(tiny_yaml, "train.lr_quantum=0.05", "train.steps=5")
    trainer = Trainer(config, data.Batches(images, batch_size=8, seed=1, augment=True), CPU)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.advance()
    for name, p in trainer.model.named_parameters():
        rate = 0.05 if name.endswith("theta") else config.train.lr
        assert float((p.detach() - before[name]).abs().max()) == pytest.approx(rate, rel=0.01)

    whole, parts = (RunDirectory.create(config, tmp_path / name) for name in ("whole", "parts"))
    fit(whole, images, device=CPU)
    shared = with_settings(tiny_yaml, "train.steps=2")
    fit(RunDirectory(parts.path, replace(config, train=replace(config.train, steps=2))), images,
        device=CPU)  # fmt: skip
    moments = [load_training_state(parts.latest_checkpoint() / "training.pt", CPU)]
    fit(resumed(parts, config), images, device=CPU)
    assert_equal(weights(whole, "model"), weights(parts, "model"))
    # Another number of groups: each weight keeps its own moments.
    trainer = Trainer(shared, None, CPU)
    shutil.rmtree(parts.latest_checkpoint())
    trainer.restore(parts.latest_checkpoint())
    kept = moments[0]["optimizer"]["state"]
    for place, p in enumerate(trainer.model.parameters()):
        assert torch.equal(trainer.optimizer.state[p]["exp_avg"], kept[place]["exp_avg"])


def test_the_precision_that_is_chosen_is_kept(tiny_yaml: Path, tmp_path: Path) -> None:
    config = with_settings(tiny_yaml, "train.precision=auto", "train.steps=2")
    run = qhdm.train(config, out=tmp_path / "run", callbacks=[])
    chosen = precision_of(config.train, CPU)
    assert chosen in ("float32", "bf16")
    assert run.config.train.precision == chosen
    assert RunDirectory.open(tmp_path / "run").config == run.config
    other = {"float32": "bf16", "bf16": "float32"}[chosen]
    longer = replace(run.config, train=replace(run.config.train, precision=other, steps=3))
    assert qhdm.resume(tmp_path / "run", config=longer, callbacks=[]).config == longer
    asked = replace(longer, train=replace(longer.train, precision="auto", steps=4))
    resumed = qhdm.resume(tmp_path / "run", config=asked, callbacks=[])
    assert resumed.config.train.precision == chosen


def test_checkpoints_hold_no_code_and_damage_is_named(
    config: Config, images: data.Dataset, tmp_path: Path
) -> None:
    run = RunDirectory.create(config, tmp_path / "run")
    fit(run, images, device=CPU)
    checkpoint = run.latest_checkpoint()
    assert load_training_state(checkpoint / "training.pt", CPU)["step"] == 20

    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    # As an attacker would, who can give any file its checksum; or as before there were any.
    (checkpoint / "SHA256SUMS").unlink()

    def refused(state: object, message: str, **how: object) -> None:
        torch.save(state, checkpoint / "training.pt", **how)
        with pytest.raises(RunError, match=message):
            fit(run, images, device=CPU)

    refused({"step": 20, "optimizer": Payload()}, r"training\.pt: damaged")
    refused({"step": 20, "optimizer": Payload()}, r"training\.pt: damaged",
            _use_new_zipfile_serialization=False)  # fmt: skip
    assert not (tmp_path / "executed").exists()
    refused({"step": 20, "optimizer": {"state": {0: {"exp_avg": 1}}}}, r"step_0000020: .*adam")
    refused({"step": 7, "optimizer": {"state": {}}}, r"training\.pt")
    moments = {name: torch.zeros(1) for name in ("step", "exp_avg", "exp_avg_sq")}
    refused({"step": 20, "optimizer": {"state": {0: moments}}}, r"step_0000020: .*\[1\]")
    with zipfile.ZipFile(checkpoint / "training.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(RunError, match=r"training\.pt: .*compressed"):
        fit(run, images, device=CPU)
    (checkpoint / "training.pt").unlink()
    with pytest.raises(RunError, match=r"training\.pt: missing"):
        fit(run, images, device=CPU)
    huge = (10**15).to_bytes(8, "little") + b"{" * 100  # a header of a petabyte
    (checkpoint / "model.safetensors").write_bytes(huge)
    with pytest.raises(RunError, match=r"model\.safetensors: damaged"):
        load_weights(checkpoint / "model.safetensors", CPU)


def test_checkpoint_of_another_model_is_refused(
    config: Config, tiny_yaml: Path, images: data.Dataset, tmp_path: Path
) -> None:
    run = RunDirectory.create(config, tmp_path / "run")
    fit(run, images, device=CPU)
    other = RunDirectory(run.path, with_settings(tiny_yaml, "model.dim_mults=[1, 3]"))
    with pytest.raises(RunError, match="step_0000020: "):
        fit(other, images, device=CPU)


def test_resuming_as_another_experiment_is_refused(
    config: Config, tiny_yaml: Path, tmp_path: Path
) -> None:
    run = RunDirectory.create(config, tmp_path / "run")
    longer = with_settings(tiny_yaml, "train.steps=99", "sample.num=1")
    assert resumed(run, longer).config.train.steps == 99
    with pytest.raises(ConfigError, match=r"^--set model: "):
        resumed(run, with_settings(tiny_yaml, "model.kind=unet"))
    with pytest.raises(ConfigError, match=r"^--set seed: "):
        resumed(run, with_settings(tiny_yaml, "seed=9"))


def test_run_directories_are_not_overwritten(config: Config, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"full: .*--out"):
        RunDirectory.create(config, tmp_path / "full")
    with pytest.raises(RunError, match="full: "):
        RunDirectory.open(tmp_path / "full")
    with pytest.raises(RunError, match="new: "):
        RunDirectory.create(config, tmp_path / "new").latest_checkpoint()


def test_checkpoints_are_ordered_by_step(config: Config, tmp_path: Path) -> None:
    run = RunDirectory.create(config, tmp_path / "run")
    for name in ("step_9999999", "step_10000000", "step_abc", "other"):
        (run.path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in run.checkpoints()] == ["step_9999999", "step_10000000"]
    assert run.last_step() == 10_000_000


def logged(run: RunDirectory, start: int, **losses: float) -> None:
    log = MetricsLog()
    log.on_start(run, start)
    for step, loss in losses.items():
        log.on_loss(int(step[1:]), {"loss": loss})
    log.on_end()


def test_log_drops_what_a_resumed_run_repeats(config: Config, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, config)
    logged(run, 0, s5=1.0, s10=1.0, s15=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('5\n{"step": 20, "lo')  # not a record, and a crash in mid-line
    logged(run, 10, s15=2.0)
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path / "metrics.jsonl")] == [
        (5, 1.0), (10, 1.0), (15, 2.0)
    ]  # fmt: skip


def test_tensorboard_events_are_written(
    tiny_yaml: Path, images: data.Dataset, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    config = with_settings(tiny_yaml, "train.steps=5")
    run = RunDirectory.create(config, tmp_path / "run")
    fit(run, images, device=CPU, callbacks=[TensorBoard()])
    (events,) = (run.path / "tensorboard").iterdir()
    assert b"steps_per_second" in events.read_bytes()


def test_estimate_describes_the_run(config: Config) -> None:
    text = describe_counts(config)
    # encoder level 1: 8x8, 16 patches, 2 blocks; vertex: 16 patches x 2 filters x 4 convolutions
    assert "circuits per step: 1,280 (160 per image x batch 8), engine exact" in text
    assert "estimated time: about" in describe_time(config, CPU)


def test_cuda_is_refused_where_there_is_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ConfigError, match=r"^train\.device: "):
        resolve_device("cuda")
    assert resolve_device("auto") == CPU


@pytest.mark.slow
def test_compiled_steps_are_the_same_steps(
    images: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recommended network as traced and differentiated by torch's compiler, which takes
    minutes to generate code of it: tests/test_cuda.py has that as well."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    train = TrainConfig(batch_size=4, lr=1e-2, warmup=0, precision="float32")
    config = Config(
        data=replace(Config().data, image_size=16, classes=data.EUROSAT_CLASSES),
        model=ModelConfig(kind="unet", widths=(8, 16), emb_dim=16, head_dim=8),
        train=train,
    )
    losses = []
    for compiled in (False, True):
        changed = replace(config, train=replace(train, compile=compiled))
        batches = data.Batches(images, batch_size=4, seed=1, augment=True)
        trainer = Trainer(changed, batches, CPU)
        losses.append([float(trainer.advance()) for _ in range(3)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_newest_run_of_a_name(config: Config, tmp_path: Path) -> None:
    """By the time in the name, numbered where two were made in one second."""
    with pytest.raises(RunError, match=r"quickstart-<time>"):
        RunDirectory.newest(tmp_path / "quickstart")
    for name in (
        "a-20260101-000000",
        "a-20251231-235959",
        "b-20270101-000000",
        "a-b-20270101-000000",
    ):
        RunDirectory.create(config, tmp_path / name)
    (tmp_path / "a-20280101-000000").mkdir()  # no configuration: not a run
    assert RunDirectory.newest(tmp_path / "a") == tmp_path / "a-20260101-000000"
    for number in (2, 10):
        RunDirectory.create(config, tmp_path / f"a-20260101-000000-{number}")
    assert RunDirectory.newest(tmp_path / "a") == tmp_path / "a-20260101-000000-10"
    RunDirectory.create(config, tmp_path / "a")
    assert RunDirectory.newest(tmp_path / "a") == tmp_path / "a"
