"""Weights of a run by name (`qhdm.config.sampling.Weights`): `ema:0.08`, `step:4000`, ..."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from qhdm.config import PowerEmaConfig
from qhdm.errors import RunError, SamplingError
from qhdm.runs.checkpoints import checkpoint_step, is_released, load_weights, weight_file
from qhdm.runs.directory import RunDirectory
from qhdm.runs.profiles import coefficients


def weight_files(run: RunDirectory, weights: str) -> dict[Path, float]:
    """The files whose linear combination are the weights of that name, and its coefficients.

    Raises:
        RunError: no checkpoint, or a damaged snapshot.
        SamplingError: the run has no such weights.
    """
    checkpoint, ema = run.latest_checkpoint(), run.config.train.ema
    kind, _, value = weights.partition(":")
    if weights in _names_in(checkpoint):
        return {checkpoint / weight_file(weights): 1.0}
    if kind == "step" and value.isdecimal() and (folder := _moments(run).get(int(value))):
        _verify(run, folder)
        return {folder / weight_file("ema"): 1.0}
    if kind == "ema" and isinstance(ema, PowerEmaConfig):
        std = _number(value)
        if std in ema.std:
            return {checkpoint / weight_file(ema.names[ema.std.index(std)]): 1.0}
        if min(ema.std) < std < max(ema.std):
            return _reconstructed(run, checkpoint, ema, std)
    raise SamplingError(f"weights: {weights}: this run has no such; it has {_names_of(run)}")


def read_weights(run: RunDirectory, weights: str, trained: Collection[str]) -> dict[str, Tensor]:
    """The weights of that name as a state of the run's network, on the CPU.

    Args:
        run: the run.
        weights: their name.
        trained: the names of the network's parameters; its buffers are the same at every step.

    Raises:
        RunError, SamplingError: as `weight_files`; or a file is damaged.
    """
    parts = [
        (load_weights(file, torch.device("cpu")), coefficient)
        for file, coefficient in weight_files(run, weights).items()
    ]
    state = parts[0][0]
    if len(parts) > 1:
        for name in trained:
            total = sum(coefficient * part[name].double() for part, coefficient in parts)
            state[name] = torch.as_tensor(total).float()
    return state


def misfit(checkpoint: Path, error: BaseException) -> RunError:
    """The error of a checkpoint that the network of its configuration cannot load."""
    # The first line of torch's message says only that there was an error.
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
    return RunError(
        f"{checkpoint}: does not fit the network that this version of qhdm builds from the run's "
        f"config.yaml ({reason}); use the version that trained it, or train it again"
    )


def _reconstructed(
    run: RunDirectory, checkpoint: Path, ema: PowerEmaConfig, std: float
) -> dict[Path, float]:
    """The average of length `std` at a checkpoint, of its averages and those before it."""
    step = ema.averaged_to(checkpoint_step(checkpoint))
    moments = [(step, checkpoint)]
    for snapshot in run.snapshots():
        if checkpoint_step(snapshot) < step:
            _verify(run, snapshot)
            moments.append((checkpoint_step(snapshot), snapshot))
    kept = [(moment, length) for moment, _ in moments for length in ema.std]
    files = [folder / weight_file(name) for _, folder in moments for name in ema.names]
    return dict(zip(files, coefficients(kept, step, std).tolist(), strict=True))


def _moments(run: RunDirectory) -> dict[int, Path]:
    """The folders with averages of a run's kept steps, oldest first."""
    folders = {checkpoint_step(path): path for path in (*run.snapshots(), *run.checkpoints())}
    return dict(sorted(folders.items()))


def _verify(run: RunDirectory, folder: Path) -> None:
    try:
        run.verify(folder)
    except RunError as error:
        raise RunError(f"{error}; delete {folder} to do without it") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _names_in(checkpoint: Path) -> list[str]:
    """The names of weights that are files of a checkpoint."""
    return ["ema"] if is_released(checkpoint) else ["ema", "model"]


def _names_of(run: RunDirectory) -> str:
    """The names of a run's weights, for messages."""
    ema, names = run.config.train.ema, _names_in(run.latest_checkpoint())
    if isinstance(ema, PowerEmaConfig) and len(ema.std) > 1:
        names.append(f"ema:LENGTH with LENGTH from {min(ema.std):g} to {max(ema.std):g}")
    return ", ".join([*names, f"step:N with N of {', '.join(map(str, _moments(run)))}"])
