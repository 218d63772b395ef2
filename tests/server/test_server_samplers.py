"""Sampling sessions over HTTP: cancelling, repeats, optional numbers, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from app_client import AppClient

from crucible_tinkex.client import proto
from crucible_tinkex.server import bases


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


def test_the_kind_of_a_sampler(api: AppClient) -> None:
    model = api.model()
    asked = {"model_id": model, "sampling_session_seq_id": 0}
    for seq_id, kind in ((1, "other"), (2, "inflight")):
        answer = api.post("save_weights_for_sampler", seq_id=seq_id, kind=kind, **asked)
        assert answer.status_code == 400 and "snapshot" in answer.json()["error"]
    found = api.result("save_weights_for_sampler", seq_id=3, kind="snapshot", **asked)
    assert found["sampling_session_id"] == f"{model.partition(':')[0]}:sample:0"
