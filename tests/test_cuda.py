"""All that needs a CUDA device; the tests that compile, which take longest, are last:

    timeout -s INT 300 python -m pytest tests/test_cuda.py -v -rfE --tb=short --durations=8

The signal lets pytest print the failures of a run that is cut short. Without a device, one of
shapes alone takes its place in what does not depend on values: whether all tensors of a step are on
one device.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from filters import draw
from networks import trained_a_little
from tolerances import FLOAT64
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

import qhdm
from qhdm import data
from qhdm.config import Config, load_config
from qhdm.diffusion import make_preconditioning
from qhdm.models import build_model
from qhdm.quantum import build_filter, expectation
from qhdm.quantum.ansatz import ANSATZE
from qhdm.training.graphs import Graphed
from qhdm.training.trainer import Trainer

Test = TypeVar("Test", bound=Callable[..., None])
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def on_cuda(test: Test) -> Test:
    """Mark a test that needs a CUDA device, and is skipped without one."""
    absent = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.cuda(absent(test))


@contextlib.contextmanager
def without_waiting() -> Iterator[None]:
    """Any wait for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TF32, in whose convolutions three digits are left of seven."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


#: A small recommended network, for images of 16x16.
SMALL = [
    "data.root=bundled", "data.image_size=16", "model.widths=[16,32,32]", "model.emb_dim=32",
    "quantum.vertex.filters=2", "quantum.encoder.levels=[1]", "quantum.encoder.filters=2",
    "train.batch_size=8", "train.lr=1e-2", "train.warmup=0", "train.ema.update_every=2",
]  # fmt: skip
Small = Callable[..., Config]


@pytest.fixture(params=["published", "recommended"])
def small(request: pytest.FixtureRequest, tiny_yaml: Path) -> Small:
    """Small configurations, given settings."""
    classes = f"data.classes=[{','.join(data.EUROSAT_CLASSES)}]"
    fixed = [classes, "train.precision=float32"]
    if request.param == "published":
        return lambda *settings: load_config(tiny_yaml, [*fixed, *settings])
    path = Path(__file__).parent.parent / "configs" / "eurosat.yaml"
    return lambda *settings: load_config(path, [*SMALL, *fixed, *settings])


def trainer_of(config: Config, device: torch.device) -> Trainer:
    images = data.load(config.data).split("train")
    batches = data.Batches(images, batch_size=8, seed=1, augment=True)
    return Trainer(config, batches, device)


def same_losses(*configs: Config) -> None:
    """Check that the losses of some steps on CUDA agree within the precision of bf16."""
    losses = []
    for config in configs:
        trainer = trainer_of(config, CUDA)
        losses.append([float(trainer.advance()) for _ in range(5)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-2)


def assert_alike(values: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Check that tensors agree but for the rounding of float32 sums, relative to their largest."""
    for value, other in zip(values, expected, strict=True):
        atol = 1e-4 * float(other.abs().max()) + 1e-7
        torch.testing.assert_close(value.to(other.device), other, atol=atol, rtol=1e-3)


def inputs_of(config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """Images, noise levels as the network is told them, and labels."""
    random = torch.Generator().manual_seed(0)
    time = make_preconditioning(config).sampling(8).time
    return torch.randn(8, *config.data.shape, generator=random), time, torch.arange(8)


# Filters.


@on_cuda
@pytest.mark.parametrize("ansatz", list(ANSATZE))
def test_cuda_agrees_with_cpu(ansatz: str) -> None:
    circuit_filter = build_filter(ansatz, qubits=12, layers=3)
    x, w = draw(circuit_filter, 8)
    values = expectation(circuit_filter, x.cuda(), w.cuda())
    torch.testing.assert_close(
        values.cpu(), expectation(circuit_filter, x, w), atol=FLOAT64, rtol=0
    )


@on_cuda
@pytest.mark.parametrize("ansatz", list(ANSATZE))
def test_no_filter_waits_for_cuda(ansatz: str) -> None:
    circuit_filter = build_filter(ansatz, qubits=12, layers=3)
    x, w = (t.cuda().requires_grad_() for t in draw(circuit_filter, 8))
    expectation(circuit_filter, x, w).sum().backward()
    with without_waiting():
        expectation(circuit_filter, x, w).sum().backward()


@on_cuda
@pytest.mark.parametrize("ansatz", ["fqconv", "hqconv", "basic"])
def test_filters_are_captured_by_a_cuda_graph(ansatz: str) -> None:
    """Forward and backward, replayed for other inputs than those of the capture."""
    circuit_filter = build_filter(ansatz, qubits=12, layers=3)
    x, w = (t.cuda() for t in draw(circuit_filter, 8))
    static_x, static_w = torch.zeros_like(x).requires_grad_(), torch.zeros_like(w).requires_grad_()

    def both() -> tuple[Tensor, Tensor, Tensor]:
        values = expectation(circuit_filter, static_x, static_w)
        return values, *torch.autograd.grad(values.square().sum(), (static_x, static_w))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    with torch.no_grad():
        static_x.copy_(x)
        static_w.copy_(w)
    graph.replay()
    for value, expected in zip(captured, both(), strict=True):
        torch.testing.assert_close(value, expected, atol=FLOAT64, rtol=0)


# Training steps.


@pytest.mark.parametrize("kind", ["unet", "qcunet"])
def test_a_step_mixes_no_devices(small: Small, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward on a device of shapes alone, where two devices in one call fail."""
    config = small(f"model.kind={kind}")
    model, (x, time, labels) = build_model(config), inputs_of(config)
    model(x, time, labels)  # plans of circuits are made with values
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())

    def gradients(elsewhere: set[str]) -> list[Tensor]:
        """Of the network with all but the tensors named `elsewhere` on the device."""
        with FakeTensorMode() as fake:
            tensors = {
                name: fake.from_tensor(tensor).to("cpu" if name in elsewhere else "meta")
                for name, tensor in [*model.named_parameters(), *model.named_buffers()]
            }
            trained = [name for name, p in model.named_parameters() if p.requires_grad]
            for name in trained:
                tensors[name] = tensors[name].detach().requires_grad_()
            inputs = tuple(fake.from_tensor(t).to("meta") for t in (x, time, labels))
            output = functional_call(model, tensors, inputs)
            assert output.device.type == "meta"
            return list(
                torch.autograd.grad(
                    output.square().mean(), [tensors[name] for name in trained], allow_unused=True
                )
            )

    assert {g.device.type for g in gradients(set()) if g is not None} == {"meta"}
    name = next(iter(dict(model.named_buffers())))
    with pytest.raises(RuntimeError, match="device"):
        gradients({name})


@on_cuda
@pytest.mark.parametrize("kind", ["unet", "qcunet"])
def test_no_step_waits_for_cuda(small: Small, kind: str) -> None:
    """Neither for values nor for the copies of a batch; with clipping and averages."""
    settings = (f"model.kind={kind}", "train.grad_clip=1", "train.device=cuda")
    trainer = trainer_of(small(*settings), CUDA)
    for _ in range(6):  # the average begins
        trainer.advance()
    with without_waiting():
        for _ in range(4):
            trainer.advance()
    assert all(math.isfinite(float(norm)) for norm in trainer.gradient_norms.values())


@on_cuda
@pytest.mark.parametrize("kind", ["unet", "qcunet"])
def test_a_network_on_cuda_agrees_with_cpu(small: Small, kind: str) -> None:
    config = small(f"model.kind={kind}")
    results = []
    for device in (CPU, CUDA):
        model = trained_a_little(build_model(config)).to(device)
        x, time, labels = (value.to(device) for value in inputs_of(config))
        output = model(x, time, labels)
        loss = (output - x).square().mean()
        gradients = torch.autograd.grad(
            loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True
        )
        results.append([output, *(g for g in gradients if g is not None)])
    assert_alike(results[1], results[0])


@on_cuda
def test_training_on_cuda_lowers_the_loss(small: Small) -> None:
    trainer = trainer_of(small("train.device=cuda"), CUDA)
    losses = [float(trainer.advance()) for _ in range(60)]
    assert all(map(math.isfinite, losses))
    assert np.mean(losses[-15:]) < np.mean(losses[:15])


@on_cuda
@pytest.mark.parametrize("kind", ["unet", "qcunet"])
def test_steps_in_bf16_are_the_same_steps(small: Small, kind: str) -> None:
    settings = (f"model.kind={kind}", "train.device=cuda")
    same_losses(small(*settings), small(*settings, "train.precision=bf16"))


@on_cuda
@pytest.mark.parametrize("kind", ["unet", "qcunet"])
def test_a_network_is_captured_by_cuda_graphs(small: Small, kind: str) -> None:
    """Whole, filters included: outputs and gradients of another batch than the captured one."""
    config = small(f"model.kind={kind}")
    x, time, labels = (value.cuda() for value in inputs_of(config))
    model = trained_a_little(build_model(config)).cuda()
    network = Graphed(model)
    network(x * 0, time * 0, labels * 0)
    trained = [p for p in model.parameters() if p.requires_grad]
    results = []
    for run in (model, network):
        output = run(x, time, labels)
        gradients = torch.autograd.grad((output - x).square().mean(), trained, allow_unused=True)
        results.append([output.clone(), *(g.clone() for g in gradients if g is not None)])
    assert_alike(results[1], results[0])


# Sampling.


@on_cuda
@pytest.mark.parametrize("kind", ["unet", "qcunet"])
def test_images_on_cuda_are_those_of_the_cpu(small: Small, kind: str, tmp_path: Path) -> None:
    """Within two grey levels, image by image."""
    settings = ("train.steps=5", "train.device=cpu", f"model.kind={kind}")
    run = qhdm.train(small(*settings), out=tmp_path / "run", callbacks=[])
    request = qhdm.Sampling(num=1, steps=4)
    images = [
        qhdm.Run.open(run.path, device=device).sample(request).astype(int)
        for device in ("cpu", "cuda")
    ]
    assert np.abs(images[1] - images[0]).max() <= 2


# Compiled steps.


@pytest.mark.slow
@on_cuda
@pytest.mark.parametrize("kind", ["unet", "qcunet"])
def test_compiled_steps_are_the_same_steps(small: Small, kind: str) -> None:
    settings = (f"model.kind={kind}", "train.device=cuda")
    same_losses(small(*settings), small(*settings, "train.compile=true"))
