"""The files of checkpoints and snapshots: weights as safetensors, the optimiser's state, checksums.

Reading executes nothing in them, and damage is detected before they are used.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from qhdm.errors import RunError

T = TypeVar("T")

#: The file of the step and the optimiser's state.
TRAINING = "training.pt"
#: Checksums of the other files, in the format of sha256sum.
_SUMS = "SHA256SUMS"


def checkpoint_files(
    weights: Mapping[str, Mapping[str, Tensor]], *, step: int, optimizer: Mapping[str, Any]
) -> dict[str, bytes]:
    """The contents of a checkpoint's files, by name: weights (`model`, `ema`, ...) and the rest."""
    training = io.BytesIO()
    torch.save({"step": step, "optimizer": optimizer}, training)
    return _with_sums({**_weight_files(weights), TRAINING: training.getvalue()})


def snapshot_files(weights: Mapping[str, Mapping[str, Tensor]]) -> dict[str, bytes]:
    """The contents of a snapshot's files, by name."""
    return _with_sums(_weight_files(weights))


def released_files(average: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The contents of a released checkpoint's files, by name: averaged weights (`ema`) alone."""
    return _with_sums(_weight_files({"ema": average}))


def is_released(checkpoint: Path) -> bool:
    """Whether a checkpoint has averaged weights alone, so that it can only be sampled."""
    if (checkpoint / TRAINING).exists() or not (checkpoint / _SUMS).exists():
        return False
    return TRAINING.encode() not in _read(checkpoint / _SUMS, lambda file: file.read(4096))


def half(tensor: Tensor) -> Tensor:
    """`tensor` in half precision if it can hold the values."""
    halved = tensor.half()
    return halved if halved.isfinite().all() else tensor


def weight_file(name: str) -> str:
    """The file of the weights `name` (`model`, `ema`) in a checkpoint or snapshot."""
    return f"{name}.safetensors"


def _weight_files(weights: Mapping[str, Mapping[str, Tensor]]) -> dict[str, bytes]:
    return {
        weight_file(name): to_safetensors(
            {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
        )
        for name, state in weights.items()
    }


def _with_sums(contents: dict[str, bytes]) -> dict[str, bytes]:
    # Of the contents in memory, so that faults in writing are detected as well.
    sums = (_sum_line(hashlib.sha256(data).hexdigest(), name) for name, data in contents.items())
    return {**contents, _SUMS: b"".join(sums)}


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
        raise RunError(f"{path}: damaged ({error}); {_remedy(path)}") from None


def load_training_state(path: Path, device: torch.device) -> dict[str, Any]:
    """The step and optimiser state of a checkpoint file.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        # torch does not compress: a file that would expand is not from torch.
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise RunError(f"{path}: not a training state (it is compressed)")
        state = torch.load(path, map_location=device, weights_only=True)
        return {"step": state["step"], "optimizer": state["optimizer"]}
    except FileNotFoundError:
        raise RunError(f"{path}: missing; the checkpoint is incomplete") from None
    except RunError:
        raise
    except Exception:  # torch raises many types for damaged or hostile files
        raise RunError(f"{path}: damaged, or not a training state; {_remedy(path)}") from None


def verify(folder: Path, names: Sequence[str]) -> None:
    """Compare the files `names` of a checkpoint or snapshot with their checksums.

    Checkpoints of versions before checksums have none and are accepted.

    Raises:
        RunError: a file is missing or damaged.
    """
    sums = folder / _SUMS
    if not sums.exists():
        return
    recorded = _read(sums, lambda file: file.read(4096))
    lines = []
    for path in (folder / name for name in names):
        digest = _read(path, lambda file: hashlib.file_digest(file, "sha256").hexdigest())
        lines.append(_sum_line(digest, path.name))
        if lines[-1] not in recorded:
            raise RunError(f"{path}: damaged (its SHA-256 is not that in {_SUMS})")
    if recorded != b"".join(lines):
        raise RunError(f"{sums}: damaged")


def _read(path: Path, reader: Callable[[io.BufferedReader], T]) -> T:
    try:
        with path.open("rb") as file:
            return reader(file)
    except FileNotFoundError:
        raise RunError(f"{path}: missing; the checkpoint is incomplete") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None


def _sum_line(digest: str, name: str) -> bytes:
    return f"{digest}  {name}\n".encode()


def _remedy(file: Path) -> str:
    return f"delete {file.parent} to resume from the checkpoint before it"


def checkpoint_step(checkpoint: Path) -> int:
    """The step of a checkpoint directory, -1 if it is not one."""
    number = checkpoint.name.removeprefix("step_")
    return int(number) if number.isdecimal() else -1
