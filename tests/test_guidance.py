"""Guidance interval and autoguidance, through the library, the command line and jobs."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qhdm
from qhdm import errors
from qhdm.config import load_config
from qhdm.diffusion import Chain, generate
from qhdm.hardware import job_runner
from qhdm.hardware.estimate import describe
from qhdm.hardware.job_dir import JobDirectory
from qhdm.hardware.ledger import Ledger
from qhdm.hardware.spec import JobSpec
from qhdm.metrics.samples import described
from qhdm.runs.directory import RunDirectory

REQUEST = qhdm.Sampling(classes=["River"], num=2, steps=4, guidance=3.0)


@pytest.fixture
def run(tiny_run: Path) -> qhdm.Run:
    return qhdm.Run.open(tiny_run, device="cpu")


def sigmas(run: qhdm.Run, steps: int = 4) -> list[float]:
    return run.preconditioning.sampling(steps).sigma.tolist()


def test_autoguidance_is_by_the_network_of_those_weights(run: qhdm.Run) -> None:
    request = replace(REQUEST, guide="model")
    images = run.sample(request)
    labels, indices = run.images_of(["River"], 2)
    networks = run.network("ema"), run.network("model")
    chain = Chain(
        networks, run.preconditioning, request.resolved(run.config), labels, indices, (3, 16, 16)
    )
    with torch.inference_mode():
        np.testing.assert_array_equal(images, generate(chain))
    assert (images != run.sample(REQUEST)).any()
    # A network that guides itself does nothing, whatever evaluates its filters.
    same, plain = replace(REQUEST, guide="ema"), replace(REQUEST, guidance=1.0)
    for engine in ("run", qhdm.Exact("statevector")):
        itself = run.sample(replace(same, engine=engine)).astype(int)
        assert np.abs(itself - run.sample(replace(plain, engine=engine))).max() <= 1


@pytest.mark.parametrize("value", [{"guide": "model"}, {"guidance_interval": (0.1, 5.0)}])
def test_options_without_guidance_are_refused(run: qhdm.Run, value: dict) -> None:
    with pytest.raises(errors.SamplingError, match=f"^{next(iter(value))}: "):
        run.sample(replace(REQUEST, guidance=1.0, **value))


def test_a_guide_that_the_run_lacks_is_refused(run: qhdm.Run) -> None:
    with pytest.raises(errors.SamplingError, match=r"^guide: step:77: "):
        run.sample(replace(REQUEST, guide="step:77"))


def test_an_interval_without_levels_is_no_guidance(run: qhdm.Run) -> None:
    plain = run.sample(replace(REQUEST, guidance=1.0))
    whole = replace(REQUEST, guidance_interval=(0.0, 1e9))
    np.testing.assert_array_equal(run.sample(whole), run.sample(REQUEST))
    empty = replace(REQUEST, guidance_interval=(1e8, 1e9))
    np.testing.assert_array_equal(run.sample(empty), plain)
    first = replace(REQUEST, guidance_interval=(sigmas(run)[1], 1e9))
    assert (run.sample(first) != plain).any()
    assert (run.sample(first) != run.sample(REQUEST)).any()


def test_defaults_are_those_of_the_run_and_null_is_not(run: qhdm.Run) -> None:
    sample = replace(run.config.sample, guidance=2.0, guidance_interval=(1.0, 2.0), guide="model")
    config = replace(run.config, sample=sample)
    known = qhdm.Sampling().resolved(config)
    assert (known.guidance_interval, known.guide) == ((1.0, 2.0), "model")
    known = qhdm.Sampling(guidance_interval=None, guide=None).resolved(config)
    assert (known.guidance_interval, known.guide) == (None, None)
    assert qhdm.Sampling().resolved(run.config).guidance_interval is None
    # Without label dropout, there is no pass without the label, but there are other weights.
    shown = replace(
        run.config, train=replace(run.config.train, label_dropout=0.0), sample=replace(sample)
    )
    assert qhdm.Sampling().resolved(shown).guidance == 2.0
    with pytest.raises(errors.SamplingError, match=r"^guidance: "):
        qhdm.Sampling(guide=None).resolved(shown)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"guidance_interval": (2.0, 1.0)}, "guidance_interval"),
        ({"guidance_interval": (-1.0, 1.0)}, "guidance_interval"),
        ({"guide": "best"}, "guide"),
        ({"weights": "ema:2"}, "weights"),
        ({"weights": "step:x"}, "weights"),
    ],
)
def test_values_out_of_range_are_refused(values: dict, key: str) -> None:
    with pytest.raises(errors.ConfigError, match=rf"^Sampling: {key}"):
        qhdm.Sampling(**values)


def test_the_command_line_takes_them(cli, tiny_run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    asked = ("sample", tiny_run, "--class", "River", "--num", "1", "--steps", "3",
             "--guidance", "2", "--grid", tmp_path / "grid.png")  # fmt: skip
    for words in (
        ("--guidance-interval", "0.5", "9", "--guide", "model"),
        ("--guidance-interval", "none", "--guide", "none"),
    ):
        done = cli(*asked, *words)
        assert done.returncode == 0, done.stderr
    for words in (("--guidance-interval", "9"), ("--guide", "best")):
        done = cli(*asked, *words)
        assert done.returncode == 1
        assert done.stderr.startswith(f"qhdm: error: {words[0][2:].replace('-', '_')}")
        assert "Traceback" not in done.stderr


def test_evaluations_record_them(tiny_run: Path) -> None:
    run = RunDirectory.open(tiny_run)
    settings = qhdm.EvaluationSettings(
        num=3, guidance=2.0, guidance_interval=(0.5, 9.0), guide="model"
    )
    record = described(run, settings)
    assert (record.guidance_interval, record.guide) == ((0.5, 9.0), "model")
    assert "guidance 2 by model at noise levels 0.5 to 9" in record.description
    assert not described(run, qhdm.EvaluationSettings(num=3, guidance=2.0)).answers(record)


@pytest.mark.parametrize(
    "values", [{"guidance_interval": "first"}, {"guide": "model", "guidance_interval": "first"}]
)
def test_a_job_whose_hardware_steps_are_not_guided_works(run: qhdm.Run, values: dict) -> None:
    """With one pass in each: half the circuits of classifier-free guidance."""
    values = {**values, "guidance_interval": (sigmas(run)[1], 1e9)}
    engine = qhdm.Hardware("aer", shots=4096, places=("encoder",))
    request = replace(REQUEST, num=1, **values)
    hardware = run.sample(replace(request, engine=engine, engine_steps=2)).astype(int)
    # But for shots, the images of an exact engine.
    assert np.abs(hardware - run.sample(request)).mean() < 3
    spec = JobSpec(
        run=str(run.path), backend="aer", places=("encoder",), steps=4, hardware_steps=2,
        guidance=3.0,
    )  # fmt: skip
    everywhere, some = run.job(spec), run.job(replace(spec, **values))
    for stage, half in zip(everywhere.stages_at(3), some.stages_at(3), strict=True):
        assert stage.rows == 2 * half.rows


def test_a_job_with_guidance_in_some_of_its_hardware_steps(
    run: qhdm.Run,
) -> None:
    """Guided steps have twice the rows; the estimate is what is executed, and nothing is asked for
    twice by one that is resumed."""
    second = sigmas(run)[2]
    spec = JobSpec(
        run=str(run.path), backend="aer", classes=("River",), images=2, places=("encoder",),
        shots=4096, packing=1, steps=4, hardware_steps=3, guidance=3.0, mitigation="affine",
        guidance_interval=(second * 0.9, second * 1.1),
    )  # fmt: skip
    job, directory = run.job(spec), JobDirectory.create(spec, "some")
    service = job_runner.connect(spec)
    cache = job_runner.isa_cache(spec, service.device, directory)
    estimate = job.estimate(service.device, cache)
    rows = {(stage.place, stage.evaluations): stage.rows for stage in estimate.stages}
    for place in {stage.place for stage in estimate.stages}:
        assert rows[place, 1] == 2 * rows[place, 2]
    assert f"({len(job.stages)} stages of 3 evaluations)" in describe(estimate)

    original, saved = Ledger.save_state, []

    def interrupted(ledger: Ledger, step: int, arrays: dict[str, np.ndarray]) -> None:
        original(ledger, step, arrays)
        saved.append(step)
        if step == 3 and saved.count(3) == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "save_state", interrupted)
        for _ in range(2):
            with contextlib.suppress(errors.Interrupted):
                job_runner.run_job(directory, run.job(spec), service, cache, progress=False)
    assert saved == [1, 2, 3, 4]
    ledger = directory.ledger()
    requests = ledger.requests()
    ledger.close()
    assert len(requests) == estimate.runtime_jobs
    assert sum(request.executions for request in requests) == estimate.executions
    exact = run.sample(spec.on(qhdm.Exact()), labels=job.labels, indices=job.indices).astype(int)
    for image, path in zip(exact, sorted(directory.path.glob("images/*/*.png")), strict=True):
        assert np.abs(np.asarray(Image.open(path)) - image).mean() < 3  # but for shots


def test_a_job_in_which_other_weights_guide_steps_on_the_backend_is_refused(run: qhdm.Run) -> None:
    engine = qhdm.Hardware("aer", shots=64, places=("encoder",))
    request = replace(REQUEST, num=1, engine=engine, engine_steps=2, guide="model")
    known = set((run.path / "jobs").glob("*"))  # type: ignore[operator]
    with pytest.raises(errors.SamplingError, match=r"^guide: "):
        run.sample(request)
    assert set((run.path / "jobs").glob("*")) == known  # type: ignore[operator]


def test_previews_are_not_guided_by_weights_that_are_not_there_yet(
    tiny_yaml: Path, tmp_path: Path
) -> None:
    settings = ["train.steps=1", "train.sample_every=1", "sample.guidance=2"]
    config = load_config(tiny_yaml, [*settings, "sample.guide=step:4000"])
    run = qhdm.train(config, out=tmp_path / "run", callbacks=[qhdm.PreviewGrid()])
    assert list((run.path / "samples").glob("*.png"))  # type: ignore[operator]
