"""https: the certificate is checked, and an untrusted one is not tried again."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from crucible_tinkex.client import TinkexService
from crucible_tinkex.errors import ServiceUnavailableError

BODY = b'{"supported_models": []}'


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
    await writer.drain()
    writer.transport.abort()


async def test_https(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = await asyncio.start_server(_serve, "127.0.0.1", 0, ssl=context)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    async with TinkexService(url) as stranger:
        with pytest.raises(ServiceUnavailableError, match="is not trusted"):
            await stranger.capabilities()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    async with TinkexService(url) as trusting:
        assert (await trusting.capabilities()).supported_models == []
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0)
