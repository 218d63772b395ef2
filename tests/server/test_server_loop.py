"""The event loop goes on while a large request is read, an export is made, files are removed.

Each piece of slow work here ends only when another request was answered meanwhile.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from app_client import AppClient

from crucible_tinkex.server import bases
from crucible_tinkex.server.sessions import checks
from crucible_tinkex.server.web import exports

WAIT_S = 5.0


@pytest.fixture
def api(nano: bases.Base, tmp_path: Path) -> Iterator[AppClient]:
    client = AppClient(nano, tmp_path)
    yield client
    client.close()


class Slow:
    """Work that waits until somebody else was answered."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self._work = work
        self.begun = threading.Event()
        self.others_answered = threading.Event()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.begun.set()
        assert self.others_answered.wait(WAIT_S), "the event loop stood still"
        return self._work(*args, **kwargs)

    async def meanwhile(self, http: httpx.AsyncClient) -> httpx.Response:
        assert await asyncio.to_thread(self.begun.wait, WAIT_S)
        response = await http.get("healthz")
        self.others_answered.set()
        return response


def _large(prompt: list[int]) -> dict[str, Any]:
    params = {"max_tokens": 1, "stop": ["x" * bodies_are_large]}
    chunks = [{"type": "encoded_text", "tokens": prompt}]
    return {"base_model": "nano", "prompt": {"chunks": chunks}, "sampling_params": params}


bodies_are_large = 100_000


def test_a_large_request_is_read_in_a_thread(
    api: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(checks.SampleRequest.model_validate_json)
    monkeypatch.setattr(checks.SampleRequest, "model_validate_json", slow)
    sampled, healthy = api.together(
        lambda http: http.post("asample", json=_large([1, 2])), slow.meanwhile
    )
    assert (sampled.status_code, healthy.status_code) == (200, 200), sampled.text


def test_a_large_request_is_checked_in_a_thread_where_it_trains(
    api: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = api.model()
    slow = Slow(checks.forward)
    monkeypatch.setattr(checks, "forward", slow)
    given = {"data": [], "loss_fn": "x" * bodies_are_large}
    body = {"model_id": model, "seq_id": 1, "forward_backward_input": given}
    trained, healthy = api.together(
        lambda http: http.post("forward_backward", json=body), slow.meanwhile
    )
    assert (trained.status_code, healthy.status_code) == (400, 200)


def test_only_training_may_send_much(api: AppClient) -> None:
    too_large = api.send("POST", "asample", content=b" " * (4 * 1024 * 1024 + 1))
    assert too_large.status_code == 413 and "4194304" in too_large.json()["error"]
    assert api.send("POST", "forward", content=b" " * (4 * 1024 * 1024 + 1)).status_code == 400


def test_a_long_prompt_is_refused_by_its_length(api: AppClient) -> None:
    """Before anything is made of its tokens."""
    answer = api.post("asample", **{**_large([2**70] * 3000)})
    assert answer.status_code == 400 and "3000 tokens" in answer.json()["error"]


def _saved(api: AppClient, *names: str) -> str:
    model = api.model()
    for seq_id, name in enumerate(names, 1):
        api.result("save_weights", model_id=model, seq_id=seq_id, path=name)
    return f"training_runs/{model}/checkpoints/weights"


def test_exports_wait_for_each_other_in_threads(
    api: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one's answer is not held up by the second one's files."""
    place = _saved(api, "a", "b")
    make, calls = exports.export_peft, []

    def second_is_slow(*args: Any, **kwargs: Any) -> None:
        calls.append(time.monotonic())
        (slow if len(calls) == 2 else make)(*args, **kwargs)

    slow = Slow(make)
    monkeypatch.setattr(exports, "export_peft", second_is_slow)

    async def meanwhile(http: httpx.AsyncClient) -> httpx.Response:
        assert await asyncio.to_thread(slow.begun.wait, WAIT_S)
        await asyncio.sleep(0.2)  # the first one's answer is being made
        return await slow.meanwhile(http)

    found = api.together(
        lambda http: http.get(f"{place}/a/archive"),
        lambda http: http.get(f"{place}/b/archive"),
        meanwhile,
    )
    assert [r.status_code for r in found] == [200, 200, 200], [r.text for r in found]


def test_files_are_removed_in_a_thread(api: AppClient, monkeypatch: pytest.MonkeyPatch) -> None:
    place = _saved(api, "a")
    slow = Slow(shutil.rmtree)
    monkeypatch.setattr(shutil, "rmtree", slow)
    deleted, healthy = api.together(lambda http: http.delete(f"{place}/a"), slow.meanwhile)
    assert (deleted.status_code, healthy.status_code) == (200, 200), deleted.text


def test_a_list_leaves_out_what_has_expired_and_removes_nothing(
    api: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = _saved(api, "a", "b")
    api.send("PUT", f"{place}/a/ttl", json={"ttl_seconds": 1})
    time.sleep(1.05)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", None)
        assert [c["checkpoint_id"] for c in api.get("checkpoints")["checkpoints"]] == ["weights/b"]
    api.store.purge()
    assert len(list(api.store.data_dir.glob("checkpoints/*/weights/*"))) == 1
