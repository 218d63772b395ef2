"""Calls to the service: the key's one header, deadlines, retries, and the shared back-off.

One `Transport` serves all sessions of a process (per event loop and address): `shared_transport`
hands it out and `give_back` takes it back; the last one closes the connections. When the service
asks one session to slow down (429, or 503 with Retry-After), all of them wait (`pace`), and
`hold_back` makes them wait for what another process was asked.

Guarantees: the key is read here, put into one header, and is in no repr, pickle, log record or
exception; every call ends in a parsed answer or in an error of `crucible_tinkex.errors` that names
the operation. A repeat sends the same bytes. Forbidden: use from two event loops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Set
from typing import NamedTuple, NoReturn, TypeVar
from weakref import WeakKeyDictionary

from crucible_tinkex.client.http.address import Address
from crucible_tinkex.client.http.encoding import JSON, Body, Encoding
from crucible_tinkex.client.http.exchange import ExchangeError, Headers, Reply
from crucible_tinkex.client.http.key import KEY_FILE_VARIABLE, KEY_VARIABLE, ApiKey, scrub
from crucible_tinkex.client.http.pace import Lane, Pace
from crucible_tinkex.client.http.retry import (
    Fault,
    Kind,
    Retries,
    classify,
    excerpt,
)
from crucible_tinkex.client.http.settings import ClientSettings
from crucible_tinkex.client.http.watch import (
    ACTIVE,
    PAUSED_RATE_LIMIT,
    UNWATCHED,
    QueueState,
    RequestRecord,
    Watch,
)
from crucible_tinkex.errors import (
    AuthenticationError,
    ProtocolError,
    ServiceError,
    ServiceUnavailableError,
)
from crucible_tinkex.protocol import traceparent
from crucible_tinkex.protocol.wire import API, KEY_HEADER
from crucible_tinkex.version import VERSION

T = TypeVar("T")
USER_AGENT = f"crucible-tinkex/{VERSION}"
LOST: frozenset[int] = frozenset({410})
NONE: frozenset[int] = frozenset()
NOT_YET = Reply(408, (), b"")
"""What a poll without an answer comes to while the service answers other calls."""
IDEMPOTENCY_KEY = b"X-Idempotency-Key"
"""Names what must not be done twice and has no number of its own. A repeat carries it too."""
TRACE = traceparent.HEADER.encode()
_TOLD_S = 1.0
"""Shorter back-offs are not worth a state change."""


class Call(NamedTuple):
    """What is asked of the service, and how the answer is to be taken."""

    operation: str
    path: str = ""
    """Below `/api/v1/`; the operation's name by default."""
    body: bytes | Body | None = None
    method: str = "POST"
    accept: str = JSON
    headers: Headers = ()
    accepts: Set[int] = NONE
    """Statuses besides 2xx that are answers."""
    lost_on: Set[int] = LOST
    """Statuses that mean that the session is gone."""
    final_on: Set[int] = NONE
    """Statuses that are not tried again here."""
    is_poll: bool = False
    lane: Lane = Lane.WORK
    total_s: float | None = None
    watch: Watch = UNWATCHED


class Transport:
    """See the module. Reads `key` once; raises `AuthenticationError` where one is needed."""

    def __init__(
        self,
        address: Address,
        key: ApiKey | None = None,
        settings: ClientSettings | None = None,
    ) -> None:
        settings = settings or ClientSettings()
        self.address = address
        self.encoding = Encoding(settings.encoding)
        self.policy = settings.policy
        self.clock = settings.clock
        self.users = 0
        """Who share it."""
        self.sample_slots = asyncio.Semaphore(256)
        """Bounds the samples in flight of this process."""
        self._secret = (key or ApiKey()).read()
        if self._secret is None and not address.is_loopback:
            raise AuthenticationError(
                f"no API key for {address}: set {KEY_VARIABLE}, or {KEY_FILE_VARIABLE} to a file; "
                'to train on this machine without an account, set service.base_url = "embedded"'
            )
        # Late, because it takes 0.2 s that planning and reading results need not wait for.
        from crucible_tinkex.client.http.connections import Connections

        self._connections = Connections(address, settings.limits)
        self.pace = Pace(self.clock, most=settings.limits.connections)
        self._headers = [(b"Accept-Encoding", b"identity"), (b"User-Agent", USER_AGENT.encode())]
        if self._secret is not None:
            self._headers.append((KEY_HEADER.encode(), self._secret.encode()))
        self._heard_at = float("-inf")

    def __repr__(self) -> str:
        return f"Transport({str(self.address)!r}, key={'***' if self._secret else None})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Transport holds the API key and sockets and cannot be pickled")

    def scrub(self, text: str) -> str:
        """`text` without the key."""
        return scrub(text, self._secret)

    async def call(self, call: Call, parse: Callable[[Reply], T]) -> T:
        """Send until there is an answer that `parse(reply)` takes.

        `parse` sees 2xx and the statuses in `accepts`; a ValueError from it means a malformed
        answer. Raises `ServiceError`.
        """
        path = f"{API}/{call.path or call.operation}"
        retries = Retries(self.policy, self.clock, call.operation, path, call.total_s)
        attempts, status, error = 0, None, None
        refusal: Fault | None = None
        try:
            while True:
                if self.pace.wait_s > 0 and call.lane is not Lane.VITAL:
                    await self._await_resume(retries, refusal, call.watch)
                attempts += 1
                # The answer is never a local here: it may echo the key into a traceback.
                status, outcome = self._judge(await self._exchange(call, retries), call, parse)
                if not isinstance(outcome, Fault):
                    self.pace.went_well()
                    return outcome
                delay_s = retries.delay_s(outcome)
                refusal = outcome if outcome.slows_all and call.lane is Lane.WORK else None
                if refusal is None:
                    await self._pause(delay_s, outcome, retries, call.watch)
                else:
                    self.pace.back_off(delay_s, outcome.text)
        except ServiceError as failure:
            error = type(failure).__name__
            raise
        finally:
            call.watch.request(
                RequestRecord(
                    call.operation,
                    call.path or call.operation,
                    self.clock.monotonic() - retries.started,
                    retries.excused_s,
                    attempts,
                    status,
                    error,
                )
            )

    def _judge(
        self, reply: Reply | Fault, call: Call, parse: Callable[[Reply], T]
    ) -> tuple[int | None, T | Fault]:
        """The answer's status, and its meaning or its fault."""
        if isinstance(reply, Fault):
            return reply.status, reply
        if not (200 <= reply.status < 300 or reply.status in call.accepts):
            fault = self._refused(reply, call.lost_on)
            is_final = reply.status in call.final_on
            return reply.status, fault._replace(kind=Kind.FINAL) if is_final else fault
        try:
            return reply.status, parse(reply)
        except ValueError as problem:
            return reply.status, self._malformed(reply, problem)

    async def _exchange(self, call: Call, retries: Retries) -> Reply | Fault:
        """One attempt in its turn. Calls that wait at the service, and vital ones, take none."""
        limit_s = max(min(self.policy.attempt_s, retries.remaining_s), 0.001)
        target = self.address.prefix + retries.path
        if call.is_poll:
            async with self._connections.poll_slots:
                reply = await self._attempt(call, target, limit_s)
            return NOT_YET if self._is_held(reply, limit_s) else reply
        if call.lane is Lane.VITAL:
            return await self._attempt(call, target, limit_s)
        began = self.clock.monotonic()
        await self.pace.enter()
        try:
            retries.excuse(self.clock.monotonic() - began)
            return await self._attempt(call, target, limit_s)
        finally:
            self.pace.leave()

    def _is_held(self, reply: Reply | Fault, limit_s: float) -> bool:
        """Some services hold a poll for minutes. Silence is one that answers nothing else either,
        and heartbeats are answered more often than that."""
        is_silent = isinstance(reply, Fault) and reply.is_silence
        return is_silent and self.clock.monotonic() - self._heard_at < limit_s

    async def _attempt(self, call: Call, target: str, limit_s: float) -> Reply | Fault:
        headers = [*self._headers, *call.headers, (b"Accept", call.accept.encode())]
        if (span := traceparent.active()) is not None:
            headers.append((TRACE, span.encode()))
        body = Body(call.body) if isinstance(call.body, bytes) else call.body
        if body is not None:
            headers.append((b"Content-Type", body.content_type.encode()))
            if body.content_encoding is not None:
                headers.append((b"Content-Encoding", body.content_encoding.encode()))
        data = b"" if body is None else body.data
        try:
            async with asyncio.timeout(limit_s):
                reply = await self._connections.exchange(call.method, target, headers, data)
            self._heard_at = self.clock.monotonic()
            return reply
        except TimeoutError:
            text = f"no answer from {self._connections} in {limit_s:.3g} s"
            return Fault(Kind.TRANSIENT, text, ServiceUnavailableError, is_silence=True)
        except ExchangeError as error:
            text = self.scrub(str(error))
            if error.is_malformed:
                return Fault(Kind.MALFORMED, text, ProtocolError)
            kind = Kind.FINAL if error.is_final else Kind.TRANSIENT
            return Fault(kind, text, ServiceUnavailableError)

    def _malformed(self, reply: Reply, problem: ValueError) -> Fault:
        what = str(problem).split("\n", 1)[0][:200]
        text = self.scrub(f"not the Tinker protocol ({what}): {excerpt(reply.body)}")
        return Fault(Kind.MALFORMED, text, ProtocolError, reply.status)

    def _refused(self, reply: Reply, lost_on: Set[int]) -> Fault:
        cap_s = self.policy.retry_after_cap_s
        fault = classify(reply, lost_on=lost_on, clock=self.clock, cap_s=cap_s)
        text = self.scrub(fault.text)
        if 300 <= reply.status < 400:
            text = f"HTTP {reply.status}: redirects are not followed; set base_url to the service"
        return fault._replace(text=text)

    async def _pause(self, delay_s: float, fault: Fault, retries: Retries, watch: Watch) -> None:
        """Wait for the next attempt of this call alone."""
        if not fault.is_queued:
            await self.clock.sleep(delay_s)
            return
        with watch.waiting(retries, QueueState(PAUSED_RATE_LIMIT, fault.text)):
            await self.clock.sleep(delay_s)
        retries.excuse(delay_s)

    async def _await_resume(self, retries: Retries, refusal: Fault | None, watch: Watch) -> None:
        """Wait out the shared back-off. It does not count towards the call's deadline, except for
        what this call's own 503 asked for."""
        began, wait_s = self.clock.monotonic(), self.pace.wait_s
        counted_s = wait_s if refusal is not None and not refusal.is_queued else 0.0
        with watch.waiting(retries, self.pace.state if wait_s >= _TOLD_S else ACTIVE):
            await self.pace.resumed()
        retries.excuse(self.clock.monotonic() - began - counted_s)

    async def aclose(self) -> None:
        await self._connections.aclose()


_shared: WeakKeyDictionary[
    asyncio.AbstractEventLoop, dict[tuple[Address, ApiKey, ClientSettings], Transport]
] = WeakKeyDictionary()
_held_until: dict[tuple[Address, ApiKey], float] = {}
"""Unix seconds. What other processes were told holds for transports that are made later, too."""


def shared_transport(address: Address, key: ApiKey, settings: ClientSettings) -> Transport:
    """The running loop's transport for these. The caller gives it back, once."""
    ours = _shared.setdefault(asyncio.get_running_loop(), {})
    name = (address, key, settings)
    if name not in ours:
        ours[name] = Transport(address, key, settings)
        _hold(ours[name], _held_until.get((address, key), 0.0))
    ours[name].users += 1
    return ours[name]


async def give_back(transport: Transport) -> None:
    """Close what nobody uses any more."""
    transport.users -= 1
    if transport.users == 0:
        ours = _shared[asyncio.get_running_loop()]
        del ours[next(name for name, one in ours.items() if one is transport)]
        await transport.aclose()


def hold_back(address: Address, key: ApiKey, until: float) -> None:
    """Send nothing with this key before `until` (seconds of the Unix clock), in all transports of
    the running loop and those made later: another process was asked to slow down."""
    _held_until[address, key] = max(until, _held_until.get((address, key), 0.0))
    for name, transport in _shared.get(asyncio.get_running_loop(), {}).items():
        if name[:2] == (address, key):
            _hold(transport, until)


def _hold(transport: Transport, until: float) -> None:
    wait_s = until - transport.clock.wall()
    if wait_s > 0:
        transport.pace.hold(wait_s, "the service asked another process to slow down")
