"""The published code's parameters and evaluations (tests/golden), as files to import.

python tests/reference.py DIR     # DIR/unet.npz, DIR/qcunet_fqconv.npz, ...
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
NETWORKS = ("unet", "qcunet_fqconv", "qcunet_hqconv_released")
SEED = 7


def shapes(network: str) -> dict[str, tuple[int, ...]]:
    """Paths and shapes of the published parameters, in their order."""
    tree = json.loads((GOLDEN / "trees.json").read_text())[network]["shapes"]
    return {path: tuple(shape) for path, shape in tree.items()}


def draw(path: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Random values of one parameter, of a size that keeps the network in general position."""
    leaf = path.rsplit("/", 1)[1]
    if leaf.startswith("param"):  # circuit weights, in turns
        return random.random(shape, dtype=np.float32)
    values = random.standard_normal(shape)
    if leaf in ("scale", "bias"):
        values = 0.1 * values + (leaf == "scale")
    else:
        values = values / np.sqrt(np.prod(shape[:-1]))
    return values.astype(np.float32)


def parameters(network: str) -> dict[str, np.ndarray]:
    """The parameters that the published code was run with, by Flax path."""
    random = np.random.default_rng(SEED)
    params = {path: draw(path, shape, random) for path, shape in shapes(network).items()}
    digest = hashlib.sha256(b"".join(array.tobytes() for array in params.values())).hexdigest()
    expected = json.loads((GOLDEN / "trees.json").read_text())[network]["sha256"]
    assert digest == expected, "NumPy's generator has changed: the parameters are others"
    return params


def evaluation(network: str) -> dict[str, np.ndarray]:
    """x, t, label and the published output."""
    with np.load(GOLDEN / "networks.npz") as file:
        return {name: file[f"{network}:{name}"] for name in ("x", "t", "label", "output")}


def write_npz(network: str, path: Path) -> Path:
    """An npz that `qhdm import-flax` reads."""
    params = {f"param:{name}": array for name, array in parameters(network).items()}
    np.savez(path, **params, **evaluation(network))
    return path


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        print(write_npz(name, folder / f"{name}.npz"))
