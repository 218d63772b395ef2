from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from scripted_service import ScriptedService

KEY = "tml-canary-7f3a9c"


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedService]:
    async with ScriptedService() as service:
        yield service


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    return KEY
