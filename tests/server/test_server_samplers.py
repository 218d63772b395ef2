"""Sampling sessions over HTTP: cancelling, repeats, optional numbers, what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from app_client import AppClient, row_data

from crucible_tinkex.errors import RequestRejectedError
from crucible_tinkex.protocol import proto
from crucible_tinkex.server import bases
from crucible_tinkex.server.operations import BaseInfo, Operation, Outcome, Sample
from crucible_tinkex.server.sessions import checks
from crucible_tinkex.server.sessions.limits import Limits
from crucible_tinkex.server.sessions.sessions import Service
from crucible_tinkex.server.store.store import Store


@pytest.fixture
def api(nano: bases.Base, tmp_path: Path) -> Iterator[AppClient]:
    client = AppClient(nano, tmp_path)
    yield client
    client.close()


def _asked(sampler: str, number: int, **more: Any) -> dict[str, Any]:
    return {
        "sampling_session_id": sampler,
        "seq_id": number,
        "prompt": {"chunks": [{"tokens": [1, 2, 3, 4]}]},
        "sampling_params": {"max_tokens": 3, "seed": number, "stop": []},
        **more,
    }


def test_a_sample_that_has_not_started_can_be_cancelled(api: AppClient) -> None:
    sampler = api.sampler()
    with api.engine._wake:  # the engine cannot take anything meanwhile
        kept = api.promise("asample", **_asked(sampler, 0))
        dropped = api.promise("asample", **_asked(sampler, 1))
        api.ok("cancel_future", request_id=dropped)
        api.ok("cancel_future", request_id="nonsense")
    found = api.ok("retrieve_future", request_id=dropped)
    assert "cancelled" in found["error"] and found["category"] == "user"
    assert len(api.ok("retrieve_future", request_id=kept)["sequences"]) == 1
    api.ok("cancel_future", request_id=kept)
    assert len(api.ok("retrieve_future", request_id=kept)["sequences"]) == 1


def test_a_repeat_runs_once_and_another_body_is_refused(api: AppClient) -> None:
    sampler = api.sampler()
    first = api.promise("asample", **_asked(sampler, 0))
    assert api.promise("asample", **_asked(sampler, 0)) == first
    assert api.post("asample", **_asked(sampler, 0, num_samples=2)).status_code == 400


def test_both_encodings_say_the_same(api: AppClient) -> None:
    sampler = api.sampler()
    asked = _asked(
        sampler, 0, num_samples=2, prompt_logprobs=True, topk_prompt_logprobs=2,
        topk_sample_logprobs=3, prompt_logprobs_last_n=2,
    )  # fmt: skip
    request_id = api.promise("asample", **asked)
    plain = api.ok("retrieve_future", request_id=request_id)
    answer = api.send(
        "POST",
        "retrieve_future",
        json={"request_id": request_id},
        headers={"Accept": "application/x-protobuf, application/json"},
    )
    assert answer.headers["content-type"] == proto.CONTENT_TYPE
    packed = proto.decode_sample_response(answer.content)
    assert [s["tokens"] for s in plain["sequences"]] == [s.tokens for s in packed.sequences]
    for one, two in zip(plain["sequences"], packed.sequences, strict=True):
        assert two.logprobs is not None and two.topk_logprobs is not None
        assert two.logprobs == pytest.approx(one["logprobs"], abs=1e-6)
        assert [[t for t, _ in row] for row in one["topk_logprobs"]] == [
            [t for t, _ in row] for row in two.topk_logprobs if row
        ]
    assert [p is None for p in plain["prompt_logprobs"]] == [True, True, False, False]
    assert packed.prompt_logprobs is not None
    assert [p is None for p in packed.prompt_logprobs] == [True, True, False, False]
    assert [r is None for r in plain["topk_prompt_logprobs"]] == [True, True, False, False]


@pytest.mark.parametrize(
    "more",
    [
        {"prompt_logprobs_last_n": 4},
        {"prompt_logprobs_last_n": 0},
        {"topk_sample_logprobs": 101},
        {"target_prompt_logprobs": {"data": [1, 2, 3], "dtype": "int64", "shape": [3, 1]}},
        {"prompt_alt_tokens_k": 1},
        {"record_stability_info": True},
    ],
)
def test_what_we_cannot_do_is_refused(api: AppClient, more: dict[str, Any]) -> None:
    refused = api.post("asample", **_asked(api.sampler(), 0, **more))
    assert refused.status_code == 400 and refused.json()["category"] == "user"
    assert next(iter(more)) in refused.json()["error"]


def test_the_cookbooks_default_loss_is_refused_with_the_setting_that_works(api: AppClient) -> None:
    """Its recipes first sample with what `stable_reinforce` needs, then train with it."""
    sampled = api.post("asample", **_asked(api.sampler(), 0, record_stability_info=True))
    given = {**row_data([1, 2, 3]), "loss_fn": "stable_reinforce"}
    body = {"model_id": api.model(), "seq_id": 1, "forward_backward_input": given}
    for refused in (sampled, api.post("forward_backward", **body)):
        assert refused.status_code == 400 and "stable_reinforce" in refused.json()["error"]
        assert "loss_fn=importance_sampling" in refused.json()["error"]


def test_the_kind_of_a_sampler(api: AppClient) -> None:
    model = api.model()
    asked = {"model_id": model, "sampling_session_seq_id": 0}
    for seq_id, kind in ((1, "other"), (2, "inflight")):
        answer = api.post("save_weights_for_sampler", seq_id=seq_id, kind=kind, **asked)
        assert answer.status_code == 400 and "snapshot" in answer.json()["error"]
    found = api.result("save_weights_for_sampler", seq_id=3, kind="snapshot", **asked)
    assert found["sampling_session_id"] == f"{model.partition(':')[0]}:sample:0"


# --- what nobody named is not kept for ever ------------------------------------------------------


def _taken(api: AppClient, model: str, seq_id: int) -> str:
    asked = {"model_id": model, "seq_id": seq_id, "sampling_session_seq_id": seq_id}
    return str(api.result("save_weights_for_sampler", **asked)["sampling_session_id"])


def test_a_model_keeps_its_last_snapshots_and_those_in_use(api: AppClient) -> None:
    model, other = api.model(), api.model()
    elsewhere = _taken(api, other, 1)
    reference = _taken(api, model, 1)
    ids = []
    for n in range(2, 2 * Limits().max_snapshots + 2):
        ids.append(_taken(api, model, n))
        for sampler in (reference, ids[-1]):
            assert api.result("asample", **_asked(sampler, n))["sequences"]
    gone = api.post("asample", **_asked(ids[0], 0))
    assert gone.status_code == 404 and "last 8" in gone.json()["error"]
    assert api.result("asample", **_asked(elsewhere, 0))["sequences"]
    kept = [s for s in ids if api.post("asample", **_asked(s, 1)).status_code == 200]
    assert kept == ids[-Limits().max_snapshots + 1 :]
    assert _taken(api, model, 2 * Limits().max_snapshots + 2)


class Engine:
    """It takes everything and answers when it is told to."""

    base = BaseInfo("nano", "nano", 264, 2048)

    def __init__(self) -> None:
        self.asked: list[tuple[Operation, Callable[[Outcome], None]]] = []

    def submit(self, operation: Operation, done: Callable[[Outcome], None]) -> None:
        self.asked.append((operation, done))

    def close(self) -> None:
        pass


async def test_a_snapshot_whose_samples_wait_is_kept(tmp_path: Path) -> None:
    engine = Engine()
    service = Service(engine, Store(tmp_path))
    session = service.create_session()

    def take(number: int) -> str:
        sampler_id = service.samplers.expect(session, number, "model")
        service.samplers.settle(session, number)
        return sampler_id

    first, *_ = [take(n) for n in range(2)]
    body = _asked(first, 0)
    service.samplers.sample(checks.SampleRequest.model_validate(body), json.dumps(body).encode())
    for number in range(2, 2 * service.limits.max_snapshots):
        take(number)
    assert service.samplers[first].sampler_id == first
    ((_, answer),) = [a for a in engine.asked if isinstance(a[0], Sample)]
    answer(RequestRejectedError("no", status=400, category="user"))
    await asyncio.sleep(0)
    with pytest.raises(RequestRejectedError, match="freed"):
        service.samplers[first]


def test_a_snapshot_that_nobody_uses_is_freed(api: AppClient) -> None:
    now = [0.0]
    limits = Limits(snapshot_idle_s=60)
    service = Service(api.engine, api.store, limits=limits, clock=lambda: now[0])

    def waits() -> None:
        session = service.create_session()
        sampler_id = service.samplers.expect(session, 0, "model")
        service.samplers.settle(session, 0)
        for now[0] in (30.0, 59.0):
            service.beat(session)
            assert service.samplers[sampler_id].sampler_id == sampler_id
        now[0] = 120.0
        service.beat(session)
        with pytest.raises(RequestRejectedError, match="freed"):
            service.samplers[sampler_id]

    api.run(waits)


def test_unnamed_checkpoints_for_sampling_expire_and_only_the_last_are_kept(
    api: AppClient,
) -> None:
    model = api.model()
    named = api.result("save_weights_for_sampler", model_id=model, seq_id=1, path="mine")["path"]
    made = [
        api.result("save_weights_for_sampler", model_id=model, seq_id=n)["path"]
        for n in range(2, 14)
    ]
    listed = api.get(f"training_runs/{model}/checkpoints")["checkpoints"]
    found = {c["tinker_path"]: "expires_at" in c for c in listed}
    assert found == {named: False, **dict.fromkeys(made[-8:], True)}
    sampled = _asked("", 0)
    del sampled["sampling_session_id"]
    assert api.result("asample", **sampled, model_path=made[-1])["sequences"]
    assert api.post("asample", **sampled, model_path=made[0]).status_code == 404
