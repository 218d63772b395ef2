from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from operations import lines_of

from crucible_tinkex.errors import StorageError, SweepBusyError
from crucible_tinkex.events import Event, EventSink, EventWriter
from crucible_tinkex.telemetry.sender import DROPPED, BufferedSink, EventDeliveryError


class Receiver:
    """Stores what it takes; `outcomes` are raised first, one per call; a shut `gate` holds all."""

    def __init__(self, *outcomes: BaseException) -> None:
        self.outcomes = list(outcomes)
        self.calls: list[list[int]] = []
        self.events: list[Event] = []
        self.at_once = 0
        self.most_at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def deliver(self, batch: list[Event]) -> None:
        self.calls.append([event.seq for event in batch])
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
            if self.outcomes:
                raise self.outcomes.pop(0)
            self.events += batch
        finally:
            self.at_once -= 1

    @property
    def numbers(self) -> list[int]:
        return [event.seq for event in self.events]


def sink_for(receiver: Receiver, **options: Any) -> BufferedSink:
    options.setdefault("retry_delay_s", 0.001)
    return BufferedSink(EventWriter("s", "e"), receiver.deliver, **options)


def emit(sink: BufferedSink, count: int) -> None:
    for step in range(count):
        sink.emit("training_step", trial_id="t", step=step, name="train/nll", value=1.0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_flush_returns_after_everything_was_acknowledged_in_order() -> None:
    receiver = Receiver()
    sink: EventSink = sink_for(receiver, max_batch=30)
    assert isinstance(sink, BufferedSink)
    emit(sink, 100)
    await sink.flush()
    assert receiver.numbers == list(range(1, 101))
    assert [len(call) for call in receiver.calls] == [30, 30, 30, 10]
    assert receiver.most_at_once == 1
    await sink.flush()
    await sink.aclose()
    await sink.aclose()
    assert len(receiver.calls) == 4
    with pytest.raises(RuntimeError, match="closed"):
        sink.emit("training_step")


async def test_small_batches_wait_for_company_but_not_long() -> None:
    receiver = Receiver()
    sink = sink_for(receiver, max_delay_s=0.05)
    emit(sink, 1)
    await asyncio.sleep(0.01)
    emit(sink, 1)
    assert receiver.calls == []
    await until(lambda: receiver.numbers == [1, 2])
    assert receiver.calls == [[1, 2]]
    await sink.aclose()


async def test_a_full_batch_does_not_wait() -> None:
    receiver = Receiver()
    sink = sink_for(receiver, max_batch=5, max_delay_s=60.0)
    emit(sink, 1)
    await asyncio.sleep(0.01)
    emit(sink, 4)
    await until(lambda: receiver.numbers == [1, 2, 3, 4, 5])
    await sink.aclose()


@pytest.mark.parametrize(
    "error", [ConnectionError(), TimeoutError(), SweepBusyError("in use"), StorageError("full")]
)
async def test_the_same_batch_is_sent_until_it_is_acknowledged(error: Exception) -> None:
    receiver = Receiver(error, error, error)
    sink = sink_for(receiver, max_batch=3)
    emit(sink, 5)
    await sink.flush()
    assert receiver.calls == [[1, 2, 3]] * 4 + [[4, 5]]
    assert receiver.numbers == [1, 2, 3, 4, 5]
    await sink.aclose()


async def test_waits_grow_up_to_the_limit_and_start_again_after_success() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    receiver = Receiver(*[ConnectionError()] * 5)
    sink = sink_for(
        receiver, retry_delay_s=0.1, max_retry_delay_s=0.5, sleep=sleep, jitter=lambda: 1.0
    )
    emit(sink, 1)
    await sink.flush()
    receiver.outcomes = [ConnectionError()]
    emit(sink, 1)
    await sink.flush()
    assert waits == [0.1, 0.2, 0.4, 0.5, 0.5, 0.1]
    await sink.aclose()


async def test_flush_gives_up_after_its_deadline_and_keeps_the_events() -> None:
    # One exception each: a single one would gather a longer traceback every time it is raised.
    receiver = Receiver(*(ConnectionError("no route") for _ in range(100_000)))
    sink = sink_for(receiver, flush_timeout_s=0.5)
    emit(sink, 7)
    with pytest.raises(EventDeliveryError, match=r"7 telemetry events .* no route") as caught:
        await sink.flush()
    assert isinstance(caught.value.__cause__, ConnectionError)
    receiver.outcomes.clear()
    await sink.flush()
    assert receiver.numbers == list(range(1, 8))
    await sink.aclose()


async def test_a_disk_that_refuses_is_not_waited_for_as_long_as_a_process_that_restarts() -> None:
    receiver = Receiver(*(StorageError("no space left") for _ in range(100_000)))
    sink = sink_for(receiver, max_retry_delay_s=0.1)
    emit(sink, 7)
    async with asyncio.timeout(5):
        with pytest.raises(EventDeliveryError, match=r"7 telemetry events .* no space left"):
            await sink.flush()
    tries = len(receiver.calls)
    with pytest.raises(EventDeliveryError, match="no space left"):
        await sink.flush()  # those who come later are told at once
    assert len(receiver.calls) == tries > 3
    receiver.outcomes.clear()
    await until(lambda: receiver.numbers == list(range(1, 8)))
    emit(sink, 1)
    await sink.flush()
    await sink.aclose()


async def test_too_many_waiting_events_drop_the_oldest_and_say_so() -> None:
    receiver = Receiver()
    receiver.gate.clear()
    sink = sink_for(receiver, max_batch=10, max_pending=50)
    emit(sink, 10)
    await until(lambda: len(receiver.calls) == 1)
    flushing = asyncio.ensure_future(sink.flush())  # of the 10 in flight
    emit(sink, 60)  # 40 of them fit
    await asyncio.sleep(0.01)
    assert not flushing.done()
    assert sink.dropped == 20
    receiver.gate.set()
    with pytest.raises(EventDeliveryError, match="20 telemetry events were lost"):
        await flushing
    with pytest.raises(EventDeliveryError, match="lost"):  # each session of the sink must learn
        await sink.flush()
    kept = [event for event in receiver.events if event.kind == "training_step"]
    assert [event.seq for event in kept] == [*range(1, 11), *range(31, 71)]
    (report,) = [event for event in receiver.events if event.name == DROPPED]
    assert (report.kind, report.value, report.trial_id) == ("request", 20.0, "t")
    assert report.extra == '{"first_seq": 11, "last_seq": 30}'
    with pytest.raises(EventDeliveryError):
        await sink.aclose()


async def test_a_bug_in_the_receiver_fails_the_flush_not_the_training() -> None:
    receiver = Receiver(ZeroDivisionError("a bug"))
    sink = sink_for(receiver)
    emit(sink, 1)
    with pytest.raises(EventDeliveryError, match="a bug"):
        await sink.flush()
    emit(sink, 1)
    with pytest.raises(EventDeliveryError, match="a bug"):
        await sink.aclose()


async def test_flush_waits_only_for_what_was_emitted_before() -> None:
    receiver = Receiver()
    sink = sink_for(receiver, max_batch=10)
    emit(sink, 10)

    async def keep_emitting() -> None:
        while True:
            emit(sink, 10)
            await asyncio.sleep(0)

    noise = asyncio.ensure_future(keep_emitting())
    try:
        async with asyncio.timeout(5):
            await sink.flush()
    finally:
        noise.cancel()
    assert receiver.numbers[:10] == list(range(1, 11))
    await sink.aclose()


def test_events_emitted_before_the_loop_runs_are_delivered() -> None:
    async def close(sink: BufferedSink) -> None:
        await sink.aclose()

    receiver = Receiver()
    sink = sink_for(receiver)
    emit(sink, 3)
    asyncio.run(close(sink))
    assert receiver.numbers == [1, 2, 3]


async def test_emit_costs_a_few_lines_whatever_the_receiver_does() -> None:
    async def never(batch: list[Event]) -> None:
        await asyncio.Event().wait()

    deliver: Callable[[list[Event]], Awaitable[object]] = never
    sink = BufferedSink(EventWriter("s", "e"), deliver, flush_timeout_s=0.01)
    emit(sink, 1)
    await asyncio.sleep(0)
    assert lines_of(lambda: emit(sink, 10_000)).total() < 30 * 10_000
    with pytest.raises(EventDeliveryError):
        await sink.aclose()
