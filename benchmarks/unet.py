"""The network on one thread: time of an image, operations, and what the time goes into.

    python benchmarks/unet.py                  # EuroSAT configuration, classical and hybrid
    python benchmarks/unet.py --published      # the published network as well
    python benchmarks/unet.py --sampling       # images per second of the samplers
    python benchmarks/unet.py --data           # a batch of training data

CPU seconds, medians over rounds that alternate between the networks; ratios are medians over
rounds, too. The rate of the processor is that of a matrix product of 1024 x 1024.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import qhdm  # noqa: F401 - before torch, whose threads it tells how to wait

# isort: split
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from train_step import EUROSAT, batch_of

from qhdm.config import Config, Sampling, load_config
from qhdm.data import EUROSAT_CLASSES, Batches, load
from qhdm.models import DiffusionNetwork, UNet, build_model, frozen
from qhdm.run import Run

PUBLISHED = EUROSAT.with_name("published.yaml")
#: Operations of the profile by the names of torch.
OPERATIONS = {
    "convolutions": r"aten::(mkldnn_convolution|convolution_backward)",
    "matrix products": r"aten::(mm|bmm|addmm|baddbmm)",
    "SiLU": r"aten::silu",
    "sums and products": r"aten::(add|mul|sub|div|addcmul|pow|neg|cos|sin|sum)",
    "copies and new arrays": r"aten::(copy_|cat|empty|fill_|contiguous|clone|resize_)",
    "means and nearest neighbours": r"aten::(avg_pool2d|upsample)",
    "kernel norms": r"aten::_weight_norm",
}


def config_of(path: Path, kind: str) -> Config:
    classes = f"data.classes=[{','.join(EUROSAT_CLASSES)}]"
    return load_config(path, [classes, f"model.kind={kind}"])


def network_of(path: Path, kind: str) -> DiffusionNetwork:
    """The network as in training: its output is not 0."""
    model = build_model(config_of(path, kind)).to(memory_format=torch.channels_last)
    if isinstance(model, UNet) and model.conv_out.gain is not None:
        torch.nn.init.ones_(model.conv_out.gain)
    return model


def inputs_of(model: DiffusionNetwork, config: Config, batch: int) -> tuple[Tensor, ...]:
    x, label = batch_of(config, batch, torch.device("cpu"))
    return x, torch.zeros(batch) if isinstance(model, UNet) else label, label


def train(model: DiffusionNetwork, inputs: tuple[Tensor, ...]) -> None:
    model(*inputs).square().mean().backward()


def evaluate(model: DiffusionNetwork, inputs: tuple[Tensor, ...]) -> None:
    with torch.inference_mode():
        model(*inputs)


def cpu_seconds(function: Callable[..., object], *arguments: object) -> float:
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def matmul_rate(dtype: torch.dtype) -> float:
    """FLOP/s of this core."""
    a = torch.randn(1024, 1024).to(dtype)
    return 2 * 1024**3 / min(cpu_seconds(torch.mm, a, a) for _ in range(20))


def compare(batch: int, rounds: int, published: bool) -> None:
    config = config_of(EUROSAT, "qcunet")
    networks = {
        (kind, precision): network_of(EUROSAT, kind)
        for kind in ("unet", "qcunet")
        for precision in ("float32", "bfloat16")
    }
    if published:
        networks |= {(f"published {k}", "float32"): network_of(PUBLISHED, k) for k in ("unet",)}
    for (_, precision), model in networks.items():
        model.compute_dtype = getattr(torch, precision)
    timed: dict[str, dict[tuple[str, str], list[float]]] = {
        name: {key: [] for key in networks} for name in ("train", "evaluate")
    }
    for _ in range(rounds + 1):
        for key, model in networks.items():
            inputs = inputs_of(model, config, batch)
            timed["train"][key].append(cpu_seconds(train, model, inputs))
            with frozen(model):
                timed["evaluate"][key].append(cpu_seconds(evaluate, model, inputs))
    print(f"64x64 images, batch {batch}, one thread, {rounds} rounds; ms of CPU time an image")
    print(f"{'network':<16}{'precision':<10}{'training':>9}{'ratio':>7}{'evaluation':>11}", end="")
    print(f"{'MFLOP':>7}{'GFLOP/s':>9}{'of matmul':>11}")
    rates = {p: matmul_rate(getattr(torch, p)) for _, p in networks}
    for (kind, precision), model in networks.items():
        seconds, evaluation = (
            [s / batch for s in timed[name][kind, precision][1:]] for name in timed
        )
        classical = timed["train"]["unet", precision][1:]
        ratio = statistics.median(batch * s / c for s, c in zip(seconds, classical, strict=True))
        with FlopCounterMode(display=False) as counter:
            evaluate(model, inputs_of(model, config, 1))
        flop = counter.get_total_flops()
        rate = 3 * flop / statistics.median(seconds)
        print(
            f"{kind:<16}{precision:<10}{1e3 * statistics.median(seconds):>9.1f}{ratio:>7.2f}"
            f"{1e3 * statistics.median(evaluation):>11.2f}{flop / 1e6:>7.0f}{rate / 1e9:>9.0f}"
            f"{rate / rates[precision]:>11.2f}"
        )
    for kind in ("unet", "qcunet"):
        profile(kind, networks[kind, "bfloat16"], config, batch)


def profile(kind: str, model: DiffusionNetwork, config: Config, batch: int) -> None:
    """Print the parts of the operations in a training step."""
    inputs = inputs_of(model, config, batch)
    with torch.profiler.profile() as profiler:
        train(model, inputs)
    parts: Counter[str] = Counter()
    for event in profiler.key_averages():
        matching = (name for name, rule in OPERATIONS.items() if re.match(rule, event.key))
        parts[next(matching, "other")] += event.self_cpu_time_total
    print(f"\n{kind}, bfloat16, part of the time of a training step")
    for name, microseconds in parts.most_common():
        print(f"{name:<30}{microseconds / parts.total():>6.1%}")


def sampling(num: int, batch: int) -> None:
    print(f"sampling, EuroSAT configuration, untrained weights, batch {batch}")
    print(f"{'network':<10}{'steps':>6}{'images':>8}{'images/s':>10}{'overhead':>10}")
    for kind in ("unet", "qcunet"):
        config = config_of(EUROSAT, kind)
        model = network_of(EUROSAT, kind)
        run = Run(model, config, device=torch.device("cpu"))
        labels = [i % 10 for i in range(num)]
        inputs = inputs_of(model, config, batch)
        for count in (20, 50):
            start, cpu = time.perf_counter(), time.process_time()
            run.sample(Sampling(steps=count, guidance=1), labels=labels, batch_size=batch)
            whole, cpu = time.perf_counter() - start, time.process_time() - cpu
            with frozen(model):
                one = statistics.median(cpu_seconds(evaluate, model, inputs) for _ in range(5))
            overhead = cpu / (count * one * num / batch)
            print(f"{kind:<10}{count:>6}{num:>8}{num / whole:>10.3f}{overhead:>10.2f}", flush=True)


def data(batch: int, folder: str) -> None:
    config = load_config(EUROSAT, [f"data.root={folder}", "data.augment=true"])
    batches = Batches(load(config.data), batch_size=batch, seed=0, augment=True)
    times = [cpu_seconds(batches.batch, step) for step in range(50)]
    name = Path(folder).name
    print(f"a batch of {batch} images of {name}: {1e3 * statistics.median(times):.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--sampling", action="store_true")
    parser.add_argument("--num", type=int, default=64, help="with --sampling: images")
    parser.add_argument("--data", nargs="?", const="bundled", metavar="ROOT")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.sampling:
        sampling(arguments.num, arguments.batch)
    elif arguments.data:
        data(arguments.batch, arguments.data)
    else:
        compare(arguments.batch, arguments.rounds, arguments.published)


if __name__ == "__main__":
    main()
