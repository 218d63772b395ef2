"""Spans and metrics of a sweep's attempts, on the fake service."""

from __future__ import annotations

from spans import Collector
from trial_bench import STEPS, Bench

from crucible_tinkex.client.http.watch import ACTIVE, QueueState, RequestRecord
from crucible_tinkex.errors import SessionLostError
from crucible_tinkex.training.outcome import Verdict

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_an_attempt_is_a_span_of_the_sweep_with_its_operations_below() -> None:
    bench, collector = Bench(checkpoint_every=4, eval_every=5), Collector()
    host = bench.host(handlers={"otel": collector.made(PARENT)})
    await host.advance(bench.plan, STEPS)
    (trial,) = collector.spans("trial")
    assert f"{trial.parent.span_id:016x}" in PARENT
    assert {f"{s.context.trace_id:032x}" for s in collector.all()} == {PARENT.split("-")[1]}
    families = collector.families()
    assert families["forward_backward", "trial"] == families["optim_step", "trial"] == STEPS
    assert families["save_weights", "trial"] == len(bench.trial.checkpoints) + 1  # for sampling
    assert families["forward", "trial"] > 0 and trial.status.is_unset
    about = dict(trial.attributes)
    assert (about["trial_id"], about["attempt"]) == (bench.plan.trial_id, 1)
    assert (about["status"], about["seed"], about["step"]) == ("done", 0, STEPS)
    points = [event.name for event in trial.events]
    assert points.count("evaluation_complete") == 2
    assert points.count("checkpoint_saved") == len(bench.trial.checkpoints)


async def test_metrics_count_what_was_done_once() -> None:
    bench, collector = Bench(checkpoint_every=5, eval_every=0), Collector()
    host = bench.host(handlers={"otel": collector.made(PARENT)})
    await host.advance(bench.plan, STEPS)
    assert collector.total("crucible.steps", experiment_id="s") == STEPS
    spent = bench.trial.spent[1]
    assert collector.total("crucible.tokens", operation="forward_backward") == spent.train_tokens
    assert collector.total("crucible.checkpoints") == len(bench.trial.checkpoints)
    (seconds,) = collector.points("crucible.step.duration")
    assert seconds.count == STEPS
    assert collector.total("crucible.sessions") == 0
    assert collector.points("crucible.evaluation") == []  # it has no trial
    assert not any("trial_id" in p.attributes for p in collector.points("crucible.events"))


async def test_waits_and_repeats_of_the_service_are_counted() -> None:
    bench, collector = Bench(), Collector()
    host = bench.host(handlers={"otel": collector.made(PARENT)})
    await host.advance(bench.plan, 2)
    bench.observer.on_request(RequestRecord("optim_step", "p", 2.0, 0.5, 3, 200, None))
    bench.observer.on_request(RequestRecord("optim_step", "p", 0.1, 0.0, 1, 200, None))
    bench.observer.on_queue_state(QueueState("paused_capacity", "full"))
    bench.observer.on_queue_state(ACTIVE)
    await host.release(bench.plan.trial_id, "paused", "later")
    assert collector.total("crucible.http.retries", operation="optim_step") == 2
    assert collector.total("crucible.http.wait", operation="optim_step") == 0.5
    assert collector.total("crucible.queue.pauses", state="paused_capacity") == 1
    assert collector.families()["http_request", "trial"] == 1  # of the one that had trouble
    assert bench.sink.of_kind("queue_state")  # and the log has it too


async def test_what_fails_is_a_failed_span_and_the_next_attempt_another() -> None:
    bench = Bench(failures=[("optim_step", 3, SessionLostError("gone"))])
    collector = Collector()
    host = bench.host(handlers={"otel": collector.made(PARENT)})
    assert (await host.advance(bench.plan, STEPS)).verdict is Verdict.RETRY
    assert (await host.advance(bench.plan, STEPS)).verdict is Verdict.ADVANCED
    first, second = collector.spans("trial")
    assert not first.status.is_ok and "gone" in first.status.description
    assert [s.attributes["attempt"] for s in (first, second)] == [1, 2]
    assert second.attributes["status"] == "done"
    failed = [s for s in collector.all() if s.name != "trial" and not s.status.is_unset]
    assert failed and {s.parent.span_id for s in failed if s.parent} == {first.context.span_id}
    assert {s.status.description for s in failed} == {"gone"}
    assert collector.total("crucible.sessions") == 0


async def test_a_load_is_an_operation_and_one_that_is_refused_a_failed_one() -> None:
    bench, collector = Bench(checkpoint_every=4), Collector()
    first = bench.host()
    await first.advance(bench.plan, 8)
    await first.aclose()
    lost = bench.trial.checkpoints[-1].path
    bench.backend.damage(lost)
    host = bench.host(handlers={"otel": collector.made(PARENT)})
    await host.advance(bench.plan, STEPS)
    refused, taken = collector.spans("load_weights")
    assert refused.attributes["path"] == lost and not refused.status.is_ok
    assert taken.attributes["path"] != lost and taken.status.is_unset


async def test_a_host_that_is_closed_ends_its_spans() -> None:
    bench, collector = Bench(), Collector()
    host = bench.host(handlers={"otel": collector.made(PARENT)})
    await host.advance(bench.plan, 4)
    assert collector.spans("trial") == []
    await host.aclose()
    (trial,) = collector.spans("trial")
    assert trial.attributes["status"] == "pending"


async def test_a_handler_that_raises_costs_nothing() -> None:
    def broken(event: object) -> None:
        raise RuntimeError("mine")

    plain, told = Bench(checkpoint_every=4), Bench(checkpoint_every=4)
    await plain.run()
    outcome = await told.host(handlers={"mine": broken}).advance(told.plan, STEPS)
    assert outcome.verdict is Verdict.ADVANCED
    assert told.sink.curve("train/nll") == plain.sink.curve("train/nll")
    assert told.backend.calls == plain.backend.calls
