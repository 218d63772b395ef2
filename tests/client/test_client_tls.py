"""https: the certificate is checked, and an untrusted one is not tried again."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from scripted_service import Recorder, VirtualTime

from crucible_tinkex.client import ClientSettings, RetryPolicy, TinkexService
from crucible_tinkex.errors import ServiceUnavailableError

BODY = b'{"supported_models": []}'


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
    await writer.drain()
    writer.transport.abort()


async def test_a_service_that_does_not_speak_tls(key: str) -> None:
    came: list[bytes] = []

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await reader.read(65536))
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.transport.abort()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    settings = ClientSettings(policy=RetryPolicy(total_s=5), clock=VirtualTime().clock)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    async with TinkexService(url, settings=settings) as service:
        with pytest.raises(ServiceUnavailableError, match="cannot connect") as caught:
            await service.sampler(base_model="m")
    server.close()
    await server.wait_closed()
    assert len(came) > 1
    assert not any(key.encode() in data for data in came)
    assert key not in str(caught.value)


async def test_https(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = await asyncio.start_server(_serve, "127.0.0.1", 0, ssl=context)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    heard = Recorder()
    async with TinkexService(url, observer=heard) as stranger:
        with pytest.raises(ServiceUnavailableError, match="is not trusted"):
            await stranger.capabilities()
    assert [r.attempts for r in heard.records] == [1]
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    async with TinkexService(url) as trusting:
        assert (await trusting.capabilities()).supported_models == []
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0)
