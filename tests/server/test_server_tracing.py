"""Requests that are part of a trace: in the log, and told to whoever listens."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from protocol_table import NoEngine

from crucible_tinkex.server.store.store import Store
from crucible_tinkex.server.web.app import App

KEY = "tml-test-key"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def asked(folder: Path, *, hear: Any = None, **headers: str) -> int:
    app = App(NoEngine(), Store(folder), KEY, hear=hear)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        answer = await client.get("/api/v1/healthz", headers=headers)
    return answer.status_code


async def test_the_log_names_the_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "crucible_tinkex.server.web.app")
    assert await asked(tmp_path, traceparent=PARENT) == 200
    assert await asked(tmp_path, traceparent="nonsense") == 200
    assert await asked(tmp_path) == 200
    _, trace, span, _ = PARENT.split("-")
    assert caplog.messages == [
        f"GET healthz 200 trace={trace} span={span}",
        *["GET healthz 200"] * 2,
    ]


async def test_who_listens_hears_of_traced_requests_only(tmp_path: Path) -> None:
    heard: list[Any] = []
    await asked(tmp_path, hear=lambda *answer: heard.append(answer), traceparent=PARENT)
    await asked(tmp_path, hear=lambda *answer: heard.append(answer))
    ((route, status, seconds, parent),) = heard
    assert (route, status, parent) == ("GET healthz", 200, PARENT) and 0 <= seconds < 10
