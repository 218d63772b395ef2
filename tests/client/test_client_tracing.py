"""The `traceparent` header of our calls: that of the span which is active, and none without one."""

from __future__ import annotations

import asyncio
import re

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan
from scripted_service import ScriptedService
from spans import Collector

from crucible_tinkex.client.model.training_client import TinkexTraining
from crucible_tinkex.client.model.witnessed import WitnessedTraining
from crucible_tinkex.protocol.traceparent import TraceParent, active
from crucible_tinkex.protocol.wire import AdamParams
from crucible_tinkex.telemetry.bridge import Bridge, Teller

TEXT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_header_is_read_and_written() -> None:
    parent = TraceParent.parse(TEXT)
    assert parent == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True)
    assert str(parent) == TEXT
    dropped = TraceParent.parse(TEXT[:-2] + "00")
    assert dropped is not None and not dropped.sampled


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        TEXT.upper(),
        TEXT + "-more",
        "ff" + TEXT[2:],
        TEXT.replace("b7ad6b7169203331", "0" * 16),
        TEXT.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        TEXT[:-1],
    ],
)
def test_what_is_no_header_is_passed_over(text: str) -> None:
    assert TraceParent.parse(text) is None


async def test_calls_without_a_span_have_no_header(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    await model.optim_step(AdamParams())
    assert active() is None
    assert not any("traceparent" in seen.headers for seen in scripted.requests)


async def test_a_span_that_is_in_no_trace_gives_none(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    with trace.use_span(NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)):
        await model.optim_step(AdamParams())
    assert not any("traceparent" in seen.headers for seen in scripted.requests)


async def test_the_users_own_span_goes_along(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    tracer = Collector().tracers.get_tracer("mine")
    with tracer.start_as_current_span("mine") as span:
        await model.optim_step(AdamParams())
    found = {seen.headers.get("traceparent") for seen in scripted.requests[-2:]}
    context = span.get_span_context()
    assert found == {f"00-{context.trace_id:032x}-{context.span_id:016x}-01"}


async def test_each_operation_carries_its_own_span_also_where_they_overlap(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    """Both its submission and its polls; and nothing of it is left in the caller's context."""
    collector, bridge = Collector(), Bridge("e")
    bridge.attach("otel", collector.handler)
    told = WitnessedTraining(model, Teller(bridge))
    before = len(scripted.requests)
    await asyncio.gather(told.optim_step(AdamParams()), told.optim_step(AdamParams()))
    assert active() is None and bridge.faults == {}
    spans = {f"{s.context.span_id:016x}" for s in collector.spans("optim_step")}
    sent = [s.headers["traceparent"].split("-")[2] for s in scripted.requests[before:]]
    assert len(spans) == 2 and set(sent) == spans
    assert all(sent.count(span) >= 2 for span in spans)
    assert all(re.fullmatch("[0-9a-f]{16}", span) for span in sent)
