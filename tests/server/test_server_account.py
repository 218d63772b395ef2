"""The one account: its tokens, its sessions as a search finds them, and their timeline."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from app_client import KEY, AppClient, row_data
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from crucible_tinkex.errors import RequestRejectedError
from crucible_tinkex.server import bases
from crucible_tinkex.server.identity import TOKEN_S, Identity
from crucible_tinkex.server.operations import Done
from crucible_tinkex.server.timeline import Timeline, perfetto


@pytest.fixture(scope="module")
def api(nano: bases.Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    client = AppClient(nano, tmp_path_factory.mktemp("data"))
    yield client
    client.close()


# --- tokens ------------------------------------------------------------------------------------


def test_a_token_stands_for_the_key_until_it_expires() -> None:
    now = [1000.0]
    identity = Identity("tml-key", clock=lambda: now[0])
    token = identity.token()
    again = Identity("tml-key", clock=lambda: now[0])  # after a restart
    assert again.accepts(token.encode()) and again.accepts(b"tml-key")
    assert not Identity("tml-other", clock=lambda: now[0]).accepts(token.encode())
    now[0] += TOKEN_S - 1
    assert identity.accepts(token.encode())
    now[0] += 1
    assert not identity.accepts(token.encode())


def test_a_forged_token_is_refused() -> None:
    identity = Identity("tml-key")
    header, claims, signature = identity.token().split(".")
    wanted = json.loads(base64.urlsafe_b64decode(claims + "=="))
    wanted["exp"] += 10**6
    longer = base64.urlsafe_b64encode(json.dumps(wanted).encode()).rstrip(b"=").decode()
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    for forged in (
        f"{header}.{longer}.{signature}",
        f"{none}.{longer}.",
        f"{header}.{claims}.",
        f"{header}.{claims}",
        "..",
        "",
        signature,
    ):
        assert not identity.accepts(forged.encode()), forged


def test_requests_with_a_token_and_without(api: AppClient) -> None:
    token = api.ok("auth/token")["jwt"]
    assert api.send("GET", "sessions", headers={"X-API-Key": token}).status_code == 200
    refused = api.send("GET", "sessions", headers={"X-API-Key": token + "x"})
    assert refused.status_code == 401
    assert 'error="invalid_token"' in refused.headers["www-authenticate"]
    assert KEY not in refused.text
    assert api.send("DELETE", "auth/apikey/me").status_code == 403
    assert api.get("auth/apikey/me")["key_id"] == 0


# --- sessions ----------------------------------------------------------------------------------


def test_a_search_goes_on_after_a_restart(nano: bases.Base, tmp_path: Path) -> None:
    first = AppClient(nano, tmp_path)
    ids = [first.session(display_name=f"run {i}", project_id="p") for i in range(3)]
    for session in ids:
        model = first.model(session)
        first.result("save_weights", model_id=model, seq_id=1, path="one")
    page = first.ok("sessions/search", limit=2)
    first.send("POST", f"sessions/{ids[0]}/finish", json={"reason": {"type": "errored"}})
    first.close()
    again = AppClient(nano, tmp_path)
    rest = again.ok("sessions/search", limit=2, cursor=page["next_cursor"])
    assert [s["session_id"] for s in (*page["sessions"], *rest["sessions"])] == ids[::-1]
    assert "next_cursor" not in rest
    (found,) = rest["sessions"]
    assert found["status"]["reason"] == {"type": "errored"} and found["checkpoints_count"] == 1
    for status, count in (
        ({"type": "client_finished", "reasons": ["errored"]}, 1),
        ({"type": "client_finished", "reasons": ["success"]}, 0),
        ({"type": "cancelled"}, 2),
        ({"type": "active"}, 0),
    ):
        assert len(again.ok("sessions/search", statuses=[status])["sessions"]) == count, status
    trace = again.get(f"sessions/{ids[0]}/trace_export")
    assert trace["status"] == "failed" and "since the server's start" in trace["error"]
    again.close()


def test_a_copy_takes_a_free_place_of_its_session(api: AppClient) -> None:
    session = api.session(project_id="mine")
    model = api.model(session)
    path = api.result("save_weights", model_id=model, seq_id=1, path="one")["path"]
    taken = {"source_path": path, "session_id": session, "model_seq_id": 0}
    assert api.post("copy_weights", **taken).status_code == 400
    copied = api.ok("copy_weights", **{**taken, "model_seq_id": 1})["tinker_path"]
    assert copied == f"tinker://{session}:train:1/weights/one"
    mine = api.get("training_runs?project_id=mine")["training_runs"]
    assert {r["training_run_id"] for r in mine} == {model, f"{session}:train:1"}
    asked = {"session_id": session, "model_seq_id": 1, "base_model": "nano"}
    assert api.post("create_model", **asked, lora_config={"rank": 2}).status_code == 400


def test_a_window_of_usage_is_checked(api: AppClient) -> None:
    now = datetime.now(UTC)
    for start, end, status in (
        (now - timedelta(days=14), now, 200),
        (now - timedelta(days=15), now, 400),
        (now, now, 400),
        (now.replace(tzinfo=None), now + timedelta(1), 400),
    ):
        query = {"starting_on": start.isoformat(), "ending_before": end.isoformat()}
        answer = api.send("GET", "billing/usage/events", params=query)
        assert answer.status_code == status, answer.text


# --- the order of refusals, and inflight samplers ----------------------------------------------


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


def test_the_kind_of_a_sampler(api: AppClient) -> None:
    model = api.model()
    asked = {"model_id": model, "sampling_session_seq_id": 0, "kind": "other"}
    assert api.post("save_weights_for_sampler", seq_id=1, **asked).status_code == 400
    for seq_id, kind in ((2, "snapshot"), (3, "inflight"), (4, "inflight")):
        made = {**asked, "kind": kind, "sampling_session_seq_id": seq_id}
        found = api.result("save_weights_for_sampler", seq_id=seq_id, **made)
        session = model.partition(":")[0]
        assert found["sampling_session_id"] == f"{session}:sample:{seq_id}"


# --- the timeline ------------------------------------------------------------------------------

_U64, _U32 = Field.TYPE_UINT64, Field.TYPE_UINT32
_PERFETTO: dict[str, list[tuple[int, str, Any]]] = {
    "TrackDescriptor": [(1, "uuid", _U64), (2, "name", Field.TYPE_STRING), (5, "parent", _U64)],
    "TrackEvent": [
        (9, "type", Field.TYPE_INT32),
        (11, "track_uuid", _U64),
        (22, "categories", Field.TYPE_STRING),
        (23, "name", Field.TYPE_STRING),
    ],
    "TracePacket": [
        (8, "timestamp", _U64),
        (10, "sequence_id", _U32),
        (11, "track_event", "TrackEvent"),
        (60, "track_descriptor", "TrackDescriptor"),
    ],
    "Trace": [(1, "packet", "TracePacket")],
}
"""The part of Perfetto's published messages that we write, read by protobuf itself."""


def _trace(data: bytes) -> Any:
    file = FileDescriptorProto(name="p.proto", package="p", syntax="proto2")
    for name, fields in _PERFETTO.items():
        message = file.message_type.add(name=name)
        for number, field_name, kind in fields:
            repeated = field_name in ("packet", "categories")
            field = message.field.add(name=field_name, number=number)
            field.label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
            if isinstance(kind, str):
                field.type, field.type_name = Field.TYPE_MESSAGE, f".p.{kind}"
            else:
                field.type = kind
    pool = DescriptorPool()
    pool.Add(file)
    message_class: Any = GetMessageClass(pool.FindMessageTypeByName("p.Trace"))
    return message_class.FromString(data)


def test_requests_that_overlap_are_on_tracks_of_their_own() -> None:
    now = [0]
    timeline = Timeline(clock=lambda: now[0])

    def at(ns: int) -> None:
        now[0] = ns

    first = timeline.begin("s", "m", "First")
    at(10)
    second = timeline.begin("s", "m", "Second")
    timeline.begin("other", "n", "Other")(Done())
    at(20)
    first(Done())
    at(30)
    second(RequestRejectedError("no"))
    third = timeline.begin("s", "m", "Third")
    at(300)
    third(Done())
    trace = _trace(perfetto("session s", timeline.of("s")))
    tracks = {p.track_descriptor.uuid: p.track_descriptor for p in trace.packet if not p.timestamp}
    assert [t.name for t in tracks.values() if t.parent] == ["m", "m"]
    slices: dict[int, list[tuple[Any, ...]]] = {}
    for packet in trace.packet:
        event = packet.track_event
        if event.type:
            told = (packet.timestamp, event.type, event.name, *event.categories)
            slices.setdefault(event.track_uuid, []).append(told)
    assert sorted(slices.values()) == [
        [(0, 1, "First", "done"), (20, 2, ""), (30, 1, "Third", "done"), (300, 2, "")],
        [(10, 1, "Second", "failed"), (30, 2, "")],
    ]
