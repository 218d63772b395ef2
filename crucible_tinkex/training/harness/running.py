"""Runs the cells of a plan, so many at once, and gives what came of each in the plan's order.

Cells begin in that order; which of them ends first changes nothing in results and records, for each
has a session, a seed and a file of its own. The first Ctrl-C lets trainings finish the step that
was sent and save, cuts off any other step and hooks, closes the sessions and raises; the same call
with the same folder then goes on.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.telemetry.bridge import Bridge
from crucible_tinkex.training.adapter.blocking import LoopThread
from crucible_tinkex.training.harness.cells import Bench, Cell, Sessions, hooked
from crucible_tinkex.training.harness.plan import DEFAULT_CONDITION, Hooks, Plan
from crucible_tinkex.training.harness.results import CellResult, HarnessResults
from crucible_tinkex.training.harness.state import HarnessState
from crucible_tinkex.training.harness.training import check_training


def run(
    experiment: Any,
    define: Callable[[Plan], object],
    **options: Any,
) -> HarnessResults:
    """As `arun`, for code without an event loop (or whose loop is a notebook's)."""
    harness = _Harness(experiment, define, **options)
    loop = LoopThread("harness")
    try:
        return loop.run(harness.run(), on_interrupt=harness.stop)
    finally:
        loop.close()


async def arun(
    experiment: Any,
    define: Callable[[Plan], object],
    **options: Any,
) -> HarnessResults:
    """Run `experiment` (anything with a `name`, or a name) by the steps that `define` adds.

    | option | default | |
    |---|---|---|
    | `session` | | an open one, for an experiment of one cell |
    | `sessions` | | makes one per cell: `Sessions` |
    | `dataset` | none | what steps find as `ctx.dataset` |
    | `conditions` | one | options by the condition's name |
    | `repeats`, `seed` | 1, 0 | repeat r has `seed + r`, under every condition |
    | `max_concurrent` | 1 | cells at once |
    | `fail_fast` | false | the first cell that is aborted ends the others, saved |
    | `hooks` | none | `Hooks`, each called in a thread |
    | `folder` | none | keeps how far it got, and its trace id |
    | `bridge`, `trace_id` | own | where events go; the id of a new experiment |

    One cell can use a `session` that is open; several need `sessions`, because a second training of
    one session would go on from the first. Raises `ConfigError` for a plan that cannot run, and
    never for a cell that failed: that is in its result. Cancelled, it stops as by Ctrl-C.
    """
    return await _Harness(experiment, define, **options).run()


class _Harness:
    """See `arun`."""

    def __init__(
        self,
        experiment: Any,
        define: Callable[[Plan], object],
        *,
        session: Any = None,
        sessions: Sessions | None = None,
        dataset: Any = None,
        conditions: Mapping[str, Mapping[str, Any]] | None = None,
        repeats: int = 1,
        seed: int = 0,
        max_concurrent: int = 1,
        fail_fast: bool = False,
        hooks: Hooks | None = None,
        folder: str | Path | None = None,
        bridge: Bridge | None = None,
        trace_id: str | None = None,
    ) -> None:
        _check_count("repeats", repeats)
        _check_count("max_concurrent", max_concurrent)
        name = experiment if isinstance(experiment, str) else experiment.name
        under = {DEFAULT_CONDITION: {}} if conditions is None else conditions
        plan = Plan(name, under, repeats, hooks or Hooks())
        define(plan)
        if not plan.steps:
            raise ConfigError("the experiment has no steps; `define` must add some")
        check_training(plan, dataset)
        cells = len(plan.conditions) * repeats
        if (session is None) == (sessions is None):
            raise ConfigError("give either session or sessions")
        if session is not None and cells > 1:
            raise ConfigError(
                f"{cells} cells need a session each: give sessions, a function that makes one"
            )
        trace_id = trace_id or uuid.uuid4().hex
        self._bench = Bench(plan, trace_id, dataset, bridge or Bridge(name), session, sessions)
        self._seed = seed
        self._folder = folder
        self._max_concurrent = max_concurrent
        self._fail_fast = fail_fast
        self._cells: list[Cell] = []
        self._left: Counter[str] = Counter()
        """Cells of each condition that have not ended."""
        self._begun: dict[str, asyncio.Task[None]] = {}
        """What comes before the cells of each condition."""
        self._hooks: set[asyncio.Task[None]] = set()
        self._stopping = False

    def stop(self) -> None:
        """End what runs, saved, and begin nothing. On its loop."""
        self._stopping = True
        for hook in self._hooks:
            hook.cancel()
        for cell in self._cells:
            cell.stop()

    async def run(self) -> HarnessResults:
        plan = self._bench.plan
        state = HarnessState(self._folder, plan.identity, self._bench.trace_id, seed=self._seed)
        try:
            bench = replace(self._bench, trace_id=state.trace_id)
            self._cells = [
                Cell(bench, state.cell(condition, repeat), condition, repeat, self._seed + repeat)
                for condition in plan.conditions
                for repeat in range(plan.repeats)
            ]
            self._left = Counter(cell.condition for cell in self._cells)
            await self._hook("before_experiment")
            results = await self._all()
            if not self._stopping:
                await self._hook("after_experiment")
        finally:
            state.close()
        return HarnessResults(plan.name, state.trace_id, results)

    async def _all(self) -> Sequence[CellResult]:
        slots = asyncio.Semaphore(self._max_concurrent)
        tasks = [asyncio.create_task(self._one(cell, slots)) for cell in self._cells]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            if any(not task.cancelled() and task.exception() for task in ended):
                self.stop()
                await asyncio.wait(tasks)
        except asyncio.CancelledError:
            self.stop()
            await asyncio.wait(tasks)
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [task.result() for task in tasks]

    async def _one(self, cell: Cell, slots: asyncio.Semaphore) -> CellResult:
        async with slots:
            if not self._stopping:
                await self._begin(cell.condition)
            if self._stopping:
                return cell.result("open")
            result = await cell.run()
            if result.state == "aborted" and self._fail_fast:
                self.stop()
            if result.state != "open":
                self._left[cell.condition] -= 1
            if self._left[cell.condition] == 0:
                await self._hook("after_condition", cell.condition)
            return result

    async def _begin(self, condition: str) -> None:
        """By the first of its cells; the others wait for it."""
        if condition not in self._begun:
            hook = self._hook("before_condition", condition)
            self._begun[condition] = asyncio.create_task(hook)
        await asyncio.shield(self._begun[condition])

    async def _hook(self, name: str, *about: str) -> None:
        """One around cells; `stop` cuts it off."""
        hook = getattr(self._bench.plan.hooks, name)
        if hook is None:
            return
        task = asyncio.create_task(hooked(name, hook, *about))
        self._hooks.add(task)
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            self._hooks.discard(task)
        if not task.cancelled():
            task.result()


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} = {value!r} must be a whole number, at least 1")
