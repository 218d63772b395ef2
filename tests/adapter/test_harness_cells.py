"""Cells of an experiment at the same time: the same results in the same order, whatever ends."""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from desk import CONFIG, ROWS, Desk

import crucible_tinkex as ct
from crucible_tinkex.datasets import Tokenizer
from crucible_tinkex.errors import ConfigError, CorruptLogError, ServiceError, SweepBusyError
from crucible_tinkex.training.adapter import TinkexSession
from crucible_tinkex.training.harness import (
    HarnessResults,
    Hooks,
    Plan,
    StepContext,
    arun,
    register_training_step,
    run,
)

CONDITIONS = {"low": {"adam_params": {"lr": 1e-4}}, "good": {"adam_params": {"lr": 1e-3}}}


class Opened:
    """Makes sessions, and counts those that are open at once."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.now = self.most = 0

    async def __call__(self, condition: str, seed: int, params: Mapping[str, Any]) -> TinkexSession:
        self.now += 1
        self.most = max(self.most, self.now)
        session = self.desk.session(seed=seed)
        close = session.close

        async def closed() -> None:
            self.now -= 1
            await close()

        session.close = closed  # type: ignore[method-assign]
        return await session.open()


def trained(plan: Plan) -> None:
    register_training_step(plan, epochs=3, batch_size=4, checkpoint_every=3)
    plan.add_step("look", lambda ctx: {"seed": ctx.seed, "of": list(ctx.results)})


def numbers(results: HarnessResults) -> list[Any]:
    """What must not depend on what runs beside a cell, or what was interrupted."""
    return [
        (
            cell.condition,
            cell.repeat,
            cell.state,
            [row["loss"] for row in cell.steps["tinkex_training"]["rows"]],
            cell.steps["tinkex_training"]["final_metrics"],
            cell.steps["look"],
        )
        for cell in results.cells
    ]


async def ran(tokenizer: Tokenizer, at_once: int, folder: Path | None = None) -> HarnessResults:
    opened = Opened(Desk(tokenizer))
    opened.desk.backend.delay_s = 0.001
    results = await arun(
        "e", trained, sessions=opened, dataset=ROWS, conditions=CONDITIONS, repeats=3,
        max_concurrent=at_once, folder=folder,
    )  # fmt: skip
    assert opened.most == at_once
    assert opened.now == 0
    return results


async def test_so_many_at_once_change_nothing_but_the_time(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    one = await ran(tokenizer, 1, tmp_path / "one")
    three = await ran(tokenizer, 3, tmp_path / "three")
    assert numbers(one) == numbers(three)
    assert [(c.condition, c.repeat) for c in three.cells] == [
        (condition, repeat) for condition in CONDITIONS for repeat in range(3)
    ]
    files = [sorted(p.name for p in (tmp_path / n / "cells").iterdir()) for n in ("one", "three")]
    assert files[0] == files[1] == [f"{c}-{r}.json" for c in ("good", "low") for r in range(3)]


async def test_steps_that_block_hold_up_no_other_cell() -> None:
    together = threading.Barrier(3)
    results = await arun(
        "e",
        lambda plan: plan.add_step("wait", lambda ctx: together.wait(timeout=20)),
        sessions=lambda *cell: Closable(),
        repeats=3,
        max_concurrent=3,
    )
    assert [cell.state for cell in results.cells] == ["done"] * 3


class Closable:
    def close(self) -> None:
        return None


# --- a cell that fails ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decision", "states", "skipped"),
    [
        ("abort", ["done", "aborted", "done"], ()),
        ("skip", ["done", "done", "done"], ("fragile",)),
        ("retry", ["done", "aborted", "done"], ()),
    ],
)
async def test_a_cell_that_fails_harms_only_itself(
    decision: Any, states: list[str], skipped: tuple[str, ...]
) -> None:
    def fragile(ctx: StepContext) -> int:
        if ctx.repeat == 1:
            raise ValueError("broken")
        time.sleep(0.05)
        return ctx.seed

    results = await arun(
        "e",
        lambda plan: plan.add_step("fragile", fragile),
        sessions=lambda *cell: Closable(),
        repeats=3,
        max_concurrent=3,
        hooks=Hooks(on_error=lambda error, ctx, name: decision),
    )
    assert [cell.state for cell in results.cells] == states
    assert results.cells[1].skipped == skipped
    assert [c.steps.get("fragile") for c in results.cells] == [0, None, 2]


async def test_the_first_that_fails_may_end_the_others_which_go_on_later(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = await ran(tokenizer, 3)
    desk, faulty = Desk(tokenizer), [True]
    desk.backend.delay_s = 0.001

    def define(plan: Plan) -> None:
        trained(plan)
        plan.add_step("fails", fails)

    async def fails(ctx: StepContext) -> None:
        if faulty[0] and (ctx.condition, ctx.repeat) == ("low", 0):
            raise ValueError("stop them all")

    def again(**options: Any) -> Any:
        return arun(
            "e", define, sessions=Opened(desk), dataset=ROWS, conditions=CONDITIONS, repeats=3,
            max_concurrent=3, folder=tmp_path, **options,
        )  # fmt: skip

    # The first is ahead of the others by two steps.
    desk.backend.delays = {"save_state": 0.01}
    broken = await again(fail_fast=True)
    assert [c.state for c in broken.failed] == ["aborted"]
    assert len(broken.open) >= 3, "those that had not begun do not begin"
    assert desk.backend.ends.count("success") >= 1
    stepped = sum(e.operation == "optim_step" for e in desk.backend.ledger)
    faulty[0] = False
    after = await again()
    assert numbers(after) == numbers(whole)
    assert sum(e.operation == "optim_step" for e in desk.backend.ledger) - stepped < 5 * 8
    assert after.trace_id == broken.trace_id


async def test_a_session_that_cannot_be_made_is_its_cells_fault_and_may_be_tried_again() -> None:
    tried: list[int] = []

    def sessions(condition: str, seed: int, params: Mapping[str, Any]) -> Closable:
        tried.append(seed)
        if seed == 1:
            raise ServiceError("no room")
        return Closable()

    results = await arun(
        "e",
        lambda plan: plan.add_step("a", lambda ctx: 1),
        sessions=sessions,
        repeats=3,
        max_concurrent=2,
        hooks=Hooks(on_error=lambda error, ctx, name: "retry", max_retries=1),
    )
    assert [cell.state for cell in results.cells] == ["done", "aborted", "done"]
    assert results.cells[1].error == "a: ServiceError: no room"
    assert tried.count(1) == 2


async def test_sys_exit_in_a_step_ends_its_cell_only() -> None:
    async def leaves(ctx: StepContext) -> None:
        sys.exit(3)

    for step in (leaves, lambda ctx: sys.exit(3)):
        results = await arun("e", lambda plan, s=step: plan.add_step("a", s), session=Closable())
        assert "SystemExit" in str(results.cells[0].error)


async def test_hooks_around_conditions_that_overlap() -> None:
    order: list[str] = []
    hooks = Hooks(
        before_condition=lambda name: order.append(f"> {name}"),
        after_condition=lambda name: order.append(f"< {name}"),
        before_experiment=lambda: order.append("begin"),
        after_experiment=lambda: order.append("end"),
    )

    async def takes(ctx: StepContext) -> None:
        await asyncio.sleep(0.02 if ctx.condition == "a" else 0.0)

    await arun(
        "e", lambda plan: plan.add_step("x", takes), sessions=lambda *cell: Closable(),
        conditions={"a": {}, "b": {}}, repeats=2, max_concurrent=4, hooks=hooks,
    )  # fmt: skip
    assert order == ["begin", "> a", "> b", "< b", "< a", "end"]


async def test_a_hook_that_raises_ends_all_and_is_raised() -> None:
    closed: list[int] = []

    class Session(Closable):
        def close(self) -> None:
            closed.append(1)

    async def slow(ctx: StepContext) -> None:
        await asyncio.sleep(30)

    def before(name: str) -> None:
        if name == "b":
            raise ValueError("not b")

    with pytest.raises(ValueError, match="not b"):
        await arun(
            "e", lambda plan: plan.add_step("x", slow), sessions=lambda *cell: Session(),
            conditions={"a": {}, "b": {}}, max_concurrent=2, hooks=Hooks(before_condition=before),
        )  # fmt: skip
    assert closed == [1]


# --- interrupted ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["ctrl_c", "cancelled"])
def test_an_interrupt_saves_trainings_and_cuts_off_the_rest(
    tokenizer: Tokenizer, tmp_path: Path, way: str
) -> None:
    desk, loops = Desk(tokenizer), list[asyncio.Task[Any]]()
    desk.backend.delay_s = 0.001
    armed = [True]

    def interrupt(row: Mapping[str, Any]) -> None:
        if armed[0] and row["step"] == 5:
            armed[0] = False
            if way == "ctrl_c":
                os.kill(os.getpid(), signal.SIGINT)
            else:
                loops[0].cancel()

    def define(plan: Plan) -> None:
        plan.add_step("first", first)
        register_training_step(
            plan, max_steps=150, batch_size=4, checkpoint_every=1000, on_step_end=interrupt
        )

    def first(ctx: StepContext) -> int:
        if ctx.repeat == 1 and armed[0]:
            time.sleep(3600)  # nothing can end this thread; nothing waits for it
        return 1

    options: dict[str, Any] = {
        "sessions": Opened(desk), "dataset": ROWS, "repeats": 3, "max_concurrent": 2,
        "folder": tmp_path,
    }  # fmt: skip

    async def cancellable() -> None:
        loops.append(asyncio.current_task())  # type: ignore[arg-type]
        await arun("e", define, **options)

    started = time.monotonic()
    with pytest.raises((KeyboardInterrupt, asyncio.CancelledError)):
        run("e", define, **options) if way == "ctrl_c" else asyncio.run(cancellable())
    assert time.monotonic() - started < 20
    saved = json.loads((tmp_path / "cells" / "default-0.json").read_text())["steps"]
    progress = saved["tinkex_training"]["progress"]
    steps = progress["checkpoints"][-1]["step"]
    assert 5 <= steps < 50, "it stopped at once, and saved where it was"
    assert not (tmp_path / "cells" / "default-1.json").exists()
    assert len(desk.backend.ends) == 2, "sessions are closed"

    before = sum(e.operation == "optim_step" for e in desk.backend.ledger)
    results = run("e", define, **options)
    assert [cell.state for cell in results.cells] == ["done"] * 3
    rows = results.cells[0].steps["tinkex_training"]["rows"]
    assert [row["step"] for row in rows] == list(range(1, 151))
    stepped = sum(e.operation == "optim_step" for e in desk.backend.ledger) - before
    assert stepped == 3 * 150 - steps


async def test_a_folder_is_one_process_alone(tmp_path: Path) -> None:
    async def again(ctx: StepContext) -> str:
        with pytest.raises(SweepBusyError, match="is in use by process"):
            await arun("e", lambda p: p.add_step("a", again), session=1, folder=tmp_path)
        return "refused"

    (cell,) = (await arun("e", lambda p: p.add_step("a", again), session=1, folder=tmp_path)).cells
    assert cell.steps == {"a": "refused"}


KILLED = """
import os, sys
import crucible_tinkex as ct
from crucible_tinkex.training import harness

url, key_file, folder, kill = sys.argv[1:]
rows = [{"prompt": f"say {c}", "completion": f" {c}{c}"} for c in "abcdefgh"]

def die(row):
    done = os.path.exists(os.path.join(folder, "cells", "short-0.json"))
    if kill == "kill" and row["step"] >= 6 and done and "tinkex_training" in last():
        os._exit(9)

def last():
    text = open(os.path.join(folder, "cells", "short-0.json")).read()
    return text if '"done"' in text else ""

def define(plan):
    harness.register_training_step(
        plan, batch_size=2, checkpoint_every=5, on_step_end=die
    )

adapter = ct.TinkexAdapter()
config = {"base_model": "nano", "base_url": url, "api_key_file": key_file,
          "optimizer": {"learning_rate": 1e-2}}

def sessions(condition, seed, params):
    seeded = {**config, "seed": seed}
    return adapter.start_session(adapter.create_experiment(name="e", config=seeded))

found = harness.run(
    "e", define, sessions=sessions, dataset=rows, folder=folder, max_concurrent=2,
    conditions={"short": {"max_steps": 2}, "long": {"max_steps": 9}},
)
adapter.close()
for cell in found.cells:
    training = cell.steps["tinkex_training"]
    print(cell.condition, [row["loss"] for row in training["rows"]], training["final_metrics"])
"""


def test_killed_with_a_cell_done_and_one_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    with ct.embedded_server("nano", data_dir=tmp_path / "service") as server:

        def args(folder: str, kill: str) -> list[str]:
            where = str(tmp_path / folder)
            return [str(script), server.base_url, str(server.api_key_file), where, kill]

        killed = subprocess.run([sys.executable, *args("killed", "kill")], timeout=80, check=False)
        assert killed.returncode == 9
        printed = []
        for folder in ("killed", "whole"):
            monkeypatch.setattr(sys, "argv", args(folder, "no"))
            runpy.run_path(str(script))
            printed.append(capsys.readouterr().out)
    again, whole = printed
    assert again == whole
    assert "long" in whole


@pytest.mark.parametrize("damage", ["{ half", "[]", '{"version": 2}'])
async def test_a_damaged_cell_is_named_and_kept(tmp_path: Path, damage: str) -> None:
    def again() -> Any:
        return arun("e", lambda p: p.add_step("a", lambda c: 1), session=1, folder=tmp_path)

    await again()
    path = tmp_path / "cells" / "default-0.json"
    path.write_text(damage)
    with pytest.raises(CorruptLogError, match=r"default-0\.json is damaged"):
        await again()
    assert path.read_text() == damage


async def test_an_experiment_of_version_1_goes_on(tmp_path: Path) -> None:
    def define(plan: Plan) -> None:
        plan.add_step("first", lambda ctx: 1 / 0).add_step("second", lambda ctx: ctx.results)

    await arun("e", define, session=1, folder=tmp_path)
    path = tmp_path / "harness.json"
    old = {**json.loads(path.read_text()), "version": 1, "trace_id": "t"}
    old["cells"] = {"default/0": {"first": {"state": "done", "result": 7}}}
    path.write_text(json.dumps(old))
    results = await arun("e", define, session=1, folder=tmp_path)
    assert results.trace_id == "t"
    assert results.cells[0].steps["second"] == {"first": 7}


async def test_what_one_seed_gave_is_never_told_as_that_of_another(tmp_path: Path) -> None:
    def define(plan: Plan) -> None:
        plan.add_step("drawn", lambda ctx: ctx.seed)

    first = await arun("e", define, session=1, folder=tmp_path, seed=3)
    assert first.cells[0].steps == {"drawn": 3}
    with pytest.raises(ConfigError, match="with seed = 3, not 4; choose another folder"):
        await arun("e", define, session=1, folder=tmp_path, seed=4)
    again = await arun("e", define, session=1, folder=tmp_path, seed=3)
    assert (again.cells[0].seed, again.cells[0].steps) == (3, {"drawn": 3})


@pytest.mark.parametrize("options", [{"max_concurrent": 0}, {"max_concurrent": -1}])
async def test_bad_bounds_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="max_concurrent"):
        await arun("e", lambda p: p.add_step("a", len), session=1, **options)


def test_ctrl_c_reaches_trainings_of_blocking_sessions(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    desk = Desk(tokenizer)
    desk.backend.delay_s = 0.002

    def interrupt(row: Mapping[str, Any]) -> None:
        if row["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    def define(plan: Plan) -> None:
        options = {"max_steps": 500, "batch_size": 4, "checkpoint_every": 1000}
        register_training_step(plan, on_step_end=interrupt, **options)

    with ct.TinkexAdapter(desk.connect, tokenizer=tokenizer) as adapter:

        def sessions(condition: str, seed: int, params: Mapping[str, Any]) -> Any:
            return adapter.start_session(adapter.create_experiment(name="e", config=CONFIG))

        with pytest.raises(KeyboardInterrupt):
            run("e", define, sessions=sessions, dataset=ROWS, folder=tmp_path)
    saved = json.loads((tmp_path / "cells" / "default-0.json").read_text())["steps"]
    assert 4 <= saved["tinkex_training"]["progress"]["checkpoints"][-1]["step"] < 100
    assert len(desk.backend.ends) == 1
