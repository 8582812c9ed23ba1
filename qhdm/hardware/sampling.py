"""Sampling whose last network evaluations have filters on a backend: a chain that can be resumed.

A job lies in its folder, RUN/jobs/ID/:

    job.yaml         the specification
    ledger.sqlite    requests, results, and the sampler's state after each step
    isa/             ISA circuits (QPY)
    samples.png, images/, report.json, report.png     once it is done
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from qhdm import console
from qhdm.config import SamplerOptions
from qhdm.diffusion.generate import chain
from qhdm.diffusion.pixels import to_uint8
from qhdm.diffusion.samplers import State, timesteps_of
from qhdm.errors import BudgetError, ConfigError, SamplingError
from qhdm.hardware.batch import Batch
from qhdm.hardware.estimate import Estimate, StageCost
from qhdm.hardware.estimator import (
    Group,
    HardwareEngine,
    HardwareEstimator,
    batches_of,
    groups_of,
    layout_at,
)
from qhdm.hardware.isa import IsaCache, IsaCircuit
from qhdm.hardware.ledger import Ledger
from qhdm.hardware.reconcile import Position
from qhdm.hardware.runtime import Device, Service
from qhdm.hardware.spec import JobSpec, Place
from qhdm.hardware.submission import Submitter
from qhdm.models import UNet, frozen
from qhdm.quantum.connector import FilterConnector
from qhdm.quantum.engines import Bound, make_engine
from qhdm.quantum.filter import Filter
from qhdm.quantum.options import Exact
from qhdm.quantum.pubs import parameter_sets
from qhdm.run import Run

#: So many gates that are broken are named.
_NAMED = 5


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
    pipeline: Run
    settings: SamplerOptions
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
        pipeline = Run.open(spec.run, weights=spec.weights, device="cpu")
        settings = spec.resolved(pipeline.config)
        steps = int(settings.steps)
        timesteps_of(pipeline.schedule, steps)
        count = steps if spec.hardware_steps == "all" else spec.hardware_steps
        if count > steps:
            raise SamplingError(f"hardware_steps: {count} exceeds the {steps} steps of the sampler")
        labels, indices = pipeline.images_of(spec.classes, spec.images)
        task = cls(spec, pipeline, settings, labels, indices, count)
        filled = [p for p in get_args(Place) if _connectors(pipeline.model, (p,))]
        for place in spec.places:
            if place not in filled:
                remedy = f"set places to [{', '.join(filled)}]" if filled else "take another run"
                raise ConfigError(
                    f"places: {spec.run} has no filters in its {place} "
                    f"(model.kind {pipeline.config.model.kind}); {remedy}"
                )
        return task

    @property
    def first_hardware_step(self) -> int:
        """The evaluation from which on filters are on the backend."""
        return int(self.settings.steps) - self.hardware_steps

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
            costs.append(self._cost(stage, groups, device))
            single += self._cost(stage, stage.groups(plain), device).seconds
        return Estimate(spec, device, self.hardware_steps, costs, self.hardware_steps * single)

    def _cost(self, stage: Stage, groups: list[Group], device: Device) -> StageCost:
        batches = self._batches(groups, device.rep_delay)
        values = [values for batch in batches for _, values in batch.circuits]
        return StageCost(
            place=stage.place,
            filters=len(stage.weights),
            rows=stage.rows,
            circuits=[group.isa for group in groups],
            executions=self.spec.executed_shots * sum(map(len, values)),
            jobs=len(batches),
            bytes=sum(v.nbytes for v in values),
            seconds=sum(batch.seconds for batch in batches),
        )

    def check_layouts(self, ledger: Ledger, cache: IsaCache, sent: set[Position]) -> None:
        """Rate the circuits of what is not sent yet by the device's present calibration.

        Args:
            ledger: of this job.
            cache: of ISA circuits.
            sent: places in the chain whose request the service has, or has answered.

        Raises:
            BudgetError: a gate or readout of theirs is broken by now, or they are expected to err
                more than `limits.max_error_growth` times as much as when they were laid out.
        """
        most = self.spec.limits.max_error_growth
        if most is None:
            return
        broken: set[str] = set()
        growth = 1.0
        for isa in self._to_send(ledger, cache, sent):
            rating = cache.rate(isa)
            broken |= set(rating.broken)
            pairs = zip(rating.costs, isa.cost, strict=True)
            growth = max([growth, *(now / then for now, then in pairs if then)])
        if not broken and growth <= most:
            return
        more = f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        what = f"now expected to err {growth:.1f} times as much (limits.max_error_growth: {most:g})"
        if broken:
            what = f"broken or without figures: {', '.join(sorted(broken)[:_NAMED])}{more}"
        raise BudgetError(
            f"layout: on {self.spec.backend}, where circuits were laid out for this job, {what}; "
            "resume when it is calibrated anew, or with --relayout, which lays out anew what is "
            "not sent yet, or with --set limits.max_error_growth=null, which sends it as it is"
        )

    def _to_send(self, ledger: Ledger, cache: IsaCache, sent: set[Position]) -> list[IsaCircuit]:
        """The circuits of all requests that the service does not have, as far as is known."""
        relaid, state = ledger.fact("relaid") or (), ledger.last_state()
        first = max(self.first_hardware_step, 0 if state is None else state[0])
        last = int(self.settings.steps) - 1
        found: dict[int, IsaCircuit] = {}
        # Between the two, the same circuits as in the last evaluation.
        for step in {first, last} if first <= last else ():
            for number, stage in enumerate(self.stages()):
                groups = stage.groups(cache, layout_at((step, number), relaid))
                parts = range(len(self._batches(groups, 0.0)))
                if not sent.issuperset((step, number, part) for part in parts):
                    found |= {id(group.isa): group.isa for group in groups}
        return list(found.values())

    def _batches(self, groups: Sequence[Group], rep_delay: float) -> list[Batch]:
        """The jobs of a stage."""
        readout = self.spec.resilience_level == 1
        return batches_of(groups, self.spec.executed_shots, rep_delay, readout=readout)

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
            HardwareError: a job gave no result, a limit is reached, or what is still to be sent
                would stand on qubits that are worse now; what is known stays known.
        """
        stages = len(self.stages())
        with console.bar(
            total=self.first_hardware_step + self.hardware_steps * stages,
            desc="sampling",
            unit="stage",
            show=progress,
        ) as bar:
            submitter = Submitter(
                ledger,
                service,
                name=name,
                shots=self.spec.executed_shots,
                limits=self.spec.limits,
                notify=lambda text: bar.set_postfix_str(text, refresh=sys.stderr.isatty()),
                tell=lambda text: bar.write(f"qhdm: {text}", file=sys.stderr),
            )
            submitter.start()
            self.check_layouts(ledger, cache, submitter.known())
            estimator = HardwareEstimator(
                submitter,
                cache,
                service.device,
                shots=self.spec.executed_shots,
                resilience_level=self.spec.resilience_level,
                relaid=ledger.fact("relaid") or (),
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
        times = timesteps_of(pipeline.schedule, int(self.settings.steps))

        def network(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            step = times.index(int(t[0]))
            if step < first:
                return exact(x, t, label)
            estimator.at(step)
            return late(x, t, label)

        start = _restored(ledger)
        done = 0 if start is None else start.step
        update(min(done, first) + max(0, done - first) * stages)
        evaluations = chain(
            network,
            pipeline.schedule,
            self.settings,
            labels=self.labels,
            indices=self.indices,
            shape=(data.channels, data.image_size, data.image_size),
            batch_size=len(self.labels),  # the rows of all images go into the same jobs
            device=pipeline.device,
            start=start,
        )
        x = None if start is None else start.x
        with torch.inference_mode(), frozen(exact):
            for evaluation in evaluations:
                state = evaluation.state
                _keep(ledger, state)
                x = state.x
                if state.step <= first:
                    update(1)
        assert x is not None
        return to_uint8(x)

    def exact_images(self) -> np.ndarray:
        """The same images with all filters on the exact engine, uint8 (N, H, W, C)."""
        return self.pipeline.sample(
            self.settings.on(Exact()),
            labels=self.labels,
            indices=self.indices,
            batch_size=len(self.labels),
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

    def groups(self, cache: IsaCache, layout: int = 0) -> list[Group]:
        """Its circuits, of the layout of a number, with inputs that stand for those to come."""
        zeros = torch.zeros(len(self.weights), self.rows, len(self.filter.inputs))
        sets = np.concatenate(parameter_sets(self.filter, zeros, self.weights))
        return groups_of(self.filter.circuit, sets, frozenset(self.filter.weights), cache, layout)


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
