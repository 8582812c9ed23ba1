"""The U-Net against a plain translation of the published one; sampling speed.

    python benchmarks/unet.py                  # a training step of both
    python benchmarks/unet.py --batch 16
    python benchmarks/unet.py --sampling       # images per second of the samplers
    python benchmarks/unet.py --data           # a batch of training data against a step

The plain translation has the same parameters and values. It differs in memory layouts, and in its
attention, which creates and keeps all wide maps. Rounds alternate between both.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import qhdm  # noqa: F401 - before torch, whose threads it tells how to wait

# isort: split
import torch
from torch import Tensor, nn
from train_step import EUROSAT, batch_of, step_seconds

from qhdm.config import Config, Sampling, load_config
from qhdm.data import EUROSAT_CLASSES, Batches, load
from qhdm.device import resolve_device
from qhdm.models import build_model
from qhdm.reproduction.network.blocks import ChannelNorm, LinearAttention
from qhdm.run import Run
from qhdm.training.trainer import Trainer

KINDS = ("unet", "qcunet")


class PlainNorm(nn.Module):
    """LayerNorm over channels, written out."""

    def __init__(self, norm: ChannelNorm) -> None:
        super().__init__()
        self.scale = norm.scale

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        return (x - mean) * (variance + 1e-5).rsqrt() * self.scale[:, None, None]


class PlainLinearAttention(nn.Module):
    """Linear attention by its definition: q, k, v and the result are maps of 128 channels."""

    def __init__(self, attention: LinearAttention) -> None:
        super().__init__()
        self.heads, self.scale = attention.heads, attention.dim_head**-0.5
        self.norm, self.to_qkv = PlainNorm(attention.norm), attention.to_qkv
        conv, norm = attention.to_out
        assert isinstance(norm, ChannelNorm)
        self.to_out = nn.Sequential(conv, PlainNorm(norm))

    def forward(self, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        q, k, v = self.to_qkv(self.norm(x)).reshape(B, 3, self.heads, -1, H * W).unbind(1)
        q, k = q.softmax(dim=-2) * self.scale, k.softmax(dim=-1)
        context = v @ k.mT / (H * W)
        return self.to_out((context @ q).reshape(B, -1, H, W)) + x


class PlainLayout(nn.Module):
    """Converts to channels-first memory layout."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.contiguous())


def make_plain(model: nn.Module) -> None:
    """Replace the layers of `model` by their plain translations, sharing its parameters."""
    for name, child in model.named_children():
        if isinstance(child, LinearAttention):
            setattr(model, name, PlainLinearAttention(child))
        elif isinstance(child, ChannelNorm):
            setattr(model, name, PlainNorm(child))
        elif name == "init_conv":
            setattr(model, name, PlainLayout(child))
        else:
            make_plain(child)


def config_of(kind: str) -> Config:
    return load_config(
        EUROSAT, [f"data.classes=[{','.join(EUROSAT_CLASSES)}]", f"model.kind={kind}"]
    )


def trainer_of(kind: str, *, plain: bool) -> Trainer:
    trainer = Trainer(config_of(kind), None, resolve_device("auto"))
    if plain:
        make_plain(trainer.model)
    return trainer


def one(kind: str, how: str, batch: int) -> None:
    """Peak memory of one training step, in a separate process."""
    trainer = trainer_of(kind, plain=how == "plain")
    step_seconds(trainer, 1)
    before = peak()
    step_seconds(trainer, batch)
    print((peak() - before) / 2**20)


def peak() -> int:
    """Peak memory so far, KiB. (The resource module would include the parent's.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def steps(batch: int, rounds: int) -> None:
    print(f"training step, EuroSAT configuration, batch {batch}, {rounds} rounds")
    print(f"{'network':<10}{'how':<8}{'s':>8}{'CPU s':>8}{'times':>8}{'GiB':>8}")
    for kind in KINDS:
        trainers = {how: trainer_of(kind, plain=how == "plain") for how in ("plain", "qhdm")}
        wall: dict[str, list[float]] = {how: [] for how in trainers}
        cpu: dict[str, list[float]] = {how: [] for how in trainers}
        for _ in range(rounds + 1):
            for how, trainer in trainers.items():
                start = time.process_time()
                wall[how].append(step_seconds(trainer, batch))
                cpu[how].append(time.process_time() - start)
        first = statistics.median(wall["plain"][1:])
        for how in trainers:
            command = [sys.executable, __file__, "--one", kind, how, str(batch)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds = statistics.median(wall[how][1:])
            print(
                f"{kind:<10}{how:<8}{seconds:>8.2f}{statistics.median(cpu[how][1:]):>8.2f}"
                f"{seconds / first:>8.2f}{float(done.stdout):>8.2f}",
                flush=True,
            )


def sampling(num: int, batch: int) -> None:
    device = resolve_device("auto")
    print(f"sampling, EuroSAT configuration, untrained weights, batch {batch}, {device}")
    print(f"{'network':<10}{'sampler':<9}{'steps':>6}{'images':>8}{'images/s':>10}{'overhead':>10}")
    for kind in KINDS:
        config = config_of(kind)
        run = Run(build_model(config), config, device=device)
        for sampler, count, images in (
            ("dpm++", 20, num),
            ("dpm++", 50, num // 2),
            ("ddpm", 1000, 1),
        ):
            labels = [i % 10 for i in range(images)]
            start, cpu = time.perf_counter(), time.process_time()
            request = Sampling(sampler=sampler, steps=count)
            run.sample(request, labels=labels, batch_size=batch)
            whole, cpu = time.perf_counter() - start, time.process_time() - cpu
            evaluations = count * forward_seconds(run, images, batch)
            print(
                f"{kind:<10}{sampler:<9}{count:>6}{images:>8}{images / whole:>10.3f}"
                f"{cpu / evaluations:>10.2f}",
                flush=True,
            )


@torch.inference_mode()
def forward_seconds(run: Run, images: int, batch: int) -> float:
    """CPU seconds of the network evaluations of one step for all images."""
    total = 0.0
    for start in range(0, images, batch):
        x, labels = batch_of(run.config, min(batch, images - start), run.device)
        times = []
        for _ in range(3):
            begin = time.process_time()
            float(run.model(x, torch.full_like(labels, 500), labels).sum())
            times.append(time.process_time() - begin)
        total += statistics.median(times)
    return total


def data(batch: int, folder: str) -> None:
    settings = [f"data.root={folder}", "model.kind=unet", "data.augment=true"]
    config = load_config(EUROSAT, settings)
    batches = Batches(load(config.data), batch_size=batch, seed=0, augment=True)
    times = []
    for step in range(50):
        start = time.perf_counter()
        batches.batch(step)
        times.append(time.perf_counter() - start)
    name = Path(folder).name
    print(f"a batch of {batch} images of {name}: {1e3 * statistics.median(times):.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sampling", action="store_true")
    parser.add_argument("--num", type=int, default=100, help="with --sampling: images")
    parser.add_argument("--data", nargs="?", const="bundled", metavar="ROOT")
    parser.add_argument("--one", nargs=3, metavar=("KIND", "HOW", "BATCH"))
    arguments = parser.parse_args()
    if arguments.one:
        one(*arguments.one[:2], int(arguments.one[2]))
    elif arguments.sampling:
        sampling(arguments.num, arguments.batch or 50)
    elif arguments.data:
        data(arguments.batch or 128, arguments.data)
    else:
        steps(arguments.batch or 128, arguments.rounds)


if __name__ == "__main__":
    main()
