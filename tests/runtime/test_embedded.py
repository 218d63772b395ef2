"""The embedded server as a child: two commands on the same folder, of which one has to wait."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from pathlib import Path

import pytest

from crucible_tinkex.config import ServiceSection
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import SERVER_LOCK
from crucible_tinkex.runtime.embedded import EmbeddedServer
from crucible_tinkex.server.web import serve as serving
from crucible_tinkex.storage import Lock


async def test_a_folder_in_use_keeps_what_its_owner_says_there_and_is_waited_for(
    tmp_path: Path,
) -> None:
    ready = tmp_path / "ready.json"
    other = {"base_url": "http://127.0.0.1:1", "api_key_file": "", "pid": os.getpid()}
    server = EmbeddedServer(ServiceSection(base_url="embedded"), model="nano", data_dir=tmp_path)
    with contextlib.closing(Lock(tmp_path / SERVER_LOCK)):
        ready.write_text(json.dumps(other))
        starting = asyncio.create_task(server.start())
        await asyncio.wait([starting], timeout=1.0)
        assert not starting.done() and json.loads(ready.read_text()) == other
    try:
        endpoint = await starting
        assert endpoint.base_url == json.loads(ready.read_text())["base_url"] != other["base_url"]
    finally:
        server.stop()


@pytest.mark.parametrize(("is_child", "remedy"), [(False, "--data-dir"), (True, "try again when")])
def test_who_is_refused_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_child: bool, remedy: str
) -> None:
    monkeypatch.setattr(serving, "FOLDER_WAIT_S", 0.1)
    monkeypatch.setattr(serving, "_exit_with_stdin", lambda: None)
    options = serving.ServeOptions(model="nano", data_dir=tmp_path, exit_with_parent=is_child)
    with (
        contextlib.closing(Lock(tmp_path / SERVER_LOCK)),
        pytest.raises(ConfigError, match=f"process {os.getpid()}.*{remedy}"),
    ):
        serving.serve(options)
