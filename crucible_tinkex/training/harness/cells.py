"""One cell of a plan, step by step, through a session.

A step that is done is not done again when the same experiment runs in the same folder; one that was
interrupted gets the progress that it saved. Plain functions run in threads, so that a cell whose
step blocks holds up no other; hooks, too, and these have a time limit (`DEADLINE_S`).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from crucible_tinkex.errors import ConfigError, StorageError
from crucible_tinkex.telemetry.bridge import Bridge
from crucible_tinkex.training.harness.plan import Hooks, OnError, Plan, Step, StepContext
from crucible_tinkex.training.harness.results import CellResult, CellState
from crucible_tinkex.training.harness.state import CellRecord
from crucible_tinkex.user_calls import called, within

log = logging.getLogger(__name__)


class Sessions(Protocol):
    """Makes the session of a cell from its condition, seed and options. May be a coroutine
    function; what it makes is closed when the cell ends."""

    def __call__(self, condition: str, seed: int, params: Mapping[str, Any], /) -> Any: ...


@dataclass(frozen=True)
class Bench:
    """What all cells of an experiment work with."""

    plan: Plan
    trace_id: str
    dataset: Any
    bridge: Bridge
    session: Any = None
    """An open one, of the only cell."""
    sessions: Sessions | None = None


class Cell:
    """One condition in one repeat."""

    def __init__(
        self, bench: Bench, record: CellRecord, condition: str, repeat: int, seed: int
    ) -> None:
        self._bench = bench
        self._record = record
        self.condition = condition
        self.repeat = repeat
        self.seed = seed
        self._session = bench.session
        self._found: dict[str, Any] = {}
        self._skipped: list[str] = []
        self._current: Step | None = None
        self._stopping = False
        self._task: asyncio.Task[CellResult] | None = None

    def result(self, state: CellState, error: str | None = None) -> CellResult:
        """With all steps that are known to be done, those of an earlier run too."""
        steps = {s.name: self._record.step(s.name) for s in self._bench.plan.steps}
        found = {n: step["result"] for n, step in steps.items() if step.get("state") == "done"}
        return CellResult(
            self.condition, self.repeat, self.seed, state, found, tuple(self._skipped), error
        )

    def stop(self) -> None:
        """Let a graceful step end by itself, cut off any other, and begin none. On its loop."""
        self._stopping = True
        is_graceful = self._current is not None and self._current.graceful
        if self._task is not None and not is_graceful:
            self._task.cancel()

    async def run(self) -> CellResult:
        """Never raises for a step that failed. Raises `StorageError`, and what hooks around
        conditions raise."""
        self._task = asyncio.current_task()
        try:
            for step in self._bench.plan.steps:
                if self._stopping:
                    return self.result("open")
                known = self._record.step(step.name)
                if known.get("state") == "done":
                    self._found[step.name] = known["result"]
                    continue
                error = await self._step(step)
                if error is not None:
                    return self.result("aborted", error)
            return self.result("done")
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            return self.result("open")
        finally:
            self._task = None
            await self._close()

    async def _step(self, step: Step) -> str | None:
        """None, or why the cell ends here."""
        hooks = self._bench.plan.hooks
        for attempt in range(1, hooks.max_retries + 2):
            context = self._context(step, attempt)
            self._tell("stage_start", step, attempt)
            try:
                context.session = await self._opened()
                await hooked("before", hooks.before, context, step.name)
                result = await self._ran(step, context)
                self._record.record(step.name, state="done", result=result)
                await hooked("after", hooks.after, context, step.name, result)
            except StorageError:
                raise  # not the step's fault: no cell could keep what it finds
            except (Exception, SystemExit) as error:
                log.exception("step %s of %s failed", step.name, self._name)
                text = f"{type(error).__name__}: {error}"
                self._tell("stage_error", step, attempt, error=text)
                decision = await _decide(hooks, error, context, step.name)
                if decision == "retry" and attempt <= hooks.max_retries and not self._stopping:
                    continue
                if decision == "skip":
                    self._skipped.append(step.name)
                    return None
                return f"{step.name}: {text}"
            self._tell("stage_stop", step, attempt)
            self._found[step.name] = result
            return None
        raise AssertionError("the last attempt ends the step")

    async def _ran(self, step: Step, context: StepContext) -> Any:
        self._current = step
        try:
            return await awaited(step.function, context)
        finally:
            self._current = None

    def _context(self, step: Step, attempt: int) -> StepContext:
        return StepContext(
            self._session,
            self._bench.dataset,
            self._bench.trace_id,
            self.condition,
            self.repeat,
            self.seed,
            self._bench.plan.conditions[self.condition],
            dict(self._found),
            progress=dict(self._record.step(step.name).get("progress", {})),
            save=lambda p: self._record.record(step.name, state="open", progress=dict(p)),
            attempt=attempt,
            is_stopping=lambda: self._stopping,
        )

    async def _opened(self) -> Any:
        sessions = self._bench.sessions
        if self._session is None and sessions is not None:
            params = self._bench.plan.conditions[self.condition]
            self._session = await awaited(sessions, self.condition, self.seed, params)
        return self._session

    async def _close(self) -> None:
        """End the cell's own session. What goes wrong takes nothing from what was found."""
        if self._session is None or self._session is self._bench.session:
            return
        try:
            await awaited(self._session.close)
        except Exception:
            log.warning("the session of %s was not closed", self._name, exc_info=True)

    @property
    def _name(self) -> str:
        return f"{self.condition}/{self.repeat}"

    def _tell(self, event: str, step: Step, attempt: int, **more: Any) -> None:
        about = {"stage": step.name, "cell": self._name, "trace_id": self._bench.trace_id}
        self._bench.bridge.execute(event, {"attempt": attempt}, **about, **more)


async def awaited(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives, in a thread, or a coroutine function, on this loop. It may take any
    time; cancelled, it is left behind."""
    if inspect.iscoroutinefunction(function):
        return await function(*arguments)
    name = getattr(function, "__name__", "it")
    value: Awaitable[Any] | Any = await called(function, *arguments, what=name, deadline_s=math.inf)
    return await value if inspect.isawaitable(value) else value


async def hooked(name: str, hook: Callable[..., Any] | None, *arguments: Any) -> Any:
    """What a hook gives, if there is one. Raises `TrialFailedError` where it takes too long."""
    if hook is None:
        return None
    async with within(what=f"hook {name}"):
        return await awaited(hook, *arguments)


async def _decide(hooks: Hooks, error: BaseException, context: StepContext, name: str) -> OnError:
    if hooks.on_error is None:
        return "abort"
    decision: OnError = await hooked("on_error", hooks.on_error, error, context, name)
    if decision not in ("retry", "skip", "abort"):
        raise ConfigError(f"on_error gave {decision!r}; it decides 'retry', 'skip' or 'abort'")
    return decision
