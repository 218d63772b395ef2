"""Spans and metrics that OpenTelemetry's own SDK gets of the seed's events."""

from __future__ import annotations

import pytest
from desk import ROWS, Desk
from spans import Collector

from crucible_tinkex.protocol.traceparent import active
from crucible_tinkex.telemetry.bridge import Bridge


@pytest.fixture
def collector() -> Collector:
    return Collector()


def test_an_operation_is_a_span_of_its_length_within_its_session(collector: Collector) -> None:
    now = [100.0]
    bridge = Bridge("e1", wall=lambda: now[0])
    bridge.attach("otel", collector.handler)
    bridge.execute("session_start", base_model="nano")
    now[0] = 103.0
    bridge.execute("forward_backward_start", rows=8)
    bridge.execute("forward_backward_stop", {"duration_s": 1.5, "loss:sum": 2.0}, rows=8)
    bridge.execute("session_end", {"step": 1}, status="completed", error=None)
    (session,), (operation,) = collector.spans("session"), collector.spans("forward_backward")
    assert operation.parent.span_id == session.context.span_id
    assert operation.end_time - operation.start_time == 1_500_000_000
    assert (session.start_time, session.end_time) == (100 * 10**9, 103 * 10**9)
    assert operation.attributes["loss:sum"] == 2.0 and operation.attributes["rows"] == 8
    assert session.attributes["experiment_id"] == "e1" and session.status.is_unset
    (point,) = collector.points("crucible.operation.duration")
    assert (point.count, point.sum) == (1, 1.5)
    assert point.attributes == {"operation": "forward_backward", "experiment_id": "e1"}
    assert sum(p.value for p in collector.points("crucible.events")) == 4


def test_after_an_operation_what_was_active_before_it_is_active(collector: Collector) -> None:
    bridge = Bridge("e1")
    bridge.attach("otel", collector.handler)
    with collector.tracers.get_tracer("mine").start_as_current_span("mine"):
        before = active()
        bridge.execute("sample_start")
        assert active() != before
        bridge.execute("sample_stop", {"duration_s": 0.1})
        assert active() == before is not None


def test_what_failed_says_why(collector: Collector) -> None:
    bridge = Bridge("e1")
    bridge.attach("otel", collector.handler)
    bridge.execute("optim_step_exception", {"duration_s": 0.1}, error="gone", error_type="network")
    bridge.execute("session_end", status="failed", error="gone")  # it never began
    (span,) = collector.spans("optim_step")
    assert not span.status.is_ok and span.status.description == "gone"
    assert collector.points("crucible.operation.duration")[0].attributes["error_type"] == "network"
    assert collector.spans("session") == [] and bridge.faults == {}


async def test_a_training_is_told_whole(collector: Collector, desk: Desk) -> None:
    desk.adapter.attach("otel", collector.handler)
    async with desk.session() as session:
        await session.train(ROWS, batch_size=5, eval_dataset=ROWS[:2])
        assert session.bridge.faults == {}
    for operation, count in (("forward_backward", 2), ("optim_step", 2), ("session", 1)):
        assert len(collector.spans(operation)) == count
    trace_ids = {s.context.trace_id for s in collector.spans("forward_backward")}
    assert trace_ids == {collector.spans("session")[0].context.trace_id}
    told = {p.attributes["metric"]: p.value for p in collector.points("crucible.evaluation")}
    assert told["eval/nll"] > 0
