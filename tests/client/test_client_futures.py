"""Any bytes at all in an answer are a legal answer or a ValueError, never anything else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_tinkex.client.http.exchange import Reply
from crucible_tinkex.client.http.watch import QueueState
from crucible_tinkex.client.session.futures import _parse, _Probe
from crucible_tinkex.protocol.wire import ForwardBackwardOutput, OptimStepResponse, SampleResponse

MODELS = (ForwardBackwardOutput, OptimStepResponse, SampleResponse)
LEGAL = (*MODELS, _Probe, type(None), QueueState)
WORDS = ("type", "status", "error", "category", "request_id", "queue_state", "metrics")
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS | st.sampled_from(["try_again", "complete_metadata"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


TYPES = ("application/json", "application/x-protobuf", "text/html", "")


def reply(body: bytes, *, status: int = 200, content_type: str = "application/json") -> Reply:
    return Reply(status, [(b"Content-Type", content_type.encode())], body)


@given(
    st.sampled_from([200, 408]),
    st.sampled_from(TYPES),
    st.sampled_from(MODELS),
    st.binary(max_size=60) | VALUES,
)
def test_any_answer(
    status: int,
    content_type: str,
    model: type[ForwardBackwardOutput | OptimStepResponse | SampleResponse],
    answer: object,
) -> None:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    try:
        parsed = _parse(reply(body, status=status, content_type=content_type), "r1", model)
    except ValueError:
        return
    assert isinstance(parsed, LEGAL)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"type": "try_again", "request_id": "r1"}', QueueState("active", None)),
        (b'{"error": "x", "category": "user"}', _Probe(error="x", category="user")),
        (b'{"error": "x"}', _Probe(error="x", category="unknown")),
        (b'{"status": "complete_metadata", "response_payload_size": 3}', None),
        (b'{"metrics": null}', OptimStepResponse()),
        (b'{"metrics": {"a": 1}, "metrics": {"a": 2}}', OptimStepResponse(metrics={"a": 2.0})),
        (b'{"metrics": {"a": 1e400}}', OptimStepResponse(metrics={"a": float("inf")})),
    ],
)
def test_known_answers(body: bytes, expected: object) -> None:
    assert _parse(reply(body), "r1", OptimStepResponse) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xef\xbb\xbf{}",
        b'{"type": "try_again", "request_id": "r2"}',
        b"[" * 100_000,
        b'{"metrics": "high"}',
        b"<html>",
    ],
)
def test_malformed_answers(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"error|request"):
        _parse(reply(body), "r1", OptimStepResponse)


def test_nan_losses_are_answers() -> None:
    body = b'{"loss_fn_outputs": [], "metrics": {"loss:sum": NaN}}'
    parsed = _parse(reply(body), "r1", ForwardBackwardOutput)
    assert isinstance(parsed, ForwardBackwardOutput)
    assert parsed.metrics["loss:sum"] != parsed.metrics["loss:sum"]
