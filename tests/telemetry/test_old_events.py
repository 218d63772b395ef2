"""Events that version 0.1.0 left behind stay readable, and a sweep goes on with them.

The fixture was killed and resumed: two attempts per trial, and as that version made a `sweep_id`
in each run, two of them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tb_scalars import scalars

from crucible_tinkex.events import EventWriter
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.telemetry.log.parts import list_parts
from crucible_tinkex.telemetry.query import query, read_events
from crucible_tinkex.telemetry.recorder import Recorder

ASSET = Path(__file__).parent.parent / "assets" / "sweep-0.1.0"
ROWS = {
    "checkpoint_saved": 8,
    "evaluation": 15,
    "optimizer_step": 112,
    "session_end": 5,
    "session_start": 9,
    "training_step": 168,
}
COUNTS = "SELECT kind, count(*) AS n FROM {} GROUP BY kind ORDER BY kind"
CURVES = """
SELECT trial_id, list(step ORDER BY step) AS steps, list(attempt ORDER BY step) AS attempts
FROM events WHERE name = 'train/nll' GROUP BY trial_id ORDER BY trial_id
"""


def counts(folder: Path, view: str) -> dict[str, int]:
    return {row["kind"]: row["n"] for row in query(folder, COUNTS.format(view)).to_pylist()}


def curves(folder: Path) -> list[tuple[list[int], list[int]]]:
    return [(row["steps"], row["attempts"]) for row in query(folder, CURVES).to_pylist()]


@pytest.fixture
def old_sweep(tmp_path: Path) -> SweepPaths:
    shutil.copytree(ASSET, tmp_path / "killed")
    return SweepPaths.of(tmp_path, "killed")


def test_an_old_sweep_reads_as_it_did() -> None:
    folder = ASSET / "events"
    assert counts(folder, "events_all") == ROWS
    assert curves(folder) == [
        (list(range(1, 13)), [1] * 6 + [2] * 6),
        (list(range(1, 13)), [1] * 6 + [2] * 6),
        (list(range(1, 13)), [2] * 12),
        (list(range(1, 13)), [1] * 6 + [2] * 6),
    ]
    ids = query(folder, "SELECT DISTINCT sweep_id, run_id FROM events ORDER BY run_id").to_pylist()
    assert len({row["sweep_id"] for row in ids}) == 1
    assert [row["run_id"] for row in ids] == ["killed-1a587bb8", "killed-7e7b4d56"]
    rows = query(folder, "SELECT lora_rank, learning_rate, run_name, seed FROM trials").to_pylist()
    assert {(row["lora_rank"], row["learning_rate"]) for row in rows} >= {(2, 0.003), (8, 1e-06)}


def test_an_old_sweep_goes_on(old_sweep: SweepPaths) -> None:
    trial_id = "8c68585d4409"
    writer = EventWriter("stable", "e", run_id="third")
    start = writer.event(
        "session_start",
        trial_id=trial_id,
        attempt=3,
        step=6,
        extra={"run_name": "0004-rank=8-lr=0.003-s0", "resumed_step": 6},
    )
    step = writer.event(
        "training_step", trial_id=trial_id, attempt=3, step=7, name="train/nll", value=0.5
    )
    recorder = Recorder(old_sweep)
    before = recorder.changes(-1).trials[trial_id]
    assert (before["attempt"], before["step"]) == (2, 12)
    recorder.record([start, step])
    row = recorder.changes(-1).trials[trial_id]
    assert (row["attempt"], row["step"], row["metrics"]["train/nll"]) == (3, 7, 0.5)
    recorder.close()
    for _ in range(2):
        assert counts(old_sweep.events, "events_all") == {
            **ROWS,
            "session_start": 10,
            "training_step": 169,
        }
        (newest,) = (c for c in curves(old_sweep.events) if 3 in c[1])
        assert newest == ([*range(1, 8)], [2] * 6 + [3])
        assert set(read_events(old_sweep.events)["sweep_id"].to_pylist()) == {"stable"}
        assert {row["run_id"] for row in read_events(old_sweep.events).to_pylist()} == {
            "killed-7e7b4d56",
            "killed-1a587bb8",
            "third",
        }
        Recorder(old_sweep).close()


def test_an_old_sweep_is_opened_into_the_new_form(old_sweep: SweepPaths) -> None:
    with pytest.raises(pa.ArrowTypeError):
        pq.read_table(old_sweep.events)
    Recorder(old_sweep).close()
    assert all(part.crc is not None for part in list_parts(old_sweep.events))
    assert pq.read_table(old_sweep.events).num_rows == sum(ROWS.values())
    rows = query(
        old_sweep.events,
        "SELECT t.run_name, e.name, e.step, e.value::FLOAT AS value FROM events e "
        "JOIN trials t USING (trial_id) WHERE e.value IS NOT NULL",
    ).to_pylist()
    wanted = {(r["run_name"], r["name"], r["step"], r["value"]) for r in rows}
    assert scalars(old_sweep.tensorboard) == wanted
