"""Which engine evaluates the filters of a trained model: one request, resolved in one place."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator
from pydantic.dataclasses import dataclass

from qhdm.config.sections import STRICT, QuantumConfig
from qhdm.quantum.options import Aer, EngineOptions, Exact, Method, Noise, Shots


@dataclass(frozen=True, config=STRICT)
class EngineRequest:
    """An engine as the command line, evaluations and comparisons ask for it.

    `run` is the engine of the run, as its configuration has it. An engine that is named is
    complete: what is not given is its default, never the run's.

    Attributes:
        engine: evaluates the filters.
        method, shots, noise: of `aer`, as in `qhdm.quantum.options.Aer`; null is without.
    """

    engine: Literal["run", "exact", "aer"] = "run"
    method: Method = "auto"
    shots: Shots | None = None
    noise: Noise | None = None

    @property
    def named(self) -> EngineOptions | None:
        """The engine, complete; None where it is the run's own."""
        if self.engine == "aer":
            return Aer(method=self.method, shots=self.shots, noise=self.noise)
        return Exact() if self.engine == "exact" else None

    def resolved(self, own: QuantumConfig) -> EngineOptions:
        """The engine that evaluates the filters of a run with the configuration `own`."""
        return self.named or own.engine_options

    @field_validator("engine", mode="before")
    @classmethod
    def _of_older_files(cls, engine: Any) -> Any:
        return "run" if engine is None else engine  # comparisons used to write null

    @model_validator(mode="after")
    def _check_engine(self) -> EngineRequest:
        for name, absent in (("method", "auto"), ("shots", None), ("noise", None)):
            if getattr(self, name) != absent and self.engine != "aer":
                raise ValueError(
                    f"{name}: only with engine aer; name it, with all its options: "
                    "it takes nothing from the run"
                )
        if isinstance(self.named, Aer) and (problem := self.named.problem()):
            raise ValueError(f"{problem[0]}: {problem[1]}")
        return self
