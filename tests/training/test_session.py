"""One trial's loop on the fake service: order, milestones, rungs, resume, checkpoints, spend."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from trial_bench import DATA, STEPS, Bench, make_plan

from crucible_tinkex.client.http.watch import ACTIVE, QueueState, RequestRecord
from crucible_tinkex.datasets import batch_indices
from crucible_tinkex.errors import (
    AuthenticationError,
    OperationFailedError,
    RequestRejectedError,
    ServiceUnavailableError,
    SessionLostError,
)
from crucible_tinkex.metrics import TRAIN_WINDOW_STEPS as WINDOW
from crucible_tinkex.registry import DONE, FAILED, PENDING, CheckpointRecord
from crucible_tinkex.testing import FakeBackend, batch_digest
from crucible_tinkex.testing.clock import run_virtual
from crucible_tinkex.testing.fake_model import FakeWeights
from crucible_tinkex.training.attempt.measurements import public
from crucible_tinkex.training.host import HELD_S
from crucible_tinkex.training.outcome import Verdict
from crucible_tinkex.training.recipes.datums import datum


async def test_a_whole_trial() -> None:
    bench = Bench(checkpoint_every=4, eval_every=5)
    await bench.run()
    assert [c.step for c in bench.trial.checkpoints] == [4, 8, 10]
    assert bench.trial.state == DONE
    assert sorted(bench.sink.curve("train/nll")) == list(range(1, STEPS + 1))
    assert sorted(bench.sink.curve("eval/nll")) == sorted(bench.trial.results) == [5, 10]
    assert bench.trial.results[10]["eval/nll"] == bench.sink.curve("eval/nll")[10]
    assert bench.trial.results[10]["eval/nll"] < bench.trial.results[5]["eval/nll"] < 5.5
    assert bench.backend.ends == ["success"]
    assert bench.sink.durable == len(bench.sink.events)


@pytest.mark.parametrize("ahead", [0, 1, 3])
async def test_steps_are_submitted_ahead_and_in_order(ahead: int) -> None:
    bench = Bench(checkpoint_every=0, submit_ahead=ahead)
    await bench.run()
    training = [c for c in bench.backend.calls if c in ("forward_backward", "optim_step")]
    assert training == ["forward_backward", "optim_step"] * STEPS
    assert bench.backend.most_in_flight["forward_backward"] == ahead + 1
    assert bench.backend.most_in_flight["optim_step"] == ahead + 1


async def test_every_step_is_applied_once_on_the_rows_of_its_number() -> None:
    bench = Bench(checkpoint_every=4)
    await bench.run()
    rows = [batch_indices(20, seed=0, step=k, batch_size=4) for k in range(1, STEPS + 1)]
    expected = [batch_digest([datum(DATA.train, i) for i in step]) for step in rows]
    ledger = bench.backend.ledger
    assert [e.batch for e in ledger if e.operation == "forward_backward"] == expected
    seqs = [e.seq for e in ledger if e.operation != "sample"]
    assert sorted(seqs) == list(range(1, len(seqs) + 1))
    assert sum(e.operation == "optim_step" for e in ledger) == STEPS


@pytest.mark.parametrize("ahead", [0, 1, 3])
async def test_submitting_ahead_changes_no_number(ahead: int) -> None:
    bench, other = Bench(submit_ahead=ahead), Bench(submit_ahead=2)
    await bench.run()
    await other.run()
    assert bench.trial.results == other.trial.results


@pytest.mark.parametrize("rungs", [(3, 10), (1, 2, 7, 10), (5, 5, 4, 10), (10, 10)])
async def test_rungs_change_no_number_and_end_in_a_checkpoint(rungs: tuple[int, ...]) -> None:
    whole = Bench(checkpoint_every=4)
    await whole.run()
    bench = Bench(checkpoint_every=4)
    host = bench.host()
    for rung in rungs:
        if bench.trial.state == DONE:
            break
        outcome = await host.advance(bench.plan, rung)
        assert outcome.progress is not None
        step = outcome.progress.step
        assert outcome.progress.metrics == bench.trial.results[step]
        assert bench.trial.checkpoints[-1].step == step
        assert public(bench.trial.checkpoints[-1].metrics) == bench.trial.results[step]
    assert bench.trial.state == DONE
    assert bench.trial.results[10] == whole.trial.results[10]
    assert bench.sink.curve("train/nll") == whole.sink.curve("train/nll")
    assert bench.trial.attempt == 1


@pytest.mark.parametrize("lost_at", range(1, STEPS + 1))
async def test_a_lost_session_resumes_to_the_same_numbers(lost_at: int) -> None:
    whole = Bench(checkpoint_every=4, eval_every=5)
    await whole.run()
    failures = [("optim_step", lost_at, SessionLostError("gone"))]
    bench = Bench(checkpoint_every=4, eval_every=5, failures=failures)
    lost = await bench.run()
    assert (lost.verdict, type(lost.error)) == (Verdict.RETRY, SessionLostError)
    assert (bench.trial.state, bench.trial.error) == (PENDING, str(lost.error))
    await bench.run()
    assert bench.trial.attempt == 2
    assert bench.trial.results == whole.trial.results
    for name in ("train/nll", "eval/nll", "eval/accuracy"):
        assert bench.sink.curve(name) == whole.sink.curve(name)


async def test_the_recorded_loss_is_the_mean_over_the_last_steps() -> None:
    bench = Bench(checkpoint_every=0)
    bench.plan = make_plan(checkpoint_every=0, eval_every=2, max_steps=30)
    object.__setattr__(bench.plan, "total_steps", 30)
    await bench.run()
    raw = bench.sink.curve("train/nll")
    for step, metrics in bench.trial.results.items():
        last = [raw[k] for k in range(max(1, step - WINDOW + 1), step + 1)]
        assert metrics["train/nll"] == pytest.approx(sum(last) / len(last))


@pytest.mark.parametrize("rung", range(1, STEPS))
async def test_another_host_goes_on_from_the_checkpoint_with_the_same_means(rung: int) -> None:
    whole = Bench(checkpoint_every=0)
    await whole.run()
    bench = Bench(checkpoint_every=0)
    first = bench.host()
    await first.advance(bench.plan, rung)
    await first.aclose()
    again = await bench.host().advance(bench.plan, rung)
    assert again.progress is not None
    assert again.progress.metrics == bench.trial.results[rung]
    assert bench.registry.calls.count("result") == 1
    await bench.run()
    assert bench.trial.results[10] == whole.trial.results[10]
    assert bench.sink.curve("train/nll") == whole.sink.curve("train/nll")


async def test_an_advance_that_was_reached_before_does_nothing() -> None:
    bench = Bench()
    host = bench.host()
    first = await host.advance(bench.plan, 5)
    calls, asked = list(bench.backend.calls), list(bench.registry.calls)
    for rung in (5, 3, 0):
        assert await host.advance(bench.plan, rung) == first
    assert (bench.backend.calls, bench.registry.calls) == (calls, asked)


async def test_a_finished_trial_that_was_not_told_so_trains_nothing_more() -> None:
    bench = Bench()
    bench.registry.fail("finish", ServiceUnavailableError("away"))
    assert (await bench.run()).verdict is Verdict.RETRY
    before = bench.backend.calls.count("optim_step")
    await bench.run()
    assert bench.backend.calls.count("optim_step") == before
    assert bench.trial.state == DONE


# --- checkpoints ---------------------------------------------------------------------------------


async def test_a_checkpoint_is_announced_saved_made_durable_and_committed() -> None:
    bench = Bench(checkpoint_every=3)
    order: list[tuple[str, str]] = []

    def watch(call: str, subject: str) -> None:
        saved = {path.rsplit("/", 1)[1] for path in bench.backend.checkpoints}
        name = subject.rsplit("/", 1)[-1]
        assert (name in saved) is (call == "commit")
        assert call == "intend" or bench.sink.durable == len(bench.sink.events)
        order.append((call, name[-2:]))

    bench.registry.watch = watch
    await bench.run()
    steps = ["03", "06", "09", "10", "er"]  # the last one for sampling
    assert order == [(call, step) for step in steps for call in ("intend", "commit")]


@pytest.mark.parametrize("trouble", ["forget", "damage"])
@pytest.mark.parametrize("count", [1, 2, 3])
async def test_a_checkpoint_that_cannot_be_loaded_costs_only_its_steps(
    trouble: str, count: int
) -> None:
    whole = Bench(checkpoint_every=2)
    await whole.run()
    bench = Bench(checkpoint_every=2, failures=[("optim_step", 8, SessionLostError("gone"))])
    await bench.run()
    paths = [c.path for c in reversed(bench.trial.checkpoints)]
    for path in paths[:count]:
        getattr(bench.backend, trouble)(path)
    assert (await bench.run()).verdict is Verdict.ADVANCED
    assert bench.trial.state == DONE
    assert list(bench.trial.lost) == paths[:count]
    assert bench.sink.of_kind("session_start")[1]["extra"]["resumed_step"] == 6 - 2 * count
    assert bench.trial.results == whole.trial.results
    assert bench.sink.curve("train/nll") == whole.sink.curve("train/nll")


@pytest.mark.parametrize(
    "error",
    [
        *(RequestRejectedError("no", status=s, category="user") for s in (400, 404, 409, 410, 422)),
        OperationFailedError("no such weights", category="user"),
        SessionLostError("expired", status=410),
    ],
)
async def test_refusals_of_a_checkpoint_fall_back(error: Exception) -> None:
    bench = Bench(checkpoint_every=2, failures=[("optim_step", 8, SessionLostError("gone"))])
    await bench.run()
    bench.backend.fail("create_training_from_state", error)
    assert (await bench.run()).verdict is Verdict.ADVANCED
    assert list(bench.trial.lost.values()) == [str(error)]


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (ServiceUnavailableError("away"), Verdict.RETRY),
        (RequestRejectedError("oops", status=507, category="server"), Verdict.RETRY),
        (AuthenticationError("who are you"), Verdict.STOP),
    ],
)
async def test_other_errors_say_nothing_of_the_checkpoint(
    error: Exception, verdict: Verdict
) -> None:
    bench = Bench(checkpoint_every=2, failures=[("optim_step", 8, SessionLostError("gone"))])
    await bench.run()
    bench.backend.fail("create_training_from_state", error)
    assert (await bench.run()).verdict is verdict
    assert not bench.trial.lost
    assert bench.trial.state == PENDING


async def test_no_checkpoint_is_lost_where_nothing_can_be_opened() -> None:
    bench = Bench(checkpoint_every=2, failures=[("optim_step", 8, SessionLostError("gone"))])
    await bench.run()
    kept = list(bench.trial.checkpoints)
    for nth in range(1, len(kept) + 1):
        full = OperationFailedError("out of memory", category="server")
        bench.backend.fail("create_training_from_state", full, nth=nth)
    bench.backend.fail("create_training", OperationFailedError("out of memory", category="server"))
    assert (await bench.run()).verdict is Verdict.RETRY
    assert (bench.trial.checkpoints, bench.trial.lost) == (kept, {})
    assert (await bench.run()).verdict is Verdict.ADVANCED


async def test_a_checkpoint_of_an_older_version_can_be_resumed() -> None:
    bench = Bench(checkpoint_every=4, failures=[("optim_step", 6, SessionLostError("gone"))])
    await bench.run()
    old = bench.trial.checkpoints.pop()
    plain = CheckpointRecord(old.trial_id, old.attempt, old.step, old.path, {"eval/nll": 1.0})
    bench.trial.checkpoints.append(plain)
    await bench.run()
    assert bench.trial.state == DONE
    assert bench.sink.of_kind("session_start")[1]["extra"]["resumed_step"] == 4


# --- drain ---------------------------------------------------------------------------------------


async def test_drain_saves_where_it_stands_and_resumes_there() -> None:
    bench = Bench(checkpoint_every=0)
    bench.backend.delay_s = 0.001
    host = bench.host()
    training = asyncio.create_task(host.advance(bench.plan, STEPS))
    while len(bench.sink.curve("train/nll")) < 3:
        await asyncio.sleep(0)
    host.drain()
    outcome = await training
    assert outcome.verdict is Verdict.DRAINED
    assert outcome.progress is not None and outcome.progress.drained
    assert 3 <= outcome.progress.step < STEPS
    assert bench.trial.checkpoints[-1].step == outcome.progress.step
    assert bench.trial.state == PENDING
    assert bench.backend.ends == ["interrupted"]
    await bench.run()
    assert sorted(bench.sink.curve("train/nll")) == list(range(1, STEPS + 1))


async def test_a_drained_evaluation_is_made_up_for() -> None:
    whole = Bench(eval_every=4, checkpoint_every=0)
    await whole.run()
    bench = Bench(eval_every=4, checkpoint_every=0)
    bench.backend.delays = {"forward": 0.05}
    host = bench.host()
    training = asyncio.create_task(host.advance(bench.plan, STEPS))
    while not bench.backend.in_flight["forward"]:
        await asyncio.sleep(0)
    host.drain()
    outcome = await asyncio.wait_for(training, 5)
    assert outcome.verdict is Verdict.DRAINED
    assert (bench.trial.checkpoints[-1].step, bench.trial.results) == (4, {})
    bench.backend.delays = {}
    await bench.run()
    assert bench.trial.results == whole.trial.results


def test_a_drain_does_not_wait_for_a_service_that_waits() -> None:
    async def waits() -> float:
        bench = Bench(checkpoint_every=2)
        host = bench.host(drain_s=500.0)
        await host.advance(bench.plan, 2)
        bench.backend.hold("rate limit")
        training = asyncio.create_task(host.advance(bench.plan, STEPS))
        await asyncio.sleep(1000.0)
        host.drain()
        outcome = await training
        assert outcome.verdict is Verdict.DRAINED
        assert outcome.progress is not None and outcome.progress.step == 2
        assert bench.trial.state == PENDING
        bench.backend.let_go()
        await bench.run()
        assert bench.trial.state == DONE
        return asyncio.get_running_loop().time()

    assert run_virtual(waits()) == 1000.0 + HELD_S


def test_a_drain_waits_for_a_step_but_not_for_ever() -> None:
    async def waits(step_s: float) -> tuple[int, float]:
        bench = Bench(checkpoint_every=0, submit_ahead=0)
        bench.backend.delays = {"forward_backward": step_s}
        host = bench.host(drain_s=30.0)
        training = asyncio.create_task(host.advance(bench.plan, STEPS))
        await asyncio.sleep(2.5 * step_s)
        host.drain()
        outcome = await training
        assert outcome.verdict is Verdict.DRAINED
        assert bench.trial.state == PENDING
        saved = bench.trial.checkpoints[-1].step if bench.trial.checkpoints else 0
        return saved, asyncio.get_running_loop().time()

    assert run_virtual(waits(20.0)) == (3, 60.0)
    assert run_virtual(waits(200.0)) == (0, 530.0)


async def test_a_drain_ends_the_opening_and_begins_nothing() -> None:
    bench = Bench()
    bench.backend.hold("no capacity")
    host = bench.host()
    opening = asyncio.create_task(host.advance(bench.plan, STEPS))
    while not bench.sink.of_kind("queue_state"):
        await asyncio.sleep(0)
    host.drain()
    assert (await asyncio.wait_for(opening, 5)).verdict is Verdict.DRAINED
    assert (bench.trial.attempt, bench.trial.state) == (1, PENDING)
    assert (await host.advance(bench.plan, STEPS)).verdict is Verdict.DRAINED
    assert bench.trial.attempt == 1
    assert bench.backend.calls == []


# --- the rest ------------------------------------------------------------------------------------


async def test_a_nan_loss_fails_the_trial_with_advice() -> None:
    bench = Bench()
    host = bench.host()
    await host.advance(bench.plan, 1)
    training: Any = host._sessions[bench.plan.trial_id]._client
    object.__setattr__(training._client.weights, "excess", float("nan"))
    outcome = await host.advance(bench.plan, STEPS)
    assert outcome.verdict is Verdict.FAILED
    assert "nan at step 2; try a lower learning rate" in str(outcome.error)
    assert (bench.trial.state, bench.trial.error) == (FAILED, str(outcome.error))
    assert bench.backend.ends == ["errored"]


async def test_an_older_attempt_is_fenced() -> None:
    bench = Bench()
    old = bench.host()
    await old.advance(bench.plan, 1)
    await bench.run()
    outcome = await old.advance(bench.plan, STEPS)
    assert outcome.verdict is Verdict.RETRY
    assert "was replaced by 2" in str(outcome.error)
    assert bench.trial.checkpoints[-1].attempt == 2
    assert (bench.trial.state, set(bench.trial.spent)) == (DONE, {1, 2})


async def test_the_reference_is_evaluated_and_never_trained() -> None:
    bench = Bench(reference=True)
    outcome = await bench.run()
    assert outcome.progress is not None
    assert outcome.progress.metrics["eval/nll"] == pytest.approx(5.576, abs=1e-3)
    assert "train/nll" not in outcome.progress.metrics
    assert not {"optim_step", "save_state"} & set(bench.backend.calls)
    assert bench.trial.state == DONE


async def test_what_an_attempt_spends_is_what_the_service_did() -> None:
    bench = Bench(checkpoint_every=4, eval_every=5)
    await bench.run()
    ledger = bench.backend.ledger
    spent = bench.trial.spent[1]
    trained = sum(e.tokens for e in ledger if e.operation == "forward_backward")
    read = sum(e.tokens for e in ledger if e.operation in ("forward", "sample"))
    sampled = sum(e.sampled for e in ledger)
    assert (spent.train_tokens, spent.prefill_tokens, spent.sample_tokens) == (
        trained,
        read,
        sampled,
    )
    assert trained == STEPS * 4 * 6
    assert sampled > 0
    assert spent.seconds > 0


async def test_a_lost_attempt_spends_too() -> None:
    bench = Bench(checkpoint_every=4, failures=[("optim_step", 7, SessionLostError("gone"))])
    await bench.run()
    await bench.run()
    ledger = [e for e in bench.backend.ledger if e.operation == "forward_backward"]
    spent = sum(s.train_tokens for s in bench.trial.spent.values())
    done = sum(e.tokens for e in ledger)
    assert done <= spent <= done + 2 * 4 * 6  # the steps that were ahead


async def test_waits_and_troubled_requests_become_events() -> None:
    bench = Bench()
    await bench.run()
    quiet = RequestRecord("optim_step", "optim_step", 0.1, 0.0, 1, 200, None)
    bench.observer.on_request(quiet)
    assert not [e for e in bench.sink.events if e["kind"] in ("request", "queue_state")]
    bench.observer.on_request(quiet._replace(attempts=3, duration_s=4.5, queued_s=2.0))
    bench.observer.on_queue_state(QueueState("paused_capacity", "full"))
    bench.observer.on_queue_state(ACTIVE)
    request, paused, active = bench.sink.events[-3:]
    assert (request["kind"], request["name"]) == ("request", "request/optim_step")
    assert request["value"] == 4.5
    assert request["extra"]["attempts"] == 3
    assert (paused["kind"], paused["name"]) == ("queue_state", "paused_capacity")
    assert paused["extra"] == {"reason": "full", "resume_at": None}
    assert (paused["trial_id"], paused["attempt"], paused["step"]) == (bench.plan.trial_id, 1, 10)
    assert active["name"] == "active"


class Forgetful(FakeBackend):
    """Keeps only the first checkpoint of all, whatever is saved later, and says nothing."""

    def load(self, path: str) -> FakeWeights:
        return super().load(next(iter(self.checkpoints)))


async def test_other_weights_than_were_saved_stop_the_trial() -> None:
    gone = [("optim_step", 8, SessionLostError("gone"))]
    bench = Bench(backend=Forgetful, checkpoint_every=2, failures=gone)
    assert (await bench.run()).verdict is Verdict.RETRY
    outcome = await bench.run()
    assert outcome.verdict is Verdict.FAILED
    newest = bench.trial.checkpoints[-1]
    assert f"the service loaded other weights than were saved as {newest.path}" in str(
        outcome.error
    )
    assert "run.verify_resume = false" in str(outcome.error)
    assert bench.trial.checkpoints[-1] == newest  # nothing was taken for lost


async def test_verification_can_be_turned_off() -> None:
    run = {"verify_resume": False}
    bench = Bench(run=run, checkpoint_every=2)
    await bench.run()
    assert {c.fingerprint for c in bench.trial.checkpoints} == {None}
    forwards = [e for e in bench.backend.ledger if e.operation == "forward"]
    whole = Bench(checkpoint_every=2)
    await whole.run()
    checked = [e for e in whole.backend.ledger if e.operation == "forward"]
    assert len(checked) == len(forwards) + len(bench.trial.checkpoints)
