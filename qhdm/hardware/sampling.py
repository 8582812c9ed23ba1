"""Sampling whose last network evaluations have filters on a backend: a chain that resumes."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from qhdm import console
from qhdm.config import Config, SamplerOptions
from qhdm.diffusion import generate, make_preconditioning
from qhdm.diffusion.generate import Chain, Network
from qhdm.diffusion.pixels import to_levels
from qhdm.diffusion.preconditioning import Levels, Preconditioning
from qhdm.diffusion.samplers import State
from qhdm.errors import BudgetError, ConfigError, SamplingError
from qhdm.hardware.estimate import JobEstimate, StageCost
from qhdm.hardware.estimator import (
    HardwareEngine,
    StageCircuit,
    StageRunner,
    layout_at,
    requests_of,
    stage_circuits,
)
from qhdm.hardware.isa import IsaCache, PackedCircuit
from qhdm.hardware.ledger import Ledger
from qhdm.hardware.request import Position, Request
from qhdm.hardware.runtime import Device, Service
from qhdm.hardware.spec import JobSpec
from qhdm.hardware.submission import Submitter
from qhdm.models import DiffusionNetwork, frozen
from qhdm.models.filters import on_engine
from qhdm.quantum.connector import FilterConnector
from qhdm.quantum.engines import Bound
from qhdm.quantum.filter import Filter
from qhdm.quantum.options import Place
from qhdm.quantum.pubs import parameter_sets

#: Broken gates that a message names.
_NAMED = 5
#: Options of sampling that digests of earlier versions lack: null is as without.
_LATER = ("guidance_interval", "guide")
#: The array of a sampler's state in the ledger.
_STATE = "noisy"


@dataclass(frozen=True, eq=False)
class Stage:
    """One filter place in a network evaluation.

    Attributes:
        place: its name.
        filter: the circuit.
        weights: (F, P), radians.
        rows: of each filter: patches of one image, or of all images and passes.
    """

    place: str
    filter: Filter
    weights: Tensor
    rows: int

    def circuits(self, cache: IsaCache, layout: int = 0) -> list[StageCircuit]:
        """Its circuits in the layout of a number, with zeros for the inputs."""
        zeros = torch.zeros(len(self.weights), self.rows, len(self.filter.inputs))
        sets = parameter_sets(self.filter, zeros, self.weights)
        flat = sets.reshape(-1, sets.shape[-1])
        weights = frozenset(self.filter.weights)
        return stage_circuits(self.filter.circuit, flat, weights, cache, layout)


@dataclass(frozen=True, eq=False)
class SamplingJob:
    """A job specification with its network, on the CPU.

    Attributes:
        spec: the specification.
        networks: the network, and the weaker one that guides it, if there is one.
        config: of their training.
        labels, indices: of the images, N each.

    Raises:
        SamplingError: a step count or guidance does not fit the network, or other weights guide
            steps on the backend.
        ConfigError: a place has no filters.
    """

    spec: JobSpec
    networks: tuple[DiffusionNetwork, ...]
    config: Config
    labels: Sequence[int]
    indices: Sequence[int]

    def __post_init__(self) -> None:
        if self.hardware_steps > self.steps:
            raise SamplingError(
                f"hardware_steps: {self.hardware_steps} exceeds the {self.steps} steps of the "
                "sampler"
            )
        self._check_guide()
        filled = [p for p in get_args(Place) if _connectors(self.model, (p,))]
        for place in self.spec.places:
            if place not in filled:
                remedy = f"set places to [{', '.join(filled)}]" if filled else "take another run"
                raise ConfigError(
                    f"places: {self.spec.run} has no filters in its {place} "
                    f"(model.kind {self.config.model.kind}); {remedy}"
                )

    def _check_guide(self) -> None:
        if len(self.networks) > 1 and any(map(self._guided, self._steps_on_backend)):
            raise SamplingError(
                f"guide: a backend evaluates one network, but {self.options.guide} guides the "
                "sampler in steps on it; set guide to null, or lower hardware_steps or the "
                "guidance_interval"
            )

    @property
    def model(self) -> DiffusionNetwork:
        """The network whose filters the backend evaluates."""
        return self.networks[0]

    @cached_property
    def options(self) -> SamplerOptions:
        """The sampler's options, resolved."""
        return self.spec.resolved(self.config)

    @cached_property
    def preconditioning(self) -> Preconditioning:
        """What the network was trained with."""
        return make_preconditioning(self.config)

    @cached_property
    def levels(self) -> Levels:
        """The noise levels of the network evaluations."""
        return self.preconditioning.sampling(int(self.options.steps))

    @property
    def steps(self) -> int:
        """Network evaluations."""
        return len(self.levels)

    @property
    def hardware_steps(self) -> int:
        """The last so many network evaluations are on the backend."""
        chosen = self.spec.hardware_steps
        return self.steps if chosen == "all" else chosen

    @property
    def first_hardware_step(self) -> int:
        """The first network evaluation on the backend."""
        return self.steps - self.hardware_steps

    @property
    def _steps_on_backend(self) -> range:
        return range(self.first_hardware_step, self.steps)

    def _guided(self, step: int) -> bool:
        return self.options.guided_at(float(self.levels.sigma[step]))

    @property
    def digest(self) -> str:
        """Identifies the images: a hash of the request, but not its limits, and the weights."""
        # Without defaults: an option that a later version adds must not change the digest.
        asked = TypeAdapter(JobSpec).dump_python(
            self.spec,
            mode="json",
            exclude={"run", "limits", "estimate", *_LATER},
            exclude_defaults=True,
        )
        if asked.get("mitigation") == "trex":  # what digests of earlier versions call it
            asked["resilience_level"] = 1
            del asked["mitigation"]
        later = {name: getattr(self.options, name) for name in _LATER}
        asked |= {name: value for name, value in later.items() if value is not None}
        return self._with_weights(json.dumps(asked, sort_keys=True).encode())

    @property
    def model_digest(self) -> str:
        """Identifies the weights alone."""
        return self._with_weights(b"")

    def _with_weights(self, asked: bytes) -> str:
        digest = hashlib.sha256(asked)
        for network in self.networks:
            for name, tensor in network.state_dict().items():
                digest.update(name.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def stages(self) -> list[Stage]:
        """The filter places of an evaluation of the network on one image, in order."""
        stages: list[Stage] = []
        model = on_engine(self.model, "exact")
        for place, connector in _connectors(model, self.spec.places):
            connector.engine = _Recorder(stages, place)
        zero = torch.zeros(1, dtype=torch.long)
        with torch.inference_mode():
            model(torch.zeros(1, *self.config.data.shape), zero, zero)
        return stages

    def stages_at(self, step: int) -> list[Stage]:
        """The stages of all images in a network evaluation; guided, each has two passes."""
        passes = (2 if self._guided(step) else 1) * len(self.labels)
        return [replace(stage, rows=passes * stage.rows) for stage in self.stages]

    def estimate(self, device: Device, cache: IsaCache) -> JobEstimate:
        """What the job costs."""
        plain = cache.with_packing(1)
        costs, seconds = [], 0.0
        kinds = {self._guided(step): step for step in self._steps_on_backend}
        for guided, count in Counter(map(self._guided, self._steps_on_backend)).items():
            for stage in self.stages_at(kinds[guided]):
                costs.append(self._cost(stage, stage.circuits(cache), device, count))
                single = self._cost(stage, stage.circuits(plain), device, count)
                seconds += count * single.seconds
        return JobEstimate(self.spec, device, self.hardware_steps, costs, seconds)

    def _cost(
        self, stage: Stage, circuits: list[StageCircuit], device: Device, evaluations: int
    ) -> StageCost:
        requests = self._requests(circuits, device.rep_delay)
        values = [values for request in requests for _, values in request.circuits]
        return StageCost(
            place=stage.place,
            evaluations=evaluations,
            filters=len(stage.weights),
            rows=stage.rows,
            circuits=[circuit.isa for circuit in circuits],
            executions=self.spec.executed_shots * sum(map(len, values)),
            runtime_jobs=len(requests),
            bytes=sum(v.nbytes for v in values),
            seconds=sum(request.seconds for request in requests),
        )

    def _requests(self, circuits: Sequence[StageCircuit], rep_delay: float) -> list[Request]:
        mitigation = self.spec.mitigation
        return requests_of(circuits, self.spec.executed_shots, rep_delay, mitigation=mitigation)

    def check_layouts(self, ledger: Ledger, cache: IsaCache, sent: set[Position]) -> None:
        """Rate the circuits that are not sent yet by the device's present calibration.

        Args:
            ledger: of this job.
            cache: of ISA circuits.
            sent: positions whose request the service has, or has answered.

        Raises:
            BudgetError: a gate or readout of theirs is broken by now, or they are expected to err
                more than `limits.max_error_growth` times as much as when they were laid out.
        """
        most = self.spec.limits.max_error_growth
        if most is None:
            return
        broken: set[str] = set()
        growth = 1.0
        for isa in self._unsent(ledger, cache, sent):
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

    def _unsent(self, ledger: Ledger, cache: IsaCache, sent: set[Position]) -> list[PackedCircuit]:
        """The circuits of all requests that the service does not have, as far as is known."""
        relaid, state = ledger.fact("relaid") or (), ledger.last_state()
        first = max(self.first_hardware_step, 0 if state is None else state[0])
        unsent: dict[int, PackedCircuit] = {}
        # Evaluations between these have the circuits of the last of their kind.
        last = {self._guided(step): step for step in range(first, self.steps)}
        for step in {first, *last.values()} if last else ():
            for number, stage in enumerate(self.stages_at(step)):
                circuits = stage.circuits(cache, layout_at((step, number), relaid))
                parts = range(len(self._requests(circuits, 0.0)))
                if not sent.issuperset((step, number, part) for part in parts):
                    unsent |= {id(circuit.isa): circuit.isa for circuit in circuits}
        return list(unsent.values())

    def sample(
        self, ledger: Ledger, service: Service, cache: IsaCache, *, progress: bool = False
    ) -> np.ndarray:
        """Generate the images, from where the ledger ends.

        Args:
            ledger: of this job.
            service: where runtime jobs are executed.
            cache: of ISA circuits.
            progress: show a bar on stderr.

        Returns:
            uint8 (N, H, W, C).

        Raises:
            HardwareError: a job gave no result, a limit is reached, or the qubits of what is still
                to be sent are worse now; what is known stays known.
        """
        spec = self.spec
        with console.bar(
            total=self.first_hardware_step + self.hardware_steps * len(self.stages),
            desc="sampling",
            unit="stage",
            show=progress,
        ) as bar:
            submitter = Submitter(
                ledger,
                service,
                name=ledger.fact("tag"),
                limits=spec.limits,
                notify=lambda text: bar.set_postfix_str(text, refresh=sys.stderr.isatty()),
                warn=lambda text: bar.write(f"qhdm: {text}", file=sys.stderr),
            )
            submitter.start()
            self.check_layouts(ledger, cache, submitter.sent_positions())
            runner = StageRunner(
                submitter,
                cache,
                service.device.rep_delay,
                spec.executed_shots,
                spec.mitigation,
                ledger.fact("relaid") or (),
            )
            return self._sample(ledger, runner, bar.update)

    def _sample(
        self, ledger: Ledger, runner: StageRunner, update: Callable[[int], object]
    ) -> np.ndarray:
        first = self.first_hardware_step
        exact, *guides = (on_engine(network, "exact") for network in self.networks)
        mixed = on_engine(self.model, "exact")
        connectors = _connectors(mixed, self.spec.places)

        start = self.last_state(ledger)
        done = 0 if start is None else start.step
        steps = itertools.count(done)

        def network(z: Tensor, time: Tensor, label: Tensor) -> Tensor:
            step = next(steps)
            if step < first:
                return exact(z, time, label)
            stages = itertools.count()

            def keep(stage: int, place: str, arrays: dict[str, np.ndarray]) -> None:
                ledger.compare(step, stage, place, arrays)
                update(1)

            for place, connector in connectors:
                connector.engine = HardwareEngine(runner, place, step, stages, keep)
            return mixed(z, time, label)

        update(min(done, first) + max(0, done - first) * len(self.stages))
        chain = self._chain((network, *guides), start)
        x = None if start is None else start.x
        with torch.inference_mode(), frozen(exact, *guides):
            for evaluation in chain:
                state = evaluation.state
                arrays = {_STATE: state.x, "previous": state.previous}
                ledger.save_state(
                    state.step, {key: a.numpy() for key, a in arrays.items() if a is not None}
                )
                x = state.x
                if state.step <= first:
                    update(1)
        assert x is not None
        return to_levels(x, self.config.data.dtype)

    def exact_images(self) -> np.ndarray:
        """The same images with all filters on the exact engine, uint8 (N, H, W, C)."""
        networks = tuple(on_engine(network, "exact") for network in self.networks)
        with frozen(*networks):
            return generate(self._chain(networks))

    def last_state(self, ledger: Ledger) -> State | None:
        """The sampler's last state, or None."""
        last = ledger.last_state()
        if last is None:
            return None
        step, arrays = last
        tensors = {key: torch.from_numpy(array.copy()) for key, array in arrays.items()}
        x = tensors.get(_STATE)
        if x is None:  # of an earlier version: a x, in the units of DDPM
            x = tensors["x"] if step == self.steps else tensors["x"] / self.levels.a[step]
        return State(step, x, tensors.get("previous"))

    def _chain(self, networks: tuple[Network, ...], start: State | None = None) -> Chain:
        """All images in one batch, so that their rows go into the same requests."""
        return Chain(
            networks,
            self.preconditioning,
            self.options,
            self.labels,
            self.indices,
            self.config.data.shape,
            batch_size=len(self.labels),
            start=start,
            dtype=self.config.data.dtype,
        )


def _connectors(
    model: DiffusionNetwork, places: Sequence[str]
) -> list[tuple[str, FilterConnector]]:
    """The filters of some places of the network, by name, in no particular order."""
    return [
        (name.removesuffix(".quantum.connector"), module)
        for name, module in model.named_modules()
        if isinstance(module, FilterConnector) and name.split(".")[0] in places
    ]


@dataclass(frozen=True, eq=False)
class _Recorder:
    """An engine that records the stages of a network evaluation of one image, and returns zeros."""

    stages: list[Stage]
    place: str
    name: str = "hardware"
    estimator: None = None

    def __call__(self, circuit_filter: Filter, x: Tensor, w: Tensor) -> Tensor:
        self.stages.append(Stage(self.place, circuit_filter, w.clone(), x.shape[1]))
        return x.new_zeros(*x.shape[:2], len(circuit_filter.observables))

    def bind(self, circuit_filter: Filter, w: Tensor) -> Bound:
        return lambda x: self(circuit_filter, x, w)
