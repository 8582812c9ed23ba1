"""Training, filters and tests on one CUDA device; on the CPU, in a small mode, the same code.

    python benchmarks/gpu.py --out results                           # 8 minutes at most
    python benchmarks/gpu.py --data EuroSAT_RGB.zip --train-minutes 4
    python benchmarks/gpu.py --only filters steps --seconds 120

Sections: `card` (what it reaches in matrix products and copies), `filters` (forward and backward),
`steps` (of training, with the kernel launches of a step), `tests` (tests/test_cuda.py) and
`training` (a run on --data, with samples and FID). Each has its share of the time; what does not
fit is named, not measured. Results go to gpu.json and pictures to the folder --out.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import qhdm  # before torch, whose threads it tells how to wait

# isort: split
import torch
from torch import Tensor

from qhdm import data
from qhdm.config import Config, load_config
from qhdm.device import resolve_device
from qhdm.pictures import labelled_grid, save_png
from qhdm.quantum import build_filter, expectation
from qhdm.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
#: Seconds of the sections, but for that of `training`, in the order of their importance.
SECONDS = {"card": 10, "filters": 45, "steps": 150, "tests": 150, "training": 60}
CLASSES = f"data.classes=[{','.join(data.EUROSAT_CLASSES)}]"
#: Sizes of the small mode.
SMALL = {
    "published": ["model.dim_mults=[1,2]", "quantum.encoder.levels=[1]"],
    "recommended": [
        "model.widths=[16,32,32]",
        "quantum.encoder.levels=[1]",
        "quantum.encoder.filters=2",
    ],
}

Row = dict[str, Any]


class OutOfTime(BaseException):
    """A measurement did not end in its time; no `except Exception` may swallow it."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in the body after so many seconds."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise OutOfTime

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@dataclasses.dataclass
class Bench:
    """What the sections share.

    Attributes:
        device: where to measure.
        small: tiny sizes.
        out: folder of results.
        ends: when the present section must end, of `time.perf_counter`.
        rows: results by section.
    """

    device: torch.device
    small: bool
    out: Path
    ends: float = 0.0
    rows: dict[str, list[Row]] = dataclasses.field(default_factory=dict)

    def measure(self, section: str, row: Row, function: Callable[[], Row], most: float) -> None:
        """Add the measured columns to a row: within `most` seconds, and those of the section."""
        left = min(most, self.ends - time.perf_counter())
        try:
            if left < 1:
                raise OutOfTime
            with limit(left):
                row |= function()
        except OutOfTime:
            row["not measured"] = f"beyond {max(left, 0):.0f} s"
        except Exception as error:  # one that fails is a result, too
            row["not measured"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        self.rows.setdefault(section, []).append(row)
        print("  ".join(f"{name} {_text(value)}" for name, value in row.items()), flush=True)
        (self.out / "gpu.json").write_text(json.dumps(self.rows, indent=1) + "\n")

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], *, least: float = 1.0) -> float:
        """Median seconds of a call, of calls in groups, for at least `least` seconds in all."""
        for _ in range(3):
            call()
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        count = max(1, int(least / 10 / (time.perf_counter() - start)))
        times, begin = [], time.perf_counter()
        while len(times) < 3 or (time.perf_counter() - begin < least and not self.small):
            start = time.perf_counter()
            for _ in range(count):
                call()
            self.wait()
            times.append((time.perf_counter() - start) / count)
        return statistics.median(times)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def card(bench: Bench, _: argparse.Namespace) -> None:
    """Ceilings: matrix products, and a copy within the device's memory."""
    size = 256 if bench.small else 8192
    for dtype in (torch.bfloat16, torch.float32):

        def product(dtype: torch.dtype = dtype) -> Row:
            a, b = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
            return {"TFLOP/s": 2 * size**3 / bench.seconds(lambda: a @ b) / 1e12}

        bench.measure("card", {"product": str(dtype).removeprefix("torch.")}, product, 5)

    def copy() -> Row:
        source = torch.rand(2**18 if bench.small else 2**29, device=bench.device)
        target = torch.empty_like(source)
        seconds = bench.seconds(lambda: target.copy_(source))
        return {"TB/s": 2 * source.nbytes / seconds / 1e12}

    bench.measure("card", {"copy": "read and write"}, copy, 5)


def filters(bench: Bench, _: argparse.Namespace) -> None:
    """Forward and backward in inputs and weights, launched one by one and as one graph."""
    batches = (8,) if bench.small else (512, 16_384)
    for ansatz, batch in itertools.product(("fqconv", "hqconv"), batches):
        bench.measure(
            "filters",
            {"ansatz": ansatz, "batch": batch},
            lambda ansatz=ansatz, batch=batch: _filter(bench, ansatz, batch),
            20,
        )


def _filter(bench: Bench, ansatz: str, batch: int) -> Row:
    circuit_filter = build_filter(ansatz, qubits=12, layers=3)
    x = torch.randn(batch, 12, device=bench.device, requires_grad=True)
    w = torch.rand(len(circuit_filter.weights), device=bench.device, requires_grad=True)

    def both() -> list[Tensor]:
        values = expectation(circuit_filter, x, w)
        return list(torch.autograd.grad(values.sum(), (x, w)))

    row: Row = {"ms": 1e3 * bench.seconds(both), "launches": launches(both)}
    if bench.device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            both()
        row["graph ms"] = 1e3 * bench.seconds(graph.replay)
    return row


def launches(call: Callable[[], object]) -> int:
    """The kernels and copies of a call; on the CPU, the operators that it dispatches."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_cuda = torch.cuda.is_available()
    kinds = [ProfilerActivity.CUDA] if on_cuda else [ProfilerActivity.CPU]
    with profile(activities=kinds, acc_events=True) as profiler:
        call()
        if on_cuda:
            torch.cuda.synchronize()
    where = DeviceType.CUDA if on_cuda else DeviceType.CPU
    return sum(event.device_type == where for event in profiler.events())


def networks(small: bool) -> dict[str, tuple[Path, list[str]]]:
    """The networks of the table: their configuration and settings."""
    files = {"recommended": CONFIGS / "eurosat.yaml", "published": CONFIGS / "published.yaml"}
    return {
        f"{name} {kind}": (
            file,
            [
                CLASSES,
                f"model.kind={value}",
                *(["data.image_size=16", *SMALL[name]] if small else []),
            ],
        )
        for name, file in files.items()
        for kind, value in (("hybrid", "qcunet"), ("classical", "unet"))
    }


def steps(bench: Bench, _: argparse.Namespace) -> None:
    """Steps of training: as CUDA graphs, launched one by one, and compiled (`train.compile`)."""
    both = networks(bench.small)
    for name, precision, B, mode in _cases(list(both), bench):
        path, settings = both[name]
        train = {"batch_size": B, "precision": precision, "compile": mode == "compiled"}
        chosen = [*settings, *(f"train.{key}={str(value).lower()}" for key, value in train.items())]
        bench.measure(
            "steps",
            {"network": name, "precision": precision, "batch": B, "mode": mode},
            lambda path=path, chosen=chosen, mode=mode: _steps(bench, path, chosen, mode),
            60 if mode == "compiled" else 20,
        )


def _cases(names: list[str], bench: Bench) -> list[tuple[str, str, int, str]]:
    """Network, precision, batch and mode of each measurement, the most telling first."""
    if bench.device.type == "cpu":
        return [(name, "float32", 4, "eager") for name in names]
    sizes = (4,) if bench.small else (512, 128)
    plain = [
        (name, precision, B, mode)
        for precision, B in itertools.product(("bf16", "float32"), sizes)
        for mode, name in itertools.product(("graphs", "eager"), names)
    ]
    compiled = [(name, "bf16", B, "compiled") for B, name in itertools.product(sizes, names)]
    return [*plain[: 2 * len(names)], compiled[0], *plain[2 * len(names) :], *compiled[1:]]


def _steps(bench: Bench, path: Path, settings: list[str], mode: str) -> Row:
    config = load_config(path, settings)
    B = config.train.batch_size
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(config, None, bench.device)
    if mode == "eager":
        trainer._network = trainer.model
    x_0, labels = batch_of(config, bench.device)
    begin = time.perf_counter()
    float(trainer.advance_on(x_0, labels))
    first = time.perf_counter() - begin
    seconds = bench.seconds(lambda: trainer.advance_on(x_0, labels))
    row: Row = {"steps/s": 1 / seconds, "images/s": B / seconds, "first step s": first}
    if mode != "compiled":
        row["launches"] = launches(lambda: trainer.advance_on(x_0, labels))
    if bench.device.type == "cuda":
        row["GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def batch_of(config: Config, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random images of a batch in [-1, 1], and labels."""
    random = torch.Generator().manual_seed(0)
    B = config.train.batch_size
    x_0 = torch.rand(B, *config.data.shape, generator=random) * 2 - 1
    labels = torch.arange(B) % config.data.num_classes
    return x_0.to(device), labels.to(device)


def training(bench: Bench, arguments: argparse.Namespace) -> None:
    """A run of so many minutes with the recommended hybrid, sampled and evaluated."""
    path, settings = next(iter(networks(bench.small).values()))
    settings = [*settings, "train.batch_size=256", "train.precision=bf16"]
    if bench.small:
        settings += ["train.batch_size=4", "sample.steps=2", "sample.num=1"]
    config = load_config(path, [*settings, f"data.root={arguments.data or 'bundled'}"])

    def timed() -> Row:
        images = data.load(config.data).split("train")
        batches = data.Batches(
            images, batch_size=config.train.batch_size, seed=0, augment=config.data.augment
        )
        trainer = Trainer(config, batches, bench.device)
        return {"s a step": bench.seconds(trainer.advance, least=3)}

    row: Row = {"what": "timing"}
    bench.measure("training", row, timed, 30)
    if "s a step" not in row:
        return
    count = max(2, int(arguments.train_minutes * 60 / row["s a step"] * 0.9))
    train = dataclasses.replace(
        config.train, steps=count, sample_every=count, checkpoint_every=count
    )
    config = dataclasses.replace(config, train=train)
    runs: list[qhdm.Run] = []

    def run() -> Row:
        start = time.perf_counter()
        runs.append(qhdm.train(config, out=bench.out / "run", callbacks=[]))
        return {"steps": count, "minutes": (time.perf_counter() - start) / 60}

    bench.measure("training", {"what": "run"}, run, arguments.train_minutes * 60 * 1.5 + 30)
    num = 1 if bench.small else 100

    def sample() -> Row:
        start = time.perf_counter()
        request = qhdm.Sampling(num=num, steps=2 if bench.small else 20, guidance=1)
        images = runs[0].sample(request, batch_size=512)
        labels, _ = runs[0].images_of(None, num)
        seconds = time.perf_counter() - start
        shown = [i for i in range(len(images)) if i % num < 10]
        grid = labelled_grid(images[shown], [labels[i] for i in shown], runs[0].class_names)
        save_png(grid, bench.out / "samples.png")
        return {"images": len(images), "images/s": len(images) / seconds}

    if runs:
        bench.measure("training", {"what": "samples"}, sample, 60)
    if runs and not bench.small:
        settings = qhdm.EvaluationSettings(
            num=1000, steps=20, guidance=1, metrics=("distances", "classes")
        )

        def judge() -> Row:
            metrics = qhdm.evaluate(runs[0], settings=settings).metrics
            return {metric.name: metric.value for metric in metrics}

        bench.measure("training", {"what": "evaluation"}, judge, 240)


def tests(bench: Bench, _: argparse.Namespace) -> None:
    """tests/test_cuda.py, in a process of its own."""

    log = bench.out / "tests.txt"

    def run() -> Row:
        left = max(bench.ends - time.perf_counter() - 5, 1)
        # An interrupted pytest still prints its failures.
        command = ["timeout", "-s", "INT", "-k", "5", f"{left:.0f}", sys.executable, "-m", "pytest"]
        command += ["-v", "-rfE", "--tb=short", "--durations=8", "tests/test_cuda.py"]
        with log.open("w") as file:
            done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file)
        return {"exit": done.returncode, "summary": log.read_text().strip().splitlines()[-1]}

    bench.measure("tests", {"file": "tests/test_cuda.py"}, run, SECONDS["tests"])


SECTIONS = {
    "card": card,
    "filters": filters,
    "steps": steps,
    "tests": tests,
    "training": training,
}


def plot(bench: Bench) -> None:
    """Images per second of the measured steps, as gpu.png."""
    rows = [row for row in bench.rows.get("steps", []) if "images/s" in row]
    if not rows:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.25 * len(rows)), layout="constrained")
    axes = figure.subplots()
    names = [
        " ".join(str(row[k]) for k in ("network", "precision", "batch", "mode")) for row in rows
    ]
    axes.barh(names[::-1], [row["images/s"] for row in rows][::-1])
    axes.set_xlabel("images per second in training")
    figure.savefig(bench.out / "gpu.png", dpi=120)


def table(rows: list[Row]) -> str:
    """Rows as a table, with all columns that any of them has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_text(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder of results")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="only these sections")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--small", action="store_true", help="tiny sizes; always on the CPU")
    parser.add_argument("--data", help="data.root of the training, for example EuroSAT's zip")
    parser.add_argument("--train-minutes", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, help="of each section but the training")
    arguments = parser.parse_args(argv)
    device = resolve_device("auto")
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(device, arguments.small or device.type == "cpu", arguments.out)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, small sizes"
    bench.rows["machine"] = [{"device": name, "torch": torch.__version__, "qhdm": qhdm.__version__}]
    print(name, torch.__version__)
    chosen = arguments.only or [
        section
        for section in SECTIONS
        if not (section == "tests" and arguments.no_tests)
        and not (section == "training" and arguments.data is None)
    ]
    for section in chosen:
        bench.ends = time.perf_counter() + (arguments.seconds or SECONDS[section])
        if section == "training":
            bench.ends += 60 * (arguments.train_minutes * 1.5 + 5)
        print(f"== {section}", flush=True)
        SECTIONS[section](bench, arguments)
    plot(bench)
    for section, rows in bench.rows.items():
        print(f"\n{section}\n{table(rows)}")


if __name__ == "__main__":
    main()
