"""Time to a picture: trains configs/eurosat.yaml to good images, on one CPU thread.

    make speedrun DATA=EuroSAT_RGB.zip
    python benchmarks/speedrun.py --data EuroSAT_RGB.zip --steps 2000 --seed 1

Good is a FID of at most 3 on the features of `classifier`: 1,000 images of 20 evaluations without
guidance, averaged weights, against the 2,700 held-out patches. Prints the CPU time of training
alone and the images seen (a row of the table of records in docs/performance.md), draws the first
images, and fails if the quality is not reached. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import qhdm  # before torch, whose threads it tells how to wait

# isort: split
import torch
from gallery import gallery
from recipe import CONFIGS, Cell, samples

from qhdm import data
from qhdm.config import load_config
from qhdm.metrics.settings import EvaluationSettings
from qhdm.pictures import save_png
from qhdm.tables import Table, number

FID, NUM = 3.0, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="eurosat", help="EuroSAT, as data.root")
    parser.add_argument("--steps", type=int, default=1650, help="of 16 images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/speedrun"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps, seed = arguments.steps, arguments.seed
    own = [f"data.root={arguments.data}", f"seed={seed}", f"train.steps={steps}", "name=speedrun"]
    config = data.resolved(load_config(CONFIGS / "eurosat.yaml", own))
    path = arguments.out / f"{steps}-{seed}"
    cell = Cell("speedrun", 0, seed, config, path, None)
    cell.train()
    settings = EvaluationSettings(
        num=NUM, steps=20, guidance=1, extractor="classifier", metrics=("distances",)
    )
    evaluation = qhdm.evaluate(path, settings=settings, progress=True)
    fid = evaluation.find("FID", split="test")
    assert fid is not None
    assert fid.value is not None
    seconds = json.loads((path / "cpu_seconds.json").read_text())[str(steps)]
    picture, titled = path / "samples.png", dataclasses.replace(cell, budget=round(seconds))
    save_png(gallery(samples([titled], NUM, seed), count=8), picture)
    seen = steps * config.train.batch_size
    commit = ["git", "-C", str(CONFIGS), "rev-parse", "--short", "HEAD"]
    revision = subprocess.run(commit, capture_output=True, text=True).stdout.strip() or "?"
    row = [revision, str(seed), f"{seconds / 60:.1f}", f"{seen:,}", number(fid.value)]
    header = ["commit", "seed", "CPU min", "images seen", "FID [classifier, N=1000]"]
    print(Table(header, [row]).markdown())
    print(f"picture: {picture}")
    if fid.value > FID:
        sys.exit(f"FID {fid.value:.2f} is above {FID:g}: give more --steps")


if __name__ == "__main__":
    main()
