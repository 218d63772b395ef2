"""Hooks of an experiment: each waits in a thread, within a time, and holds nothing else up."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
from typing import Any

import pytest

from crucible_tinkex import user_calls
from crucible_tinkex.errors import TrialFailedError
from crucible_tinkex.training.harness import Hooks, StepContext, arun, run

HOOKS = (
    "before_experiment",
    "after_experiment",
    "before_condition",
    "after_condition",
    "before",
    "after",
    "on_error",
)


class Closable:
    def close(self) -> None:
        return None


def hooks(**given: Any) -> Hooks:
    return Hooks(**given)


def step_for(which: str) -> Any:
    """One that has this hook called."""
    return lambda ctx: 1 / (which != "on_error")


async def test_one_that_blocks_holds_up_no_other_cell() -> None:
    went_on = threading.Event()

    def before(ctx: StepContext, name: str) -> None:
        if ctx.repeat == 0:
            assert went_on.wait(timeout=10)

    async def step(ctx: StepContext) -> None:
        if ctx.repeat == 1:
            went_on.set()

    results = await arun(
        "e",
        lambda plan: plan.add_step("x", step),
        sessions=lambda *cell: Closable(),
        repeats=2,
        max_concurrent=2,
        hooks=Hooks(before=before),
    )
    assert [cell.state for cell in results.cells] == ["done", "done"]


async def test_no_cell_begins_before_the_hook_before_its_condition_has_ended() -> None:
    order: list[str] = []

    def before(condition: str) -> None:
        time.sleep(0.05)
        order.append(f"> {condition}")

    await arun(
        "e",
        lambda plan: plan.add_step("x", lambda ctx: order.append("cell")),
        sessions=lambda *cell: Closable(),
        repeats=3,
        max_concurrent=3,
        hooks=Hooks(before_condition=before),
    )
    assert order == ["> default", "cell", "cell", "cell"]


@pytest.mark.parametrize("which", HOOKS)
async def test_one_that_takes_too_long_fails_by_name(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_calls, "DEADLINE_S", 0.1)
    work = arun(
        "e",
        lambda plan: plan.add_step("x", step_for(which)),
        session=Closable(),
        hooks=hooks(**{which: lambda *about: time.sleep(30)}),
    )
    said = rf"hook {which} did not return within 0\.1 s"
    if which in ("before", "after"):
        (cell,) = (await work).cells
        assert cell.state == "aborted"
        assert re.search(said, str(cell.error))
    else:
        with pytest.raises(TrialFailedError, match=said):
            await work


async def test_they_may_be_coroutine_functions() -> None:
    heard: list[str] = []

    def noted(name: str) -> Any:
        async def hook(*about: Any) -> str:
            await asyncio.sleep(0)
            heard.append(name)
            return "skip"

        return hook

    results = await arun(
        "e",
        lambda plan: plan.add_step("x", lambda ctx: 1 / 0).add_step("y", lambda ctx: 2),
        session=Closable(),
        hooks=hooks(**{name: noted(name) for name in HOOKS}),
    )
    assert results.cells[0].skipped == ("x",)
    begin, end = ["before_experiment", "before_condition"], ["after_condition", "after_experiment"]
    assert heard == [*begin, "before", "on_error", "before", "after", *end]


@pytest.mark.parametrize("which", HOOKS)
def test_an_interrupt_cuts_it_off(which: str) -> None:
    def hook(*about: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(3600)  # nothing can end this thread; nothing waits for it

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(
            "e",
            lambda plan: plan.add_step("x", step_for(which)),
            sessions=lambda *cell: Closable(),
            conditions={"a": {}, "b": {}},
            hooks=hooks(**{which: hook}),
        )
    assert time.monotonic() - started < 20
