"""Reads checkpoints of the published code as flat dictionaries of arrays.

There are two formats, distinguished by their first bytes; nothing in either is executed.

* `checkpoint_<step>`, as the published code writes it: a Flax train state, serialised with
  MessagePack. Arrays are extension type 1, themselves MessagePack of (shape, type name, bytes);
  arrays above 1 GiB come as chunks. `params` and `params_ema` are read. A tree of parameters alone,
  or as `{"params": ...}`, is read as well.
* An npz of arrays named `param:<path>`, which may also hold an evaluation of the network as `x`,
  `t`, `label` and `output`.
"""

from __future__ import annotations

import itertools
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from qhdm.errors import CheckpointError, first_line

Arrays = Mapping[str, np.ndarray]

#: The largest file, and the largest sum of arrays, that is read; published ones have 21 MB.
MAX_BYTES = 4 * 2**30

#: Maps and lists of a tree, levels of it, and dimensions of an array.
MAX_NODES = 100_000
MAX_DEPTH = 64
MAX_DIMENSIONS = 32

_NPZ_PREFIX = "param:"
_EXAMPLE = ("x", "t", "label", "output")
_EMA_NAMES = ("params_ema", "ema_params")
_NDARRAY, _SCALAR = 1, 3
_CHUNKED = "__msgpack_chunked_array__"
_FLOATS = ("float16", "float32", "float64")
_NUMBERS = (*_FLOATS, "int32", "int64", "uint32", "uint64")


@dataclass(frozen=True)
class Example:
    """An evaluation of the published network.

    Attributes:
        x: (B, H, W, C) in [-1, 1] units.
        t, label: (B,) integers.
        output: (B, H, W, C).
    """

    x: np.ndarray
    t: np.ndarray
    label: np.ndarray
    output: np.ndarray


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        params: arrays by Flax path, `part/module/.../name`.
        ema: their moving averages, or None if the file has none.
        step: training steps done, 0 if the file does not say.
        example: to check a conversion with, or None.
    """

    params: Arrays
    ema: Arrays | None = None
    step: int = 0
    example: Example | None = None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file.

    Raises:
        CheckpointError: the file is missing, damaged, too large, or holds something else.
    """
    try:
        if path.is_dir():
            raise CheckpointError(
                "is a folder; give the file in it (an Orbax checkpoint, which is a folder, is not "
                "read: save it with flax.serialization.to_bytes)"
            )
        _check_size(path.stat().st_size)
        with path.open("rb") as file:
            is_npz = file.read(2) == b"PK"
        return _read_npz(path) if is_npz else _read_msgpack(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise CheckpointError(
            f"{size / 2**30:.1f} GiB of arrays, more than the {MAX_BYTES / 2**30:.0f} GiB "
            "that are read; is it a checkpoint of the published code?"
        )


def _read_npz(path: Path) -> Checkpoint:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_size(sum(entry.file_size for entry in archive.infolist()))
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # zipfile and numpy raise many kinds for a damaged or hostile file
        raise CheckpointError(f"not a readable npz ({first_line(error)})") from None
    known = [name for name in arrays if name.startswith(_NPZ_PREFIX)]  # in the order of the file
    unknown = sorted(arrays.keys() - set(known) - set(_EXAMPLE))
    if unknown or not known:
        what = f"array {unknown[0]!r}" if unknown else f"no array {_NPZ_PREFIX}<path>"
        raise CheckpointError(
            f"has {what}; expected are {_NPZ_PREFIX}<path> and, to check the import, "
            f"{', '.join(_EXAMPLE)}"
        )
    params = {name.removeprefix(_NPZ_PREFIX): arrays[name] for name in known}
    given = [name for name in _EXAMPLE if name in arrays]
    if given and len(given) < len(_EXAMPLE):
        raise CheckpointError(
            f"has {', '.join(given)}, but a check needs all of {', '.join(_EXAMPLE)}"
        )
    example = Example(**{name: arrays[name] for name in given}) if given else None
    return Checkpoint(_checked(params), example=example)


def _read_msgpack(data: bytes) -> Checkpoint:
    numbers = itertools.count(1)

    def counted(node: Any) -> Any:
        """Bound the maps and lists, as each takes many times its bytes in the file."""
        if next(numbers) > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES:,} maps and lists")
        return node

    try:
        # Lengths are bounded by that of the file; extension types stay bytes until they are used.
        root = msgpack.unpackb(data, raw=False, object_hook=counted, list_hook=counted)
    except Exception as error:  # MessagePack of a damaged or hostile file
        raise CheckpointError(
            f"neither a Flax checkpoint (MessagePack) nor an npz ({first_line(error)})"
        ) from None
    if not isinstance(root, dict):
        raise CheckpointError(f"its content is {_kind(root)}, not a tree of parameters")
    if "params" not in root:
        return Checkpoint(_params(root, "the root"))
    ema = next((name for name in _EMA_NAMES if root.get(name) is not None), None)
    return Checkpoint(
        _params(root["params"], "params"),
        None if ema is None else _params(root[ema], ema),
        _step(root.get("step", 0)),
    )


def _params(tree: Any, place: str) -> Arrays:
    if not isinstance(tree, dict) or not tree:
        raise CheckpointError(f"{place}: is {_kind(tree)}, not a tree of parameters")
    return _checked(dict(_flatten(tree, "")))


def _flatten(node: Any, name: str, depth: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays by their path below `node`, which is called `name`."""
    if depth > MAX_DEPTH:
        raise CheckpointError(f"{name}: more than {MAX_DEPTH} levels, as no network has")
    if not isinstance(node, dict):
        yield name, _array(node, name)
    elif _CHUNKED in node:
        yield name, _joined(node, name)
    else:
        for key, child in node.items():
            if not isinstance(key, str):
                raise CheckpointError(f"{name or 'the root'}: {key!r} is no name")
            yield from _flatten(child, f"{name}/{key}" if name else key, depth + 1)


def _array(node: Any, place: str) -> np.ndarray:
    if not isinstance(node, msgpack.ExtType) or node.code not in (_NDARRAY, _SCALAR):
        raise CheckpointError(f"{place}: is {_kind(node)}, not an array")
    try:
        shape, kind, data = msgpack.unpackb(node.data, raw=False)
        shape = tuple(shape)
    except Exception as error:  # the inner MessagePack may be hostile as well
        raise CheckpointError(f"{place}: damaged array ({first_line(error)})") from None
    if not isinstance(kind, str) or kind not in _NUMBERS:
        raise CheckpointError(f"{place}: has type {kind!r}; {', '.join(_NUMBERS)} are read")
    dtype = np.dtype(kind)
    whole = isinstance(data, bytes) and len(data) % dtype.itemsize == 0
    flat = np.frombuffer(data, dtype=dtype) if whole else None
    return _shaped(place, flat, shape)


def _joined(node: dict[Any, Any], place: str) -> np.ndarray:
    """An array that Flax has split: `shape` and `chunks` are tuples as {"0": ..., "1": ...}."""
    try:
        rank = min(len(node["shape"]), MAX_DIMENSIONS + 1)
        shape = tuple(node["shape"][str(i)] for i in range(rank))
        parts = [node["chunks"][str(i)] for i in range(len(node["chunks"]))]
    except (KeyError, TypeError):
        raise CheckpointError(f"{place}: damaged array (chunks are missing)") from None
    chunks = [_array(part, f"{place}, chunk {i}").ravel() for i, part in enumerate(parts)]
    return _shaped(place, np.concatenate(chunks) if chunks else None, shape)


def _shaped(place: str, flat: np.ndarray | None, shape: tuple[Any, ...]) -> np.ndarray:
    """`flat` in its declared shape, which is not trusted; None for unusable data."""
    is_shape = len(shape) <= MAX_DIMENSIONS and all(type(n) is int and n >= 0 for n in shape)
    if flat is None or not is_shape or math.prod(shape) != flat.size:
        raise CheckpointError(f"{place}: damaged array (its size is not that of its shape)")
    return flat.reshape(shape)


def _step(node: Any) -> int:
    value = node
    if isinstance(node, msgpack.ExtType):
        array = _array(node, "step")
        value = array.item() if array.size == 1 else None
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise CheckpointError("step: is no number of training steps")
    return value


def _checked(params: Arrays) -> Arrays:
    for name, array in params.items():
        if array.dtype.name not in _FLOATS:
            raise CheckpointError(
                f"{name}: has type {array.dtype.name}; weights are {', '.join(_FLOATS)}"
            )
        if not np.isfinite(array).all():
            raise CheckpointError(f"{name}: has values that are not finite")
    return params


def _kind(node: Any) -> str:
    if isinstance(node, msgpack.ExtType):
        return f"extension type {node.code}"
    return "empty" if node is None or node == {} else f"of type {type(node).__name__}"
