"""What a harness runs: named steps in order, under conditions, so many times each, with hooks.

The seed's `Experiment.add_step` existed nowhere; here it is, and steps get a context whose session
does the work (never the client behind it), so that status, telemetry and metrics see every step.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import check_segment, digest


@dataclass
class StepContext:
    """What a step is given, in one cell (a condition, a repeat) of an experiment."""

    session: Any
    """A `TinkexSession`, or the blocking one: what steps work through."""
    dataset: Any
    trace_id: str
    """Of this run of the experiment: the same on every row that it leaves."""
    condition: str
    repeat: int
    seed: int
    params: Mapping[str, Any]
    """The condition's options."""
    results: dict[str, Any] = field(default_factory=dict)
    """Of the steps before, by name."""
    progress: dict[str, Any] = field(default_factory=dict)
    """What this step told before it was interrupted; empty at first."""
    save: Callable[[Mapping[str, Any]], None] = lambda progress: None
    """Keep `progress` for a run that takes the step up again (JSON values)."""
    attempt: int = 1
    is_stopping: Callable[[], bool] = lambda: False
    """Whether the experiment is to end now: a `graceful` step saves and returns."""


OnError = Literal["retry", "skip", "abort"]
Decided: TypeAlias = OnError | Awaitable[OnError]
StepFunction: TypeAlias = Callable[[StepContext], Any]
"""Gives what the step found, as JSON values; may be a coroutine function. A plain one runs in a
thread."""

DEFAULT_CONDITION = "default"
MAX_RETRIES = 3


@dataclass(frozen=True)
class Step:
    name: str
    function: StepFunction
    options: Mapping[str, Any] = field(default_factory=dict)
    """What decides its result besides its name: a change is another experiment."""
    graceful: bool = False
    """It looks at `ctx.is_stopping()`: Ctrl-C lets it save and end; others are cut off."""
    training: Mapping[str, Any] | None = None
    """Of a step that `register_training_step` added: what it was asked for."""


@dataclass(frozen=True)
class Hooks:
    """Called around steps. `on_error` decides what becomes of a step that raised: `retry` (at most
    `max_retries` times, then it aborts), `skip` (the rest of the cell goes on without its result)
    or `abort` (the cell ends; other cells go on, unless `fail_fast` ends them, and the same call
    tries again).

    Each may be a coroutine function; a plain one runs in a thread. One that takes longer than 600
    seconds, or raises, fails the step that it belongs to; one around cells, or `on_error`, ends the
    experiment. Cells that run at the same time share them, and may call them at the same time."""

    before_experiment: Callable[[], object] | None = None
    after_experiment: Callable[[], object] | None = None
    before_condition: Callable[[str], object] | None = None
    after_condition: Callable[[str], object] | None = None
    before: Callable[[StepContext, str], object] | None = None
    after: Callable[[StepContext, str, Any], object] | None = None
    on_error: Callable[[BaseException, StepContext, str], Decided] | None = None
    max_retries: int = MAX_RETRIES


@dataclass
class Plan:
    """Steps are added in the order in which they run."""

    name: str
    conditions: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {DEFAULT_CONDITION: {}}
    )
    """Options of the experiment by name of the condition; a step finds its own in `ctx.params`."""
    repeats: int = 1
    """Of each condition, with seeds of their own that are the same for every condition."""
    hooks: Hooks = Hooks()
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ConfigError(f"repeats = {self.repeats} must be at least 1")
        if not self.conditions:
            raise ConfigError("an experiment needs at least one condition")
        if not isinstance(self.conditions, Mapping):
            raise ConfigError(
                "conditions are options by name, such as {'low': {'adam_params': {'lr': 1e-4}}}"
            )

    def add_step(
        self,
        name: str,
        function: StepFunction,
        options: Mapping[str, Any] | None = None,
        *,
        graceful: bool = False,
        training: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Raises `ConfigError` for a name that is taken or is no name."""
        check_segment(name, what="step name")
        if name in [step.name for step in self.steps]:
            raise ConfigError(f"there is a step {name!r} already")
        self.steps.append(Step(name, function, dict(options or {}), graceful, training))
        return self

    @property
    def identity(self) -> str:
        """Of what decides results, as far as it can be written down: functions cannot."""
        steps = [[step.name, _plain(step.options)] for step in self.steps]
        content = {"name": self.name, "steps": steps, "conditions": _plain(self.conditions)}
        return digest(content)


def _plain(value: Any) -> Any:
    """JSON values; what is none by its type's name."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)
