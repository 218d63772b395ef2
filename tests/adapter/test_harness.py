"""Experiments of named steps: conditions, repeats, hooks, and going on where one stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from desk import CONFIG, ROWS, Desk

from crucible_tinkex.datasets import Tokenizer
from crucible_tinkex.errors import ConfigError, CorruptLogError, SessionLostError
from crucible_tinkex.training.adapter import TinkexAdapter, TinkexSession
from crucible_tinkex.training.harness import (
    HarnessResults,
    Hooks,
    Plan,
    StepContext,
    arun,
    register_training_step,
    run,
)


async def test_the_seeds_experiment(desk: Desk) -> None:
    async with desk.session() as session:
        results = await arun(
            session.experiment,
            lambda plan: register_training_step(
                plan, epochs=3, batch_size=4, checkpoint_every=3, loss_fn="cross_entropy"
            ),
            session=session,
            dataset=ROWS,
        )
        assert results.metrics["total_steps"] == 8
        assert [c.step for c in results.checkpoints] == [3, 6, 8]
        assert results.best_checkpoint in session.checkpoints
        assert results.final_metrics["train/nll"] > 0
        assert results.training["trace_id"] == results.trace_id
        assert [row["step"] for row in results.rows] == list(range(1, 9))
    assert desk.names().count("optim_step_stop") == 8


def test_it_runs_through_the_blocking_session(tokenizer: Tokenizer) -> None:
    desk = Desk(tokenizer)
    with TinkexAdapter(desk.connect, tokenizer=tokenizer) as adapter:
        experiment = adapter.create_experiment(name="e", config=CONFIG)
        with adapter.start_session(experiment) as session:

            def steps(plan: Plan) -> None:
                register_training_step(plan, epochs=1, batch_size=5)
                plan.add_step("look", lambda ctx: dict(ctx.session.evaluate(ROWS).metrics))

            results = run(experiment, steps, session=session, dataset=ROWS)
    (cell,) = results.cells
    assert cell.state == "done"
    assert cell.steps["look"]["eval/nll"] > 0


async def test_rows_that_an_earlier_version_saved_are_gone_on_from(
    desk: Desk, tmp_path: Path
) -> None:
    """They have no `weight`."""

    async def trained() -> HarnessResults:
        async with desk.session() as session:
            return await arun(
                session.experiment,
                lambda plan: register_training_step(
                    plan, max_steps=6, batch_size=4, checkpoint_every=3
                ),
                session=session,
                dataset=ROWS,
                folder=tmp_path,
            )

    await trained()
    file = next((tmp_path / "cells").glob("*.json"))
    saved = json.loads(file.read_text())
    step = saved["steps"]["tinkex_training"]
    rows = [{k: v for k, v in row.items() if k != "weight"} for row in step["result"]["rows"]]
    progress = {"rows": rows[:3], "checkpoints": step["result"]["checkpoints"][:1]}
    saved["steps"]["tinkex_training"] = {"state": "open", "progress": progress}
    file.write_text(json.dumps(saved))
    again = await trained()
    assert [row["step"] for row in again.rows] == [1, 2, 3, 4, 5, 6]
    assert again.final_metrics["train/nll"] > 0


async def test_conditions_and_repeats_have_sessions_and_seeds_of_their_own(desk: Desk) -> None:
    async def sessions(condition: str, seed: int, params: Mapping[str, Any]) -> TinkexSession:
        return await desk.session(seed=seed).open()

    results = await arun(
        "e",
        lambda plan: register_training_step(plan, max_steps=3, batch_size=4),
        sessions=sessions,
        dataset=ROWS,
        conditions={"low": {"adam_params": {"lr": 1e-5}}, "good": {"adam_params": {"lr": 1e-3}}},
        repeats=2,
        seed=7,
    )
    assert [(c.condition, c.repeat, c.seed) for c in results.cells] == [
        ("low", 0, 7),
        ("low", 1, 8),
        ("good", 0, 7),
        ("good", 1, 8),
    ]
    final = {c.condition: c.steps["tinkex_training"]["rows"][-1]["loss"] for c in results.cells}
    assert final["good"] < final["low"]
    assert desk.backend.ends == ["success"] * 4
    with pytest.raises(ConfigError, match="4 trainings"):
        _ = results.metrics


# --- hooks and errors ----------------------------------------------------------------------------


class Flaky:
    """Fails so many times."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.calls = 0

    def __call__(self, ctx: StepContext) -> str:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise ValueError("not yet")
        return "found"


def _plan(step: Flaky, last: list[str]) -> Any:
    def define(plan: Plan) -> None:
        plan.add_step("flaky", step)
        plan.add_step("last", lambda ctx: last.append("ran"))

    return define


@pytest.mark.parametrize(
    ("fails", "decision", "state", "calls", "last"),
    [
        (1, "retry", "done", 2, ["ran"]),
        (9, "retry", "aborted", 4, []),
        (1, "skip", "done", 1, ["ran"]),
        (1, "abort", "aborted", 1, []),
    ],
)
async def test_on_error_decides(
    fails: int, decision: Any, state: str, calls: int, last: list[str]
) -> None:
    step, ran = Flaky(fails), list[str]()
    hooks = Hooks(on_error=lambda error, ctx, name: decision)
    results = await arun("e", _plan(step, ran), session=object(), hooks=hooks)
    (cell,) = results.cells
    assert (cell.state, step.calls, ran) == (state, calls, last)
    assert cell.skipped == (("flaky",) if decision == "skip" else ())
    assert (cell.error is None) is (state == "done")
    assert [c.state for c in results.failed] == (["aborted"] if state == "aborted" else [])


async def test_hooks_are_called_around_everything() -> None:
    order: list[str] = []
    hooks = Hooks(
        before_experiment=lambda: order.append("begin"),
        after_experiment=lambda: order.append("end"),
        before_condition=lambda name: order.append(f"> {name}"),
        after_condition=lambda name: order.append(f"< {name}"),
        before=lambda ctx, name: order.append(f"before {name}"),
        after=lambda ctx, name, result: order.append(f"after {name}: {result}"),
    )
    await arun("e", lambda plan: plan.add_step("a", lambda ctx: 1), session=object(), hooks=hooks)
    assert order == ["begin", "> default", "before a", "after a: 1", "< default", "end"]


@pytest.mark.parametrize(
    ("define", "options", "message"),
    [
        (lambda plan: None, {"session": object()}, "no steps"),
        (lambda plan: plan.add_step("a", len), {}, "either session or sessions"),
        (lambda plan: plan.add_step("a", len), {"session": 1, "repeats": 2}, "session each"),
        (lambda plan: plan.add_step("a", len), {"session": 1, "repeats": 0}, "repeats = 0"),
        (lambda plan: plan.add_step("a/b", len), {"session": 1}, "step name"),
        (
            lambda plan: plan.add_step("a", len).add_step("a", len),
            {"session": 1},
            "a step 'a' already",
        ),
        (lambda plan: register_training_step(plan, epoch=3), {"session": 1}, "'epochs'"),
        (register_training_step, {"session": 1}, "give the harness a dataset"),
        (
            register_training_step,
            {"sessions": len, "dataset": ROWS, "conditions": {"a": {}, "b": {"epoch": 3}}},
            "condition 'b': train has no option 'epoch'",
        ),
        (
            register_training_step,
            {"sessions": len, "dataset": ROWS, "conditions": {"a": {"adam_params": {"lr": 0}}}},
            "condition 'a': train: adam_params.learning_rate",
        ),
        (lambda plan: plan.add_step("a", len), {"sessions": len, "conditions": ["a"]}, "by name"),
        (lambda plan: plan.add_step("a", len), {"session": 1, "repeats": "2"}, "whole number"),
    ],
)
async def test_a_plan_that_cannot_run_is_refused(
    define: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        await arun("e", define, **options)


# --- going on ------------------------------------------------------------------------------------


async def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    calls: list[str] = []
    fails = [True]

    def define(plan: Plan) -> None:
        plan.add_step("first", lambda ctx: calls.append("first") or 41)
        plan.add_step("second", second)

    def second(ctx: StepContext) -> int:
        calls.append("second")
        if fails[0]:
            raise ValueError("power cut")
        return int(ctx.results["first"]) + 1

    broken = await arun("e", define, session=object(), folder=tmp_path)
    assert broken.failed
    fails[0] = False
    whole = await arun("e", define, session=object(), folder=tmp_path)
    assert calls == ["first", "second", "second"]
    assert whole.cells[0].steps == {"first": 41, "second": 42}
    assert whole.trace_id == broken.trace_id


@pytest.mark.parametrize("lost_at", [1, 4, 8])
async def test_a_half_done_training_goes_on_from_its_checkpoint(
    tokenizer: Tokenizer, tmp_path: Path, lost_at: int
) -> None:
    def define(plan: Plan) -> None:
        register_training_step(plan, epochs=3, batch_size=4, checkpoint_every=3)

    whole_desk = Desk(tokenizer)
    async with whole_desk.session() as session:
        whole = await arun("e", define, session=session, dataset=ROWS)
    desk = Desk(tokenizer)
    desk.backend.fail("optim_step", SessionLostError("gone"), nth=lost_at)
    async with desk.session() as session:
        broken = await arun("e", define, session=session, dataset=ROWS, folder=tmp_path)
        assert broken.failed
    async with desk.session() as session:
        again = await arun("e", define, session=session, dataset=ROWS, folder=tmp_path)
    assert [r["loss"] for r in again.rows] == [r["loss"] for r in whole.rows]
    assert again.metrics == whole.metrics
    assert [c.step for c in again.checkpoints] == [3, 6, 8]
    stepped = sum(e.operation == "optim_step" for e in desk.backend.ledger)
    assert stepped <= 8 + 3 + 1  # what was not saved, and what had been sent ahead


async def test_a_training_is_retried_in_place(desk: Desk) -> None:
    desk.backend.fail("optim_step", SessionLostError("gone"), nth=5)
    hooks = Hooks(on_error=lambda error, ctx, name: "retry")
    async with desk.session() as session:
        results = await arun(
            "e",
            lambda plan: register_training_step(plan, epochs=3, batch_size=4, checkpoint_every=3),
            session=session,
            dataset=ROWS,
            hooks=hooks,
        )
    assert [row["step"] for row in results.rows] == list(range(1, 9))


async def test_another_experiment_is_not_taken_for_this_one(tmp_path: Path) -> None:
    await arun("e", lambda p: p.add_step("a", lambda c: 1), session=1, folder=tmp_path)
    with pytest.raises(ConfigError, match="other steps"):
        await arun("e", lambda p: p.add_step("b", lambda c: 1), session=1, folder=tmp_path)


async def test_a_damaged_state_is_named_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "harness.json"
    path.write_text("{ half")
    with pytest.raises(CorruptLogError, match="is damaged"):
        await arun("e", lambda p: p.add_step("a", lambda c: 1), session=1, folder=tmp_path)
    assert path.read_text() == "{ half"


async def test_what_json_cannot_hold_aborts_the_cell(tmp_path: Path) -> None:
    results = await arun(
        "e", lambda p: p.add_step("a", lambda c: object()), session=1, folder=tmp_path
    )
    assert "JSON cannot hold" in str(results.cells[0].error)
    path = tmp_path / "harness.json"
    assert not path.exists() or json.loads(path.read_text())
