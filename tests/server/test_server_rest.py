"""Runs, checkpoints and downloads as resources, also after a restart."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from app_client import AppClient, row_data
from safetensors.numpy import load

from crucible_tinkex.errors import RequestRejectedError
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server import bases
from crucible_tinkex.server.store.store import ADAPTER_FILE, Store
from crucible_tinkex.server.web.exports import GRANT_S, Exports


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def api(nano: bases.Base, folder: Path) -> Iterator[AppClient]:
    client = AppClient(nano, folder)
    yield client
    client.close()


@pytest.fixture
def run(api: AppClient) -> str:
    """A run with a training and a sampler checkpoint."""
    run = api.model(user_metadata={"a": 1})
    assert "path" in api.result("save_weights", model_id=run, seq_id=1, path="t")
    assert "path" in api.result("save_weights_for_sampler", model_id=run, seq_id=2, path="s")
    return run


def test_runs_are_paged_newest_first(api: AppClient, run: str) -> None:
    other = api.model()
    whole = api.get("training_runs")
    ids = [r["training_run_id"] for r in whole["training_runs"]]
    assert ids[:2] == [other, run]
    total = whole["cursor"]["total_count"]
    assert total == len(ids)
    page = api.get("training_runs?limit=1&offset=1&access_scope=owned")
    assert [r["training_run_id"] for r in page["training_runs"]] == [run]
    assert page["cursor"] == {"limit": 1, "offset": 1, "total_count": total}
    assert api.get(f"training_runs?offset={total}")["training_runs"] == []
    found = api.get(f"training_runs/{run}")
    assert (found["lora_rank"], found["base_model"], found["is_lora"]) == (4, "nano", True)
    assert found["user_metadata"] == {"a": "1"}
    assert found["last_checkpoint"]["checkpoint_id"] == "weights/t"
    assert found["last_sampler_checkpoint"]["tinker_path"] == f"tinker://{run}/sampler_weights/s"


def test_time_to_live_and_deletion(api: AppClient, run: str) -> None:
    base = f"training_runs/{run}/checkpoints"

    def one(kind: str) -> dict[str, Any]:
        listed = api.get(base)["checkpoints"]
        return next(c for c in listed if c["checkpoint_id"] == kind)

    for body, status in (({"ttl_seconds": 1}, 200), ({"ttl_seconds": 0}, 400), ({}, 200)):
        answer = api.send("PUT", f"{base}/sampler_weights/s/ttl", json=body)
        assert answer.status_code == status
        assert ("expires_at" in one("sampler_weights/s")) is (body != {})
    api.send("PUT", f"{base}/sampler_weights/s/ttl", json={"ttl_seconds": 1})
    time.sleep(1.05)
    assert [c["checkpoint_id"] for c in api.get(base)["checkpoints"]] == ["weights/t"]
    api.store.purge()
    assert not api.store.folder(TinkerPath(run, "sampler_weights", "s")).exists()
    assert api.send("DELETE", f"{base}/weights/t").status_code == 200
    assert api.send("DELETE", f"{base}/weights/t").status_code == 404
    assert api.send("PUT", f"{base}/weights/t/ttl", json={}).status_code == 404
    assert api.get(base)["checkpoints"] == []
    assert api.send("GET", "training_runs/x:train:9/checkpoints").status_code == 404


@pytest.mark.parametrize("bad", [0, -1, 2**60])
def test_an_impossible_ttl_is_refused(api: AppClient, bad: int) -> None:
    model = api.model()
    body = {"model_id": model, "seq_id": 1, "path": "x", "ttl_seconds": bad}
    assert api.post("save_weights", **body).status_code == 400


def test_all_checkpoints_are_paged(api: AppClient, run: str) -> None:
    whole = api.get("checkpoints")
    assert [c["checkpoint_id"] for c in whole["checkpoints"][:2]] == [
        "sampler_weights/s",
        "weights/t",
    ]
    page = api.get("checkpoints?limit=1&offset=1")
    assert page["checkpoints"] == whole["checkpoints"][1:2]
    assert page["cursor"]["total_count"] == len(whole["checkpoints"])
    for query in ("limit=x", "limit=-1", "offset=1.5", "limit=9999999999"):
        assert api.send("GET", f"checkpoints?{query}").status_code == 400


def _fetch(api: AppClient, url: str) -> Any:
    """Without the key."""
    return api.send("GET", urlsplit(url).path.removeprefix("/api/v1/"), headers={"X-API-Key": ""})


def test_an_archive_is_a_peft_adapter(api: AppClient, run: str) -> None:
    answer = api.get(f"training_runs/{run}/checkpoints/weights/t/archive")
    assert datetime.fromisoformat(answer["expires"]) > datetime.now(UTC) + timedelta(minutes=50)
    body = _fetch(api, answer["url"]).content
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        names = {"adapter_config.json", "adapter_model.safetensors", "checkpoint_complete"}
        assert set(tar.getnames()) == names
        config = json.loads(tar.extractfile("adapter_config.json").read())  # type: ignore[union-attr]
        tensors = load(tar.extractfile("adapter_model.safetensors").read())  # type: ignore[union-attr]
    assert (config["r"], config["lora_alpha"]) == (4, 32.0)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert tensors[name].shape == (4, 128) and np.abs(tensors[name]).max() > 0


def test_an_adapter_comes_file_by_file(api: AppClient, run: str) -> None:
    made = api.result("save_weights_external", model_id=run, seq_id=3, path="e")
    assert made["path"] == f"tinker://{run}/external_weights/e" and made["size_bytes"] > 0
    base = f"training_runs/{run}/checkpoints/external_weights/e"
    urls = api.get(f"{base}/external_weights_urls")["urls"]
    assert set(urls) == {"adapter_config.json", "adapter_model.safetensors"}
    assert _fetch(api, urls["adapter_config.json"]).json()["peft_type"] == "LORA"
    wrong = urls["adapter_config.json"].replace("adapter_config.json", "adapter_model.safetensors")
    assert _fetch(api, wrong).status_code == 404
    api.send("DELETE", base)
    assert _fetch(api, urls["adapter_config.json"]).status_code == 404


def test_what_is_damaged_is_never_handed_out(api: AppClient, run: str) -> None:
    """Neither a checkpoint that is not what was saved, nor an export that is not what was made."""
    base = f"training_runs/{run}/checkpoints"
    url = api.get(f"{base}/weights/t/archive")["url"]
    for export in (api.store.data_dir / "exports").glob("*-t/archive.tar"):
        _flip_a_bit(export)
    broken = _fetch(api, url)
    assert broken.status_code == 404 and "ask for a new URL" in broken.json()["error"]
    anew = api.get(f"{base}/weights/t/archive")["url"]
    assert _fetch(api, anew).status_code == 200

    saved = api.store.folder(TinkerPath(run, "sampler_weights", "s")) / ADAPTER_FILE
    _flip_a_bit(saved)
    answer = api.send("GET", f"{base}/sampler_weights/s/archive")
    assert (answer.status_code, answer.json()["category"]) == (422, "user")
    assert f"{ADAPTER_FILE} is damaged" in answer.json()["error"]
    saved.unlink()
    assert api.send("GET", f"{base}/sampler_weights/s/external_weights_urls").status_code == 422


def test_a_damaged_checkpoint_is_not_told_as_the_disks_fault(api: AppClient, run: str) -> None:
    path = TinkerPath(run, "weights", "t")
    _flip_a_bit(api.store.folder(path) / ADAPTER_FILE)
    failed = api.result("load_weights", model_id=run, seq_id=3, path=str(path), optimizer=True)
    assert failed["category"] == "user" and "status_code" not in failed
    assert f"{ADAPTER_FILE} is damaged" in failed["error"]


def _flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes(content)


def test_encryption_is_refused_by_its_name(api: AppClient, run: str) -> None:
    asked = {"model_id": run, "path": "e", "age_encryption_recipients": ["age1x"]}
    answer = api.post("save_weights_external", seq_id=3, **asked)
    assert answer.status_code == 400 and "age_encryption_recipients" in answer.json()["error"]


@pytest.mark.parametrize(
    "path", ["x/adapter_config.json", "../../api_key", "x", "a/b/c", "%00/%00"]
)
def test_no_download_without_its_token(api: AppClient, path: str) -> None:
    answer = api.send("GET", f"downloads/{path}", headers={"X-API-Key": ""})
    assert answer.status_code in (401, 404)


def test_a_grant_ends(api: AppClient, run: str) -> None:
    now = datetime.now(UTC)
    clock = [now]
    exports = Exports(api.store, clock=lambda: clock[0])
    path = TinkerPath(run, "weights", "t")
    tokens, expires = exports.grant(path)
    token = tokens["adapter_config.json"]
    file = exports.open(token, "adapter_config.json")
    assert json.loads(file.read_text())["peft_type"] == "LORA"
    clock[0] = now + timedelta(seconds=GRANT_S + 1)
    assert expires < clock[0]
    with pytest.raises(RequestRejectedError, match="expired"):
        exports.open(token, "adapter_config.json")
    exports.grant(TinkerPath(run, "sampler_weights", "s"))
    assert not file.exists()  # nobody can ask for it any more


def test_what_there_was_is_there_after_a_restart(nano: bases.Base, tmp_path: Path) -> None:
    first = AppClient(nano, tmp_path)
    session = first.session()
    run = first.model(session)
    first.result("save_weights", model_id=run, seq_id=1, path="t", user_metadata={"k": "v"})
    before = first.get(f"training_runs/{run}")
    first.close()
    again = AppClient(nano, tmp_path)
    after = again.get(f"training_runs/{run}")
    assert {**after, "last_request_time": ""} == {**before, "last_request_time": ""}
    assert after["last_checkpoint"]["user_metadata"] == {"k": "v"}
    assert again.get("training_runs")["training_runs"] == [after]
    assert again.post("session_heartbeat", session_id=session).status_code == 410
    again.close()


def _sample(sampler: str, number: int) -> dict[str, Any]:
    params = {"max_tokens": 4, "seed": 1, "stop": []}
    asked = {"sampling_session_id": sampler, "seq_id": number, "sampling_params": params}
    return {**asked, "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]}}


def test_what_an_earlier_server_held_is_told_to_be_lost(nano: bases.Base, tmp_path: Path) -> None:
    """A client that goes on with its session hears at once that it needs another one; checkpoints
    are all that it can go on from, with the same digits."""
    first = AppClient(nano, tmp_path)
    session = first.session()
    run = first.model(session)
    path = first.result("save_weights_for_sampler", model_id=run, seq_id=1, path="s")["path"]
    taking = {"model_id": run, "seq_id": 2, "sampling_session_seq_id": 1}
    taken = first.result("save_weights_for_sampler", **taking)["sampling_session_id"]
    asked = {"session_id": session, "sampling_session_seq_id": 0, "model_path": path}
    sampler = first.ok("create_sampling_session", **asked)["sampling_session_id"]
    promise = first.promise("asample", **_sample(sampler, 0))
    before = first.ok("retrieve_future", request_id=promise)
    first.close()

    again = AppClient(nano, tmp_path)
    model = {"session_id": session, "model_seq_id": 1, "lora_config": {"rank": 4}}
    given = {"forward_backward_input": row_data([1, 2, 3])}
    for status, call, body in (
        (410, "session_heartbeat", {"session_id": session}),
        (410, "create_model", {**model, "base_model": "nano"}),
        (410, "create_sampling_session", asked),
        (404, "get_info", {"model_id": run}),
        (404, "forward_backward", {"model_id": run, "seq_id": 3, **given}),
        (404, "optim_step", {"model_id": run, "seq_id": 3, "adam_params": {}}),
        (404, "save_weights", {"model_id": run, "seq_id": 3, "path": "t"}),
        (404, "load_weights", {"model_id": run, "seq_id": 3, "path": path, "optimizer": False}),
        (404, "unload_model", {"model_id": run}),
        (404, "asample", _sample(sampler, 1)),
        (404, "asample", _sample(taken, 0)),
        (404, "retrieve_future", {"request_id": promise}),
    ):
        assert again.post(call, **body).status_code == status, call
    assert again.send("GET", f"samplers/{sampler}").status_code == 404
    for _ in range(2):
        again.ok(f"sessions/{session}/finish")  # what a client does at its end, in any case
    asked = {**asked, "session_id": again.session()}
    sampler = again.ok("create_sampling_session", **asked)["sampling_session_id"]
    assert again.result("asample", **_sample(sampler, 0)) == before
    again.close()


def test_flags_for_clients(api: AppClient) -> None:
    flags = api.ok("client/config", sdk_version="0")
    assert flags == {"proto_write_fwdbwd": True}  # no tokens, no polls for many, no uploaded losses
    assert api.ok("client/dynamic_config", sdk_version="0")["sample_cancel_enabled"] is True


def test_a_request_that_cannot_be_read_leaves_no_gap(api: AppClient) -> None:
    model = api.model()
    given = row_data([1, 2, 3])
    given["data"][0]["loss_fn_inputs"]["weights"]["dtype"] = "complex"
    body = {"model_id": model, "seq_id": 1, "forward_backward_input": given}
    assert api.post("forward_backward", **body).status_code == 400
    assert api.post("optim_step", model_id=model, seq_id=2).status_code == 400
    assert "metrics" in api.ok("retrieve_future", request_id=api.train(model, 3))


def test_a_refusal_before_its_turn_is_a_promise_that_fails(api: AppClient) -> None:
    model = api.model()
    bad = {"model_id": model, "forward_backward_input": row_data([1, 9999])}
    early = api.promise("forward_backward", seq_id=2, **bad)
    assert api.promise("forward_backward", seq_id=2, **bad) == early  # a repeat
    unread = {"model_id": model, "forward_backward_input": {"data": 7}}
    other = api.promise("forward_backward", seq_id=3, **unread)
    for request_id, words in ((early, "9999"), (other, "data")):
        failed = api.ok("retrieve_future", request_id=request_id)
        assert words in failed["error"] and failed["category"] == "user"
    assert "metrics" in api.ok("retrieve_future", request_id=api.train(model, 1))
    assert api.post("forward_backward", seq_id=4, **bad).status_code == 400  # in its turn
    assert "metrics" in api.ok("retrieve_future", request_id=api.train(model, 5))


@pytest.mark.parametrize(
    "route",
    [
        "POST auth/token",
        "GET auth/apikey/me",
        "GET audit",
        "GET billing/usage/events",
        "POST copy_weights",
        "POST create_custom_loss",
        "POST join_sampling_session",
        "POST retrieve_futures",
        "GET sessions",
        "GET sessions/x",
        "POST sessions/search",
        "PUT sessions/x/project",
        "GET sessions/x/trace_export",
        "POST training_runs/x/checkpoints/weights/y/publish",
    ],
)
def test_what_this_server_does_not_have(api: AppClient, route: str) -> None:
    method, path = route.split()
    answer = api.send(method, path, content=b"{}")
    assert (answer.status_code, answer.json()["category"]) == (404, "user"), answer.text
    assert route in answer.json()["error"]


def test_what_an_earlier_version_wrote_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "s+train+0" / "weights" / "one"
    folder.mkdir(parents=True)
    spec = {"rank": 4, "seed": 1, "train_attn": True, "train_mlp": True, "train_unembed": True}
    manifest = {
        **{"tinker_path": "tinker://s:train:0/weights/one", "base_model": "nano", "spec": spec},
        **{"steps": 3, "optimizer": True, "created": "2026-01-01T00:00:00+00:00"},
        **{"public": True, "recipients": []},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert [m.steps for m in Store(tmp_path).list()] == [3]
