"""Any bytes at all: a 4xx in the protocol's form, a server that works, and nobody else affected."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import zstandard
from app_client import AppClient, row_data
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import crucible_tinkex.protocol.wire as wire
from crucible_tinkex.errors import RequestRejectedError
from crucible_tinkex.protocol import proto
from crucible_tinkex.server import bases
from crucible_tinkex.server.web import codec

JSON_PATHS = (
    *("create_session", "session_heartbeat", "create_model", "get_info", "unload_model"),
    *("optim_step", "save_weights", "save_weights_for_sampler", "load_weights"),
    *("create_sampling_session", "asample", "weights_info", "cancel_future"),
    *("save_weights_external",),
    *("forward_backward", "forward", "client/config", "telemetry"),
)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
_names = (
    "model_id",
    "seq_id",
    "session_id",
    "model_seq_id",
    "path",
    "prompt",
    "type",
    "tinker_path",
)
_names += ("sampling_params", "forward_backward_input", "forward_input", "adam_params", "target")
_names += ("lora_config", "base_model", "num_samples", "ttl_seconds", "reason", "request_id")
_bodies = st.dictionaries(st.sampled_from(_names), _values, max_size=6)
_some = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


_OPEN_PARTS = ("{run}", "{kind}", "{name}", "{id}", "{token}", "{file}")


@pytest.fixture(scope="module")
def api(nano: bases.Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    client = AppClient(nano, tmp_path_factory.mktemp("data"))
    yield client
    client.close()


_bystander: dict[int, Any] = {}
_numbers = itertools.count(1)


def _others_are_well(api: AppClient) -> None:
    """A model that nobody touches gives the same numbers as ever."""
    model, expected = _bystander.get(id(api), (None, None))
    if model is None:
        model = api.model()
    out = api.ok(
        "retrieve_future", request_id=api.train(model, next(_numbers), [1, 2, 3], weights=_ZERO)
    )
    assert expected is None or out == expected
    _bystander[id(api)] = (model, out)


_ZERO = {"data": [0.0, 0.0], "dtype": "float32"}


def _refused_well(response: Any) -> None:
    assert 200 <= response.status_code < 500 and response.status_code != 409, response.text
    if response.status_code >= 400:
        said = response.json()
        assert said["error"] and said["category"] in ("user", "server"), said


@_some
@given(st.binary(max_size=200))
@example(b"")
@example(b"\x0a\xff\xff\xff\xff\x0f")
def test_any_bytes_as_protobuf(api: AppClient, body: bytes) -> None:
    headers = {"Content-Type": proto.CONTENT_TYPE}
    response = api.send("POST", "forward_backward", content=body, headers=headers)
    assert response.status_code in (400, 404)
    _refused_well(response)
    _others_are_well(api)


@_some
@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=4))
def test_a_damaged_batch_is_refused_or_run(api: AppClient, flips: list[tuple[int, int]]) -> None:
    model = api.model()
    body = bytearray(
        proto.encode_forward_backward(
            wire.ForwardBackwardRequest(
                model_id=model,
                seq_id=1,
                forward_backward_input=wire.ForwardInput.model_validate(
                    row_data([1, 2, 3], [4, 5])
                ),
            ),
            forward_only=False,
        )
    )
    for place, value in flips:
        body[len(body) - 1 - place % (len(body) - len(model) - 4)] = value
    headers = {"Content-Type": proto.CONTENT_TYPE}
    response = api.send("POST", "forward_backward", content=bytes(body), headers=headers)
    _refused_well(response)
    if response.status_code == 200:
        api.ok("retrieve_future", request_id=response.json()["request_id"])
    _others_are_well(api)
    api.ok("unload_model", model_id=model)


@_some
@given(st.sampled_from(JSON_PATHS), st.binary(max_size=60))
def test_any_bytes_as_json(api: AppClient, path: str, body: bytes) -> None:
    _refused_well(api.send("POST", path, content=body))


@settings(parent=_some, max_examples=80)
@given(st.sampled_from(JSON_PATHS), _bodies)
@example("optim_step", {"model_id": "x", "seq_id": 10**30})
@example("asample", {"prompt": {"chunks": []}, "num_samples": 2**70})
def test_any_json(api: AppClient, path: str, body: dict[str, Any]) -> None:
    _refused_well(api.send("POST", path, content=json.dumps(body)))


def test_deep_json_and_odd_headers(api: AppClient) -> None:
    deep = b"[" * 100_000
    _refused_well(api.send("POST", "create_session", content=deep))
    _refused_well(api.send("POST", "forward_backward", content=b'{"model_id":' + deep))
    for headers in (
        {"Content-Type": "text/plain"},
        {"Content-Encoding": "br"},
        {"Content-Encoding": "zstd"},
        {"Content-Type": "application/x-protobuf", "Content-Encoding": "zstd"},
    ):
        response = api.send("POST", "forward_backward", content=b"{}", headers=headers)
        assert response.status_code in (400, 415)
        _refused_well(response)
    _others_are_well(api)


def test_a_bomb_does_not_unfold() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(50_000_000))
    assert len(bomb) < 10_000
    with pytest.raises(RequestRejectedError, match="larger than 10000000") as found:
        codec.decompress(bomb, "zstd", 10_000_000)
    assert found.value.status == 413
    assert codec.decompress(zstandard.compress(b"abc"), "zstd", 1_000_000) == b"abc"


@_some
@given(st.binary(max_size=100))
def test_decoders_raise_their_own_errors_only(body: bytes) -> None:
    for content_type in (codec.JSON, proto.CONTENT_TYPE):
        with contextlib.suppress(ValidationError, proto.MalformedError, RequestRejectedError):
            codec.decode_forward(body, content_type, backward=True)
        codec.place_of(body, content_type)


def test_a_damaged_tensor_uses_up_its_number(api: AppClient) -> None:
    model = api.model()
    given = wire.ForwardInput.model_validate(row_data([1, 2, 3]))
    request = wire.ForwardBackwardRequest(model_id=model, seq_id=1, forward_backward_input=given)
    body = proto.encode_forward_backward(request, forward_only=False)
    broken = body.replace(b"\x18\x01\x22\x01\x02", b"\x18\x01\x22\x01\x03", 1)  # its shape
    assert broken != body
    headers = {"Content-Type": proto.CONTENT_TYPE}
    response = api.send("POST", "forward_backward", content=broken, headers=headers)
    assert response.status_code == 400 and "shape" in response.json()["error"]
    assert "metrics" in api.ok("retrieve_future", request_id=api.train(model, 2))


_parts = st.text(max_size=12) | st.sampled_from(
    (
        "..",
        "%2e%2e",
        "a:train:0",
        "weights",
        "sampler_weights",
        "x" * 300,
        "\u0000",
        "a b",
        "\ud7ff",
    )
)
_queries = st.dictionaries(
    st.sampled_from(("limit", "offset", "access_scope")),
    st.text(max_size=8) | st.sampled_from(("-1", "1e9", "NaN", "2026-07-13T00:00:00Z", "9" * 40)),
    max_size=3,
)


@settings(parent=_some, max_examples=120)
@given(st.data())
def test_every_route_with_any_path_query_and_json(api: AppClient, data: st.DataObject) -> None:
    """Routes that wait are asked with a body that cannot make them wait."""
    route = data.draw(st.sampled_from(sorted(api.app.routes.names)))
    method, _, path = route.partition(" ")
    for part in _OPEN_PARTS:
        path = path.replace(part, quote(data.draw(_parts), safe=""))
    body = data.draw(_bodies | _values | st.binary(max_size=30))
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    given_query = data.draw(_queries)
    response = api.send(method, path, params=given_query, content=content)
    if not response.is_redirect and method != "HEAD":
        _refused_well(response)


@_some
@given(_bodies, st.sampled_from(("POST sessions/x/finish", "PUT checkpoints/x/ttl")))
def test_bodies_of_resources(api: AppClient, body: dict[str, Any], route: str) -> None:
    method, path = route.split()
    path = path.replace("checkpoints/x", "training_runs/x/checkpoints/weights/x")
    _refused_well(api.send(method, path, content=json.dumps(body)))


def test_a_valid_request_works_after_all_that(api: AppClient) -> None:
    _others_are_well(api)
    assert api.ok("session_heartbeat", session_id=api.session())
