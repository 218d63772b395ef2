"""Sockets to one address: direct, or through an HTTP proxy; with TLS where the address has it.

https goes through a proxy as a tunnel (CONNECT), in which the proxy sees neither the key nor the
data; plain http is forwarded by it. Every failure is an `ExchangeError` that names the proxy.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from crucible_tinkex.client.address import Address
from crucible_tinkex.client.proxy import Proxy, proxy_for

Socket: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_HEAD_BYTES = 65536
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})\b")
_WORTH_RETRYING = frozenset({408, 425, 429})


class ExchangeError(Exception):
    """No usable answer. Whether the request took effect is unknown, unless it was a connect."""

    def __init__(self, text: str, *, is_malformed: bool = False, is_final: bool = False) -> None:
        super().__init__(text)
        self.is_malformed = is_malformed
        self.is_final = is_final
        """Trying again is no use: the host cannot prove who it is, or the proxy refuses."""


class Dialer:
    """Opens sockets to `address`. Reads the environment's proxy once; may raise `ConfigError`."""

    def __init__(self, address: Address, connect_s: float) -> None:
        self._address = address
        self._connect_s = connect_s
        self._proxy = proxy_for(address)
        self._ssl: ssl.SSLContext | None = None

    @property
    def forwarder(self) -> Proxy | None:
        """The proxy that reads every request, and so wants whole URLs."""
        return None if self._address.secure else self._proxy

    async def open(self) -> Socket:
        via = "" if self._proxy is None else f" through the proxy {self._proxy}"
        try:
            async with asyncio.timeout(self._connect_s):
                return await self._open()
        except TimeoutError:
            raise ExchangeError(f"no connection{via} in {self._connect_s:g} s") from None
        except (OSError, UnicodeError) as error:
            raise ExchangeError(f"cannot connect{via}: {error}") from None

    async def _open(self) -> Socket:
        address, proxy = self._address, self._proxy
        if proxy is not None and address.secure:
            return await self._tunnel(proxy)
        place = proxy or address
        with _certified(place.host):
            return await asyncio.open_connection(
                place.host, place.port, ssl=self._context(place.secure)
            )

    async def _tunnel(self, proxy: Proxy) -> Socket:
        loop = asyncio.get_running_loop()
        with _certified(proxy.host):
            transport, answer = await loop.create_connection(
                _TunnelAnswer, proxy.host, proxy.port, ssl=self._context(proxy.secure)
            )
        try:
            transport.write(proxy.connect_request(self._address))
            _check_tunnel(await answer.head, proxy)
            # A new reader: what the proxy sent before the handshake must never pass for data.
            reader = asyncio.StreamReader(loop=loop)
            protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
            context = self._context(True)
            assert context is not None
            host = self._address.host
            with _certified(host):
                inner = await loop.start_tls(transport, protocol, context, server_hostname=host)
        except BaseException:
            transport.abort()
            raise
        if inner is None:
            raise ConnectionError("the tunnel was closed")
        protocol.connection_made(inner)
        return reader, asyncio.StreamWriter(inner, protocol, reader, loop)

    def _context(self, is_wanted: bool) -> ssl.SSLContext | None:
        if is_wanted and self._ssl is None:
            self._ssl = ssl.create_default_context()
        return self._ssl if is_wanted else None


class _TunnelAnswer(asyncio.Protocol):
    """Collects the head of a proxy's answer to CONNECT."""

    def __init__(self) -> None:
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._seen = bytearray()

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if b"\r\n\r\n" in self._seen or len(self._seen) > _HEAD_BYTES:
            self._end()

    def connection_lost(self, error: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self.head.done():
            self.head.set_result(bytes(self._seen))


def _check_tunnel(head: bytes, proxy: Proxy) -> None:
    found = _STATUS.match(head)
    if found is None:
        what = "closed the connection" if not head else "did not answer CONNECT in HTTP"
        raise ExchangeError(f"the proxy {proxy} {what}")
    status = int(found[1])
    if not 200 <= status < 300:
        raise refused(proxy, status)


def refused(proxy: Proxy, status: int) -> ExchangeError:
    """The proxy answered in the service's place."""
    hint = "; give it a user name and password in its URL" if status == 407 else ""
    is_final = status < 500 and status not in _WORTH_RETRYING
    text = f"the proxy {proxy} refuses the connection: HTTP {status}{hint}"
    return ExchangeError(text, is_final=is_final)


@contextmanager
def _certified(host: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        text = f"the certificate of {host} is not trusted: {error.verify_message}"
        raise ExchangeError(text, is_final=True) from None
