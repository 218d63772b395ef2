"""Handlers of the seed's events, what is remembered of them, and its export."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from crucible_tinkex.client.http.watch import QueueState, RequestRecord
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.events import EventWriter
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.telemetry.bridge import Bridge, BridgeEvent
from crucible_tinkex.telemetry.export import encoded, write_table
from crucible_tinkex.telemetry.history import Telemetry, aggregated
from crucible_tinkex.telemetry.recorder import Recorder

# --- handlers ------------------------------------------------------------------------------------


def test_an_event_is_enriched_and_given_to_who_asked_for_it() -> None:
    bridge = Bridge("e1", wall=lambda: 12.5, host="h")
    every: list[BridgeEvent] = []
    some: list[BridgeEvent] = []
    bridge.attach("every", every.append)
    bridge.attach("some", some.append, ["session_end"])
    bridge.execute("session_start", {"step": 1}, tag="x")
    bridge.execute("session_end")
    assert [e.name for e in every] == ["session_start", "session_end"]
    assert [e.name for e in some] == ["session_end"]
    assert every[0].measurements == {"step": 1, "crucible_timestamp": 12500}
    assert every[0].metadata["experiment_id"] == "e1"
    assert every[0].metadata["adapter"] == "tinkex"
    assert (every[0].metadata["tag"], every[0].metadata["host"]) == ("x", "h")


def test_two_experiments_hear_only_their_own() -> None:
    heard: list[str] = []
    first, second = Bridge("a"), Bridge("b")
    for bridge in (first, second):
        bridge.attach("same id", lambda e: heard.append(e.metadata["experiment_id"]))
    first.execute("session_start")
    assert heard == ["a"]


def test_a_handler_that_raises_is_detached_and_reported() -> None:
    bridge = Bridge("e")
    heard: list[BridgeEvent] = []

    def broken(event: BridgeEvent) -> None:
        raise RuntimeError("mine")

    bridge.attach("broken", broken)
    bridge.attach("fine", heard.append)
    bridge.execute("session_start")
    bridge.execute("session_end")
    assert bridge.handlers() == ["fine"]
    assert bridge.faults == {"broken": "RuntimeError: mine"}
    assert [e.name for e in heard].count("handler_detached") == 1
    assert {"session_start", "session_end"} <= {e.name for e in heard}


def test_detach_and_attach_again() -> None:
    bridge = Bridge("e")
    heard: list[BridgeEvent] = []
    bridge.attach("h", heard.append)
    with pytest.raises(ConfigError, match="is attached"):
        bridge.attach("h", heard.append)
    assert bridge.detach("h")
    assert not bridge.detach("h")
    bridge.execute("session_start")
    assert heard == []


def test_unknown_events_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'session_start'"):
        Bridge("e").attach("h", print, ["session_strat"])


def test_calls_over_http_are_not_operations() -> None:
    bridge = Bridge("e")
    heard: list[BridgeEvent] = []
    bridge.attach("h", heard.append)
    bridge.on_request(RequestRecord("forward_backward", "p", 1.0, 0.0, 2, 200, None))
    bridge.on_request(RequestRecord("optim_step", "p", 1.0, 0.0, 2, 500, "ServiceError"))
    bridge.on_queue_state(QueueState("paused_capacity", "full"))
    assert [e.name for e in heard] == [
        "http_request_stop",
        "http_request_exception",
        "queue_state",
    ]


# --- what is remembered --------------------------------------------------------------------------


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    for experiment, shift in (("a", 0.0), ("b", 100.0)):
        recorder = Recorder(SweepPaths.of(tmp_path, f"folder-{experiment}"))
        writer = EventWriter(sweep_id=experiment, experiment_id=experiment)
        recorder.record(
            [
                writer.event("session_start"),
                *(
                    writer.event("training_step", name="train/nll", step=k, value=shift + k)
                    for k in range(1, 11)
                ),
                writer.event("optimizer_step", name="optim/lr", step=1, value=1e-3),
                writer.event("session_end"),
            ]
        )
        recorder.close()
    return tmp_path


def test_the_seeds_query(storage: Path) -> None:
    telemetry = Telemetry(storage)
    now = datetime.now(UTC)
    found = telemetry.query(
        experiment_id="a",
        event_type="training_step",
        from_=now - timedelta(hours=1),
        to=now + timedelta(hours=1),
    )
    assert found["value"].to_pylist() == [float(k) for k in range(1, 11)]
    assert set(found["experiment_id"].to_pylist()) == {"a"}
    assert telemetry.query(experiment_id="a", event_type="session").num_rows == 2
    assert telemetry.query(event_type="forward_backward_stop").num_rows == 20
    assert telemetry.query(event_type=["session", "checkpoint"]).num_rows == 4
    assert telemetry.query(to=now - timedelta(hours=1)).num_rows == 0
    assert telemetry.query(experiment_id="folder-b", event_type="session").num_rows == 2
    assert telemetry.experiments() == ["folder-a", "folder-b"]


def test_windows(storage: Path) -> None:
    telemetry = Telemetry(storage)
    newest = telemetry.window(experiment_id="a", event_type="training_step", last=3)
    assert newest["value"].to_pylist() == [8.0, 9.0, 10.0]
    assert telemetry.window(experiment_id="a", last=timedelta(hours=1)).num_rows == 13
    assert telemetry.window(experiment_id="a", last=0).num_rows == 0
    assert telemetry.window(experiment_id="none", last=timedelta(1)).num_rows == 0


def test_aggregates(storage: Path) -> None:
    telemetry = Telemetry(storage)
    (found,) = telemetry.aggregate(experiment_id="a", event_type="training_step")
    assert (found["name"], found["count"], found["mean"]) == ("train/nll", 10, 5.5)
    assert found["std"] == pytest.approx(math.sqrt(55 / 6))
    assert (found["min"], found["max"], found["first"], found["last"]) == (1, 10, 1, 10)
    assert found["p50"] == 5.5
    by = telemetry.aggregate(event_type="training_step", by=["experiment_id", "name"])
    assert [row["experiment_id"] for row in by] == ["a", "b"]
    (alone,) = telemetry.aggregate(experiment_id="a", event_type="optimizer_step")
    assert alone["std"] is None


def test_aggregates_of_stretches_of_time() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    table = pa.table(
        {
            "window_start": [start, start, start + timedelta(minutes=1)],
            "name": ["x"] * 3,
            "value": [1.0, 3.0, 5.0],
        }
    )
    assert [row["mean"] for row in aggregated(table, ["window_start", "name"])] == [2.0, 5.0]


def test_stretches_hold_every_row_once(storage: Path) -> None:
    rows = Telemetry(storage).windowed(
        every=timedelta(microseconds=50), experiment_id="a", event_type="training_step"
    )
    assert sum(row["count"] for row in rows) == 10
    assert [row["window_start"] for row in rows] == sorted(row["window_start"] for row in rows)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.query(event_type="training_stp"), "did you mean 'training_step'"),
        (
            lambda t: t.query(from_=datetime(2026, 1, 2), to=datetime(2026, 1, 1)),
            "is later than",
        ),
        (lambda t: t.query(from_="2026-01-01"), "from_ = '2026-01-01' must be a datetime"),
        (lambda t: t.window(last=-1), "number of rows"),
        (lambda t: t.windowed(every=timedelta(0)), "positive time"),
        (lambda t: t.aggregate(by=["nothing"]), "no column nothing"),
        (lambda t: t.export("x.txt"), "name it .csv"),
        (lambda t: Telemetry("not-there").query(), "no storage folder"),
    ],
)
def test_wrong_questions_are_refused(storage: Path, call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(Telemetry(storage))


# --- export --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_exported_rows_are_read_again(storage: Path, suffix: str) -> None:
    path = storage / f"out.{suffix}"
    count = Telemetry(storage).export(path, experiment_id="a", event_type="training_step")
    if suffix == "csv":
        values = pyarrow.csv.read_csv(path)["value"].to_pylist()
    elif suffix == "jsonl":
        values = [json.loads(line)["value"] for line in path.read_text().splitlines()]
    else:
        values = pq.read_table(path)["value"].to_pylist()
    assert values == [float(k) for k in range(1, 11)]
    assert count == 10


def test_csv_quotes_text_and_writes_nested_values_as_json() -> None:
    table = pa.table({"text": ['a,"b"\nc'], "tags": [["x", "y"]]})
    back = pyarrow.csv.read_csv(
        pa.BufferReader(encoded(table, "csv")),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
    )
    assert back.to_pylist() == [{"text": 'a,"b"\nc', "tags": '["x", "y"]'}]


def test_an_export_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    with pytest.raises(ConfigError, match="unknown format"):
        write_table(pa.table({"x": [1]}), path, format="xml")  # type: ignore[arg-type]
    assert path.read_text() == "old"
    with pytest.raises(ConfigError, match="is a folder"):
        write_table(pa.table({"x": [1]}), tmp_path)
