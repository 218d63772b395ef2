"""Sessions of one sweep in one process: many at once, release, errors as values, the way out."""

from __future__ import annotations

import asyncio
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest
from trial_bench import STEPS, Bench, make_plan

from crucible_tinkex.client.interface import EndReason, TrainingClient
from crucible_tinkex.errors import (
    AuthenticationError,
    ConfigError,
    OperationFailedError,
    StorageError,
)
from crucible_tinkex.protocol.wire import ForwardBackwardOutput
from crucible_tinkex.registry import DONE, FAILED, PAUSED, PENDING, RUNNING, STOPPED, Spent
from crucible_tinkex.testing import FakeService
from crucible_tinkex.training.data import SweepData
from crucible_tinkex.training.outcome import Verdict
from crucible_tinkex.training.plan import TrialPlan
from crucible_tinkex.training.recipes.recipe import Evaluation, Tell, Update
from crucible_tinkex.training.recipes.sft import SupervisedRecipe


async def test_trials_beside_each_other_have_the_numbers_that_they_have_alone() -> None:
    together, plans = Bench(), [make_plan(seed=s, index=s) for s in range(6)]
    host = together.host()
    outcomes = await asyncio.gather(*(host.advance(p, STEPS) for p in plans))
    assert {o.verdict for o in outcomes} == {Verdict.ADVANCED}
    results = [together.registry.trial(p.trial_id).results for p in plans]
    for plan, result in zip(plans, results, strict=True):
        alone = Bench()
        alone.plan = plan
        await alone.run()
        assert alone.trial.results == result
    assert len({r[STEPS]["eval/nll"] for r in results}) == 6
    assert together.backend.ends == ["success"] * 6


@pytest.mark.parametrize(
    ("state", "end"), [(PAUSED, "interrupted"), (STOPPED, "success"), (PENDING, "interrupted")]
)
async def test_a_parked_session_is_released_and_goes_on_later(state: str, end: str) -> None:
    bench = Bench()
    host = bench.host()
    outcome = await host.advance(bench.plan, 4)
    assert (outcome.verdict, bench.trial.state, bench.backend.ends) == (
        Verdict.ADVANCED,
        RUNNING,
        [],
    )
    await host.release(bench.plan.trial_id, state, "a rule")
    assert (bench.trial.state, bench.trial.error) == (state, "a rule")
    assert bench.backend.ends == [end]
    await host.release(bench.plan.trial_id, state, None)  # nothing to release any more
    await host.release("unknown", state, None)
    whole = Bench()
    await whole.run()
    assert (await host.advance(bench.plan, STEPS)).verdict is Verdict.ADVANCED
    assert bench.trial.results[STEPS] == whole.trial.results[STEPS]
    assert (bench.trial.state, bench.trial.attempt) == (DONE, 2)


async def test_leaving_keeps_the_registry_as_it_is() -> None:
    bench = Bench()
    host = bench.host()
    await host.advance(bench.plan, 4)
    bench.sink.durable = 0
    await host.aclose()
    await host.aclose()
    assert bench.backend.ends == ["interrupted"]
    assert bench.trial.state == RUNNING
    assert bench.sink.durable == len(bench.sink.events)


async def test_leaving_while_a_session_closes_does_not_fail_its_trial() -> None:
    """The registry calls a trial done before its session has left the service."""
    bench = Bench()
    host = bench.host(connect=lambda observer: LateService(bench.backend, observer=observer))
    advancing = asyncio.ensure_future(host.advance(bench.plan, STEPS))
    while bench.trial.state != DONE:
        await asyncio.sleep(0)
    await host.aclose()
    assert (await advancing).verdict is Verdict.ADVANCED
    assert (bench.trial.state, bench.trial.attempt) == (DONE, 1)


class LateService(FakeService):
    """Takes its time to say goodbye."""

    async def close(self, *, reason: EndReason = "success", detail: str | None = None) -> None:
        await asyncio.sleep(0.01)
        await super().close(reason=reason, detail=detail)


async def test_drain_leaves_parked_sessions_to_the_caller() -> None:
    bench = Bench()
    host = bench.host()
    await host.advance(bench.plan, 4)
    host.drain()
    await asyncio.sleep(0)
    assert bench.backend.ends == []
    await host.release(bench.plan.trial_id, PENDING, None)
    assert bench.trial.state == PENDING


async def test_a_parked_session_that_is_sent_further_while_draining_is_closed() -> None:
    bench = Bench()
    host = bench.host()
    await host.advance(bench.plan, 4)
    host.drain()
    outcome = await host.advance(bench.plan, STEPS)
    assert outcome.verdict is Verdict.DRAINED
    assert outcome.progress is not None and outcome.progress.step == 4
    assert bench.trial.state == PENDING


async def test_the_services_full_disk_is_not_the_trials_fault() -> None:
    bench = Bench()
    full = OperationFailedError("StorageError: cannot use /x: No space left", category="server")
    bench.backend.fail("save_state", full)
    outcome = await bench.run()
    assert outcome.verdict is Verdict.RETRY
    assert bench.trial.state == PENDING
    assert (await bench.run()).verdict is Verdict.ADVANCED
    assert bench.trial.state == DONE


async def test_an_error_names_sweep_trial_and_step() -> None:
    bench = Bench(failures=[("forward_backward", 3, OperationFailedError("no", category="user"))])
    outcome = await bench.run()
    assert outcome.verdict is Verdict.FAILED
    assert outcome.error is not None
    assert outcome.error.context == {"sweep": "s", "trial": "run-0-0", "step": 3}
    assert (bench.trial.state, bench.trial.error) == (FAILED, str(outcome.error))


class Surprise(SupervisedRecipe):
    """A recipe with a fault of its own."""

    async def update(self, step: int, client: TrainingClient) -> Update:
        if step == 3:
            raise ZeroDivisionError("a bug")
        return await super().update(step, client)


async def test_what_nobody_foresaw_fails_one_trial(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    host = bench.host(recipe=Surprise)
    outcome = await host.advance(bench.plan, STEPS)
    assert outcome.verdict is Verdict.FAILED
    assert "unexpected ZeroDivisionError: a bug" in str(outcome.error)
    assert bench.trial.state == FAILED
    assert "Traceback" in caplog.text
    assert (await bench.host().advance(make_plan(seed=1), STEPS)).verdict is Verdict.ADVANCED


class Leaving(SupervisedRecipe):
    """A recipe that ends the process, as scripts do, or never comes back."""

    async def update(self, step: int, client: TrainingClient) -> Update:
        if step == 3 and self._plan.seed == 1:
            sys.exit(3)
        if step == 3 and self._plan.seed == 2:
            await asyncio.Event().wait()
        return await super().update(step, client)


async def test_code_that_exits_or_hangs_harms_only_its_trial() -> None:
    bench = Bench()
    host = bench.host(recipe=Leaving)
    plans = [make_plan(seed=s, index=s) for s in range(3)]
    hangs = asyncio.ensure_future(host.advance(plans[2], STEPS))
    fine, exits = await asyncio.gather(*(host.advance(p, STEPS) for p in plans[:2]))
    assert fine.verdict is Verdict.ADVANCED
    assert exits.verdict is Verdict.FAILED and "unexpected SystemExit: 3" in str(exits.error)
    assert not hangs.done()
    host.drain(plans[2].trial_id)
    assert (await hangs).verdict is Verdict.DRAINED


@pytest.mark.parametrize("asked", ["all", "one", "leave"])
async def test_a_drain_is_heard_while_users_code_makes_a_recipe(asked: str) -> None:
    """Its session is not there yet, and must not begin to train afterwards."""
    begun, may_end = threading.Event(), threading.Event()

    def slow(plan: TrialPlan, data: SweepData) -> SupervisedRecipe:
        begun.set()
        may_end.wait(10)
        return SupervisedRecipe(replace(plan, code={}), data)

    bench = Bench()
    host = bench.host(recipe=slow)
    advancing = asyncio.ensure_future(host.advance(replace(bench.plan, code={"m:f": "x"}), STEPS))
    await asyncio.to_thread(begun.wait, 10)
    if asked == "leave":
        await host.aclose()
    else:
        host.drain(None if asked == "all" else bench.plan.trial_id)
    may_end.set()
    assert (await advancing).verdict is Verdict.DRAINED
    assert "forward_backward" not in bench.backend.calls


async def test_a_recipe_that_exits_while_it_is_made_fails_its_trial() -> None:
    def exits(plan: TrialPlan, data: SweepData) -> SupervisedRecipe:
        sys.exit("not here")

    bench = Bench()
    outcome = await bench.host(recipe=exits).advance(bench.plan, STEPS)
    assert outcome.verdict is Verdict.FAILED and bench.trial.state == FAILED


@pytest.mark.parametrize(
    ("error", "verdict"),
    [(AuthenticationError("no key"), Verdict.STOP), (ConfigError("bad address"), Verdict.FAILED)],
)
async def test_a_service_that_cannot_be_made(error: Exception, verdict: Verdict) -> None:
    bench = Bench()

    def refuse(observer: Any) -> Any:
        raise error

    outcome = await bench.host(connect=refuse).advance(bench.plan, STEPS)
    assert (outcome.verdict, outcome.error) == (verdict, error)
    failed = verdict is Verdict.FAILED
    assert (bench.trial.attempt, bench.trial.state) == ((1, FAILED) if failed else (0, PENDING))


async def test_a_trial_that_fails_before_its_attempt_is_told_so() -> None:
    bench = Bench()
    bench.registry.fail("start", ConfigError("no such thing"))
    assert (await bench.run()).verdict is Verdict.FAILED
    assert bench.trial.state == FAILED
    assert bench.backend.ends == ["errored"]


async def test_our_own_storage_stops_the_sweep() -> None:
    bench = Bench()
    bench.sink.error = StorageError("no space left")
    outcome = await bench.host().advance(bench.plan, STEPS)
    assert outcome.verdict is Verdict.STOP
    assert bench.trial.checkpoints == []
    assert bench.backend.ends == ["interrupted"]


class Counting:
    """Another recipe: one that measures what it likes, and knows no dataset."""

    def __init__(self, plan: TrialPlan, data: SweepData) -> None:
        self._real = SupervisedRecipe(plan, data)

    async def update(self, step: int, client: TrainingClient) -> Update:
        return await self._real.update(step, client)

    async def measure(self, update: Update, output: ForwardBackwardOutput) -> dict[str, float]:
        return {"rl/reward": float(len(update.batch))}

    async def evaluate(self, client: TrainingClient, tell: Tell) -> Evaluation:
        return Evaluation({"eval/reward": 0.5})

    def evaluation_cost(self) -> Spent:
        return Spent()

    async def fingerprint(self, client: TrainingClient) -> float:
        return 1.0

    def epoch(self, step: int) -> int:
        return 0


async def test_the_session_takes_other_recipes() -> None:
    bench = Bench()
    await bench.host(recipe=Counting).advance(bench.plan, STEPS)
    assert bench.trial.results == {STEPS: {"rl/reward": 4.0, "eval/reward": 0.5}}
    assert bench.trial.state == DONE
