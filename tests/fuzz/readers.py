"""Our readers as functions of one file from anyone: each may read it or refuse it, nothing else.

Shared by the fuzzer (fuzz.py) and the tests (tests/test_hostile.py).
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


def _config(path: Path) -> object:
    from qhdm.config import load_config

    return load_config(path)


def _run_config(path: Path) -> object:
    from qhdm.runs.config import load_run_config

    return load_run_config(path.parent)


def _job(path: Path) -> object:
    from qhdm.hardware.spec import load_spec

    return load_spec(path)


def _circuit(path: Path) -> object:
    from qhdm.quantum.files.load import load_filter

    return load_filter(path)


def _image(path: Path) -> object:
    from qhdm.data.images import decode

    return decode(path.read_bytes(), size=8, channels=3, name=path.name)


def _zip(path: Path) -> object:
    from qhdm import data
    from qhdm.config import DataConfig

    return data.load(DataConfig(root=str(path), image_size=8))


def _weights(path: Path) -> object:
    import torch

    from qhdm.runs.checkpoints import load_weights

    return load_weights(path, torch.device("cpu"))


def _training(path: Path) -> object:
    import torch

    from qhdm.runs.checkpoints import load_training_state

    return load_training_state(path, torch.device("cpu"))


def _metrics(path: Path) -> object:
    from qhdm.training.log import read_metrics

    return read_metrics(path)


def _flax(path: Path) -> object:
    from qhdm.reproduction.checkpoint import read_checkpoint

    return read_checkpoint(path)


def _calibration(path: Path) -> object:
    from qhdm.quantum.devices.calibration import find_calibration

    return find_calibration(str(path))


def _files(*patterns: str) -> list[bytes]:
    return [path.read_bytes() for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def _sealed() -> list[bytes]:
    from qhdm.config import load_config, to_yaml
    from qhdm.runs.config import sealed

    config = load_config(ROOT / "configs" / "quickstart.yaml", ["data.classes=[Forest]"])
    return [sealed(to_yaml(config)).encode(), to_yaml(config).encode()]


def _qpy() -> list[bytes]:
    from qiskit import qpy
    from qiskit.circuit import Parameter, QuantumCircuit

    circuit = QuantumCircuit(2)
    circuit.rx(Parameter("x0"), 0)
    circuit.crz(2 * Parameter("w0"), 0, 1)
    file = io.BytesIO()
    qpy.dump(circuit, file)
    return [file.getvalue()]


def _images() -> list[bytes]:
    import numpy as np
    import tifffile
    from imagecodecs import png_encode
    from PIL import Image

    files = []
    for mode, kind in [("RGB", "JPEG"), ("P", "PNG"), ("I;16", "TIFF"), ("RGB", "WEBP"),
                       ("P", "GIF"), ("L", "BMP"), ("CMYK", "TIFF"), ("LA", "PNG")]:  # fmt: skip
        file = io.BytesIO()
        Image.new(mode, (9, 12)).save(file, kind)
        files.append(file.getvalue())
    deep = np.arange(9 * 12 * 3, dtype=np.uint16).reshape(12, 9, 3) * 200
    files.append(png_encode(deep))
    for options in ({}, {"compression": "lzw", "predictor": True}, {"tile": (16, 16)}):
        file = io.BytesIO()
        tifffile.imwrite(file, deep, photometric="rgb", **options)
        files.append(file.getvalue())
    return files


def _zips() -> list[bytes]:
    files = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, image in zip(("a/1.jpg", "a/2.png", "b/1.tif"), _images(), strict=False):
                archive.writestr(name, image)
        files.append(file.getvalue())
    return files


def _safetensors() -> list[bytes]:
    import torch
    from safetensors.torch import save

    return [save({"w": torch.ones(2, 3), "b": torch.ones(3, dtype=torch.float64)})]


def _states() -> list[bytes]:
    import torch

    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    file = io.BytesIO()
    torch.save({"step": 1, "optimizer": optimizer.state_dict()}, file)
    return [file.getvalue()]


def _lines() -> list[bytes]:
    return [b'{"step": 5, "loss": 0.25}\n{"step": 10, "loss": NaN, "grad_norm_quantum": 1e-3}\n']


def _flax_files() -> list[bytes]:
    import msgpack
    import numpy as np

    leaf = msgpack.ExtType(1, msgpack.packb(([2, 1], "float32", bytes(8))))
    chunks = {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {"0": leaf}}
    npz = io.BytesIO()
    np.savez(npz, **{"param:a/w": np.ones((2, 2), np.float32)})
    tree = {"params": {"a": {"w": leaf}, "b": chunks}, "step": 3, "params_ema": {"w": leaf}}
    return [msgpack.packb(tree), npz.getvalue()]


def _calibrations() -> list[bytes]:
    return [
        b'{"format": "qhdm-calibration/1", "name": "d", "dt": 1e-9,'
        b' "qubits": [{"t1": 1e-4, "t2": 1e-4}, {"t1": null, "t2": null}], "instructions": ['
        b'{"name": "cz", "qubits": [0, 1], "error": 0.003, "duration": 1e-7},'
        b'{"name": "measure", "qubits": [0], "error": 0.01, "duration": 1e-6}]}'
    ]


@dataclass(frozen=True)
class Reader:
    """How a file is read.

    Attributes:
        file: name under which the content is given to `read`.
        read: raises a `QhdmError` for what it refuses.
        seeds: contents to start from, which are read.
    """

    file: str
    read: Callable[[Path], object]
    seeds: Callable[[], list[bytes]]


READERS = {
    "config": Reader("mine.yaml", _config, lambda: _files("configs/*.yaml")),
    "run_config": Reader("config.yaml", _run_config, _sealed),
    "job": Reader("job.yaml", _job, lambda: _files("jobs/*.yaml")),
    "openqasm": Reader("mine.qasm", _circuit, lambda: _files("circuits/*.qasm")),
    "qpy": Reader("mine.qpy", _circuit, _qpy),
    "image": Reader("a.jpg", _image, _images),
    "zip": Reader("set.zip", _zip, _zips),
    "weights": Reader("model.safetensors", _weights, _safetensors),
    "training": Reader("training.pt", _training, _states),
    "metrics": Reader("metrics.jsonl", _metrics, _lines),
    "flax": Reader("checkpoint_1", _flax, _flax_files),
    "calibration": Reader("device.json", _calibration, _calibrations),
}

#: Audit events that no reader may raise; those with a path, not outside its folder.
_EXECUTION = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")  # fmt: skip  # noqa: E501
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.chmod", "os.link")


class Watch:
    """Notes what reading does beside reading; one for the whole process, since hooks stay."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.found: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in _EXECUTION:
            self.found.append(f"{event} {arguments}")
        elif event in _CHANGES or (event == "open" and self._writes(arguments)):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            # Python itself writes the compiled form of what it imports.
            if not path.startswith(str(self.folder)) and "__pycache__" not in path:
                self.found.append(f"{event} {path}")

    @staticmethod
    def _writes(arguments: tuple[Any, ...]) -> bool:
        path, _, flags = arguments
        return isinstance(path, str | bytes) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def refusal(name: str, content: bytes, folder: Path, watch: Watch | None) -> str | None:
    """Give `content` to a reader; returns why it is refused, or None where it is read.

    Args:
        name, content: of the reader, and what it reads.
        folder: where it is put.
        watch: None for a first time, in which libraries make caches as they are imported.

    Raises:
        AssertionError: something was executed, or changed outside `folder`.
        Exception: whatever the reader raises besides its refusals: a bug.
    """
    from qhdm.errors import QhdmError

    reader = READERS[name]
    path = folder / reader.file
    path.write_bytes(content)
    if watch:
        watch.folder = folder
    try:
        reader.read(path)
    except QhdmError as error:
        return str(error) or "refused without a word"
    finally:
        if watch:
            watch.folder = None
            assert not watch.found, watch.found
    return None
