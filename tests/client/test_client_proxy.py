"""HTTP proxies of the environment: tunnels, forwarding, exceptions, faults, and the password."""

from __future__ import annotations

import asyncio
import logging
import pickle
import ssl
import traceback
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_service import Answer, ScriptedService, VirtualTime
from small_proxy import SmallProxy
from test_client_training import FAST, row

from crucible_tinkex.client import ClientSettings, RetryPolicy, TinkexService
from crucible_tinkex.client.http.address import Address
from crucible_tinkex.client.http.connections import Connections, proxy_for
from crucible_tinkex.client.http.transport import Transport
from crucible_tinkex.errors import ConfigError, ServiceUnavailableError
from crucible_tinkex.protocol.wire import AdamParams, LoraConfig

PASSWORD = "pass:w@rd-5c1d"
USER = "http://me:pass%3Aw%40rd-5c1d@"
BASIC = "Basic " + b64encode(f"me:{PASSWORD}".encode()).decode()
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
ONCE = ClientSettings(policy=RetryPolicy(total_s=3.0), clock=VirtualTime().clock)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def tls(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """For a server whose certificate the client trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


class SecureService(ScriptedService):
    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__()
        self._tls = tls

    async def __aenter__(self) -> SecureService:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self


@pytest.fixture
async def secure(tls: ssl.SSLContext) -> AsyncIterator[ScriptedService]:
    async with SecureService(tls) as service:
        yield service


def far(service: ScriptedService, scheme: str = "https") -> str:
    """The service under a name that only the proxy can reach."""
    return f"{scheme}://service.test:{service.port}"


async def flow(service: TinkexService) -> None:
    model = await service.create_training(base_model="m", lora=LoraConfig(rank=2))
    batches = [(model.forward_backward([row()] * 8), model.optim_step(AdamParams())) for _ in "123"]
    for backward, step in batches:
        assert (await backward).metrics["loss:sum"] == 8.0
        await step


async def test_https_goes_through_a_tunnel(
    secure: ScriptedService, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SmallProxy(secure.port, authorization=BASIC) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"{USER}127.0.0.1:{proxy.port}")
        async with TinkexService(far(secure), settings=FAST) as service:
            await flow(service)
    assert set(proxy.asked) == {f"CONNECT service.test:{secure.port} HTTP/1.1"}
    assert len(proxy.asked) < len(secure.requests)
    assert {r.headers["x-api-key"] for r in secure.requests} == {key}
    assert {r.headers["host"] for r in secure.requests} == {f"service.test:{secure.port}"}
    assert not any("proxy-authorization" in r.headers for r in secure.requests)
    assert proxy.relayed
    assert key.encode() not in proxy.relayed


async def test_plain_http_is_forwarded(
    scripted: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SmallProxy(scripted.port, authorization=BASIC) as proxy:
        monkeypatch.setenv("http_proxy", f"{USER}127.0.0.1:{proxy.port}")
        url = far(scripted, "http")
        async with TinkexService(url, allow_http=True, settings=FAST) as service:
            await flow(service)
    assert all(f" {url}/api/v1/" in line for line in proxy.asked)
    assert len(proxy.asked) == len(scripted.requests)
    assert not any("proxy-authorization" in r.headers for r in scripted.requests)


async def test_the_way_to_the_proxy_may_be_encrypted_too(
    secure: ScriptedService, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SmallProxy(secure.port, tls=tls) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"https://localhost:{proxy.port}")
        async with TinkexService(far(secure), settings=FAST) as service:
            await flow(service)
    assert proxy.asked


async def test_bytes_before_the_handshake_are_not_an_answer(
    secure: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SmallProxy(secure.port) as proxy:
        proxy.mode = "inject"
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
        connections = Connections(Address.parse(far(secure)))
        headers = [(b"Host", b"service.test")]
        reply = await connections.exchange("GET", "/api/v1/get_server_capabilities", headers)
        await connections.aclose()
    assert b"supported_models" in reply.body


async def test_a_large_answer_comes_through_a_tunnel(
    secure: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = bytes(range(256)) * 20_000
    secure.on("/large", Answer(body=body))
    async with SmallProxy(secure.port) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        connections = Connections(Address.parse(far(secure)))
        reply = await connections.exchange("GET", "/large", [(b"Host", b"service.test")])
        await connections.aclose()
    assert reply.body == body


@pytest.mark.parametrize(
    ("answer", "mode", "text", "attempts"),
    [
        (None, "407", "HTTP 407; give it a user name and password", 1),
        (b"HTTP/1.1 403 No\r\n\r\n", "whole", "refuses the connection: HTTP 403", 1),
        (b"HTTP/1.1 502 Bad\r\n\r\n", "whole", "refuses the connection: HTTP 502", None),
        (b"220 smtp ready\r\n\r\n", "whole", "no answer .* through the proxy", None),
        (b"x" * 100_000, "whole", "no answer .* through the proxy", None),
        (None, "close", "Server disconnected", None),
        (None, "hang", "no answer from .* in 0.2 s", None),
        (None, "dead", "cannot connect .* through the proxy", None),
    ],
    ids=lambda v: str(v)[:12],
)
async def test_a_fault_of_the_proxy_names_it(
    secure: ScriptedService,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    answer: bytes | None,
    mode: str,
    text: str,
    attempts: int | None,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with SmallProxy(secure.port) as proxy:
        proxy.answer, proxy.mode = answer, mode
        proxy.authorization = "Basic other" if mode == "407" else None
        port = 1 if mode == "dead" else proxy.port
        monkeypatch.setenv("HTTPS_PROXY", f"{USER}127.0.0.1:{port}")
        policy = RetryPolicy(total_s=3.0, attempt_s=0.2 if mode == "hang" else 5.0)
        settings = replace(ONCE, policy=policy, clock=VirtualTime().clock)
        service = TinkexService(far(secure), settings=settings)
        with pytest.raises(ServiceUnavailableError, match=text) as caught:
            await service.create_training(base_model="m", lora=LoraConfig(rank=2))
        await service.close()
    if attempts is not None:
        assert len(proxy.asked) == attempts
    assert f"the proxy http://127.0.0.1:{port}" in str(caught.value)
    shown = "".join(
        traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    )
    for secret in (PASSWORD, "5c1d", BASIC, BASIC.split()[1]):
        assert secret not in shown
        assert secret not in caplog.text
        assert secret.encode() not in pickle.dumps(caught.value)
    assert secure.requests == []


async def test_a_forwarding_proxy_that_wants_a_password_is_named(
    scripted: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SmallProxy(scripted.port, authorization="Basic other") as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"{USER}127.0.0.1:{proxy.port}")
        url = far(scripted, "http")
        async with TinkexService(url, allow_http=True, settings=ONCE) as service:
            with pytest.raises(ServiceUnavailableError, match=r"the proxy http://127.*HTTP 407"):
                await service.capabilities()
    assert len(proxy.asked) == 1


async def test_the_certificate_is_checked_inside_a_tunnel(
    secure: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SmallProxy(secure.port) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        for url in (f"https://other.test:{secure.port}", far(secure)):
            if url == far(secure):
                monkeypatch.delenv("SSL_CERT_FILE")
            async with TinkexService(url, settings=ONCE) as service:
                with pytest.raises(ServiceUnavailableError, match="is not trusted"):
                    await service.capabilities()
    assert secure.requests == []


async def test_this_machine_is_never_proxied(
    scripted: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:1")
    async with TinkexService(scripted.url, settings=FAST) as service:
        await flow(service)


@pytest.mark.parametrize(
    ("variables", "url", "expected"),
    [
        ({}, "https://a.example", None),
        ({"HTTPS_PROXY": "http://p:3128"}, "https://a.example", "http://p:3128"),
        ({"https_proxy": "p:3128"}, "https://a.example", "http://p:3128"),
        ({"HTTPS_PROXY": "https://p"}, "https://a.example", "https://p"),
        ({"HTTPS_PROXY": "http://[fd00::1]:3128"}, "https://a.example", "http://[fd00::1]:3128"),
        ({"HTTPS_PROXY": ""}, "https://a.example", None),
        ({"HTTP_PROXY": "http://p:3128"}, "https://a.example", None),
        ({"HTTP_PROXY": "http://p:3128"}, "http://a.example", "http://p:3128"),
        ({"ALL_PROXY": "http://p:1", "HTTPS_PROXY": "http://q:2"}, "https://a.b", "http://q:2"),
        ({"ALL_PROXY": "http://p:1"}, "http://a.example", "http://p:1"),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "*"}, "https://a.example", None),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "x, .example"}, "https://a.example", None),
        ({"ALL_PROXY": "http://p:1", "no_proxy": "ample"}, "https://a.example", "http://p:1"),
        ({"ALL_PROXY": "http://p:1"}, "https://127.0.0.1", None),
        ({"ALL_PROXY": "http://p:1"}, "https://[::1]:8", None),
        ({"ALL_PROXY": "http://p:1"}, "http://localhost:8", None),
    ],
)
def test_which_proxy(
    variables: dict[str, str], url: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = proxy_for(Address.parse(url, allow_http=True))
    assert (str(found.url) if found else None) == expected


@pytest.mark.parametrize(
    "url",
    [
        "socks5://me:5c1d@p:1080",
        "socks4://me:5c1d@p",
        "http://me:5c1d@",
        "http://me:5c1d",
    ],
)
def test_proxies_that_are_no_use(url: str, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", url)
    with pytest.raises(ConfigError, match="is not http") as caught:
        Transport(Address.parse("https://service.example"))
    formatted = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    frames = [f for f in formatted.stack if "/client/test_" not in f.filename]
    assert "5c1d" not in str(caught.value) + str([f.locals for f in frames])
    assert caught.value.__context__ is None


async def test_downloads_go_through_the_proxy_too(
    secure: ScriptedService, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "training_runs/s1:train:0/checkpoints/weights/a"
    urls = {"urls": {"a.txt": f"https://service.test:{secure.port}/f?sig=1"}}
    secure.on(f"{place}/external_weights_urls", Answer(body=urls), Answer(body=urls))
    secure.on("/f?sig=1", Answer(body=b"content"))
    async with SmallProxy(secure.port) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        async with TinkexService(far(secure), settings=FAST) as service:
            rest = service.rest
            found = await rest.download("tinker://s1:train:0/weights/a", tmp_path / "one")
            assert [f.read_bytes() for f in found] == [b"content"]
            asked = len(proxy.asked)
            assert asked == 2
            proxy.answer = b"HTTP/1.1 403 No\r\n\r\n"
            with pytest.raises(ServiceUnavailableError, match=r"the proxy .* HTTP 403"):
                await rest.download("tinker://s1:train:0/weights/a", tmp_path / "two")
            assert len(proxy.asked) == asked + 1
    await asyncio.sleep(0)
