"""A trained run: its network, ready to sample."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from qhdm.config import Config, SamplerOptions, Sampling
from qhdm.data.bands import Bands, bands_of
from qhdm.device import resolve_device
from qhdm.diffusion import Chain, Trajectory, generate, make_preconditioning, trace
from qhdm.errors import SamplingError, did_you_mean
from qhdm.models import DiffusionNetwork, build_model, frozen
from qhdm.models.filters import on_engine
from qhdm.quantum.engines import Engine
from qhdm.quantum.options import EngineOptions, Exact, Hardware
from qhdm.runs.directory import RunDirectory
from qhdm.runs.weights import misfit, read_weights
from qhdm.shipped import run_name

if TYPE_CHECKING:
    from qhdm.hardware.sampling import SamplingJob
    from qhdm.hardware.spec import JobSpec


def load_model(
    path: str | Path | RunDirectory, *, weights: str = "ema"
) -> tuple[DiffusionNetwork, RunDirectory]:
    """The network of the latest checkpoint of a run directory, on the CPU, and the directory.

    Args:
        path: the directory, or the name of a shipped model.
        weights: by name (`qhdm.config.sampling.Weights`).

    Raises:
        RunError: not a run directory, no checkpoint, or a damaged one.
        SamplingError: the run has no such weights.
    """
    run = path if isinstance(path, RunDirectory) else RunDirectory.open(path)
    model = build_model(run.config)
    state = read_weights(run, weights, dict(model.named_parameters()))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise misfit(run.latest_checkpoint(), error) from None
    return model, run


class Run:
    """A trained network with its configuration, as `qhdm.train` returns it and `Run.open` reads it.

    The request alone chooses the weights that sample (`Sampling.weights`).

    Args:
        model: the network with its averaged weights.
        config: of its training; `data.classes` names the classes.
        device: where to sample; the model is moved there.
        path: its run directory, if it has one.

    Example:
        >>> path = qhdm.train(CONFIG, out="opened", callbacks=[]).path
        >>> run = qhdm.Run.open(path)
        >>> run.sample(qhdm.Sampling(classes=["Forest"], num=2, steps=2)).shape
        (2, 16, 16, 3)
    """

    def __init__(
        self,
        model: DiffusionNetwork,
        config: Config,
        *,
        device: torch.device,
        path: Path | None = None,
    ) -> None:
        assert config.data.classes is not None
        self.config = config
        self.path = path
        self.class_names: tuple[str, ...] = config.data.classes
        self.device = device
        self.model = model.to(device).eval().requires_grad_(False)
        self.preconditioning = make_preconditioning(config, device)
        self._loaded = {"ema": self.model}

    @classmethod
    def open(cls, path: str | Path, *, device: str = "auto") -> Run:
        """Load the latest checkpoint of a run, on a device `auto`, `cpu` or `cuda`.

        Args:
            path: its directory, or the name of a shipped model: `eurosat`.
            device: where to sample.

        Raises:
            RunError: not a run directory, no checkpoint, or a damaged one.
            ConfigError: CUDA is asked for and absent.

        Example:
            >>> run = qhdm.Run.open("eurosat")
            >>> run.sample(qhdm.Sampling(classes=["River"], num=1, steps=2)).shape
            (1, 64, 64, 3)
        """
        target = resolve_device(device, key="device")
        model, run = load_model(path)
        return cls(model, run.config, device=target, path=run.path)

    @property
    def bands(self) -> Bands | None:
        """What the channels of images are; None for pictures."""
        return bands_of(self.config.data)

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
        hint = did_you_mean(str(label), names)
        raise SamplingError(f"class {label!r}: unknown; known are {', '.join(names)}{hint}")

    def labels_of(self, labels: Sequence[str | int]) -> list[int]:
        """The numbers of classes, given by names or numbers."""
        if isinstance(labels, str):  # a sequence, too: of its letters
            raise SamplingError(f"labels: {labels!r} is no list; give a list, [{labels!r}]")
        return [self.label_of(label) for label in labels]

    def sample(
        self,
        request: Sampling | None = None,
        *,
        labels: Sequence[str | int] | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int = 64,
        progress: bool = False,
    ) -> np.ndarray:
        """Sample images: `request.num` of each of its classes, or one for each of `labels`.

        Args:
            request: how; by default, as the run has it.
            labels: N class names or numbers, in place of the classes of the request.
            indices: the numbers i of the images, where labels are given; 0..N-1 by default. Image i
                of a class is the same whichever classes and however many are asked for.
            batch_size: images per network evaluation.
            progress: show a bar on stderr.

        Returns:
            uint8 (N, H, W, C); of bands uint16, of which `bands.values` are in the files' units.

        Raises:
            SamplingError: unknown class, too many steps, guidance without label dropout, or
                weights that this run does not have.
            EngineError: the engine cannot be set up, or cannot hold a filter.
            HardwareError: a backend cannot be used, or its limits would be exceeded.
        """
        if batch_size < 1:
            raise SamplingError(f"batch_size: {batch_size} is not a number from 1 up")
        request = request or Sampling()
        if isinstance(request.named, Hardware):
            if labels is not None or indices is not None:
                raise SamplingError(
                    "labels: a backend samples `num` images of each of `classes`; give those"
                )
            return self._sample_on(request.named, request, progress=progress)
        chain, networks = self._chain(request, labels, indices, batch_size)
        with frozen(*networks):
            return generate(chain, progress=progress)

    def trajectory(
        self,
        request: Sampling | None = None,
        *,
        labels: Sequence[str | int] | None = None,
        indices: Sequence[int] | None = None,
    ) -> Trajectory:
        """The network evaluations that make the images of `sample`, all in one batch."""
        chain, networks = self._chain(request or Sampling(), labels, indices, None)
        with frozen(*networks):
            return trace(chain)

    def _chain(
        self,
        request: Sampling,
        labels: Sequence[str | int] | None,
        indices: Sequence[int] | None,
        batch_size: int | None,
    ) -> tuple[Chain, list[DiffusionNetwork]]:
        """The evaluations of a request, all images in one batch if None, and their networks."""
        request = request.resolved(self.config)
        steps = int(request.steps)
        if labels is None:
            num = self.config.sample.num if request.num == "run" else request.num
            numbers, places = self.images_of(request.classes, num)
        else:
            numbers = self.labels_of(labels)
            places = list(range(len(numbers)) if indices is None else indices)
        if (labels is None and indices is not None) or (labels is not None and request.classes):
            raise SamplingError("labels: give them with `indices`, and without `classes`")
        if len(places) != len(numbers) or min(places, default=0) < 0:
            raise SamplingError(f"indices: give {len(numbers)} numbers of at least 0, as labels")
        networks, late = self._networks(request), None
        if request.named is not None:
            count = request.engine_steps or steps
            if count > steps:
                raise SamplingError(
                    f"engine_steps: {count} is not between 1 and the {steps} steps of sampling "
                    "with another engine"
                )
            networks, last = (
                tuple(on_engine(network, engine) for network in networks)
                for engine in (Exact(), request.named)
            )
            late = last, count
        chain = Chain(
            networks,
            self.preconditioning,
            request,
            labels=numbers,
            indices=places,
            shape=self.config.data.shape,
            batch_size=batch_size or max(len(numbers), 1),
            late=late,
            dtype=self.config.data.dtype,
        )
        return chain, [*networks, *(late[0] if late else ())]

    def _networks(self, options: SamplerOptions) -> tuple[DiffusionNetwork, ...]:
        """The network of resolved options, and the weaker one that guides it, if they name one."""
        network = self.network(options.weights)
        if options.guidance == 1 or options.guide is None:
            return (network,)
        try:
            return network, self.network(options.guide)
        except SamplingError as error:
            raise SamplingError(f"guide: {str(error).removeprefix('weights: ')}") from None

    def job(self, spec: JobSpec) -> SamplingJob:
        """A sampling job of this network, as its specification describes it.

        Raises:
            SamplingError: a class, step count or guidance does not fit the network.
            ConfigError: a place has no filters.
        """
        from qhdm.hardware.sampling import SamplingJob

        labels, indices = self.images_of(spec.classes, spec.images)
        options = spec.resolved(self.config)
        networks = tuple(copy.deepcopy(network).cpu() for network in self._networks(options))
        return SamplingJob(spec, networks, self.config, labels, indices)

    def _sample_on(self, engine: Hardware, request: Sampling, *, progress: bool) -> np.ndarray:
        from qhdm.hardware.job_runner import sample_request
        from qhdm.hardware.spec import JobSpec

        if self.path is None:
            raise SamplingError(
                "engine: jobs on a backend are kept in the run directory; this network has none"
            )
        chosen = dict.fromkeys(self.labels_of(request.classes or self.class_names))
        spec = JobSpec.of_request(
            request.resolved(self.config),
            engine,
            run=run_name(self.path),
            classes=[self.class_names[label] for label in chosen],
            images=self.config.sample.num if request.num == "run" else request.num,
        )
        return sample_request(self.job(spec), agreed=engine.limits is not None, progress=progress)

    def images_of(
        self, classes: Sequence[str | int] | None, num: int
    ) -> tuple[list[int], list[int]]:
        """Labels and image numbers of `num` images of each class (all classes where None).

        Image i of a class is the same whichever classes and however many are asked for.
        """
        names = self.class_names
        chosen = list(dict.fromkeys(self.labels_of(classes or names)))
        labels = [label for label in chosen for _ in range(num)]
        return labels, [i * len(names) + label for label in chosen for i in range(num)]

    def network(self, weights: str = "ema") -> DiffusionNetwork:
        """The network with the weights of a name (`qhdm.config.sampling.Weights`).

        Raises:
            SamplingError: the run has no such weights.
        """
        if weights not in self._loaded:
            if self.path is None:
                raise SamplingError(f"weights: {weights}: this network is of no run directory")
            model, _ = load_model(self.path, weights=weights)
            self._loaded[weights] = model.to(self.device).eval().requires_grad_(False)
        return self._loaded[weights]

    def with_engine(
        self, engine: Engine | EngineOptions | str, *, weights: str = "ema"
    ) -> DiffusionNetwork:
        """A copy of the network whose filters `engine` evaluates."""
        return on_engine(self.network(weights), engine)
