"""The server as a process: the whole flow over HTTP, bad input, restart, and its end."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import crucible_tinkex.server.web.serve as serving
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.server.web.serve import ServeOptions, serve
from crucible_tinkex.storage import Lock

_CODE = """
import json, sys
from pathlib import Path
from crucible_tinkex.server.web.serve import ServeOptions, serve
options = json.loads(sys.argv[1])
for name in ("data_dir", "ready_file"):
    options[name] = Path(options[name])
serve(ServeOptions(model="nano", threads=1, **options))
"""


class Api:
    """A few words of the protocol over httpx."""

    def __init__(self, process: subprocess.Popen[bytes], ready: dict[str, Any]) -> None:
        self.process = process
        self.ready = ready
        key = Path(ready["api_key_file"]).read_text().strip()
        self.http = httpx.Client(
            base_url=f"{ready['base_url']}/api/v1/", headers={"X-API-Key": key}, timeout=60
        )

    def post(self, path: str, /, **body: Any) -> httpx.Response:
        return self.http.post(path, content=json.dumps(body))

    def ok(self, path: str, /, **body: Any) -> Any:
        response = self.post(path, **body)
        assert response.status_code == 200, response.text
        return response.json()

    def result(self, path: str, /, **body: Any) -> Any:
        return self.ok("retrieve_future", request_id=self.ok(path, **body)["request_id"])

    def model(self, session: str, number: int = 0, rank: int = 4) -> str:
        lora = {"rank": rank, "seed": 1}
        made = self.result(
            "create_model",
            session_id=session,
            model_seq_id=number,
            base_model="nano",
            lora_config=lora,
        )
        assert made["model_id"] == f"{session}:train:{number}"
        return str(made["model_id"])

    def session(self) -> str:
        return str(self.ok("create_session", sdk_version="test")["session_id"])


def data(*rows: list[int], **changes: Any) -> dict[str, Any]:
    items = []
    for row in rows:
        inputs = {
            "target_tokens": {"data": row[1:], "dtype": "int64"},
            "weights": {"data": [1.0] * (len(row) - 1), "dtype": "float32"},
        }
        items.append(
            {
                "model_input": {"chunks": [{"type": "encoded_text", "tokens": row[:-1]}]},
                "loss_fn_inputs": {**inputs, **changes},
            }
        )
    return {"data": items, "loss_fn": "cross_entropy"}


def _launch(folder: Path, **more: Any) -> subprocess.Popen[bytes]:
    ready = str(folder / "ready.json")
    options = {"data_dir": str(folder), "ready_file": ready, "exit_with_parent": True, **more}
    return subprocess.Popen(
        [sys.executable, "-c", _CODE, json.dumps(options)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE if more else None,
        cwd=folder,
    )


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Api]:
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    with _launch(folder) as process:
        try:
            end = time.monotonic() + 60
            while not ready.exists():
                assert process.poll() is None and time.monotonic() < end, "it did not start"
                time.sleep(0.02)
            api = Api(process, json.loads(ready.read_text()))
            with api.http:
                yield api
        finally:
            process.kill()


@pytest.fixture(scope="module")
def api(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running(tmp_path_factory.mktemp("server")) as api:
        yield api


def test_the_whole_flow(api: Api) -> None:
    found = api.http.get("get_server_capabilities").json()["supported_models"][0]
    assert found["model_name"] == "nano" and Path(found["tokenizer_id"], "tokenizer.json").exists()
    session = api.session()
    model = api.model(session)
    info = api.ok("get_info", model_id=model)
    assert info["model_data"] == {"model_name": "nano", "tokenizer_id": found["tokenizer_id"]}
    assert info["lora_rank"] == 4
    losses, seq_id = [], 0
    for _ in range(4):
        step = {"data": data([1, 2, 3, 4, 5], [9, 8, 7])}
        out = api.result(
            "forward_backward",
            model_id=model,
            seq_id=seq_id + 1,
            forward_backward_input=step["data"],
        )
        assert [len(o["logprobs"]["data"]) for o in out["loss_fn_outputs"]] == [4, 2]
        losses.append(out["metrics"]["loss:sum"])
        adam = {"learning_rate": 3e-3}
        out = api.result("optim_step", model_id=model, seq_id=seq_id + 2, adam_params=adam)
        assert out["metrics"]["grad_norm"] > 0
        seq_id += 2
    assert losses[-1] < 0.7 * losses[0]
    saved = api.result("save_weights", model_id=model, seq_id=seq_id + 1, path="end")["path"]
    assert saved == f"tinker://{model}/weights/end"
    sampler = api.result(
        "save_weights_for_sampler", model_id=model, seq_id=seq_id + 2, sampling_session_seq_id=0
    )["sampling_session_id"]
    asked = {
        "sampling_session_id": sampler,
        "seq_id": 0,
        "num_samples": 2,
        "prompt": {"chunks": [{"tokens": [1, 2]}]},
        "sampling_params": {"max_tokens": 3, "seed": 5, "stop": []},
    }
    assert len(api.ok("asample", **asked)["sample_sequence_ids"]) == 2
    first = api.result("asample", **asked)
    assert [len(s["tokens"]) for s in first["sequences"]] == [3, 3]
    assert api.http.get(f"samplers/{sampler}").json()["base_model"] == "nano"
    assert api.ok("weights_info", tinker_path=saved)["lora_rank"] == 4
    listed = api.http.get(f"training_runs/{model}/checkpoints").json()["checkpoints"]
    assert [c["checkpoint_id"] for c in listed] == ["weights/end"]
    assert api.http.delete(f"training_runs/{model}/checkpoints/weights/end").status_code == 200
    assert api.post("weights_info", tinker_path=saved).status_code == 404
    assert api.ok("session_heartbeat", session_id=session)["type"] == "session_heartbeat"
    assert api.ok(f"sessions/{session}/finish") == {}
    assert api.post("session_heartbeat", session_id=session).status_code == 410
    assert api.post("get_info", model_id=model).status_code == 404


def test_chunk_1_may_come_last_and_repeats_run_once(api: Api) -> None:
    model = api.model(api.session())

    def send(seq_id: int, row: list[int]) -> str:
        return str(
            api.ok(
                "forward_backward", model_id=model, seq_id=seq_id, forward_backward_input=data(row)
            )["request_id"]
        )

    rows = {3: [5, 6, 7], 2: [3, 4, 5], 1: [1, 2, 3]}
    step = {"model_id": model, "seq_id": 4, "adam_params": {"learning_rate": 1e-3}}
    stepped = api.ok("optim_step", **step)["request_id"]
    ids = {n: send(n, row) for n, row in rows.items()}
    assert send(2, rows[2]) == ids[2]
    assert (
        api.post(
            "forward_backward", model_id=model, seq_id=2, forward_backward_input=data([9, 9])
        ).status_code
        == 400
    )
    norm = api.ok("retrieve_future", request_id=stepped)["metrics"]["grad_norm"]
    other = api.model(api.session())
    for n in (1, 2, 3):
        api.ok("forward_backward", model_id=other, seq_id=n, forward_backward_input=data(rows[n]))
    again = api.result("optim_step", **{**step, "model_id": other})
    assert again["metrics"]["grad_norm"] == norm


@pytest.mark.parametrize("given", [None, "", "tml-wrong", "Bearer x"])
def test_everything_but_healthz_needs_the_key(api: Api, given: str | None) -> None:
    headers = {} if given is None else {"X-API-Key": given}
    with httpx.Client(base_url=f"{api.ready['base_url']}/api/v1/", headers=headers) as http:
        assert http.get("healthz").json() == {"status": "ok"}
        for path in ("create_session", "retrieve_future", "nonsense"):
            response = http.post(path, json={})
            assert response.status_code == 401
            assert response.json()["category"] == "user"


_TENSOR = {"data": [1.0], "dtype": "float32"}
BAD: dict[str, Callable[[str], tuple[str, dict[str, Any]]]] = {
    "token out of range": lambda m: (
        "forward_backward",
        {"forward_backward_input": data([1, 264])},
    ),
    "negative token": lambda m: ("forward_backward", {"forward_backward_input": data([-1, 2])}),
    "huge token": lambda m: ("forward_backward", {"forward_backward_input": data([2**70, 2])}),
    "too long": lambda m: ("forward_backward", {"forward_backward_input": data([1] * 2050)}),
    "empty data": lambda m: ("forward_backward", {"forward_backward_input": data()}),
    "empty row": lambda m: ("forward_backward", {"forward_backward_input": data([1])}),
    "unknown loss": lambda m: (
        "forward_backward",
        {"forward_backward_input": {**data([1, 2]), "loss_fn": "mse"}},
    ),
    "missing input": lambda m: (
        "forward_backward",
        {"forward_backward_input": {**data([1, 2]), "loss_fn": "ppo"}},
    ),
    "wrong length": lambda m: (
        "forward_backward",
        {"forward_backward_input": data([1, 2, 3], weights=_TENSOR)},
    ),
    "NaN weight": lambda m: (
        "forward_backward",
        {"forward_backward_input": data([1, 2], weights={**_TENSOR, "data": [math.nan]})},
    ),
    "no body": lambda m: ("forward_backward", {}),
    "zero learning rate": lambda m: ("optim_step", {"adam_params": {"learning_rate": 0}}),
    "NaN learning rate": lambda m: ("optim_step", {"adam_params": {"learning_rate": math.nan}}),
    "beta of 1": lambda m: ("optim_step", {"adam_params": {"beta1": 1.0}}),
    "bad name": lambda m: ("save_weights", {"path": "../../etc"}),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_and_harms_nobody(api: Api, what: str) -> None:
    model = api.model(api.session())
    path, body = BAD[what](model)
    refused = api.post(path, model_id=model, seq_id=1, **body)
    assert 400 <= refused.status_code < 500 and refused.status_code != 409, refused.text
    assert refused.json()["category"] == "user" and refused.json()["error"]
    good = {"model_id": model, "forward_backward_input": data([1, 2, 3])}
    if what != "no body":  # whose seq_id could not be read
        used_up = api.post("forward_backward", seq_id=1, **good)
        assert used_up.status_code == 400
        # Not of the number: a client tries JSON after protobuf, and tells what it hears last.
        assert used_up.json()["error"] == refused.json()["error"]
        assert "metrics" in api.result("forward_backward", seq_id=2, **good)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("create_model", {"base_model": "gpt-9", "lora_config": {"rank": 4}}, 400),
        ("create_model", {"base_model": "nano", "lora_config": {"rank": 0}}, 400),
        ("create_model", {"base_model": "nano", "lora_config": {"rank": 257}}, 400),
        ("load_weights", {"path": "tinker://a/weights/b"}, 404),
        ("load_weights", {"path": "/etc/passwd"}, 400),
        ("retrieve_future", {"request_id": "unknown"}, 404),
        ("get_info", {"model_id": "unknown"}, 404),
        ("asample", {"prompt": {"chunks": [{"tokens": [999]}]}}, 400),
        ("asample", {"prompt": {"chunks": []}}, 400),
        ("asample", {"prompt": {"chunks": [{"tokens": [1]}]}, "num_samples": 0}, 400),
        ("asample", {"prompt": {"chunks": [{"type": "image", "tokens": [1]}]}}, 400),
    ],
)
def test_other_bad_requests(api: Api, path: str, body: dict[str, Any], status: int) -> None:
    response = api.post(path, session_id=api.session(), model_seq_id=0, **body)
    assert (response.status_code, response.json()["category"]) == (status, "user"), response.text


def test_bad_bodies_and_paths(api: Api) -> None:
    assert api.http.post("create_session", content=b"{nonsense").status_code == 400
    assert api.http.get("nowhere").status_code == 404
    assert api.http.get("create_session").status_code == 404
    too_large = api.http.post("create_session", content=b" " * (64 * 1024 * 1024 + 1))
    assert too_large.status_code == 413


def test_a_session_goes_on_after_a_restart(cache: Path, tmp_path: Path) -> None:
    def step(api: Api, model: str, seq_id: int) -> Any:
        rows = data([1, 2, 3, 4], [4, 3, 2])
        out = api.result(
            "forward_backward", model_id=model, seq_id=seq_id, forward_backward_input=rows
        )
        adam = {"learning_rate": 1e-2}
        api.result("optim_step", model_id=model, seq_id=seq_id + 1, adam_params=adam)
        return out

    with running(tmp_path) as api:
        session = api.session()
        model = api.model(session)
        step(api, model, 1)
        saved = api.result("save_weights", model_id=model, seq_id=3, path="one")["path"]
        step(api, model, 4)
        expected = step(api, model, 6)
        os.kill(api.process.pid, signal.SIGKILL)
    with running(tmp_path) as api:
        assert api.post("get_info", model_id=model).status_code == 404
        again = api.session()
        assert again != session
        body = {"session_id": again, "model_seq_id": 0, "path": saved, "optimizer": True}
        loaded = api.result("load_weights", **body)["model_id"]
        step(api, loaded, 1)
        assert step(api, loaded, 3) == expected
        start = time.monotonic()
        api.process.terminate()
        assert api.process.wait(10) == 0 and time.monotonic() - start < 8


def test_it_ends_with_its_parent(cache: Path, tmp_path: Path) -> None:
    with running(tmp_path) as api:
        assert oct(Path(api.ready["api_key_file"]).stat().st_mode)[-3:] == "600"
        assert api.process.stdin is not None
        api.process.stdin.close()
        assert api.process.wait(10) == 0


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=str(port)):
            serve(ServeOptions(model="nano", data_dir=tmp_path, port=port))


def test_of_two_servers_on_one_port_one_serves(cache: Path, tmp_path: Path) -> None:
    """Both start at the same moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(_launch(f, port=port)) for f in folders]
        try:
            end = time.monotonic() + 50
            while time.monotonic() < end and all(p.poll() is None for p in both):
                time.sleep(0.02)
            (lost,) = [p for p in both if p.poll() is not None]
            assert lost.stderr is not None
            assert f"cannot listen on port {port}".encode() in lost.stderr.read()
            (won,) = [f for p, f in zip(both, folders, strict=True) if p is not lost]
            while time.monotonic() < end and not (won / "ready.json").exists():
                time.sleep(0.02)
            assert [(f / "ready.json").exists() for f in folders] == [f is won for f in folders]
        finally:
            for process in both:
                process.kill()


def test_a_folder_in_use_is_named(
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(serving, "FOLDER_WAIT_S", 0.1)
    monkeypatch.setattr(serving, "SILENT_S", 0.0)
    with (
        contextlib.closing(Lock(tmp_path / "server.lock")),
        pytest.raises(ConfigError, match=rf"in use by process {os.getpid()}"),
    ):
        serve(ServeOptions(model="nano", data_dir=tmp_path))
    (waits,) = caplog.messages  # while it waits, which may be long
    assert f"in use by process {os.getpid()}" in waits and "waiting up to" in waits


def test_other_machines_need_a_key_of_ones_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="api-key-file"):
        serve(ServeOptions(model="nano", data_dir=tmp_path, host="0.0.0.0"))
