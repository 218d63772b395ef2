"""Every row of the retry table, over a real socket in virtual time."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json
from scripted_service import Answer, Recorder, ScriptedService, VirtualTime

from crucible_tinkex.client.http.address import Address
from crucible_tinkex.client.http.encoding import nothing
from crucible_tinkex.client.http.exchange import Limits, Reply
from crucible_tinkex.client.http.key import ApiKey
from crucible_tinkex.client.http.pace import Lane
from crucible_tinkex.client.http.retry import RetryPolicy, retry_after_s
from crucible_tinkex.client.http.settings import ClientSettings
from crucible_tinkex.client.http.transport import (
    Call,
    Transport,
    give_back,
    hold_back,
    shared_transport,
)
from crucible_tinkex.client.http.watch import PAUSED_RATE_LIMIT, QueueState, Watch
from crucible_tinkex.errors import (
    AuthenticationError,
    BillingError,
    ProtocolError,
    RequestRejectedError,
    ServiceError,
    ServiceUnavailableError,
    SessionLostError,
)

OK = Answer(body={"ok": 1})


class Harness:
    def __init__(self, scripted: ScriptedService, **policy: Any) -> None:
        self.time = VirtualTime()
        self.heard = Recorder()
        self.records = self.heard.records
        self.watch = Watch(self.heard)
        self.transport = Transport(
            Address.parse(scripted.url),
            settings=ClientSettings(
                RetryPolicy(**policy), Limits(answer_bytes=100_000), self.time.clock
            ),
        )

    async def call(self, **options: Any) -> Any:
        call = Call("optim_step", "op", b'{"seq_id": 7}', watch=self.watch, **options)
        return await self.transport.call(call, lambda reply: from_json(reply.body))


@pytest.fixture
async def harness(scripted: ScriptedService) -> AsyncIterator[Callable[..., Harness]]:
    made: list[Harness] = []

    def make(**policy: Any) -> Harness:
        made.append(Harness(scripted, **policy))
        return made[-1]

    yield make
    for one in made:
        await one.transport.aclose()


@pytest.mark.parametrize(
    "fault",
    [Answer(status, {"error": "x"}) for status in (408, 409, 425, 429, 500, 502, 503, 504, 520)]
    + [
        Answer(400),
        Answer(402, {"error": "pay"}),
        Answer(422, {"error": "x"}, {"x-should-retry": "true"}),
        Answer(body=OK.body, mode="reset"),
        Answer(body=OK.body, mode="reset_head"),
        Answer(body=OK.body, mode="reset_headers"),
        Answer(body=OK.body, mode="reset_body"),
        Answer(body=OK.body, mode="truncated"),
        Answer(body=b"", mode="raw"),
        Answer(body=b"220 mail ready\r\n\r\n", mode="raw"),
        Answer(body=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{", mode="raw"),
        Answer(body=b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}", mode="raw"),
        Answer(body=b'{"ok": '),
        Answer(body=b"<html>Log in</html>", headers={"Content-Type": "text/html"}),
        Answer(body=b"[" * 50_000),
        Answer(body=b"x" * 200_000),
        Answer(body=b'{"ok": 1' + b" " * 200_000 + b"}"),
        Answer(body=OK.body, headers={"X-Endless": "x" * 300_000}),
        Answer(body=OK.body, headers={"Content-Encoding": "gzip"}, mode="truncated"),
    ],
    ids=lambda a: f"{a.status}-{a.mode}-{len(a.raw_body())}",
)
async def test_repeats_the_same_bytes(
    scripted: ScriptedService, harness: Callable[..., Harness], fault: Answer
) -> None:
    scripted.on("op", fault, fault, OK)
    one = harness()
    assert await one.call() == {"ok": 1}
    assert [r.body for r in scripted.requests] == [b'{"seq_id": 7}'] * 3
    assert one.records[0].attempts == 3
    assert one.records[0].status == 200
    assert one.records[0].error is None


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(400, {"error": "bad"}), RequestRejectedError),
        (Answer(401, {"error": "key"}), AuthenticationError),
        (Answer(403, {"error": "key"}), AuthenticationError),
        (Answer(404, {"error": "none"}), RequestRejectedError),
        (Answer(407, {"error": "proxy"}), RequestRejectedError),
        (Answer(410, {"error": "gone"}), SessionLostError),
        (Answer(413, {"error": "big"}), RequestRejectedError),
        (Answer(422, {"error": "shape"}), RequestRejectedError),
        (Answer(503, {"error": "no"}, {"x-should-retry": "false"}), ServiceUnavailableError),
        (Answer(302, None, {"Location": "https://elsewhere.example/"}), ProtocolError),
    ],
    ids=lambda a: str(a.status) if isinstance(a, Answer) else "",
)
async def test_gives_up_at_once(
    scripted: ScriptedService,
    harness: Callable[..., Harness],
    answer: Answer,
    error: type[ServiceError],
) -> None:
    scripted.on("op", answer)
    one = harness()
    with pytest.raises(error) as caught:
        await one.call()
    assert len(scripted.requests) == 1
    assert caught.value.status == answer.status
    assert "optim_step" in str(caught.value)
    assert "/api/v1/op" in str(caught.value)
    if answer.body:
        assert answer.body["error"] in str(caught.value)
    assert one.records[0].error == error.__name__


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(409, {"error": "exists"}), RequestRejectedError),
        (Answer(400), RequestRejectedError),
        (Answer(body=b"<html>"), ProtocolError),
    ],
)
async def test_a_few_times_only(
    scripted: ScriptedService,
    harness: Callable[..., Harness],
    answer: Answer,
    error: type[ServiceError],
) -> None:
    scripted.on("op", *[answer] * 9)
    with pytest.raises(error):
        await harness(few=4).call()
    assert len(scripted.requests) == 4


async def test_404_means_lost_where_the_caller_says_so(
    scripted: ScriptedService, harness: Callable[..., Harness]
) -> None:
    scripted.on("op", Answer(404, {"error": "no model"}))
    with pytest.raises(SessionLostError):
        await harness().call(lost_on={404, 410})


async def test_billing_pauses_then_gives_up(
    scripted: ScriptedService, harness: Callable[..., Harness]
) -> None:
    scripted.on("op", *[Answer(402, {"error": "pay"})] * 9)
    one = harness(billing_s=20.0, total_s=7.0)
    with pytest.raises(BillingError):
        await one.call()
    assert one.time.slept == [5.0] * 4


@pytest.mark.parametrize("status", [500, 429])
async def test_the_deadline_names_operation_path_and_cause(
    scripted: ScriptedService, harness: Callable[..., Harness], status: int
) -> None:
    scripted.on("op", *[Answer(status, {"error": "overloaded"})] * 200)
    one = harness(total_s=60.0, queue_s=100.0)
    with pytest.raises(ServiceUnavailableError) as caught:
        await one.call()
    for part in ("optim_step", "/api/v1/op", "overloaded", f"HTTP {status}"):
        assert part in str(caught.value)
    waited = sum(one.time.slept)
    assert waited < 62 if status == 500 else 100 < waited < 180


async def test_backoff_is_jittered_and_capped(
    scripted: ScriptedService, harness: Callable[..., Harness]
) -> None:
    scripted.on("op", *[Answer(500)] * 9)
    one = harness(cap_s=4.0)
    scripted.on("op", OK)
    await one.call()
    assert one.time.slept == [0.25, 0.5, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "-5"}, 0.0),
        ({"Retry-After": "1000000000"}, 60.0),
        ({"Retry-After": "1e400"}, 60.0),
        ({"Retry-After": "NaN"}, 0.25),
        ({"Retry-After": "soon"}, 0.25),
        ({"Retry-After": formatdate(1009, usegmt=True)}, 9.0),
        ({"Retry-After": formatdate(0, usegmt=True)}, 0.0),
        ({"Retry-After": "Thu Jan  1 00:16:49 1970"}, 9.0),
        ({"Retry-After": "Thursday, 01-Jan-70 00:16:49 GMT"}, 9.0),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, 60.0),
        ({"Retry-After": "Fri, 31 Dec 99999 23:59:59 GMT"}, 0.25),
        ({"Retry-After": "-Infinity"}, 0.0),
        ({"Retry-After": "2.5"}, 2.5),
        ({"Retry-After": ""}, 0.25),
        ({"retry-after-ms": "NaN"}, 0.25),
        ({"retry-after-ms": "1e400"}, 60.0),
        ({"retry-after-ms": "soon", "Retry-After": "9"}, 0.25),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "-1", "Retry-After": "9"}, 0.0),
        ({}, 0.25),
    ],
    ids=lambda h: "-".join(h.values()) if isinstance(h, dict) else "",
)
async def test_retry_after(
    scripted: ScriptedService,
    harness: Callable[..., Harness],
    headers: dict[str, str],
    expected: float,
) -> None:
    scripted.on("op", Answer(429, {"error": "slow"}, headers))
    one = harness()
    scripted.on("op", OK)
    await one.call()
    waited = sum(one.time.slept)
    assert expected <= waited <= expected * 1.1 + 1e-9


def test_a_date_without_a_zone_is_gmt(monkeypatch: pytest.MonkeyPatch) -> None:
    """As HTTP says of its oldest form, whatever the zone of this machine."""
    reply = Reply(429, [(b"Retry-After", b"Thu Jan  1 00:16:49 1970")], b"")
    try:
        for zone in ("Asia/Tokyo", "America/Lima"):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            assert retry_after_s(reply, VirtualTime().clock, 60.0) == 9.0
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.text(max_size=30) | st.floats().map(str) | st.integers().map(str), st.booleans())
def test_any_retry_after_is_a_bounded_wait_or_nothing(text: str, is_ms: bool) -> None:
    name = b"retry-after-ms" if is_ms else b"retry-after"
    reply = Reply(429, [(name, text.encode("latin-1", "replace"))], b"")
    found = retry_after_s(reply, VirtualTime().clock, 60.0)
    assert found is None or 0 <= found <= 60


async def test_a_name_that_does_not_resolve(
    scripted: ScriptedService, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is tried again, because a resolver may recover; then names the cause."""
    found: list[Any] = []

    def resolve(host: str, *rest: Any, **more: Any) -> Any:
        found.append(host)
        if len(found) <= failures:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", scripted.port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    address = Address.parse("http://nowhere.test", allow_http=True)
    scripted.on("op", OK)
    for failures in (2, 1000):
        found.clear()
        settings = ClientSettings(RetryPolicy(total_s=60), clock=VirtualTime().clock)
        transport = Transport(address, settings=settings)
        call = transport.call(Call("o", "op", b"{}"), lambda reply: reply.status)
        if failures == 2:
            assert await call == 200
            assert found == ["nowhere.test"] * 3
        else:
            with pytest.raises(ServiceUnavailableError, match="Name or service not known"):
                await call
        await transport.aclose()


@pytest.mark.parametrize(
    ("status", "headers", "slowed"),
    [(429, {"Retry-After": "30"}, 4), (503, {"Retry-After": "30"}, 4), (503, {}, 0)],
)
async def test_what_one_session_is_asked_slows_the_others(
    scripted: ScriptedService,
    harness: Callable[..., Harness],
    status: int,
    headers: dict[str, str],
    slowed: int,
) -> None:
    scripted.on("op", Answer(status, {"error": "slow"}, headers), *[OK] * 4)
    one = harness()
    done: list[float] = []

    async def session() -> None:
        await one.call()
        done.append(one.time.now)

    first = asyncio.create_task(session())
    while not scripted.requests:
        await asyncio.sleep(0.001)
    await asyncio.gather(first, *[session() for _ in range(3)])
    assert sum(t >= 1030 for t in done) == slowed


async def test_a_back_off_is_a_state(
    scripted: ScriptedService, harness: Callable[..., Harness]
) -> None:
    refusal = Answer(429, {"error": "slow"}, {"Retry-After": "30"})
    scripted.on("op", refusal, refusal, OK)
    one = harness()
    await one.call()
    paused, active, paused_again, active_again = one.heard.states
    assert paused.state == paused_again.state == PAUSED_RATE_LIMIT
    assert paused.reason is not None and "slow" in paused.reason
    assert paused.resume_at == pytest.approx(1030, abs=0.2)
    assert active == active_again == QueueState("active")
    assert one.records[0].queued_s >= 60


async def test_no_room_for_one_more_does_not_slow_the_others(
    scripted: ScriptedService, harness: Callable[..., Harness]
) -> None:
    scripted.on("op", Answer(429, {"error": "4 models at once"}, {"Retry-After": "30"}), OK)
    one = harness()
    assert await one.call(lane=Lane.ADMISSION) == {"ok": 1}
    assert one.transport.pace.wait_s <= 0
    paused, active = one.heard.states
    assert paused.state == PAUSED_RATE_LIMIT and paused.resume_at is None
    assert "4 models at once" in str(paused.reason)
    assert active == QueueState("active")
    assert one.records[0].queued_s == 30


async def test_heartbeats_go_on_during_a_back_off(
    scripted: ScriptedService, harness: Callable[..., Harness]
) -> None:
    one = harness()
    scripted.on("op", OK, OK)
    one.transport.pace.hold(50.0, "elsewhere")
    await one.call(lane=Lane.VITAL)
    assert one.time.now == 1000
    await one.call()
    assert one.time.now >= 1050


async def test_a_call_with_a_deadline_of_its_own_does_not_queue_for_hours(
    scripted: ScriptedService, harness: Callable[..., Harness]
) -> None:
    scripted.on("op", *[Answer(429, {"error": "slow"}, {"Retry-After": "10"})] * 50)
    one = harness()
    with pytest.raises(ServiceUnavailableError, match="slow"):
        await one.call(lane=Lane.ADMISSION, total_s=30.0)
    assert 30 <= one.time.now - 1000 <= 60


async def test_another_process_back_off_holds_this_one(
    scripted: ScriptedService, harness: Callable[..., Harness]
) -> None:
    one = harness()
    scripted.on("op", OK)
    one.transport.pace.hold(20.0, "elsewhere")
    await one.call()
    assert 20 <= one.time.now - 1000 <= 22
    assert [s.state for s in one.heard.states] == [PAUSED_RATE_LIMIT, "active"]


async def test_hold_back_reaches_the_transports_of_the_key_only(
    scripted: ScriptedService, tmp_path: Path
) -> None:
    here = Address.parse(scripted.url)
    keys = [ApiKey(str(tmp_path / name)) for name in ("a", "b")]
    shared = []
    clock = VirtualTime().clock
    settings = ClientSettings(clock=clock)
    for key, text in zip(keys, ("tml-a", "tml-b"), strict=True):
        assert key.file is not None
        Path(key.file).write_text(text)
        Path(key.file).chmod(0o600)
        shared.append(shared_transport(here, key, settings))
    hold_back(here, keys[0], clock.wall() + 9)
    assert shared[0].pace.wait_s == pytest.approx(9)
    assert shared[1].pace.wait_s <= 0
    for transport in shared:
        await give_back(transport)
    later = shared_transport(here, keys[0], settings)
    assert later.pace.wait_s == pytest.approx(9)
    await give_back(later)


async def test_a_429_halves_the_calls_in_flight_until_things_go_well(
    scripted: ScriptedService,
) -> None:
    """12 at once are refused; the repeats begin with 6 at a time."""
    refused = Answer(429, {"error": "slow"}, {"retry-after-ms": "500"}, delay_s=0.1)
    scripted.on("op", *[refused] * 12, *[Answer(body=OK.body, delay_s=0.05)] * 12)
    transport = Transport(Address.parse(scripted.url))
    call = Call("o", "op", b"{}")
    await asyncio.gather(*[transport.call(call, nothing) for _ in range(12)])
    await transport.aclose()
    assert len(scripted.requests) == 24
    assert max(scripted.at_once[:12]) == 12
    assert max(scripted.at_once[12:]) == 6
    assert transport.pace.bound == 7


async def test_resets_at_accept_and_refused_connections(
    scripted: ScriptedService, harness: Callable[..., Harness], unused_tcp_port: int
) -> None:
    scripted.resets_at_accept = 2
    scripted.on("op", OK)
    assert await harness().call() == {"ok": 1}
    nobody = Transport(
        Address.parse(f"http://127.0.0.1:{unused_tcp_port}"),
        settings=ClientSettings(RetryPolicy(total_s=5), clock=VirtualTime().clock),
    )
    with pytest.raises(ServiceUnavailableError, match="cannot connect"):
        await nobody.call(Call("create_session", body=b"{}"), nothing)
    await nobody.aclose()


@pytest.mark.parametrize("mode", ["drip", "hang"])
async def test_slow_answers_end_at_the_attempts_limit(
    scripted: ScriptedService, harness: Callable[..., Harness], mode: str
) -> None:
    scripted.on("op", Answer(body=OK.body, mode=mode), OK)
    assert await harness(attempt_s=0.3).call() == {"ok": 1}
    assert len(scripted.requests) == 2
    assert scripted.connections == 2


async def test_connections_are_reused_and_bounded(scripted: ScriptedService) -> None:
    scripted.on("op", *[Answer(body={}, delay_s=0.005)] * 40)
    settings = ClientSettings(limits=Limits(connections=4))
    transport = Transport(Address.parse(scripted.url), settings=settings)
    call = Call("o", "op", b"{}")
    await asyncio.gather(*[transport.call(call, nothing) for _ in range(40)])
    await transport.aclose()
    assert scripted.connections == 4


async def test_polls_leave_connections_to_those_who_submit(scripted: ScriptedService) -> None:
    scripted.on("poll", *[Answer(mode="hang")] * 4)
    scripted.on("op", OK)
    settings = ClientSettings(limits=Limits(connections=3, polls=2))
    transport = Transport(Address.parse(scripted.url), settings=settings)
    call = Call("o", "poll", b"{}", is_poll=True)
    polls = [asyncio.create_task(transport.call(call, nothing)) for _ in range(4)]
    while len(scripted.requests) < 2:
        await asyncio.sleep(0.001)
    async with asyncio.timeout(5):
        await transport.call(Call("o", "op", b"{}"), nothing)
    assert [r.path.rpartition("/")[2] for r in scripted.requests] == ["poll", "poll", "op"]
    for poll in polls:
        poll.cancel()
    await asyncio.gather(*polls, return_exceptions=True)
    await transport.aclose()


async def test_no_cookie_is_kept(scripted: ScriptedService) -> None:
    scripted.on("op", Answer(body=OK.body, headers={"Set-Cookie": "a=b; Path=/"}), OK)
    transport = Transport(Address.parse(f"http://localhost:{scripted.port}"))
    for _ in range(2):
        await transport.call(Call("o", "op", b"{}"), nothing)
    await transport.aclose()
    assert ["cookie" in r.headers for r in scripted.requests] == [False, False]


async def test_a_connection_that_the_service_closed_is_not_used_again(
    scripted: ScriptedService, harness: Callable[..., Harness]
) -> None:
    announced = Answer(body=OK.body, headers={"Connection": "close"})
    silent = Answer(body=b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"ok":1}', mode="raw")
    scripted.on("op", announced, silent, OK)
    one = harness()
    for _ in range(3):
        await one.call()
        await asyncio.sleep(0.05)
    assert [r.attempts for r in one.records] == [1, 1, 1]
    assert scripted.connections == 3


async def test_a_cancelled_call_does_not_leave_its_answer_to_the_next(
    scripted: ScriptedService, harness: Callable[..., Harness]
) -> None:
    scripted.on("op", Answer(body={"late": 1}, delay_s=0.05), OK)
    one = harness()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(one.call(), 0.02)
    await asyncio.sleep(0.06)
    assert await one.call() == {"ok": 1}


async def test_a_call_that_outlives_its_transport_ends_in_an_error(
    scripted: ScriptedService, harness: Callable[..., Harness]
) -> None:
    scripted.on("op", Answer(mode="hang"))
    one = harness()
    call = asyncio.create_task(one.call())
    while not scripted.requests:
        await asyncio.sleep(0.001)
    await one.transport.aclose()
    with pytest.raises(ServiceUnavailableError, match="closed"):
        await call
