"""The friendly SQL views, evaluation rows, and queries over several sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from event_trials import Trial

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.events import Event, EventWriter
from crucible_tinkex.telemetry.log import EventLog
from crucible_tinkex.telemetry.log.schema import EVALUATION_SCHEMA
from crucible_tinkex.telemetry.query import query, read_evaluations, read_events


def example(trial: Trial, attempt: int, step: int, name: str, nll: float, **extra: Any) -> Event:
    details = {"tokens": 7, "correct": None, "text": None, **extra}
    return trial.writer.event(
        "example",
        trial_id=trial.trial_id,
        attempt=attempt,
        step=step,
        name=name,
        value=nll,
        extra=details,
    )


@pytest.fixture(params=["in the log", "in Parquet"])
def store(request: pytest.FixtureRequest, event_log: EventLog) -> Any:
    def append(events: list[Event]) -> None:
        event_log.append(events)
        if request.param == "in Parquet":
            event_log.roll()

    return append


def test_steps_are_wide(events_folder: Path, store: Any, trial: Trial) -> None:
    store([trial.start(1, 0)])
    for step in (1, 2):
        store([trial.loss(1, step, 1.0 / step), trial.loss(1, step, 1e-3, "optim/lr")])
        store([trial.loss(1, step, 30.0 * step, "perf/tokens_per_s")])
    store([trial.loss(1, 2, 0.25, "eval/f1:macro"), trial.loss(1, 2, 5.0, "optim/step")])
    rows = query(events_folder, "SELECT * EXCLUDE (time, sweep_id) FROM steps").to_pylist()
    base = {"trial_id": "t1", "attempt": 1, "epoch": 0, "lr": 1e-3, "step_s": None}
    assert rows == [
        {
            **base,
            "step": 1,
            "train_nll": 1.0,
            "tokens_per_s": 30.0,
            "eval_f1_macro": None,
            "optim_step": None,
        },
        {
            **base,
            "step": 2,
            "train_nll": 0.5,
            "tokens_per_s": 60.0,
            "eval_f1_macro": 0.25,
            "optim_step": 5.0,
        },
    ]


def test_views_have_their_columns_before_there_are_rows(tmp_path: Path) -> None:
    for sql in (
        "SELECT train_nll, lr, step_s, tokens_per_s FROM steps",
        "SELECT operation, duration_s, error, attempts FROM requests",
        "SELECT trial_id, run_name, seed FROM trials",
        "SELECT trial_id, step, path FROM checkpoints",
        "SELECT example_id, nll, tokens, correct, text FROM evaluations",
    ):
        assert query(tmp_path, sql).num_rows == 0


def test_trials_have_a_column_for_each_hyperparameter(
    events_folder: Path, store: Any, trial: Trial
) -> None:
    hparams = {"optimizer.learning_rate": 0.01, "lora.rank": 8, "data.mix": [1, 2], "seed": 3}
    config = {"lora": {"rank": 8, "train_mlp": True}, "train": {"batch_size": 4}, "name": "x"}
    store([trial.start(1, 0), trial.start(2, 0, hparams=hparams, config=config)])
    store([Trial("t2").start(1, 0)])
    columns = "trial_id, run_name, seed, attempt, learning_rate, lora_rank, batch_size, data_mix"
    rows = query(events_folder, f"SELECT {columns} FROM trials ORDER BY trial_id").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("t1", "run-t1", 3, 2, 0.01, 8, 4, "[1, 2]"),
        ("t2", "run-t2", None, 1, 0.01, 8, None, None),
    ]


def test_tables_of_the_caller_take_the_place_of_views(
    events_folder: Path, store: Any, trial: Trial
) -> None:
    store([trial.start(1, 0), trial.loss(1, 1, 1.0)])
    tables = {"trials": pa.table({"trial_id": ["t1"], "state": ["done"]})}
    sql = "SELECT state, train_nll FROM trials JOIN steps USING (trial_id)"
    assert query(events_folder, sql, tables=tables).to_pylist() == [
        {"state": "done", "train_nll": 1.0}
    ]


def test_checkpoints_and_requests_are_spread(events_folder: Path, store: Any, trial: Trial) -> None:
    def event(kind: str, name: str, **extra: Any) -> Event:
        return trial.writer.event(kind, trial_id="t1", name=name, value=0.5, extra=extra)

    store([event("checkpoint_saved", "c1", path="tinker://a/weights/b")])
    store([event("request", "request/forward", attempts=2, status=503, error=None, host="h")])
    store([event("request", "request/forward", attempts=1, queued_s=0.5, error="late")])
    found = query(events_folder, "SELECT name, path FROM checkpoints").to_pylist()
    assert found == [{"name": "c1", "path": "tinker://a/weights/b"}]
    columns = "operation, duration_s, attempts, status, queued_s, error, host"
    rows = query(events_folder, f"SELECT {columns} FROM requests ORDER BY attempts").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("forward", 0.5, 1, None, 0.5, "late", None),
        ("forward", 0.5, 2, 503, None, None, "h"),
    ]


def test_evaluation_rows_have_types_and_follow_attempts(
    events_folder: Path, store: Any, trial: Trial
) -> None:
    store([trial.start(1, 0), example(trial, 1, 2, "a", 1.5, correct=True, text="ja\n")])
    store([example(trial, 1, 2, "b", 2.5, tokens="many"), example(trial, 1, 4, "a", 1.0)])
    store([trial.start(2, 2), example(trial, 2, 2, "b", 2.0, tokens=3)])
    table = read_evaluations(events_folder)
    assert table.schema.equals(EVALUATION_SCHEMA)
    rows = [(r["attempt"], r["step"], r["example_id"], r["nll"]) for r in table.to_pylist()]
    assert sorted(rows) == [(1, 2, "a", 1.5), (2, 2, "b", 2.0)]
    (first,) = (r for r in table.to_pylist() if r["example_id"] == "a")
    assert (first["tokens"], first["correct"], first["text"]) == (7, True, "ja\n")
    everything = read_evaluations(events_folder, "t1", all_attempts=True)
    assert [r["tokens"] for r in everything.to_pylist()] == [7, None, 7, 3]
    assert read_evaluations(events_folder, step=4, all_attempts=True).num_rows == 1
    assert read_evaluations(events_folder, "t2").num_rows == 0
    assert query(events_folder, "SELECT count(*) AS n FROM evaluations").to_pylist() == [{"n": 2}]
    assert set(read_events(events_folder)["kind"].to_pylist()) == {"session_start"}


def test_answers_and_their_scores_are_columns(
    events_folder: Path, store: Any, trial: Trial
) -> None:
    answered = {"group": "g", "expected": "4", "answers": ["4", "5"], "scores": {"eval/pass@2": 1}}
    odd = {"group": 3, "answers": "4", "scores": {"eval/pass@2": "much"}}
    store([example(trial, 1, 1, "a", 1.0, **answered), example(trial, 1, 1, "b", 1.0, **odd)])
    rows = read_evaluations(events_folder).to_pylist()
    assert {k: rows[0][k] for k in ("group", "expected", "answers")} == {
        "group": "g",
        "expected": "4",
        "answers": ["4", "5"],
    }
    assert rows[0]["scores"] == [("eval/pass@2", 1.0)]
    assert (rows[1]["group"], rows[1]["answers"], rows[1]["scores"]) == (None, None, [])
    sql = "SELECT e.group AS g, scores['eval/pass@2'] AS score FROM evaluations e ORDER BY g"
    assert query(events_folder, sql).to_pylist()[0] == {"g": "g", "score": 1.0}


def test_evaluation_rows_lie_beside_the_events(
    tmp_path: Path, events_folder: Path, trial: Trial
) -> None:
    batch = [example(trial, 1, 1, "a", 1.5), trial.loss(1, 1, 1.0)]
    for _ in range(2):
        with EventLog(events_folder) as log:
            log.append(batch)
    (part,) = (tmp_path / "evaluations").glob("part-*.parquet")
    assert pq.read_table(tmp_path / "evaluations").num_rows == 1
    assert part.name.startswith("part-000001.")
    assert not (events_folder / "kind=example").exists()


@pytest.fixture
def two_sweeps(tmp_path: Path) -> list[Path]:
    """Equal trials in two sweeps; only the second was resumed."""
    folders = []
    for name in ("one", "two"):
        t = Trial("t1")
        t.writer = EventWriter(name, "e", run_id=f"run-of-{name}")
        folders.append(tmp_path / name / "events")
        with EventLog(folders[-1]) as log:
            log.append([t.start(1, 0), t.loss(1, 1, 1.0), t.loss(1, 2, 2.0)])
            if name == "two":
                log.append([t.start(2, 1), t.loss(2, 2, 5.0), example(t, 2, 2, "a", 1.0)])
    return folders


def test_equal_trials_of_two_sweeps_never_supersede_each_other(two_sweeps: list[Path]) -> None:
    sql = "SELECT sweep_id, step, train_nll AS nll FROM steps ORDER BY ALL"
    rows = [tuple(row.values()) for row in query(two_sweeps, sql).to_pylist()]
    assert rows == [("one", 1, 1.0), ("one", 2, 2.0), ("two", 1, 1.0), ("two", 2, 5.0)]
    assert read_events(two_sweeps, kind="training_step").num_rows == 4
    assert read_events(two_sweeps, kind="training_step", all_attempts=True).num_rows == 5
    assert set(read_events(two_sweeps)["run_id"].to_pylist()) == {"run-of-one", "run-of-two"}
    assert read_evaluations(two_sweeps)["sweep_id"].to_pylist() == ["two"]
    assert query(two_sweeps, "SELECT count(*) AS n FROM trials").to_pylist() == [{"n": 2}]


def test_two_sweeps_in_one_folder_are_told_apart_too(events_folder: Path) -> None:
    one, two = Trial("t1"), Trial("t1")
    two.writer.sweep_id = "other"
    with EventLog(events_folder) as log:
        log.append([one.start(1, 0), one.loss(1, 1, 1.0)])
        log.append([two.start(2, 0), two.loss(2, 1, 2.0)])
    values = read_events(events_folder, kind="training_step")["value"].to_pylist()
    assert values == [1.0, 2.0]


def test_no_folder_is_no_sweep(tmp_path: Path) -> None:
    assert read_events([]).num_rows == 0
    with pytest.raises(ConfigError, match="nothing"):
        query([], "SELECT * FROM nothing")
