"""Calls to the service: the key's one header, deadlines, retries, and the shared back-off.

One `Transport` serves all sessions of a process (per event loop and address): `shared_transport`
hands it out and `release` gives it back; the last one closes the connections. When the service
asks one session to slow down (429, or 503 with Retry-After), all of them wait (`pace`), and
`hold_back` makes them wait for what another process was asked.

Guarantees: the key is read here, put into one header, and is in no repr, pickle, log record or
exception; every call ends in a parsed answer or in an error of `crucible_tinkex.errors` that names
the operation. A repeat sends the same bytes. Forbidden: use from two event loops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Set
from typing import Any, NamedTuple, NoReturn, TypeVar
from weakref import WeakKeyDictionary

from crucible_tinkex.client.http.address import Address
from crucible_tinkex.client.http.encoding import JSON, Body, Encoding, Preference
from crucible_tinkex.client.http.exchange import ExchangeError, Headers, Limits, Reply
from crucible_tinkex.client.http.key import KEY_FILE_VARIABLE, KEY_VARIABLE, ApiKey, scrub
from crucible_tinkex.client.http.pace import Lane, Pace
from crucible_tinkex.client.http.retry import (
    Clock,
    Fault,
    Kind,
    Retries,
    RetryPolicy,
    classify,
    excerpt,
    is_queued,
    slows_all,
)
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
_TOLD_S = 1.0
"""Shorter back-offs are not worth a state change."""


class Transport:
    """See the module. Reads `key` once; raises `AuthenticationError` where one is needed."""

    def __init__(
        self,
        address: Address,
        *,
        key: ApiKey | None = None,
        policy: RetryPolicy | None = None,
        limits: Limits | None = None,
        clock: Clock | None = None,
        encoding: Preference = "auto",
    ) -> None:
        self.address = address
        self.encoding = Encoding(encoding)
        self.policy = policy or RetryPolicy()
        self.clock = clock or Clock()
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

        limits = limits or Limits()
        self._connections = Connections(address, limits)
        self.pace = Pace(self.clock, most=limits.connections)
        self._headers = self._fixed_headers()
        self._heard_at = float("-inf")

    def _fixed_headers(self) -> list[tuple[bytes, bytes]]:
        headers = [
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", USER_AGENT.encode()),
        ]
        if self._secret is not None:
            headers.append((KEY_HEADER.encode(), self._secret.encode()))
        return headers

    def __repr__(self) -> str:
        return f"Transport({str(self.address)!r}, key={'***' if self._secret else None})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Transport holds the API key and sockets and cannot be pickled")

    def scrub(self, text: str) -> str:
        """`text` without the key."""
        return scrub(text, self._secret)

    async def call(
        self,
        operation: str,
        path: str,
        parse: Callable[[Reply], T],
        *,
        body: bytes | Body | None = None,
        method: str = "POST",
        accept: str = JSON,
        headers: Headers = (),
        accepts: Set[int] = NONE,
        lost_on: Set[int] = LOST,
        final_on: Set[int] = NONE,
        is_poll: bool = False,
        lane: Lane = Lane.WORK,
        total_s: float | None = None,
        watch: Watch = UNWATCHED,
    ) -> T:
        """Send until there is an answer that `parse(reply)` takes.

        `parse` sees 2xx and the statuses in `accepts`; a ValueError from it means a malformed
        answer. `lost_on` are the statuses that mean that the session is gone, `final_on` those
        that are not tried again here. `headers` are sent as well. `path` is below `/api/v1/`.
        Raises `ServiceError`.
        """
        retries = self._retries(operation, path, total_s)
        attempts, status, error = 0, None, None
        refusal: Fault | None = None
        request = _Request(method, self.address.prefix + retries.path, accept, headers, _body(body))
        try:
            while True:
                if self.pace.wait_s > 0 and lane is not Lane.VITAL:
                    await self._await_resume(retries, refusal, watch)
                attempts += 1
                # The answer is never a local here: it may echo the key into a traceback.
                status, outcome = self._judge(
                    await self._exchange(request, retries, lane, is_poll=is_poll),
                    parse,
                    accepts=accepts,
                    lost_on=lost_on,
                    final_on=final_on,
                )
                if not isinstance(outcome, Fault):
                    self.pace.went_well()
                    return outcome
                delay_s = retries.delay_s(outcome)
                refusal = outcome if slows_all(outcome) and lane is Lane.WORK else None
                if refusal is None:
                    await self._pause(delay_s, outcome, retries, watch)
                else:
                    self.pace.back_off(delay_s, outcome.text)
        except ServiceError as failure:
            error = type(failure).__name__
            raise
        finally:
            took_s, queued_s = self.clock.monotonic() - retries.started, retries.excused_s
            watch.request(RequestRecord(operation, path, took_s, queued_s, attempts, status, error))

    def _retries(self, operation: str, path: str, total_s: float | None) -> Retries:
        queue_s = self.policy.queue_s if total_s is None else total_s
        total_s = self.policy.total_s if total_s is None else total_s
        began = self.clock.monotonic()
        return Retries(self.policy, self.clock, operation, f"{API}/{path}", began, total_s, queue_s)

    def _judge(
        self,
        reply: Reply | Fault,
        parse: Callable[[Reply], T],
        *,
        accepts: Set[int],
        lost_on: Set[int],
        final_on: Set[int],
    ) -> tuple[int | None, T | Fault]:
        """The answer's status, and its meaning or its fault."""
        if isinstance(reply, Fault):
            return reply.status, reply
        if not (200 <= reply.status < 300 or reply.status in accepts):
            fault = self._refused(reply, lost_on)
            is_final = reply.status in final_on
            return reply.status, fault._replace(kind=Kind.FINAL) if is_final else fault
        try:
            return reply.status, parse(reply)
        except ValueError as problem:
            return reply.status, self._malformed(reply, problem)

    async def _exchange(
        self, request: _Request, retries: Retries, lane: Lane, *, is_poll: bool
    ) -> Reply | Fault:
        """One attempt in its turn. Calls that wait at the service, and vital ones, take none."""
        limit_s = max(min(self.policy.attempt_s, retries.remaining_s), 0.001)
        if is_poll:
            async with self._connections.poll_slots:
                reply = await self._attempt(request, limit_s)
            return NOT_YET if self._is_held(reply, limit_s) else reply
        if lane is Lane.VITAL:
            return await self._attempt(request, limit_s)
        began = self.clock.monotonic()
        await self.pace.enter()
        try:
            retries.excuse(self.clock.monotonic() - began)
            return await self._attempt(request, limit_s)
        finally:
            self.pace.leave()

    def _is_held(self, reply: Reply | Fault, limit_s: float) -> bool:
        """Some services hold a poll for minutes. Silence is one that answers nothing else either,
        and heartbeats are answered more often than that."""
        is_silent = isinstance(reply, Fault) and reply.is_silence
        return is_silent and self.clock.monotonic() - self._heard_at < limit_s

    async def _attempt(self, request: _Request, limit_s: float) -> Reply | Fault:
        method, target, accept, more, body = request
        headers = [*self._headers, *more, (b"Accept", accept.encode())]
        data = b"" if body is None else body.data
        if body is not None:
            headers.append((b"Content-Type", body.content_type.encode()))
            if body.content_encoding is not None:
                headers.append((b"Content-Encoding", body.content_encoding.encode()))
        try:
            async with asyncio.timeout(limit_s):
                reply = await self._connections.exchange(method, target, headers, data)
            self._heard_at = self.clock.monotonic()
            return reply
        except TimeoutError:
            text = f"no answer from {self._connections} in {limit_s:.3g} s"
            return Fault(Kind.TRANSIENT, text, ServiceUnavailableError, is_silence=True)
        except ExchangeError as error:
            text = self.scrub(str(error))
            if error.is_malformed:
                return Fault(Kind.MALFORMED, text, ProtocolError)
            if error.is_final:
                return Fault(Kind.FINAL, text, ServiceUnavailableError)
            return Fault(Kind.TRANSIENT, text, ServiceUnavailableError)

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
        if not is_queued(fault):
            await self.clock.sleep(delay_s)
            return
        with watch.waiting(retries, QueueState(PAUSED_RATE_LIMIT, fault.text)):
            await self.clock.sleep(delay_s)
        retries.excuse(delay_s)

    async def _await_resume(self, retries: Retries, refusal: Fault | None, watch: Watch) -> None:
        """Wait out the shared back-off. It does not count towards the call's deadline, except for
        what this call's own 503 asked for."""
        began, wait_s = self.clock.monotonic(), self.pace.wait_s
        counted_s = wait_s if refusal is not None and not is_queued(refusal) else 0.0
        with watch.waiting(retries, self.pace.state if wait_s >= _TOLD_S else ACTIVE):
            await self.pace.resumed()
        retries.excuse(self.clock.monotonic() - began - counted_s)

    async def aclose(self) -> None:
        await self._connections.aclose()


class _Request(NamedTuple):
    method: str
    target: str
    accept: str
    headers: Headers
    body: Body | None


def _body(body: bytes | Body | None) -> Body | None:
    return Body(body) if isinstance(body, bytes) else body


class _Shared:
    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.users = 0


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, _Shared]] = WeakKeyDictionary()
_held_until: dict[tuple[Address, ApiKey], float] = {}
"""Unix seconds. What other processes were told holds for transports that are made later, too."""


class Lease:
    """A share of a transport; `release` it once. Cannot be pickled, as the transport cannot."""

    def __init__(self, shared: _Shared, owner: dict[Any, _Shared], name: Any) -> None:
        self.transport = shared.transport
        self._shared = shared
        self._owner = owner
        self._name = name
        self._is_released = False
        shared.users += 1

    async def release(self) -> None:
        if self._is_released:
            return
        self._is_released = True
        self._shared.users -= 1
        if self._shared.users == 0:
            self._owner.pop(self._name, None)
            await self.transport.aclose()


def shared_transport(
    address: Address,
    *,
    key: ApiKey,
    policy: RetryPolicy,
    limits: Limits,
    clock: Clock,
    encoding: Preference = "auto",
) -> Lease:
    """The running loop's transport for these arguments. The caller releases the lease."""
    by_name = _shared.setdefault(asyncio.get_running_loop(), {})
    name = (address, key, policy, limits, clock, encoding)
    shared = by_name.get(name)
    if shared is None:
        transport = Transport(
            address, key=key, policy=policy, limits=limits, clock=clock, encoding=encoding
        )
        shared = by_name[name] = _Shared(transport)
        _hold(shared.transport, _held_until.get((address, key), 0.0))
    return Lease(shared, by_name, name)


def hold_back(address: Address, key: ApiKey, until: float) -> None:
    """Send nothing with this key before `until` (seconds of the Unix clock), in all transports of
    the running loop and those made later: another process was asked to slow down."""
    _held_until[address, key] = max(until, _held_until.get((address, key), 0.0))
    for name, shared in _shared.get(asyncio.get_running_loop(), {}).items():
        if name[:2] == (address, key):
            _hold(shared.transport, until)


def _hold(transport: Transport, until: float) -> None:
    wait_s = until - transport.clock.wall()
    if wait_s > 0:
        transport.pace.hold(wait_s, "the service asked another process to slow down")
