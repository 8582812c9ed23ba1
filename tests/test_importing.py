"""Checkpoints of the published code: parity with its outputs, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgpack
import numpy as np
import pytest
import reference
import torch
from command_line import Cli, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import RELEASED, small_released
from safetensors.torch import load_file
from tolerances import PUBLISHED

from qhdm import data
from qhdm.config import Config, DataConfig, load_config, to_yaml
from qhdm.errors import CheckpointError, ConfigError, RunError
from qhdm.models import build_model
from qhdm.reproduction.checkpoint import read_checkpoint
from qhdm.reproduction.convert import import_checkpoint
from qhdm.reproduction.names import slots_of
from qhdm.runs.directory import RunDirectory
from qhdm.training.loop import fit, resumed


def released(network: str, *settings: str) -> Config:
    return load_config(RELEASED / f"{network}.yaml", settings)


# Flax's encoding, written here: the tests need no Flax.


def flax_array(array: np.ndarray) -> msgpack.ExtType:
    data = msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True)
    return msgpack.ExtType(1, data)


def flax_chunks(array: np.ndarray, size: int) -> dict:
    flat = array.ravel()
    chunks = [flax_array(flat[i : i + size]) for i in range(0, flat.size, size)]
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): n for i, n in enumerate(array.shape)},
        "chunks": {str(i): chunk for i, chunk in enumerate(chunks)},
    }


def tree_of(params: dict[str, np.ndarray], encode: Callable = flax_array) -> dict:
    root: dict = {}
    for path, array in params.items():
        *parents, leaf = path.split("/")
        node = root
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = encode(array)
    return root


def write_state(path: Path, **state: object) -> Path:
    path.write_bytes(msgpack.packb(state, use_bin_type=True))
    return path


def small_params(name: str, seed: int) -> dict[str, np.ndarray]:
    """Parameters for a small published network, by Flax path."""
    config = small_released(name)
    slots = slots_of(build_model(config), config.model.kind)
    random = np.random.default_rng(seed)
    return {slot.path: reference.draw(slot.path, slot.shape, random) for slot in slots}


def weights(run: Path, name: str) -> dict[str, torch.Tensor]:
    (checkpoint,) = (run / "checkpoints").iterdir()
    return load_file(checkpoint / f"{name}.safetensors")


# Parity.


@pytest.mark.parametrize("network", reference.NETWORKS)
def test_converted_networks_give_the_published_output(network: str, tmp_path: Path) -> None:
    source = reference.write_npz(network, tmp_path / "published.npz")
    done = import_checkpoint(source, released(network), tmp_path / "run", tolerance=PUBLISHED)
    assert done.error is not None
    assert done.error < 1e-5  # the rounding of float32
    origin = json.loads((tmp_path / "run" / "origin.json").read_text())
    assert origin["check"] == {"relative_error": done.error, "tolerance": PUBLISHED}
    assert len(origin["sha256"]) == 64


@pytest.mark.parametrize(
    ("network", "setting"),
    [
        ("unet", "released.attention_over_tokens=false"),
        ("qcunet_fqconv", "released.discard_second_pass=false"),
        ("qcunet_fqconv", "released.second_pass_reads_input=false"),
        ("qcunet_hqconv_released", "quantum.vertex.ansatz=hqconv"),
        ("qcunet_hqconv_released", "quantum.encoder.ansatz=hqconv"),
    ],
)
def test_without_one_switch_the_output_is_another(
    network: str, setting: str, tmp_path: Path
) -> None:
    """What shows that the switch is what the published code does."""
    source = reference.write_npz(network, tmp_path / "published.npz")
    out = tmp_path / "made" / "run"
    with pytest.raises(CheckpointError, match=source.name):
        import_checkpoint(source, released(network, setting), out, tolerance=PUBLISHED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published.npz"]


def test_controls_have_no_published_weights(tmp_path: Path) -> None:
    source = reference.write_npz("qcunet_fqconv", tmp_path / "published.npz")
    config = released("qcunet_fqconv", "quantum.filter=cosine")
    with pytest.raises(ConfigError, match=r"quantum\.filter: cosine"):
        import_checkpoint(source, config, tmp_path / "run", tolerance=PUBLISHED)


@pytest.mark.parametrize("network", ["unet", "qcunet_fqconv", "qcunet_hqconv_released"])
def test_names_and_shapes_are_the_published_ones(network: str) -> None:
    config = released(network)
    slots = slots_of(build_model(config), config.model.kind)
    assert {slot.path: slot.shape for slot in slots} == reference.shapes(network)


def test_qvunet_names_are_those_of_its_parts() -> None:
    """No evaluation of a QVUNet is published: its parts are those of the other two."""
    config = released("qvunet_hqconv_released")
    names = {slot.path: slot.shape for slot in slots_of(build_model(config), "qvunet")}
    classical, hybrid = (reference.shapes(n) for n in ("unet", "qcunet_hqconv_released"))
    expected = {
        path.replace("DownUnet", "DownUnet1"): shape
        for path, shape in classical.items()
        if path.startswith("DownUnet")
    } | {path: shape for path, shape in hybrid.items() if not path.startswith("QuanDownUnet")}
    assert names == expected


@pytest.mark.parametrize("name", ["unet", "qvunet_fqconv", "qcunet_hqconv_released"])
def test_every_parameter_has_one_slot_at_any_depth(name: str) -> None:
    model = build_model(small_released(name))
    slots = slots_of(model, small_released(name).model.kind)
    assert len({slot.path for slot in slots}) == len(slots)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for slot in slots:
        slot.fill(np.ones(slot.shape))
    for path, parameter in model.named_parameters():
        assert bool((parameter == 1).all()), path


def test_fullqvunet_numbers_its_filters_through() -> None:
    config = small_released(
        "qvunet_fqconv", "model.kind=fullqvunet", "released.discard_second_pass=false"
    )
    slots = {slot.path: slot for slot in slots_of(build_model(config), "fullqvunet")}
    filters = [path for path in slots if path.startswith("FullQVertexquantum/mid.resblock_0/param")]
    assert filters == [f"FullQVertexquantum/mid.resblock_0/param{i}" for i in range(16)]


# Flax's own files.


def test_a_train_state_written_by_flax_is_read() -> None:
    checkpoint = read_checkpoint(reference.GOLDEN / "flax_state.msgpack")
    assert checkpoint.step == 12345
    assert checkpoint.ema is not None
    for arrays, seed in ((checkpoint.params, 0), (checkpoint.ema, 1)):
        random = np.random.default_rng(seed)
        expected = {
            "UpUnet/final.conv_0/kernel": random.standard_normal((1, 1, 10, 3)).astype("float32"),
            "UpUnet/final.conv_0/bias": random.standard_normal(3).astype("float32"),
            "DownUnet/Embed_0/embedding": random.standard_normal((10, 10)).astype("float32"),
            "DownUnet/h/scale": random.standard_normal(4).astype("float16"),
        }
        assert arrays.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(arrays[name], expected[name])


def test_train_state_becomes_a_run_with_both_weights(tmp_path: Path) -> None:
    params, ema = small_params("qcunet_fqconv", 0), small_params("qcunet_fqconv", 1)
    state = write_state(
        tmp_path / "checkpoint_7",
        step=flax_array(np.int32(7).reshape(())),
        params=tree_of(params, lambda array: flax_chunks(array, 100)),
        params_ema=tree_of(ema),
        opt_state={"0": {"count": flax_array(np.zeros((), np.int32))}, "1": {}},
        dynamic_scale=None,
    )
    config = small_released("qcunet_fqconv")
    done = import_checkpoint(state, config, tmp_path / "run", tolerance=PUBLISHED)
    assert (done.step, done.averaged, done.error) == (7, True, None)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_0000007"]
    for name, expected in (("model", params), ("ema", ema)):
        model = build_model(config)
        model.load_state_dict(weights(tmp_path / "run", name))
        for slot in slots_of(model, "qcunet"):
            flat = slot.tensor.detach()
            if slot.path.endswith("/kernel"):
                flat = flat.permute(2, 3, 1, 0) if flat.ndim == 4 else flat.T
            np.testing.assert_array_equal(flat.numpy(), expected[slot.path], err_msg=slot.path)


@pytest.mark.parametrize("wrap", [False, True])
def test_parameters_alone_are_both_weights(wrap: bool, tmp_path: Path) -> None:
    params = small_params("unet", 0)
    tree = tree_of(params)
    path = write_state(tmp_path / "tree", **({"params": tree} if wrap else tree))
    done = import_checkpoint(path, small_released("unet"), tmp_path / "run", tolerance=PUBLISHED)
    assert not done.averaged
    model, ema = weights(tmp_path / "run", "model"), weights(tmp_path / "run", "ema")
    assert model.keys() == ema.keys()
    assert all(torch.equal(model[name], ema[name]) for name in model)


# The command.


def test_an_imported_run_is_sampled_and_trained_on(cli: Cli, tmp_path: Path) -> None:
    source = write_state(
        tmp_path / "checkpoint_3", step=3, params=tree_of(small_params("qcunet_fqconv", 0))
    )
    config = tmp_path / "small.yaml"
    config.write_text(to_yaml(small_released("qcunet_fqconv", "train.batch_size=4")))
    run = tmp_path / "run"
    done = cli("import-flax", source, "--config", config, "--out", run)
    assert done.returncode == 0, done.stderr
    assert "parameters: weights of step 3" in done.stdout
    assert "not checked: the file holds no x, t, label and output" in done.stdout

    sampled = cli("sample", run, "--class", "Forest", "--num", 1, "--steps", 2)
    assert sampled.returncode == 0, sampled.stderr
    assert Path(sampled.stdout.strip().removeprefix("grid: ")).exists()

    before = RunDirectory.open(run).config
    on = dataclasses.replace(before, train=dataclasses.replace(before.train, steps=4))
    images = data.load(DataConfig(root="bundled", image_size=16))
    fit(resumed(RunDirectory.open(run), on), images, device=torch.device("cpu"))
    assert (run / "checkpoints" / "step_0000004").is_dir()


def test_import_of_a_published_evaluation(cli: Cli, tmp_path: Path) -> None:
    source = reference.write_npz("unet", tmp_path / "unet.npz")
    config = ["--config", RELEASED / "unet.yaml", "--out", tmp_path / "run"]
    refused(
        cli("import-flax", source, *config, "--tolerance", 1e-9),
        "unet.npz", "1e-09",
    )  # fmt: skip
    assert not (tmp_path / "run").exists()
    done = cli("import-flax", source, *config)
    assert done.returncode == 0, done.stderr
    assert "1,280,843 parameters" in done.stdout
    assert "checked: relative error" in done.stdout


def test_the_published_baseline_is_blind_by_its_shapes(tmp_path: Path) -> None:
    source = reference.write_npz("unet", tmp_path / "unet.npz")
    seeing = released("unet", "released.time_blind=false")
    expected = r"dense_0/kernel: .*\(10, 40\).*\(20, 40\)"
    with pytest.raises(CheckpointError, match=expected):
        import_checkpoint(source, seeing, tmp_path / "run", tolerance=PUBLISHED)


def test_usage_errors(cli: Cli, tmp_path: Path) -> None:
    refused(cli("import-flax", "x"), "--config, --out", code=2)
    config = ["--config", RELEASED / "unet.yaml", "--out", tmp_path / "run"]
    for value in ("0", "nan", "abc"):
        refused(cli("import-flax", "x", *config, "--tolerance", value), "--tolerance", code=2)
    refused(cli("import-flax", tmp_path / "none", *config), f"{tmp_path / 'none'}: ")
    assert not (tmp_path / "run").exists()


# What is refused.


def refusal(source: Path, network: str = "unet") -> str:
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(
            source, small_released(network), source.parent / "run", tolerance=PUBLISHED
        )
    message = str(caught.value)
    assert str(source) in message
    assert "\n" not in message
    assert not (source.parent / "run").exists()
    return message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("DownUnet/init.conv_0/bias"),
         "DownUnet/init.conv_0/bias: missing"),
        (lambda p: p.update({"DownUnet/extra/bias": np.ones(3, np.float32)}),
         "DownUnet/extra/bias: "),
        (lambda p: p.update({"UpUnet/final.conv_0/bias": np.ones(4, np.float32)}),
         "UpUnet/final.conv_0/bias: has shape (4,)"),
        (lambda p: p.update({"UpUnet/final.conv_0/bias": np.ones(3, np.int32)}),
         "UpUnet/final.conv_0/bias: has type int32"),
        (lambda p: p.update({"UpUnet/final.conv_0/bias": np.full(3, np.nan, np.float32)}),
         "UpUnet/final.conv_0/bias: "),
    ],
)  # fmt: skip
def test_trees_that_do_not_fit_are_named(change: Callable, message: str, tmp_path: Path) -> None:
    params = small_params("unet", 0)
    change(params)
    assert message in refusal(write_state(tmp_path / "state", params=tree_of(params)))


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    source = write_state(tmp_path / "state", params=tree_of(small_params("unet", 0)))
    message = refusal(source, "qcunet_fqconv")
    assert "QuanDownUnet/Embed_0/embedding: missing" in message
    assert "--config" in message


def array_ext(shape: object, kind: object, data: object) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, kind, data)))


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (array_ext([2], "object", b"\0" * 16), "w: has type 'object'"),
        (array_ext([2], "bfloat16", b"\0" * 4), "w: has type 'bfloat16'"),
        (array_ext([2**40], "float32", b"\0" * 8), "w: damaged array"),
        (array_ext([-2, -1], "float32", b"\0" * 8), "w: damaged array"),
        (array_ext([2], "float32", "text"), "w: damaged array"),
        (array_ext([2.0], "float32", b"\0" * 8), "w: damaged array"),
        (array_ext(7, "float32", b"\0" * 8), "w: damaged array"),
        (msgpack.ExtType(1, b"\xc1"), "w: damaged array"),
        (msgpack.ExtType(9, b"x"), "w: is extension type 9"),
        (msgpack.ExtType(2, b"x"), "w: is extension type 2"),
        ("text", "w: is of type str"),
        (None, "w: is empty"),
        ({b"x": 1}, "w: b'x'"),
        ({"__msgpack_chunked_array__": True}, "w: damaged array"),
        (flax_chunks(np.ones(4, np.float32), 2) | {"shape": {"0": 5}}, "w: damaged array"),
        (flax_chunks(np.ones(4, np.float32), 2) | {"chunks": {}}, "w: damaged array"),
    ],
)  # fmt: skip
def test_hostile_arrays_are_named(leaf: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(msgpack.packb({"params": {"w": leaf}}, strict_types=False))
    assert message in refusal(path)


@pytest.mark.parametrize("step", [-1, "many", None, 2**40, [1]])
def test_a_step_that_is_none_is_refused(step: object, tmp_path: Path) -> None:
    params = tree_of({"w": np.ones(2, np.float32)})
    message = refusal(write_state(tmp_path / "state", params=params, step=step))
    assert ": step: " in message


@pytest.mark.parametrize(
    "data",
    [
        b"", b"not a checkpoint", b"\xc1", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff", b"\x81" * 100_000, msgpack.packb([1, 2]), msgpack.packb({}),
        b"PK\x03\x04broken",
        msgpack.packb({"params": {}}), msgpack.packb({"params": 3}),
    ],
    ids=range(12),
)  # fmt: skip
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    refusal(path)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(0, 3241), st.binary(min_size=0, max_size=6), st.booleans())
def test_damaged_flax_files_are_read_or_refused_in_one_line(
    tmp_path: Path, at: int, patch: bytes, cut: bool
) -> None:
    data = (reference.GOLDEN / "flax_state.msgpack").read_bytes()
    damaged = data[:at] + patch + (b"" if cut else data[at + len(patch) :])
    path = tmp_path / "damaged"
    path.write_bytes(damaged)
    message = str(path)
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    refusal(tmp_path / "none")
    (tmp_path / "checkpoint_1").mkdir()
    refusal(tmp_path / "checkpoint_1")


def test_npz_refusals(tmp_path: Path) -> None:
    params = {f"param:{name}": array for name, array in small_params("unet", 0).items()}
    x = np.zeros((2, 16, 16, 3), np.float32)
    good = {"x": x, "t": np.array([1, 2]), "label": np.array([0, 9]), "output": x + 1}

    def message(**arrays: np.ndarray) -> str:
        np.savez(tmp_path / "file.npz", **arrays)
        return refusal(tmp_path / "file.npz")

    message(**params, **good)
    assert "array 'y'" in message(**params, y=x)
    assert "no array param:<path>" in message(**good)
    assert "x, t, label, output" in message(**params, x=x)
    assert "x: has type float32 and shape (2, 8, 16, 3)" in message(
        **params, **{**good, "x": x[:, :8]}
    )
    assert "label: " in message(**params, **{**good, "label": np.array([0, 10])})
    assert " t: " in message(**params, **{**good, "t": np.array([0.5, 2])})
    nan = {**good, "output": np.full_like(x, np.nan)}
    assert " nan " in message(**params, **nan)
    pickled = {"param:w": np.array([{}], dtype=object)}
    assert "Object arrays" in message(**pickled)


def test_an_npz_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 8
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("param:w.npy", array)
    refusal(path)


def test_large_files_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("qhdm.reproduction.checkpoint.MAX_BYTES", 1000)
    np.savez_compressed(tmp_path / "zeros.npz", **{"param:w": np.zeros(2000, np.float32)})
    assert (tmp_path / "zeros.npz").stat().st_size < 1000
    refusal(tmp_path / "zeros.npz")


def test_existing_directories_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    source = write_state(tmp_path / "state", params=tree_of(small_params("unet", 0)))
    with pytest.raises(RunError, match=str(tmp_path / "run")):
        import_checkpoint(source, small_released("unet"), tmp_path / "run", tolerance=PUBLISHED)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
