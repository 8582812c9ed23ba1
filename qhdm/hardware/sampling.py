"""Sampling whose last network evaluations have filters on a backend: a chain that can be resumed.

A job lies in its folder, RUN/jobs/ID/:

    job.yaml         the specification
    ledger.sqlite    requests, results, and the sampler's state after each step
    isa/             ISA circuits (QPY)
    samples.png, images/, report.json, report.png     once it is done
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from qhdm.diffusion import SamplerSettings
from qhdm.diffusion.generate import guided_denoiser
from qhdm.diffusion.pixels import to_uint8
from qhdm.diffusion.samplers import ImageNoise, State, states, timesteps_of
from qhdm.errors import ConfigError, SamplingError
from qhdm.hardware.estimate import Estimate, StageCost
from qhdm.hardware.estimator import Group, HardwareEngine, HardwareEstimator, batches_of, groups_of
from qhdm.hardware.isa import IsaCache
from qhdm.hardware.ledger import Ledger
from qhdm.hardware.runtime import Device, Service
from qhdm.hardware.spec import JobSpec
from qhdm.hardware.submission import Submitter
from qhdm.models import UNet, frozen
from qhdm.pipeline import Pipeline
from qhdm.quantum.aer.engine import parameter_sets
from qhdm.quantum.connector import FilterConnector
from qhdm.quantum.engines import Bound, make_engine
from qhdm.quantum.filter import Filter


@dataclass(frozen=True, eq=False)
class Task:
    """A specification with the model that it names.

    Attributes:
        spec: of the job.
        pipeline: the trained model.
        settings: of the sampler.
        labels, indices: of the images, N each.
        hardware_steps: the last so many network evaluations are on the backend.
    """

    spec: JobSpec
    pipeline: Pipeline
    settings: SamplerSettings
    labels: list[int]
    indices: list[int]
    hardware_steps: int

    @classmethod
    def load(cls, spec: JobSpec) -> Task:
        """Load the model and check the specification against it.

        Raises:
            RunError: there is no such run.
            SamplingError: a class, step count or guidance does not fit the model.
            ConfigError: a place has no filters.
        """
        pipeline = Pipeline.from_run(spec.run, weights=spec.weights, device="cpu")
        settings = pipeline.settings(
            steps=spec.steps, sampler=spec.sampler, guidance=spec.guidance, eta=spec.eta
        )
        timesteps_of(pipeline.schedule, settings.steps)
        count = settings.steps if spec.hardware_steps == "all" else spec.hardware_steps
        if count > settings.steps:
            raise SamplingError(
                f"hardware_steps: {count} exceeds the {settings.steps} steps of the sampler"
            )
        labels, indices = pipeline.images_of(spec.classes, spec.images)
        task = cls(spec, pipeline, settings, labels, indices, count)
        for place in spec.places:
            if not any(True for _ in _connectors(pipeline.model, (place,))):
                raise ConfigError(
                    f"places: {spec.run} has no filters in its {place} "
                    f"(model.kind {pipeline.config.model.kind})"
                )
        return task

    @property
    def first_hardware_step(self) -> int:
        """The evaluation from which on filters are on the backend."""
        return self.settings.steps - self.hardware_steps

    def stages(self) -> list[Stage]:
        """The filter places of one network evaluation, in order, with their rows."""
        calls: list[tuple[str, Filter, Tensor, int]] = []
        model = self.pipeline.with_engine(make_engine("exact"))
        for name, connector in _connectors(model, self.spec.places):
            connector.engine = _Recording(calls, name)
        data = self.pipeline.config.data
        passes = 1 if self.settings.guidance == 1 else 2
        shape = (1, data.channels, data.image_size, data.image_size)
        zero = torch.zeros(1, dtype=torch.long)
        with torch.inference_mode():
            model(torch.zeros(shape), zero, zero)
        return [
            Stage(name, filter, w, rows * passes * len(self.labels))
            for name, filter, w, rows in calls
        ]

    def estimate(self, device: Device, cache: IsaCache) -> Estimate:
        """What the job costs."""
        spec, costs, single = self.spec, [], 0.0
        plain = cache.with_packing(1)
        for stage in self.stages():
            groups = stage.groups(cache)
            costs.append(_cost(stage, groups, spec, device))
            single += _cost(stage, stage.groups(plain), spec, device).seconds
        return Estimate(spec, device, self.hardware_steps, costs, self.hardware_steps * single)

    def sample(
        self,
        ledger: Ledger,
        service: Service,
        cache: IsaCache,
        *,
        name: str,
        progress: bool = False,
    ) -> np.ndarray:
        """Generate the images, going on where the ledger ends.

        Args:
            ledger: of this job.
            service: where jobs are executed.
            cache: of ISA circuits.
            name: a tag of all jobs.
            progress: show a bar on stderr.

        Returns:
            uint8 (N, H, W, C).

        Raises:
            HardwareError: a job gave no result, or a limit is reached; what is known stays known.
        """
        stages = len(self.stages())
        with tqdm(
            total=self.first_hardware_step + self.hardware_steps * stages,
            desc="sampling",
            unit="stage",
            disable=not progress,
            mininterval=0.2 if sys.stderr.isatty() else 30,
        ) as bar:
            submitter = Submitter(
                ledger,
                service,
                name=name,
                shots=self.spec.shots,
                limits=self.spec.limits,
                notify=lambda text: bar.set_postfix_str(text, refresh=sys.stderr.isatty()),
                tell=lambda text: bar.write(f"qhdm: {text}", file=sys.stderr),
            )
            submitter.start()
            estimator = HardwareEstimator(
                submitter,
                cache,
                service.device,
                shots=self.spec.shots,
                resilience_level=self.spec.resilience_level,
            )
            return self._sample(ledger, estimator, bar.update, stages)

    def _sample(
        self,
        ledger: Ledger,
        estimator: HardwareEstimator,
        update: Callable[[int], object],
        stages: int,
    ) -> np.ndarray:
        pipeline, first = self.pipeline, self.first_hardware_step
        data = pipeline.config.data
        exact = pipeline.with_engine(make_engine("exact"))
        late = pipeline.with_engine(make_engine("exact"))
        for place, connector in _connectors(late, self.spec.places):
            connector.engine = _Counted(HardwareEngine(estimator, place, ledger), update)
        times = timesteps_of(pipeline.schedule, self.settings.steps)

        def network(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            step = times.index(int(t[0]))
            if step < first:
                return exact(x, t, label)
            estimator.at(step)
            return late(x, t, label)

        labels = torch.as_tensor(self.labels, dtype=torch.long)
        # One batch: the rows of all images go into the same jobs.
        start = _restored(ledger)
        done = 0 if start is None else start.step
        update(min(done, first) + max(0, done - first) * stages)
        chain = states(
            pipeline.schedule,
            guided_denoiser(network, pipeline.schedule, labels, self.settings.guidance),
            ImageNoise(
                self.spec.seed, self.indices, (data.channels, data.image_size, data.image_size)
            ),
            sampler=self.settings.sampler,
            steps=self.settings.steps,
            eta=self.settings.eta,
            start=start,
        )
        x = None if start is None else start.x
        with torch.inference_mode(), frozen(exact):
            for state in chain:
                _keep(ledger, state)
                x = state.x
                if state.step <= first:
                    update(1)
        assert x is not None
        return to_uint8(x)

    def exact_images(self) -> np.ndarray:
        """The same images with all filters on the exact engine, uint8 (N, H, W, C)."""
        return self.pipeline.sample(
            self.labels,
            indices=self.indices,
            seed=self.spec.seed,
            steps=self.settings.steps,
            sampler=self.settings.sampler,
            guidance=self.settings.guidance,
            eta=self.settings.eta,
            batch_size=len(self.labels),
            engine=make_engine("exact"),
        )


@dataclass(frozen=True, eq=False)
class Stage:
    """One evaluation of one filter place.

    Attributes:
        place: its name.
        filter: the circuit.
        weights: (F, P), radians.
        rows: of each filter: patches of all images and passes.
    """

    place: str
    filter: Filter
    weights: Tensor
    rows: int

    def groups(self, cache: IsaCache) -> list[Group]:
        """Its circuits, with inputs that stand for those to come."""
        zeros = torch.zeros(len(self.weights), self.rows, len(self.filter.inputs))
        sets = parameter_sets(self.filter, zeros, self.weights)
        return groups_of(self.filter.circuit, sets, frozenset(self.filter.weights), cache)


def _cost(stage: Stage, groups: list[Group], spec: JobSpec, device: Device) -> StageCost:
    batches = batches_of(groups, spec.shots, device.rep_delay, readout=spec.resilience_level == 1)
    values = [values for batch in batches for _, values in batch.circuits]
    return StageCost(
        place=stage.place,
        filters=len(stage.weights),
        rows=stage.rows,
        circuits=[group.isa for group in groups],
        executions=spec.shots * sum(map(len, values)),
        jobs=len(batches),
        bytes=sum(v.nbytes for v in values),
        seconds=sum(batch.seconds for batch in batches),
    )


def _connectors(model: UNet, places: tuple[str, ...]) -> list[tuple[str, FilterConnector]]:
    """The filters of some places of the network, by name, in no particular order."""
    return [
        (name.removesuffix(".quantum.connector"), module)
        for name, module in model.named_modules()
        if isinstance(module, FilterConnector) and name.split(".")[0] in places
    ]


@dataclass(frozen=True, eq=False)
class _Recording:
    """An engine that writes down what it is asked, and answers 0."""

    calls: list[tuple[str, Filter, Tensor, int]]
    place: str
    name: str = "ibm"
    estimator: None = None

    def __call__(self, filter: Filter, x: Tensor, w: Tensor) -> Tensor:
        self.calls.append((self.place, filter, w.clone(), x.shape[1]))
        return x.new_zeros(*x.shape[:2], len(filter.observables))

    def bind(self, filter: Filter, w: Tensor) -> Bound:
        return lambda x: self(filter, x, w)


@dataclass(frozen=True, eq=False)
class _Counted:
    """An engine that tells when it is done."""

    engine: HardwareEngine
    update: Callable[[int], object]
    name: str = "ibm"

    @property
    def estimator(self) -> HardwareEstimator:
        return self.engine.estimator

    def __call__(self, filter: Filter, x: Tensor, w: Tensor) -> Tensor:
        values = self.engine(filter, x, w)
        self.update(1)
        return values

    def bind(self, filter: Filter, w: Tensor) -> Bound:
        return lambda x: self(filter, x, w)


def _keep(ledger: Ledger, state: State) -> None:
    arrays = {"x": state.x.cpu().numpy()}
    if state.previous is not None:
        arrays["previous"] = state.previous.cpu().numpy()
    ledger.save_state(state.step, arrays)


def _restored(ledger: Ledger) -> State | None:
    found = ledger.last_state()
    if found is None:
        return None
    step, arrays = found
    tensors = {key: torch.from_numpy(array.copy()) for key, array in arrays.items()}
    return State(step, tensors["x"], tensors.get("previous"))
