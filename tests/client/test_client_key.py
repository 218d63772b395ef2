"""The key is in one header and nowhere else; it is sent only to a safe address."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from pathlib import Path

import pytest
from scripted_service import Answer, ScriptedService, VirtualTime

from crucible_tinkex.client import ClientSettings, RetryPolicy, TinkexService
from crucible_tinkex.client.http.address import PUBLIC_BASE_URL, Address
from crucible_tinkex.client.http.key import ApiKey, scrub
from crucible_tinkex.client.http.transport import Transport
from crucible_tinkex.errors import AuthenticationError, ConfigError, ServiceError
from crucible_tinkex.protocol.wire import LoraConfig


async def test_the_key_is_in_one_header_only(
    scripted: ScriptedService, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    service = TinkexService(scripted.url)
    model = await service.create_training(base_model="m", lora=LoraConfig(rank=2))
    assert {r.headers["x-api-key"] for r in scripted.requests} == {key}
    assert not any("authorization" in r.headers for r in scripted.requests)
    live = service._live
    assert key not in repr(service) + repr(model) + repr(live.transport())
    assert key not in repr(vars(service)) + repr(vars(live))
    assert not any(key.encode() in r.body or key in r.path for r in scripted.requests)
    await service.close()
    assert key not in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        Answer(400, {"error": "echo: tml-canary-7f3a9c"}),
        Answer(401, {"error": "bad key tml-canary-7f3a9c and tml-another"}),
        Answer(500, {"error": "echo: tml-canary-7f3a9c"}),
        Answer(200, b"<html>tml-canary-7f3a9c"),
        Answer(200, {"error": "tml-canary-7f3a9c", "category": "user"}),
        Answer(mode="reset"),
    ],
)
async def test_the_key_is_in_no_exception(
    scripted: ScriptedService, key: str, answer: Answer
) -> None:
    scripted.on("create_session", *[answer] * 500)
    settings = ClientSettings(policy=RetryPolicy(total_s=20), clock=VirtualTime().clock)
    service = TinkexService(scripted.url, settings=settings)
    with pytest.raises(ServiceError) as caught:
        await service.create_training(base_model="m", lora=LoraConfig(rank=2))
    shown = "".join(
        traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    )
    assert key not in shown.replace(f"key = '{key}'", "").replace(repr(answer), "")
    assert key not in str(caught.value)
    assert "tml-another" not in str(caught.value)
    assert key.encode() not in pickle.dumps(caught.value)
    assert len(str(caught.value)) < 1000
    await service.close()


async def test_live_objects_refuse_to_be_pickled(scripted: ScriptedService, key: str) -> None:
    service = TinkexService(scripted.url)
    model = await service.create_training(base_model="m", lora=LoraConfig(rank=2))
    sampler = await service.sampler(base_model="m")
    for live in (service, model, sampler, service._live.transport()):
        with pytest.raises(TypeError):
            pickle.dumps(live)
        with pytest.raises(TypeError):
            copy.deepcopy(live)
    assert key.encode() not in pickle.dumps(ApiKey())
    await service.close()


def test_key_sources(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "key"
    file.write_text("tml-from-file\n")
    file.chmod(0o600)
    assert ApiKey().read({}) is None
    assert ApiKey().read({"TINKER_API_KEY": " tml-env "}) == "tml-env"
    assert ApiKey().read({"CRUCIBLE_API_KEY_FILE": str(file)}) == "tml-from-file"
    assert ApiKey(str(file)).read({"TINKER_API_KEY": "tml-env"}) == "tml-from-file"
    assert not caplog.text
    file.chmod(0o644)
    ApiKey(str(file)).read({})
    assert "chmod 600" in caplog.text
    assert "tml-from-file" not in caplog.text


@pytest.mark.parametrize("text", ["", "two words", "tml-a\r\nX: y", "tml-\u00e9", "\x00"])
def test_keys_that_no_header_can_hold(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(AuthenticationError) as caught:
        ApiKey(str(file)).read({})
    assert not text or text not in str(caught.value)
    with pytest.raises(AuthenticationError):
        ApiKey(str(tmp_path / "absent")).read({})


def test_a_key_is_needed_beyond_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    monkeypatch.delenv("CRUCIBLE_API_KEY_FILE", raising=False)
    with pytest.raises(AuthenticationError, match="TINKER_API_KEY"):
        Transport(Address.parse("https://tinker.example"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://tinker.example/services/prod/", "https://tinker.example/services/prod"),
        ("https://tinker.example:8443", "https://tinker.example:8443"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.8.9.1", "http://127.8.9.1"),
        ("http://localhost:1", "http://localhost:1"),
        ("http://[::1]:9", "http://[::1]:9"),
        (None, PUBLIC_BASE_URL),
    ],
)
def test_addresses(url: str | None, shown: str) -> None:
    assert str(Address.parse(url, environ={})) == shown
    assert str(Address.parse(None, environ={"TINKER_BASE_URL": url or ""})) == shown


@pytest.mark.parametrize(
    "url",
    [
        "http://tinker.example",
        "http://10.0.0.7:8000",
        "https://user:secret@tinker.example",
        "http://127.0.0.1@tinker.example",
        "ftp://tinker.example",
        "tinker.example",
        "https://",
        "https://h:99999",
        "https://a..b",
        "https://" + "\u00fc" * 70,
        "https://[::1",
        "https://h/p?key=1",
        "https://169.254.169.254/latest",
        "https://[::ffff:169.254.169.254]",
        "https://[fe80::1]",
        "https://[fd00:ec2::254]",
    ],
)
def test_unsafe_addresses(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Address.parse(url)
    assert "secret" not in str(caught.value)


def test_plain_http_by_name() -> None:
    assert not Address.parse("http://10.0.0.7:8000", allow_http=True).is_loopback
    for allowed in (["10.0.0.7"], ("other", "10.0.0.7")):
        assert str(Address.parse("http://10.0.0.7:8000", allow_http=allowed)).endswith(":8000")
    assert Address.parse("http://[fd00::7]:8000", allow_http=["[fd00::7]"]).host == "fd00::7"


@pytest.mark.parametrize("allowed", [False, (), ("10.0.0.8",)])
def test_plain_http_is_refused_with_the_setting_that_permits_it(
    allowed: bool | tuple[str, ...],
) -> None:
    with pytest.raises(ConfigError, match=r"clear text.*service\.allow_http = \['10\.0\.0\.7'\]"):
        Address.parse("http://10.0.0.7:8000", allow_http=allowed)


def test_link_local_hosts_are_refused_also_where_http_is_allowed() -> None:
    with pytest.raises(ConfigError, match="link-local"):
        Address.parse("http://169.254.169.254", allow_http=True)


async def test_redirects_do_not_carry_the_key(scripted: ScriptedService, key: str) -> None:
    async with ScriptedService() as elsewhere:
        for status in (301, 302, 307, 308):
            scripted.on("create_session", Answer(status, headers={"Location": elsewhere.url}))
            async with TinkexService(scripted.url) as service:
                with pytest.raises(ServiceError, match="redirect"):
                    await service.sampler(base_model="m")
        assert elsewhere.requests == []


def test_scrub() -> None:
    assert scrub("a secret b tml-xyz c", "secret") == "a *** b *** c"
    assert scrub(json.dumps({"t": "eyJhbGciOiJIUzI1NiJ9.abc"}), None) == '{"t": "***"}'
