"""A full server: who waits, who is told so, who is refused, and that the rest goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from app_client import AppClient, row_data

from crucible_tinkex.server import bases
from crucible_tinkex.server.sessions.limits import Limits
from crucible_tinkex.server.sessions.sessions import Service


@pytest.fixture
def start(nano: bases.Base, tmp_path: Path) -> Iterator[Callable[..., AppClient]]:
    clients: list[AppClient] = []

    def begin(*, token_cap: int = 1024, long_poll_s: float = 20, **limits: float) -> AppClient:
        clients.append(
            AppClient(
                nano,
                tmp_path / str(len(clients)),
                limits=Limits(**limits),  # type: ignore[arg-type]
                token_cap=token_cap,
                long_poll_s=long_poll_s,
            )
        )
        return clients[-1]

    yield begin
    for client in clients:
        client.close()


def test_too_many_sessions_are_told_to_come_back(start: Callable[..., AppClient]) -> None:
    api = start(max_sessions=2)
    first, _ = api.session(), api.session()
    refused = api.post("create_session", sdk_version="x")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
    assert refused.json()["category"] == "server" and "2 sessions" in refused.json()["error"]
    api.ok(f"sessions/{first}/finish")
    api.session()


def test_a_model_beyond_the_limit_is_told_to_come_back(start: Callable[..., AppClient]) -> None:
    api = start(max_models=1)
    first, session = api.model(), api.session()
    lora = {"rank": 4, "seed": 1}
    asked = {"session_id": session, "model_seq_id": 0, "base_model": "nano", "lora_config": lora}
    refused = api.post("create_model", **asked)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
    assert refused.json()["category"] == "server" and "1 places" in refused.json()["error"]
    api.ok("unload_model", model_id=first)
    assert api.result("create_model", **asked)["model_id"] == f"{session}:train:0"
    api.ok(f"sessions/{session}/finish")  # it gives up its place
    api.model()


def test_a_full_queue_always_drains(start: Callable[..., AppClient]) -> None:
    """Held requests fill the queue; the one that they wait for is taken all the same."""
    api = start(max_open=3)
    model = api.model()
    held = [api.train(model, n) for n in (2, 3, 4)]
    body = {"model_id": model, "seq_id": 5, "forward_backward_input": row_data([1, 2])}
    refused = api.post("forward_backward", **body)
    assert refused.status_code == 429 and "retry-after" in refused.headers
    sampling = {
        "base_model": "nano",
        "prompt": {"chunks": [{"tokens": [1]}]},
        "sampling_params": {"max_tokens": 2},
    }
    assert api.post("asample", **sampling).status_code == 429
    first = api.train(model, 1)
    for request_id in (first, *held):
        assert "metrics" in api.ok("retrieve_future", request_id=request_id)
    assert "metrics" in api.result("forward_backward", **body)
    assert len(api.result("asample", **sampling)["sequences"]) == 1


def test_large_requests_fill_the_queue_too(start: Callable[..., AppClient]) -> None:
    api = start(max_open_bytes=2000)
    model = api.model()
    api.train(model, 2, [1] * 150)
    body = {"model_id": model, "seq_id": 3, "forward_backward_input": row_data([1] * 150)}
    assert api.post("forward_backward", **body).status_code == 429
    api.train(model, 1)


def test_requests_in_order_are_limited_too(start: Callable[..., AppClient]) -> None:
    api = start(max_open=3, token_cap=64)
    busy, model = api.model(), api.model()
    running = [api.train(busy, n, *[[i % 250] * 60 for i in range(40)]) for n in (1, 2, 3)]
    body = {"model_id": model, "seq_id": 1, "forward_backward_input": row_data([1, 2])}
    step = {"model_id": model, "seq_id": 1, "adam_params": {"learning_rate": 1e-3}}
    for path, given in (("forward_backward", body), ("optim_step", step)):
        refused = api.post(path, **given)
        assert refused.status_code == 429 and "3 requests are under way" in refused.text
    for request_id in running:
        assert "metrics" in api.ok("retrieve_future", request_id=request_id)
    assert "metrics" in api.result("forward_backward", **body)


def test_an_optimizer_that_could_divide_by_zero_is_refused(start: Callable[..., AppClient]) -> None:
    api = start()
    model = api.model()
    for seq_id, eps in enumerate((0.0, 1e-30), 1):
        adam = {"learning_rate": 1e-3, "eps": eps}
        refused = api.post("optim_step", model_id=model, seq_id=seq_id, adam_params=adam)
        assert refused.status_code == 400 and "adam_params.eps" in refused.json()["error"]
    adam["eps"] = 1e-12
    assert (
        "grad_norm"
        in api.result("optim_step", model_id=model, seq_id=3, adam_params=adam)["metrics"]
    )


def test_another_optimizer_is_refused_by_its_name(start: Callable[..., AppClient]) -> None:
    api = start()
    asked = {"model_id": api.model(), "optimizer_params": {"type": "dimuon"}}
    refused = api.post("optim_step", seq_id=1, **asked)
    assert refused.status_code == 400
    assert "'dimuon' is not supported; supported is 'adamw'" in refused.json()["error"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_session_that_stops_beating_is_finished(start: Callable[..., AppClient]) -> None:
    api, clock = start(), Clock()
    service = Service(api.engine, api.store, limits=Limits(session_idle_s=60), clock=clock)

    def beats() -> None:
        dead, alive = (service.create_session() for _ in "ab")
        for clock.now in (30.0, 59.0, 70.0, 119.0):
            service.beat(alive)
        with pytest.raises(Exception, match="is finished") as found:
            service.beat(dead)
        assert found.value.status == 410  # type: ignore[attr-defined]

    api.run(beats)


def test_a_huge_request_does_not_starve_a_small_one(start: Callable[..., AppClient]) -> None:
    api = start(token_cap=64)
    big, small = api.model(), api.model()
    huge = api.train(big, 1, *[[i % 250] * 60 for i in range(120)])
    little = api.train(small, 1, [1, 2, 3])
    assert "metrics" in api.ok("retrieve_future", request_id=little)
    assert api.app.service.promises.is_open(huge)
    assert "metrics" in api.ok("retrieve_future", request_id=huge)


def test_a_long_queue_of_one_model_does_not_hold_up_another(
    start: Callable[..., AppClient],
) -> None:
    api = start(token_cap=64)
    busy, other = api.model(), api.model()
    queue = [api.train(busy, n, [i % 250 for i in range(60)]) for n in range(1, 121)]
    little = api.train(other, 1, [1, 2, 3])
    assert "metrics" in api.ok("retrieve_future", request_id=little)
    assert api.app.service.promises.is_open(queue[-1])
    assert "metrics" in api.ok("retrieve_future", request_id=queue[-1])


def test_a_thousand_samples_of_one_session_do_not_hold_up_another(
    start: Callable[..., AppClient],
) -> None:
    api = start()
    busy, other = (api.sampler() for _ in "ab")
    queue = [_sampling(api, busy, n, num_samples=64, max_tokens=24) for n in range(16)]
    little = _sampling(api, other, 0, num_samples=1, max_tokens=4)
    assert api.ok("retrieve_future", request_id=little)["sequences"]
    assert api.app.service.promises.is_open(queue[8])  # two run at a time
    api.ok(f"sessions/{busy.partition(':')[0]}/finish")  # what has not begun never will
    assert "cancelled" in api.ok("retrieve_future", request_id=queue[-1])["error"]


def _sampling(
    api: AppClient, sampler: str, seq_id: int, *, num_samples: int, max_tokens: int
) -> str:
    return api.promise(
        "asample",
        sampling_session_id=sampler,
        seq_id=seq_id,
        num_samples=num_samples,
        prompt={"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
        sampling_params={"max_tokens": max_tokens, "stop": []},
    )
