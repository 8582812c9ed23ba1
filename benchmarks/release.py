"""Ships the trained model of a run with qhdm, and measures it.

    python benchmarks/release.py RUN --data EuroSAT_RGB.zip --machine "one NVIDIA H100" --watts 700

Makes pretrained/NAME, named after the run's configuration, from its averaged weights; evaluates it;
and replaces all that shows it: the model card, docs/samples.png, the figures in README.md between
the comments `release`, and the image with which tests compare. Every figure in the card comes from
the commands in it. Afterwards, look at the picture, and at what README.md says below the figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

from gallery import beside_real

import qhdm
import qhdm.cli
from qhdm.config import PowerEmaConfig, load_config
from qhdm.console import duration
from qhdm.files import atomic_path, write_text
from qhdm.metrics.records import Evaluation, MetricName
from qhdm.metrics.settings import EvaluationSettings, OwnExtractor
from qhdm.metrics.tables import class_table, metric_table, provenance
from qhdm.models.counts import count_parameters
from qhdm.models.named_filters import named_filters
from qhdm.pictures import save_png, to_picture
from qhdm.run import load_model
from qhdm.runs.checkpoints import released_files
from qhdm.runs.directory import RunDirectory
from qhdm.tables import Table, number
from qhdm.training.log import read_metrics, training_seconds

ROOT = Path(__file__).parent.parent
MOST_BYTES, NUM = 8_000_000, 1000
COLUMNS: tuple[MetricName, ...] = ("FID", "recall", "coverage", "precision", "class accuracy")
EXTRACTORS: tuple[OwnExtractor, ...] = ("resnet", "classifier")

CARD = """\
# {name}

A class-conditioned diffusion model of {size}x{size} RGB patches of Sentinel-2, shipped with qhdm:

```bash
qhdm sample {name} --class River --num 16
```

* Network: `{kind}` of `configs/{name}.yaml`, {parameters:,} parameters, {angles:,} of which are the
  angles of {filters} quantum filters.
* Data: EuroSAT RGB, {train:,} patches of {classes} classes, without the {test:,} that are held out.
* Training: {steps:,} steps of {batch:,} images ({seen:,} images seen) in {precision}, seed {seed};
  {time} on {machine}.
  At {watts:g} W, its share of the processor's thermal design power, this is {energy:.2g} Wh.
* Weights: averaged (standard deviation of the profile: {std:g} of the training), float32. There is
  no state of the optimiser: training cannot be resumed.
* Trained with {versions}; sampled and measured with qhdm {version}.
* Licence: Apache 2.0. EuroSAT is under the MIT licence; cite Helber, Bischke, Dengel, Borth:
  *EuroSAT: A Novel Dataset and Deep Learning Benchmark for Land Use and Land Cover Classification*,
  IEEE JSTARS, 2019.

## Intended use

* Research on generative models of satellite images, and on quantum filters in them: a trained
  network to sample, measure, export as circuits, and run on simulators and quantum hardware.
* Candidates for training classifiers of EuroSAT's classes, chosen and tested as `qhdm augment`
  [does](../../docs/augment.md).

## Limits

* Images show no place on Earth, and are no evidence of anything on it. Do not present them as
  observations, and do not draw statistics of land cover from them.
* It knows ten classes of European landscapes in true colour, 640 m square, at 10 m per pixel, in
  cloudless scenes of Sentinel-2, and nothing else: no other bands, resolutions, sensors or places.
* What is still wrong in its images is said [beside the picture](../../README.md). The tables below
  say how far each class is from real images.
* On this data, quantum filters bring nothing that a cosine in their place does not
  ([results](../../docs/results.md)). One training, of one seed, says nothing about them.

## Figures

*Error*: standard error (1.96 times that is half of the 95 % interval). *Floor*: real training
patches in the place of generated ones. What may differ in another evaluation is the training of
the extractor, whose digest is named.

{figures}

## Picture

![Held-out and generated patches, one row per class](../../docs/samples.png)

The first four of each class, none selected:

```bash
qhdm sample {name} --num 4 --out generated
python benchmarks/gallery.py PATH generated --out docs/samples.png
```

On one type of machine, with the same versions, these commands make the same file, bit for bit;
elsewhere, images may differ by a grey level.
"""


def release(source: RunDirectory) -> RunDirectory:
    """Make the run directory of the shipped model."""
    model, _ = load_model(source)
    name, step, train = source.config.name, source.last_step(), source.config.train
    # Neither the place of the data, nor the machine, nor averages that are not shipped.
    own = load_config(ROOT / "configs" / f"{name}.yaml")
    assert isinstance(train.ema, PowerEmaConfig)
    ema = dataclasses.replace(train.ema, std=train.ema.std[:1])
    config = dataclasses.replace(
        source.config,
        data=dataclasses.replace(source.config.data, root=own.data.root),
        sample=own.sample,  # of today, not of when the training began
        train=dataclasses.replace(train, device="auto", ema=ema),
    )
    path = ROOT / "pretrained" / name
    shutil.rmtree(path, ignore_errors=True)
    with atomic_path(path) as temporary:
        run = RunDirectory.create(config, temporary)
        shutil.copy(source.path / "versions.json", temporary)
        checkpoint = run.checkpoint_path(step)
        checkpoint.mkdir(parents=True)
        for file, content in released_files(model.state_dict()).items():
            (checkpoint / file).write_bytes(content)
        size = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
        if size > MOST_BYTES:
            raise SystemExit(f"{source.path}: {size:,} bytes, more than {MOST_BYTES:,}")
    return RunDirectory.open(path)


def evaluations(run: RunDirectory, root: str) -> list[Evaluation]:
    """One with each extractor, of the same images."""
    real = dataclasses.replace(run.config.data, root=root)
    return [
        qhdm.evaluate(
            run.path,
            real,
            EvaluationSettings(
                num=NUM, steps=20, extractor=extractor, metrics=("distances", "classes")
            ),
            progress=True,
        )
        for extractor in EXTRACTORS
    ]


def card(
    run: RunDirectory, source: RunDirectory, judged: list[Evaluation], machine: str, watts: float
) -> str:
    """The model card."""
    model, config = load_model(run)[0], run.config
    total, train, real = count_parameters(model)[-1], config.train, judged[0].data
    assert isinstance(train.ema, PowerEmaConfig)
    assert config.data.classes is not None
    seconds = training_seconds(read_metrics(source.path / "metrics.jsonl"))
    versions = json.loads((run.path / "versions.json").read_text())
    command = f"qhdm evaluate {config.name} --num {NUM} --steps 20 --metrics distances classes"
    figures = [
        f"```bash\n{command}{more}\n```\n\n{tables(evaluation)}"
        for more, evaluation in zip(["", " --extractor classifier"], judged, strict=True)
    ]
    return CARD.format(
        name=config.name,
        size=config.data.image_size,
        kind=config.model.kind,
        parameters=total.classical + total.quantum,
        angles=total.quantum,
        filters=len(named_filters(model)),
        train=real.train,
        test=real.test,
        classes=len(config.data.classes),
        steps=run.last_step(),
        batch=train.batch_size,
        seen=run.last_step() * train.batch_size,
        time=duration(seconds),
        precision=train.precision,
        machine=machine,
        watts=watts,
        energy=watts * seconds / 3600,
        seed=config.seed,
        std=train.ema.std[0],
        versions=", ".join(f"{package} {version}" for package, version in versions.items()),
        version=qhdm.__version__,
        figures="\n\n".join(figures),
    )


def tables(evaluation: Evaluation) -> str:
    """What was compared, and all figures."""
    classes = class_table(evaluation)
    assert classes is not None
    compared = "\n".join(f"* {line}" for line in provenance(evaluation))
    return "\n\n".join([compared, metric_table(evaluation).markdown(), classes.markdown()])


def summary(evaluation: Evaluation) -> str:
    """The figures in the README."""
    metrics = [evaluation.find(name, split="test") or evaluation.find(name) for name in COLUMNS]
    rows = [
        ["generated", *(number(m and m.value) for m in metrics)],
        [
            "real, of the training split (class accuracy: held-out)",
            *(number(m and m.floor) for m in metrics),
        ],
    ]
    table = Table([f"{NUM:,} images, against held-out ones", *COLUMNS], rows).markdown()
    extractor = evaluation.extractor
    assert extractor is not None
    return (
        f"{table}\n\n[Metrics](docs/evaluation.md#metrics) on features of the extractor "
        f"[`{extractor.name}`](docs/evaluation.md#feature-extractors) ({extractor.digest})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="the run directory")
    parser.add_argument("--data", required=True, help="its data, as data.root")
    parser.add_argument("--machine", required=True, help="that trained it, for the model card")
    parser.add_argument("--watts", type=float, required=True, help="its power, for the model card")
    arguments = parser.parse_args()
    source = RunDirectory.open(arguments.run)
    run = release(source)
    name = run.config.name
    judged = evaluations(run, arguments.data)
    text = card(run, source, judged, arguments.machine, arguments.watts)
    write_text(run.path / "MODEL_CARD.md", text)
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/generated"
        qhdm.cli.main(["sample", name, "--num", "4", "--out", out, "--grid", f"{folder}/grid.png"])
        picture = beside_real(arguments.data, [out], size=run.config.data.image_size, count=4)
        save_png(picture, ROOT / "docs" / "samples.png")
    (image,) = qhdm.Run.open(name, device="cpu").sample(qhdm.Sampling(classes=["River"], num=1))
    save_png(to_picture(image), ROOT / "tests" / "golden" / f"{name}_river.png")
    readme = ROOT / "README.md"
    first, last = "<!-- release -->\n", "\n<!-- end of release -->"
    text = readme.read_text()
    before, after = text.split(first)[0], text.split(last)[1]
    write_text(readme, f"{before}{first}{summary(judged[0])}{last}{after}")
    print(f"{run.path}: look at docs/samples.png and at what README.md says below the figures")


if __name__ == "__main__":
    main()
