from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from event_trials import Trial

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.events import Event
from crucible_tinkex.telemetry.log import EventLog
from crucible_tinkex.telemetry.log.schema import EVENT_SCHEMA
from crucible_tinkex.telemetry.query import query, read_events, scan_events


def curve(folder: Path, **filters: object) -> list[tuple[int, int, float]]:
    table = read_events(folder, kind="training_step", **filters)  # type: ignore[arg-type]
    return sorted(
        zip(
            table["step"].to_pylist(),
            table["attempt"].to_pylist(),
            table["value"].to_pylist(),
            strict=True,
        )
    )


@pytest.fixture(params=["in the log", "in Parquet", "in both"])
def resumed(
    request: pytest.FixtureRequest, events_folder: Path, event_log: EventLog, trial: Trial
) -> Path:
    """Attempt 1 reached step 6; attempt 2 went on from 4 and is at 5."""
    older = [trial.start(1, 0), *(trial.loss(1, step, float(step)) for step in range(1, 7))]
    newer = [trial.start(2, 4), trial.loss(2, 5, 50.0)]
    event_log.append(older)
    if request.param == "in both":
        event_log.roll()
    event_log.append(newer)
    if request.param == "in Parquet":
        event_log.roll()
    return events_folder


def test_a_curve_does_not_double_back(resumed: Path) -> None:
    clean = [(1, 1, 1.0), (2, 1, 2.0), (3, 1, 3.0), (4, 1, 4.0), (5, 2, 50.0)]
    assert curve(resumed) == clean
    assert curve(resumed, trial_id="t1", name="train/nll") == clean
    assert len(curve(resumed, all_attempts=True)) == 7
    assert read_events(resumed, kind="session_start").num_rows == 2


def test_the_newest_attempt_wins_a_step_that_both_have(
    events_folder: Path, event_log: EventLog, trial: Trial
) -> None:
    event_log.append([trial.start(1, 0), trial.loss(1, 4, 1.0), trial.loss(1, 4, 0.5, "eval/nll")])
    event_log.append([trial.start(2, 4), trial.loss(2, 4, 0.25, "eval/nll")])
    assert curve(events_folder) == [(4, 1, 1.0)]
    assert read_events(events_folder, kind="evaluation")["value"].to_pylist() == [0.25]


def test_an_attempt_from_scratch_replaces_everything_after_step_0(
    events_folder: Path, event_log: EventLog, trial: Trial
) -> None:
    other = Trial("t2")
    event_log.append([trial.start(1, 0), trial.loss(1, 1, 1.0), trial.loss(1, 2, 2.0)])
    event_log.append([other.start(1, 0), other.loss(1, 1, 7.0)])
    event_log.append([trial.start(3, 0), trial.loss(3, 1, 3.0)])
    assert curve(events_folder) == [(1, 1, 7.0), (1, 3, 3.0)]


def test_several_rows_of_one_name_and_step_stay(
    events_folder: Path, event_log: EventLog, trial: Trial
) -> None:
    event_log.append([trial.loss(1, 1, 1.0), trial.loss(1, 1, 2.0), trial.start(2, 5)])
    assert [value for *_, value in curve(events_folder)] == [1.0, 2.0]


def test_requests_that_were_made_are_never_superseded(
    events_folder: Path, event_log: EventLog, trial: Trial
) -> None:
    request = trial.writer.event(
        "request", trial_id="t1", attempt=1, step=9, name="cost/usd", value=0.5
    )
    event_log.append([request, trial.start(2, 0)])
    assert query(events_folder, "SELECT sum(value) AS usd FROM events").to_pylist() == [
        {"usd": 0.5}
    ]


def test_filters(events_folder: Path, event_log: EventLog) -> None:
    base = 1_700_000_000_000_000
    for i in range(10):
        event_log.append(
            [
                Event(
                    kind="evaluation" if i % 2 else "training_step",
                    sweep_id="s",
                    experiment_id="e",
                    writer="w",
                    seq=i,
                    time_us=base + i * 1_000_000,
                    trial_id=f"t{i % 3}",
                    name="eval/nll",
                )
            ]
        )
    since = datetime.fromtimestamp(base / 1e6 + 3, UTC)
    until = datetime.fromtimestamp(base / 1e6 + 6, UTC)
    table = read_events(events_folder, since=since, until=until)
    assert table["seq"].to_pylist() == [3, 4, 5]
    naive = read_events(events_folder, since=since.replace(tzinfo=None))
    assert naive["seq"].to_pylist() == [3, 4, 5, 6, 7, 8, 9]
    assert read_events(events_folder, kind="evaluation", trial_id="t0")["seq"].to_pylist() == [3, 9]
    assert read_events(events_folder, name="other").num_rows == 0
    assert read_events(events_folder, kind="sample").num_rows == 0


def test_an_empty_sweep_is_an_empty_table(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        assert read_events(folder).schema.equals(EVENT_SCHEMA)
        assert read_events(folder).num_rows == 0
        assert query(folder, "SELECT count(*) AS n FROM events").to_pylist() == [{"n": 0}]
    assert list(tmp_path.iterdir()) == []  # reading leaves no trace


def test_sql_sees_both_views(resumed: Path) -> None:
    sql = (
        "SELECT (SELECT count(*) FROM events WHERE kind = 'training_step') AS now, "
        "(SELECT count(*) FROM events_all WHERE kind = 'training_step') AS ever"
    )
    assert query(resumed, sql).to_pylist() == [{"now": 5, "ever": 7}]
    extra = "SELECT extra->>'resumed_step' AS s FROM events WHERE kind = 'session_start' ORDER BY s"
    assert query(resumed, extra)["s"].to_pylist() == ["0", "4"]
    pivot = "PIVOT events ON kind USING count(*) GROUP BY trial_id"
    assert query(resumed, pivot)["training_step"].to_pylist() == [5]


@pytest.mark.parametrize(
    "sql",
    [
        "COPY events TO '{0}/stolen.csv'",
        "COPY (SELECT 1) TO '{0}/stolen.parquet'",
        "EXPORT DATABASE '{0}/stolen'",
        "ATTACH '{0}/stolen.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '{0}/secret.csv'",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM 'https://example.org/x.parquet'",
        "CREATE TABLE mine AS SELECT 1",
        "DROP VIEW events",
        "SELECT 1; COPY (SELECT 1) TO '{0}/stolen.csv'",
        "",
    ],
)
def test_sql_can_only_read_the_events(tmp_path: Path, sql: str) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with pytest.raises(ConfigError):
        query(tmp_path / "events", sql.format(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


def test_columns_of_one_name_keep_their_values(tmp_path: Path) -> None:
    found = query(tmp_path, "SELECT 1 AS step, 2 AS step, 3 AS STEP, 4 AS step_1")
    assert found.to_pylist() == [{"step": 1, "step_1": 2, "STEP_2": 3, "step_1_1": 4}]


def test_bad_sql_is_explained_in_duckdbs_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'(?s)column "stepp" not found.*"step"'):
        query(tmp_path, "SELECT stepp FROM events")
    with pytest.raises(ConfigError, match="syntax error"):
        query(tmp_path, "SELEKT 1")


def test_a_scan_is_ordered_and_cut_into_pieces(events_folder: Path, event_log: EventLog) -> None:
    for trial in (Trial("b"), Trial("a")):
        event_log.append([trial.loss(2, 1, 0.0), trial.loss(1, 2, 0.0)])
    rows = [row for table in scan_events(events_folder, rows=2) for row in table.to_pylist()]
    assert [(row["trial_id"], row["attempt"]) for row in rows] == [
        ("a", 1),
        ("a", 2),
        ("b", 1),
        ("b", 2),
    ]
