"""A trained model, ready to sample."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from qhdm.config import Config, SamplerName
from qhdm.device import resolve_device
from qhdm.diffusion import SamplerSettings, Schedule, Trajectory, generate, trace
from qhdm.errors import RunError, SamplingError
from qhdm.models import UNet, build_model, frozen
from qhdm.models.build import set_engine
from qhdm.quantum.engines import Engine, make_engine
from qhdm.quantum.options import EngineOptions, Exact
from qhdm.runs.checkpoints import load_weights
from qhdm.runs.directory import RunDirectory


def load_model(
    path: str | Path, *, weights: Literal["ema", "model"] = "ema"
) -> tuple[UNet, RunDirectory]:
    """The network of the latest checkpoint of a run directory, on the CPU, and the run.

    Args:
        path: the run directory.
        weights: `ema`, the averaged weights, or `model`, the last ones.

    Raises:
        RunError: not a run directory, no checkpoint, or a damaged one.
    """
    run = RunDirectory.open(path)
    file = run.latest_checkpoint() / f"{weights}.safetensors"
    model = build_model(run.config)
    try:
        model.load_state_dict(load_weights(file, torch.device("cpu")))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{file}: does not fit {path}/config.yaml ({reason})") from None
    return model, run


class Pipeline:
    """Samples images of given classes.

    Args:
        model: a trained network.
        config: what it was trained with; `data.classes` names the classes.
        device: where to sample; the model is moved there.

    Example:
        >>> pipeline = Pipeline.from_run("runs/quickstart")
        >>> images = pipeline.sample(labels=["Forest", "River"], steps=20, seed=0)
        >>> images.shape, images.dtype
        ((2, 32, 32, 3), dtype('uint8'))
    """

    def __init__(self, model: UNet, config: Config, *, device: torch.device) -> None:
        assert config.data.classes is not None
        self.config = config
        self.class_names: tuple[str, ...] = config.data.classes
        self.device = device
        self.model = model.to(device).eval().requires_grad_(False)
        self.schedule = Schedule(config.diffusion).to(device)

    @classmethod
    def from_run(
        cls,
        path: str | Path,
        *,
        weights: Literal["ema", "model"] = "ema",
        device: str = "auto",
    ) -> Pipeline:
        """Load the latest checkpoint of a run directory.

        Args:
            path: the run directory.
            weights: `ema`, the averaged weights, or `model`, the last ones.
            device: `auto`, `cpu` or `cuda`.

        Raises:
            RunError: not a run directory, no checkpoint, or a damaged one.
            ConfigError: CUDA is asked for and absent.
        """
        target = resolve_device(device, key="device")
        model, run = load_model(path, weights=weights)
        return cls(model, run.config, device=target)

    def label_of(self, label: str | int) -> int:
        """The number of a class, given by name or number.

        Raises:
            SamplingError: there is no such class.
        """
        names = self.class_names
        if isinstance(label, str) and label in names:
            return names.index(label)
        if isinstance(label, int | np.integer) and 0 <= label < len(names):
            return int(label)
        near = difflib.get_close_matches(str(label), names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise SamplingError(f"class {label!r}: unknown; {hint}known are {', '.join(names)}")

    def sample(
        self,
        labels: Sequence[str | int],
        *,
        steps: int | None = None,
        seed: int = 0,
        sampler: SamplerName | None = None,
        guidance: float | None = None,
        eta: float = 0.0,
        indices: Sequence[int] | None = None,
        batch_size: int = 64,
        progress: bool = False,
        engine: Engine | EngineOptions | str = "run",
        engine_steps: int | None = None,
    ) -> np.ndarray:
        """Sample one image per label.

        Args:
            labels: N class names or numbers.
            steps, sampler, guidance: by default those of the configuration's `sample` section.
            seed: image i depends on its label and (seed, i) alone, up to rounding at other batch
                sizes (docs/training.md).
            eta: of DDIM: 0 is deterministic, 1 is DDPM.
            indices: the numbers i of the images; 0..N-1 by default.
            batch_size: images per network evaluation.
            progress: show a bar on stderr.
            engine: evaluates the filters: `run` is the configuration's engine. Options (`Exact`,
                `Aer`) and names are complete engines: what they do not give is the default, never
                the configuration's.
            engine_steps: an engine other than `run` only in the last so many network evaluations;
                the others are exact.

        Returns:
            uint8 (N, H, W, C).

        Raises:
            SamplingError: unknown class, too many steps, guidance without label dropout, or a
                value out of range.
            CircuitError: no such engine.
            EngineError: the engine cannot be set up, or cannot hold a filter.
        """
        settings = self.settings(steps=steps, sampler=sampler, guidance=guidance, eta=eta)
        _check_whole("batch_size", batch_size, 1)
        _check_whole("seed", seed, 0)
        model, late = self.model, None
        if engine != "run":
            model = self.with_engine(Exact())
            late = (self.with_engine(engine), engine_steps or settings.steps)
        if engine_steps is not None and not (late and 1 <= engine_steps <= settings.steps):
            raise SamplingError(
                f"engine_steps: {engine_steps} is not between 1 and the {settings.steps} steps of "
                "sampling with another engine"
            )
        data = self.config.data
        numbers = self._numbers(labels)
        if indices is not None and len(indices) != len(numbers):
            raise SamplingError(f"indices: {len(indices)} for {len(numbers)} labels; give one each")
        with frozen(model, *([late[0]] if late else [])):
            return generate(
                model,
                self.schedule,
                labels=numbers,
                indices=range(len(numbers)) if indices is None else indices,
                shape=(data.channels, data.image_size, data.image_size),
                seed=seed,
                settings=settings,
                batch_size=batch_size,
                device=self.device,
                progress=progress,
                late=late,
            )

    def trajectory(
        self, labels: Sequence[str | int], *, seed: int = 0, indices: Sequence[int] | None = None
    ) -> Trajectory:
        """How the images of `sample`, with the configuration's settings, come out of the noise.

        Args:
            labels: N class names or numbers; all are sampled in one batch.
            seed, indices: as of `sample`.

        Raises:
            SamplingError: unknown class.
        """
        data = self.config.data
        numbers = self._numbers(labels)
        with frozen(self.model):
            return trace(
                self.model,
                self.schedule,
                labels=numbers,
                indices=range(len(numbers)) if indices is None else indices,
                shape=(data.channels, data.image_size, data.image_size),
                seed=seed,
                settings=self.settings(),
                device=self.device,
            )

    def settings(
        self,
        *,
        steps: int | None = None,
        sampler: SamplerName | None = None,
        guidance: float | None = None,
        eta: float = 0.0,
    ) -> SamplerSettings:
        """How to sample: what is given, and else the configuration's `sample` section.

        Raises:
            SamplingError: a value is out of range, or guidance without label dropout.
        """
        defaults = self.config.sample
        settings = SamplerSettings(
            sampler=sampler or defaults.sampler,
            steps=defaults.steps if steps is None else steps,
            guidance=defaults.guidance if guidance is None else guidance,
            eta=eta,
        )
        _check(settings)
        if settings.guidance != 1 and self.config.train.label_dropout == 0:
            raise SamplingError(
                "guidance: this model was trained with every label shown "
                "(train.label_dropout 0), so it has no unconditional pass; use guidance 1"
            )
        return settings

    def images_of(
        self, classes: Sequence[str | int] | None, num: int
    ) -> tuple[list[int], list[int]]:
        """Labels and image numbers of `num` images of each class (all classes where None).

        Image i of a class is the same whichever classes and however many are asked for.
        """
        names = self.class_names
        chosen = list(dict.fromkeys(self._numbers(classes or names)))
        labels = [label for label in chosen for _ in range(num)]
        return labels, [i * len(names) + label for label in chosen for i in range(num)]

    def _numbers(self, labels: Sequence[str | int]) -> list[int]:
        if isinstance(labels, str):  # a sequence, too: of its letters
            raise SamplingError(f"labels: {labels!r} is no list; give a list, [{labels!r}]")
        return [self.label_of(label) for label in labels]

    def with_engine(self, engine: Engine | EngineOptions | str) -> UNet:
        """A copy of the network whose filters `engine` evaluates."""
        model = copy.deepcopy(self.model)
        set_engine(model, make_engine(engine))
        return model


def _check(settings: SamplerSettings) -> None:
    if settings.sampler not in get_args(SamplerName):
        known = ", ".join(get_args(SamplerName))
        raise SamplingError(f"sampler: {settings.sampler!r} is not one of {known}")
    if not 0 <= settings.guidance < float("inf"):
        raise SamplingError(f"guidance: {settings.guidance} is not a number from 0 up")
    if not 0 <= settings.eta <= 1:
        raise SamplingError(f"eta: {settings.eta} is not a number from 0 (no noise) to 1 (DDPM)")
    _check_whole("steps", settings.steps, 1)


def _check_whole(name: str, count: int, least: int) -> None:
    if not isinstance(count, int) or count < least:
        raise SamplingError(f"{name}: {count!r} is not a whole number from {least} up")
