"""Sampling sessions over HTTP: cancelling, polling for many at once, clones, optional numbers."""

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


def test_one_poll_tells_of_all_that_finished(api: AppClient) -> None:
    sampler = api.sampler()
    ids = {api.promise("asample", **_asked(sampler, n)) for n in range(3)}
    clone = api.ok("join_sampling_session", sampling_session_id=sampler)["client_counter"]
    other = api.promise("asample", **_asked(sampler, clone * 1_000_000_000))
    assert clone == 1
    assert api.ok("join_sampling_session", sampling_session_id=sampler)["client_counter"] == 2

    def poll(number: int, cursor: int, **more: Any) -> Any:
        target = {"sampling_session_id": sampler, "cloned_sampler_id": number}
        return api.ok("retrieve_futures", target=target, prev_cursor=cursor, **more)

    cursor, seen = 0, set()
    while seen != ids:
        answer = poll(0, cursor)
        assert answer["cursor"] > cursor
        cursor = answer["cursor"]
        seen |= {c["request_id"] for c in answer["completions"] if c["state"] == "finished"}
    assert poll(0, cursor, timeout=0) == {"completions": [], "cursor": cursor}
    assert [c["request_id"] for c in poll(1, 0)["completions"]] == [other]
    assert [c["request_id"] for c in poll(1, 0, timeout=0)["completions"]] == [other]


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
    ],
)
def test_what_we_cannot_do_is_refused(api: AppClient, more: dict[str, Any]) -> None:
    refused = api.post("asample", **_asked(api.sampler(), 0, **more))
    assert refused.status_code == 400 and refused.json()["category"] == "user"
