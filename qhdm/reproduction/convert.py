"""Convert a checkpoint of the published code to a run directory."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qhdm import data
from qhdm.config import Config, DiscreteConfig, PublishedModelConfig
from qhdm.errors import CheckpointError, ConfigError
from qhdm.files import atomic_path, write_text
from qhdm.reproduction.checkpoint import Arrays, Checkpoint, Example, read_checkpoint
from qhdm.reproduction.names import slots_of
from qhdm.reproduction.network.unet import UNet
from qhdm.runs.directory import RunDirectory, check_absent
from qhdm.training.trainer import Trainer

#: What is known of the import, in the run directory.
ORIGIN_FILE = "origin.json"


@dataclass(frozen=True)
class Imported:
    """A finished import.

    Attributes:
        path: the run directory.
        parameters: how many were converted.
        step: training steps that the checkpoint had done.
        averaged: whether it has moving averages beside the weights.
        error: largest relative error of the check over its samples, None without one.
    """

    path: Path
    parameters: int
    step: int
    averaged: bool
    error: float | None


def import_checkpoint(source: Path, config: Config, out: Path, *, tolerance: float) -> Imported:
    """Convert the parameters of the published code into a run that can be sampled and trained.

    The run's `model` weights are the checkpoint's `params`; its `ema` weights are `params_ema` or,
    without them, the same. The optimiser state is new. If the file holds an evaluation of the
    network, the converted one must agree with it; nothing is written if it does not.

    Args:
        source: the checkpoint, MessagePack or npz (see `qhdm.reproduction.checkpoint`).
        config: of the network, for example one of `configs/released/`.
        out: the run directory to make.
        tolerance: largest relative error, |converted - published| / |published| in the Euclidean
            norm of a sample.

    Raises:
        CheckpointError: the file cannot be read, is not of this network, or the check fails.
        RunError: `out` exists and is not empty.
        DataError: `data.classes` is null and the data set absent.
        ConfigError: the configuration has another network, or a baseline in place of the circuits.
    """
    if not isinstance(config.model, PublishedModelConfig):
        raise ConfigError(
            "model: the published weights are of the published network; give its configuration, "
            "as configs/released/ has them"
        )
    if config.quantum.filter != "circuit":
        raise ConfigError(
            f"quantum.filter: {config.quantum.filter} has no published weights; use circuit"
        )
    check_absent(out)
    config = data.resolved(config)
    checkpoint = read_checkpoint(source)
    trainer = Trainer(config, None, torch.device("cpu"))
    model = trainer.model
    assert isinstance(model, UNet)
    ema = checkpoint.params if checkpoint.ema is None else checkpoint.ema
    error = None
    try:
        load_published(model, checkpoint.params, config.model.kind)
        for averaged in trainer.ema.models.values():
            assert isinstance(averaged, UNet)
            load_published(averaged, ema, config.model.kind)
        if checkpoint.example is not None:
            error = relative_error(model, checkpoint.example, config)
            if not error <= tolerance:
                raise CheckpointError(
                    f"the converted network misses the published output by {error:.2g} "
                    f"(relative), more than the tolerance {tolerance:g}; is the configuration that "
                    "of the checkpoint, with its `released` switches?"
                )
    except CheckpointError as problem:
        raise CheckpointError(f"{source}: {problem}") from None
    trainer.step = checkpoint.step
    origin = _origin(source, checkpoint, error, tolerance)
    with atomic_path(out) as temporary:
        trainer.save(RunDirectory.create(config, temporary))
        write_text(temporary / ORIGIN_FILE, json.dumps(origin, indent=2) + "\n")
    return Imported(
        path=out,
        parameters=sum(array.size for array in checkpoint.params.values()),
        step=checkpoint.step,
        averaged=checkpoint.ema is not None,
        error=error,
    )


def load_published(model: UNet, params: Arrays, kind: str) -> None:
    """Copy published parameters, by Flax path, into a network of the `model.kind` `kind`.

    Raises:
        CheckpointError: an array is missing, superfluous, or of another shape.
    """
    slots = {slot.path: slot for slot in slots_of(model, kind)}
    expected = {path: slot.shape for path, slot in slots.items()}
    present = {path: array.shape for path, array in params.items()}
    problems = [
        f"{path}: {f'has shape {present[path]}' if path in present else 'missing'}, "
        f"{f'expected {expected[path]}' if path in expected else 'unknown in this configuration'}"
        for path in {**expected, **present}
        if expected.get(path) != present.get(path)
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CheckpointError(
            f"{problems[0]}{more}; give the --config of this checkpoint, which is a "
            f"{kind} here; configs/released/ has those of the published code"
        )
    for path, slot in slots.items():
        slot.fill(params[path])


@torch.no_grad()
def relative_error(model: UNet, example: Example, config: Config) -> float:
    """Largest relative error of the network over the samples of a published evaluation.

    Raises:
        CheckpointError: the evaluation does not fit the network.
    """
    shape = (config.data.image_size, config.data.image_size, config.data.channels)
    batch = len(example.t) if example.t.ndim == 1 else 0
    for name, array in (("x", example.x), ("output", example.output)):
        if not batch or array.shape != (batch, *shape) or array.dtype.kind != "f":
            raise CheckpointError(
                f"{name}: has type {array.dtype.name} and shape {array.shape}, but "
                f"floating-point {('B', *shape)} with B values of t is expected"
            )
    assert isinstance(config.diffusion, DiscreteConfig)
    limits = {"t": config.diffusion.timesteps, "label": len(config.data.classes or ())}
    for name, array in (("t", example.t), ("label", example.label)):
        fits = array.shape == (batch,) and array.dtype.kind in "iu"
        if not fits or array.min() < 0 or array.max() >= limits[name]:
            raise CheckpointError(
                f"{name}: must be {batch} whole numbers from 0 to {limits[name] - 1}"
            )
    x = torch.from_numpy(example.x.astype(np.float32)).permute(0, 3, 1, 2)
    t, label = (torch.from_numpy(a.astype(np.int64)) for a in (example.t, example.label))
    ours = model(x, t, label).permute(0, 2, 3, 1).double().flatten(1)
    theirs = torch.from_numpy(example.output.astype(np.float64)).flatten(1)
    return float(((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max())


def _origin(
    source: Path, checkpoint: Checkpoint, error: float | None, tolerance: float
) -> dict[str, object]:
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "file": source.name,
        "sha256": digest,
        "step": checkpoint.step,
        "averaged": checkpoint.ema is not None,
        "check": None if error is None else {"relative_error": error, "tolerance": tolerance},
    }
