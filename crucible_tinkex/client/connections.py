"""HTTP/1.1 exchanges over a bounded set of kept-alive connections to one address.

Guarantees: a request is written in one piece, so small ones cost one system call; a connection
goes back to the idle stack only after a complete exchange, so an answer can never reach another
request; idle connections that the service closed are not used again; an answer is bounded in
bytes; nothing is decompressed; redirects are not followed. Not here: retries, the meaning of a
status (`transport`, `retry`).

The HTTP framing is httpcore's, httpx's own engine; its connection pool is not used. That pool
scans all connections for every request: measured with 64 concurrent callers, CPU per request is
1.8 ms by `httpx.AsyncClient`, 1.4 ms by `httpx.AsyncHTTPTransport`, 0.19 ms this way. A stack of
idle connections needs no scan.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import httpcore

from crucible_tinkex.client.address import Address
from crucible_tinkex.client.sockets import Dialer, refused
from crucible_tinkex.client.sockets import ExchangeError as ExchangeError

Headers = Sequence[tuple[bytes, bytes]]
_FLUSH_BYTES = 65536


class Limits(NamedTuple):
    """`polls` is how many of the connections waiting requests may hold; the rest can submit."""

    connections: int = 512
    polls: int = 448
    idle_s: float = 30.0
    connect_s: float = 10.0
    write_s: float = 30.0
    answer_bytes: int = 256 * 1024 * 1024


class Reply(NamedTuple):
    """A complete answer; header names are compared in lower case by `header`."""

    status: int
    headers: Headers
    body: bytes

    def header(self, name: str) -> str | None:
        wanted = name.encode()
        for key, value in self.headers:
            if key.lower() == wanted:
                return value.decode("latin-1").strip()
        return None


class _Stream(httpcore.AsyncNetworkStream):
    """A socket for httpcore: writes are gathered, and sent when an answer is asked for."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, write_s: float
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._write_s = write_s
        self._pending: list[bytes] = []

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._pending:
            await self._flush()
        return await self._reader.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._pending.append(buffer)

    async def _flush(self) -> None:
        data = b"".join(self._pending)
        self._pending.clear()
        self._writer.write(data)
        if len(data) < _FLUSH_BYTES:
            return
        async with asyncio.timeout(self._write_s):
            await self._writer.drain()

    async def aclose(self) -> None:
        self.abort()

    def abort(self) -> None:
        self._writer.transport.abort()

    @property
    def is_stale(self) -> bool:
        return self._reader.at_eof() or self._writer.transport.is_closing()


class _Connection(NamedTuple):
    http: httpcore.AsyncHTTP11Connection
    stream: _Stream


class Connections:
    """The connections of one process and event loop to one address. Close with `aclose`."""

    def __init__(self, address: Address, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._origin = httpcore.Origin(
            b"https" if address.secure else b"http", address.host.encode(), address.port
        )
        self._idle: deque[tuple[float, _Connection]] = deque()
        self._slots = asyncio.Semaphore(self._limits.connections)
        self.poll_slots = asyncio.Semaphore(self._limits.polls)
        """Held around an exchange that waits at the service."""
        self._urls: dict[str, httpcore.URL] = {}
        self._dialer = Dialer(address, self._limits.connect_s)
        self._forwarder = self._dialer.forwarder
        self._target_prefix = "" if self._forwarder is None else f"http://{address.authority}"

    async def exchange(self, method: str, target: str, headers: Headers, body: bytes) -> Reply:
        """One request and its complete answer. Raises `ExchangeError`; sets no overall deadline."""
        async with self._slots:
            connection = self._take() or await self._connect()
            try:
                reply = await self._exchange(connection, method, target, headers, body)
            except ExchangeError:
                connection.stream.abort()
                raise
            except (OSError, EOFError, httpcore.NetworkError, httpcore.ProtocolError) as error:
                connection.stream.abort()
                # Without the cause: its frames hold the request's headers, and so the key.
                raise ExchangeError(f"{type(error).__name__}: {error}") from None
            except BaseException:
                connection.stream.abort()
                raise
        self._give(connection)
        return reply

    async def _exchange(
        self, connection: _Connection, method: str, target: str, headers: Headers, body: bytes
    ) -> Reply:
        response = await self._respond(connection, method, target, headers, body)
        parts: list[bytes] = []
        size = 0
        async for part in response.aiter_stream():
            size += len(part)
            if size > self._limits.answer_bytes:
                raise ExchangeError(f"the answer exceeds {size} bytes", is_malformed=True)
            parts.append(part)
        await response.aclose()
        return Reply(response.status, response.headers, b"".join(parts))

    async def _respond(
        self, connection: _Connection, method: str, target: str, headers: Headers, body: bytes
    ) -> httpcore.Response:
        if self._forwarder is not None:
            headers = [*headers, *self._forwarder.headers]
        response = await connection.http.handle_async_request(
            httpcore.Request(method, self._url(target), headers=headers, content=body)
        )
        if response.status == 407 and self._forwarder is not None:
            raise refused(self._forwarder, response.status)
        return response

    async def stream(
        self,
        target: str,
        headers: Headers,
        write: Callable[[bytes, int | None], None],
        *,
        idle_s: float,
    ) -> int:
        """GET `target` and hand the body of a 200 to `write`, part by part, with its length.

        Returns the status. The connection is not used again. Raises `ExchangeError`, TimeoutError
        after `idle_s` of silence, and what `write` raises.
        """
        connection = await self._connect()
        try:
            async with asyncio.timeout(idle_s):
                response = await self._respond(connection, "GET", target, headers, b"")
            if response.status == 200:
                await self._write_parts(response, write, idle_s)
            return response.status
        except (OSError, EOFError, httpcore.NetworkError, httpcore.ProtocolError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise ExchangeError(f"{type(error).__name__}: {error}") from None
        finally:
            connection.stream.abort()

    async def _write_parts(
        self,
        response: httpcore.Response,
        write: Callable[[bytes, int | None], None],
        idle_s: float,
    ) -> None:
        length = Reply(response.status, response.headers, b"").header("content-length")
        total = int(length) if length is not None else None
        size = 0
        parts = response.aiter_stream()
        while True:
            async with asyncio.timeout(idle_s):
                part = await anext(parts, None)
            if part is None:
                return
            size += len(part)
            if max(size, total or 0) > self._limits.answer_bytes:
                limit = self._limits.answer_bytes
                raise ExchangeError(f"the body exceeds {limit} bytes", is_malformed=True)
            write(part, total)

    def _url(self, target: str) -> httpcore.URL:
        url = self._urls.get(target)
        if url is None:
            url = httpcore.URL(
                scheme=self._origin.scheme,
                host=self._origin.host,
                port=self._origin.port,
                target=(self._target_prefix + target).encode(),
            )
            if len(self._urls) < 256:
                self._urls[target] = url
        return url

    async def _connect(self) -> _Connection:
        reader, writer = await self._dialer.open()
        stream = _Stream(reader, writer, self._limits.write_s)
        return _Connection(httpcore.AsyncHTTP11Connection(self._origin, stream), stream)

    def _take(self) -> _Connection | None:
        while self._idle:
            _, connection = self._idle.pop()
            if connection.http.is_idle() and not connection.stream.is_stale:
                return connection
            connection.stream.abort()
        return None

    def _give(self, connection: _Connection) -> None:
        if not connection.http.is_idle():
            connection.stream.abort()
            return
        now = asyncio.get_running_loop().time()
        self._idle.append((now, connection))
        while now - self._idle[0][0] > self._limits.idle_s:
            self._idle.popleft()[1].stream.abort()

    async def aclose(self) -> None:
        while self._idle:
            self._idle.pop()[1].stream.abort()
        await asyncio.sleep(0)
