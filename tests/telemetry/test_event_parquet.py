from __future__ import annotations

import math
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from crucible_tinkex.events import Event, EventWriter
from crucible_tinkex.telemetry.log import EventLog
from crucible_tinkex.telemetry.log.parts import list_parts, load_part, metadata_of
from crucible_tinkex.telemetry.log.schema import EVENT_SCHEMA, events_to_table, table_to_events


def sample_events() -> list[Event]:
    writer = EventWriter("sweep", "experiment")
    return [
        writer.event("training_step", trial_id="t", step=3, name="train/nll", value=0.1 + 0.2),
        writer.event("evaluation", trial_id="t", attempt=2, name="eval/nll", value=math.inf),
        writer.event("trial_state", trial_id="t", name="läuft", extra={"why": "\n'\"ü"}),
    ]


def test_events_survive_the_conversion_bit_by_bit() -> None:
    events = sample_events()
    table = events_to_table(events)
    assert table.schema.equals(EVENT_SCHEMA)
    assert table["event_id"].to_pylist() == [e.event_id for e in events]
    assert table_to_events(table) == events


def test_nan_and_no_value_are_kept_apart() -> None:
    writer = EventWriter("sweep", "experiment")
    events = [writer.event("evaluation", value=math.nan), writer.event("evaluation", value=None)]
    values = [e.value for e in table_to_events(events_to_table(events))]
    assert math.isnan(values[0] or 0.0)
    assert values[1] is None


def test_a_field_of_a_wrong_type_is_refused() -> None:
    event = EventWriter("sweep", "experiment").event("evaluation", step="three")
    with pytest.raises(ValueError, match="wrong type"):
        events_to_table([event])


def test_other_readers_see_the_parts_as_a_hive_data_set(events_folder: Path) -> None:
    events = sample_events()
    with EventLog(events_folder) as log:
        log.append(events)
    (events_folder / "kind=evaluation" / ".part-000009.parquet.1.tmp").write_bytes(b"torn")
    ids = sorted(e.event_id for e in events)

    with EventLog(events_folder):  # which has a write-ahead log and a snapshot beside the parts
        for table in (
            ds.dataset(events_folder, partitioning="hive").to_table(),
            ds.dataset(events_folder).to_table(),
            pq.read_table(events_folder),
            pa.Table.from_pandas(pd.read_parquet(events_folder)),
        ):
            assert sorted(table["event_id"].to_pylist()) == ids
    kinds = pq.read_table(events_folder)["kind"].to_pylist()
    assert set(kinds) == {"training_step", "evaluation", "trial_state"}
    pattern = f"{events_folder}/kind=*/*.parquet"
    rows = duckdb.sql(
        f"SELECT event_id, kind, value FROM read_parquet('{pattern}', hive_partitioning=true)"
    ).fetchall()
    assert sorted(row[0] for row in rows) == ids
    assert {row[1] for row in rows} == {"training_step", "evaluation", "trial_state"}
    assert (0.1 + 0.2) in {row[2] for row in rows}


def test_a_part_tells_what_it_holds(events_folder: Path) -> None:
    events = sample_events()
    with EventLog(events_folder) as log:
        log.append(events)
    (part,) = [p for p in list_parts(events_folder) if p.kind == "evaluation"]
    about = metadata_of(load_part(part))
    assert about["rows"] == "1"
    assert about["kind"] == "evaluation"
    assert about["sweep_id"] == "sweep"
    assert about["coverage"] == f'{{"{events[0].writer}":[[1,3]]}}'
    assert about["first_time"] <= about["last_time"]
    file = pq.ParquetFile(part.path)
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
