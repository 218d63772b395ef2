"""Runs the cells of a plan one after the other, step by step, through sessions.

A step that is done is not done again when the same experiment runs in the same folder; one that was
interrupted gets the progress that it saved. Steps may be functions or coroutine functions.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.telemetry.bridge import Bridge
from crucible_tinkex.training.adapter.blocking import LoopThread
from crucible_tinkex.training.harness.context import StepContext
from crucible_tinkex.training.harness.plan import DEFAULT_CONDITION, Hooks, OnError, Plan, Step
from crucible_tinkex.training.harness.results import CellResult, CellState, HarnessResults
from crucible_tinkex.training.harness.state import HarnessState

log = logging.getLogger(__name__)

Sessions = Callable[[str, int, Mapping[str, Any]], Any]
"""Makes the session of a cell from its condition, seed and options. May be a coroutine function;
what it makes is closed when the cell ends."""


def run(
    experiment: Any,
    define: Callable[[Plan], object],
    **options: Any,
) -> HarnessResults:
    """As `arun`, for code without an event loop (or whose loop is a notebook's)."""
    loop = LoopThread("harness")
    try:
        return loop.run(arun(experiment, define, **options))
    finally:
        loop.close()


async def arun(
    experiment: Any,
    define: Callable[[Plan], object],
    *,
    session: Any = None,
    sessions: Sessions | None = None,
    dataset: Any = None,
    conditions: Mapping[str, Mapping[str, Any]] | None = None,
    repeats: int = 1,
    seed: int = 0,
    hooks: Hooks | None = None,
    folder: str | Path | None = None,
    bridge: Bridge | None = None,
    trace_id: str | None = None,
) -> HarnessResults:
    """Run `experiment` (anything with a `name`, or a name) by the steps that `define` adds.

    One cell can use a `session` that is open; several need `sessions`, because a second training of
    one session would go on from the first. `folder` keeps how far it got; a run that it keeps has
    its `trace_id` already. Raises `ConfigError` for a plan that cannot run, and never for a cell
    that failed: that is in its result.
    """
    name = experiment if isinstance(experiment, str) else experiment.name
    under = {DEFAULT_CONDITION: {}} if conditions is None else conditions
    plan = Plan(name, under, repeats, hooks or Hooks())
    define(plan)
    if not plan.steps:
        raise ConfigError("the experiment has no steps; `define` must add some")
    cells = [(c, r) for c in plan.conditions for r in range(repeats)]
    if (session is None) == (sessions is None):
        raise ConfigError("give either session or sessions")
    if session is not None and len(cells) > 1:
        raise ConfigError(
            f"{len(cells)} cells need a session each: give sessions, a function that makes one"
        )
    state = HarnessState(folder, plan.identity)
    state.trace_id = state.trace_id or trace_id or uuid.uuid4().hex
    runner = _Runner(plan, state, session, sessions, dataset, bridge or Bridge(name))
    _call(plan.hooks.before_experiment)
    results = []
    for condition in plan.conditions:
        _call(plan.hooks.before_condition, condition)
        for repeat in range(repeats):
            results.append(await runner.cell(condition, repeat, seed + repeat))
        _call(plan.hooks.after_condition, condition)
    _call(plan.hooks.after_experiment)
    return HarnessResults(name, state.trace_id, results)


class _Runner:
    def __init__(
        self,
        plan: Plan,
        state: HarnessState,
        session: Any,
        sessions: Sessions | None,
        dataset: Any,
        bridge: Bridge,
    ) -> None:
        self._plan = plan
        self._state = state
        self._session = session
        self._sessions = sessions
        self._dataset = dataset
        self._bridge = bridge

    async def cell(self, condition: str, repeat: int, seed: int) -> CellResult:
        key = f"{condition}/{repeat}"
        params = self._plan.conditions[condition]
        found: dict[str, Any] = {}
        skipped: list[str] = []
        session, state, error = self._session, "done", None
        try:
            for step in self._plan.steps:
                known = self._state.step(key, step.name)
                if known.get("state") == "done":
                    found[step.name] = known["result"]
                    continue
                if session is None and self._sessions is not None:
                    session = await _awaited(self._sessions(condition, seed, params))
                context = StepContext(
                    session,
                    self._dataset,
                    self._state.trace_id or "",
                    condition,
                    repeat,
                    seed,
                    params,
                    found,
                )
                error = await self._step(key, step, context, found, skipped)
                if error is not None:
                    state = "aborted"
                    break
        finally:
            if session is not None and session is not self._session:
                await _awaited(session.close())
        made: CellState = "done" if state == "done" else "aborted"
        return CellResult(condition, repeat, seed, made, dict(found), tuple(skipped), error)

    async def _step(
        self,
        key: str,
        step: Step,
        context: StepContext,
        found: dict[str, Any],
        skipped: list[str],
    ) -> str | None:
        """None, or why the cell ends here."""
        about = {"stage": step.name, "cell": key, "trace_id": context.trace_id}
        hooks = self._plan.hooks
        for attempt in range(1, hooks.max_retries + 2):
            context.attempt = attempt
            context.progress = dict(self._state.step(key, step.name).get("progress", {}))
            context.save = lambda p: self._state.record(
                key, step.name, state="open", progress=dict(p)
            )
            self._bridge.execute("stage_start", {"attempt": attempt}, **about)
            try:
                _call(hooks.before, context, step.name)
                result = await _awaited(step.function(context))
                self._state.record(key, step.name, state="done", result=result)
                _call(hooks.after, context, step.name, result)
            except Exception as error:
                log.exception("step %s of %s failed", step.name, key)
                text = f"{type(error).__name__}: {error}"
                self._bridge.execute("stage_error", {"attempt": attempt}, **about, error=text)
                decision = _decide(hooks, error, context, step.name)
                if decision == "retry" and attempt <= hooks.max_retries:
                    continue
                if decision == "skip":
                    skipped.append(step.name)
                    return None
                return f"{step.name}: {text}"
            self._bridge.execute("stage_stop", {"attempt": attempt}, **about)
            found[step.name] = result
            return None
        return f"{step.name}: no attempt is left"


def _decide(hooks: Hooks, error: BaseException, context: StepContext, name: str) -> OnError:
    if hooks.on_error is None:
        return "abort"
    decision = hooks.on_error(error, context, name)
    if decision not in ("retry", "skip", "abort"):
        raise ConfigError(f"on_error gave {decision!r}; it decides 'retry', 'skip' or 'abort'")
    return decision


def _call(hook: Callable[..., object] | None, *arguments: Any) -> None:
    if hook is not None:
        hook(*arguments)


async def _awaited(value: Awaitable[Any] | Any) -> Any:
    """What a function or a coroutine function gave."""
    await asyncio.sleep(0)
    return await value if inspect.isawaitable(value) else value
