"""The files of a checkpoint: weights as safetensors, the optimiser's state, checksums of both.

Nothing in them is executed when they are read, and a damaged file is found before it is used.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from qhdm.errors import RunError

#: Of a checkpoint, and their checksums in the format of sha256sum.
_MODEL, _EMA, _TRAINING = "model.safetensors", "ema.safetensors", "training.pt"
_SUMS = "SHA256SUMS"


def checkpoint_files(
    step: int,
    *,
    model: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
) -> dict[str, bytes]:
    """The contents of a checkpoint's files, by name."""
    training = io.BytesIO()
    torch.save({"step": step, "optimizer": optimizer}, training)
    contents = {
        _MODEL: to_safetensors(_plain(model)),
        _EMA: to_safetensors(_plain(ema)),
        _TRAINING: training.getvalue(),
    }
    # Of what is meant to be written, so that a fault in writing is found, too.
    contents[_SUMS] = b"".join(
        _sum_line(hashlib.sha256(data).hexdigest(), name) for name, data in contents.items()
    )
    return contents


def load_weights(path: Path, device: torch.device) -> dict[str, Tensor]:
    """Weights of a checkpoint file.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        return load_file(path, device=str(device))
    except FileNotFoundError:
        raise RunError(f"{path}: missing; the checkpoint is incomplete") from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise RunError(f"{path}: damaged ({error}); {_older(path)}") from None


def load_training_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Step and optimiser state of a checkpoint file; nothing in it is executed.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        # torch stores tensors as they are: what would grow in reading is not from torch.
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise RunError(f"{path}: holds more than its size, as no training state does")
        state = torch.load(path, map_location=device, weights_only=True)
        return {"step": state["step"], "optimizer": state["optimizer"]}
    except FileNotFoundError:
        raise RunError(f"{path}: missing; the checkpoint is incomplete") from None
    except RunError:
        raise
    except Exception:  # torch raises many kinds for a damaged or hostile file
        raise RunError(f"{path}: damaged, or not a training state; {_older(path)}") from None


def verify_checkpoint(checkpoint: Path) -> None:
    """Raise `RunError`, naming the file, unless a checkpoint is as it was written.

    One of a version before checksums has none, and is taken as it is.
    """
    sums = checkpoint / _SUMS
    if not sums.exists():
        return
    expected = []
    for name in (_MODEL, _EMA, _TRAINING):
        path = checkpoint / name
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise RunError(f"{path}: missing; the checkpoint is incomplete") from None
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror})") from None
        expected.append(_sum_line(digest, name))
    try:
        with sums.open("rb") as file:
            content = file.read(4096)
    except OSError as error:
        raise RunError(f"{sums}: cannot be read ({error.strerror})") from None
    if content == b"".join(expected):
        return
    for name, line in zip((_MODEL, _EMA, _TRAINING), expected, strict=True):
        if line not in content:
            raise RunError(f"{checkpoint / name}: damaged (its SHA-256 is not that in {_SUMS})")
    raise RunError(f"{sums}: damaged")


def _sum_line(digest: str, name: str) -> bytes:
    return f"{digest}  {name}\n".encode()


def _older(file: Path) -> str:
    return f"delete {file.parent} to go on from the checkpoint before it"


def checkpoint_step(checkpoint: Path) -> int:
    """The step of a checkpoint directory, -1 for another name."""
    number = checkpoint.name.removeprefix("step_")
    return int(number) if number.isdecimal() else -1


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
