"""The official SDK behind our interface, and the choice between the two."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from crucible_tinkex.client import TinkexService
from crucible_tinkex.client.resolved import ResolvedService
from crucible_tinkex.errors import (
    AuthenticationError,
    ConfigError,
    OperationFailedError,
    ProtocolError,
    RequestRejectedError,
    ServiceError,
    ServiceUnavailableError,
    SessionLostError,
)

tinker = pytest.importorskip("tinker", reason="needs the extra [sdk]")
httpx = pytest.importorskip("httpx")


@pytest.mark.parametrize("check", ["contract", "custom", "refusals"])
def test_the_sdk_on_the_embedded_server(ready: dict[str, str], check: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("sdk_process.py")),
            check,
            ready["base_url"],
            ready["api_key_file"],
        ],
        env={**os.environ, "TINKER_TELEMETRY": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def status_error(status: int) -> Exception:
    response = httpx.Response(status, request=httpx.Request("POST", "https://x/"))
    error: Exception = tinker.APIStatusError("tml-secret says no", response=response, body=None)
    return error


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (status_error(400), RequestRejectedError),
        (status_error(401), AuthenticationError),
        (status_error(410), SessionLostError),
        (status_error(404), SessionLostError),
        (status_error(409), RequestRejectedError),
        (status_error(500), ServiceUnavailableError),
        (tinker.APIConnectionError(httpx.Request("POST", "https://x/")), ServiceUnavailableError),
        (TimeoutError(), ServiceUnavailableError),
        (ValueError("Error retrieving result: x with status 404 for"), SessionLostError),
        (ValueError("odd"), ProtocolError),
        (RuntimeError("Internal client holder is closed"), SessionLostError),
        (AssertionError(), ProtocolError),
        (tinker.TinkerError("other"), ServiceError),
        (ImportError("no torch"), ConfigError),
    ],
)
def test_every_error_has_a_translation(given: Exception, expected: type[Exception]) -> None:
    translated = import_module("crucible_tinkex.client.sdk.sdk_errors").translated
    with pytest.raises(expected) as caught, translated("optim_step"):
        raise given
    assert "tml-secret" not in str(caught.value)
    assert type(caught.value) is expected


def test_a_failed_operation_keeps_its_category() -> None:
    translated = import_module("crucible_tinkex.client.sdk.sdk_errors").translated
    category = tinker.types.RequestErrorCategory.User
    with pytest.raises(OperationFailedError) as caught, translated("optim_step", model_id="m"):
        raise tinker.RequestFailedError("out of range", "r1", category)
    assert (caught.value.category, caught.value.request_id) == ("user", "r1")


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tinker", None)
    for name in ("sdk_service", "sdk_errors"):
        monkeypatch.delitem(sys.modules, f"crucible_tinkex.client.sdk.{name}", raising=False)
    with pytest.raises(ConfigError, match=r"crucible-tinkex\[sdk\]"):
        ResolvedService("https://example.org", transport="sdk").connect()


def test_our_client_is_the_default() -> None:
    assert isinstance(ResolvedService("https://example.org").connect(), TinkexService)
