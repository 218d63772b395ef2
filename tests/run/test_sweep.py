"""The main job end to end, and every artefact it leaves, read by the readers people use."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pytest
from curves import of_events, of_tensorboard
from nano_sweeps import STEPS, FinishedRun, Workspace, outcome
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from crucible_tinkex.config import Experiment

pytestmark = pytest.mark.ray
TAGS = {"train/nll", "eval/nll", "eval/accuracy", "perf/tokens_per_s", "optim/lr"}


def test_the_leaderboard_makes_sense(finished: FinishedRun) -> None:
    summary = finished.summary
    assert summary["state"] == "done"
    assert [t["state"] for t in summary["trials"]] == ["done"] * 5
    values = [t["metrics"]["eval/nll"] for t in summary["trials"]]
    assert values == sorted(values)
    base = next(t for t in summary["trials"] if t["reference"])["metrics"]["eval/nll"]
    by_rate = {
        (t["config"]["lora.rank"], t["config"]["optimizer.learning_rate"]): t["metrics"]["eval/nll"]
        for t in summary["trials"]
        if not t["reference"]
    }
    for rank in (2, 8):
        assert by_rate[rank, 1e-6] == pytest.approx(base, rel=0.02)
        assert by_rate[rank, 3e-3] < 0.8 * base
    assert summary["best"]["config"]["optimizer.learning_rate"] == 3e-3


def test_every_trial_ends_with_a_checkpoint(finished: FinishedRun) -> None:
    for trial in finished.summary["trials"]:
        steps = [c["step"] for c in trial["checkpoints"]]
        assert steps == ([] if trial["reference"] else [6, 12, 18, 24])


def test_events_are_plain_parquet(finished: FinishedRun) -> None:
    folder = finished.workspace.sweep() / "events"
    glob = f"{folder}/kind=*/*.parquet"
    found = duckdb.sql(
        f"select trial_id, count(*), min(step), max(step) from read_parquet('{glob}', "
        "hive_partitioning=true) where name = 'train/nll' group by trial_id"
    ).fetchall()
    assert len(found) == 4
    assert all(row[1:] == (STEPS, 1, STEPS) for row in found)
    table = ds.dataset(folder, format="parquet", partitioning="hive").to_table()
    assert table.num_rows == len(set(table["event_id"].to_pylist()))


def test_tensorboard_reads_every_run(finished: FinishedRun) -> None:
    folder = finished.workspace.sweep() / "tb"
    runs = sorted(p for p in folder.iterdir() if p.is_dir())
    assert len(runs) == 5
    for run in runs[1:]:
        accumulator = EventAccumulator(str(run))
        accumulator.Reload()
        assert set(accumulator.Tags()["scalars"]) >= TAGS
        assert [e.step for e in accumulator.Scalars("train/nll")] == list(range(1, STEPS + 1))


def test_tensorboard_draws_what_the_events_say(finished: FinishedRun) -> None:
    sweep = finished.workspace.sweep()
    everything = ("",)
    assert of_tensorboard(sweep, everything) == of_events(sweep, everything)


def test_a_finished_sweep_is_not_run_again(finished: FinishedRun) -> None:
    again = finished.workspace.here("run", "nano.toml", "--json")
    assert again.returncode == 0
    assert outcome(json.loads(again.stdout)) == outcome(finished.summary)
    assert [t["attempts"] for t in json.loads(again.stdout)["trials"]] == [1] * 5


def test_commands_that_look(finished: FinishedRun) -> None:
    workspace = finished.workspace
    assert outcome(workspace.status()) == outcome(finished.summary)
    assert "best: lora.rank" in workspace.here("status", "nano").stdout
    listed = json.loads(workspace.here("list", "--json").stdout)
    assert listed == [
        {"sweep": "nano", "state": "done", "trials": 5, "done": 5, "stopped": 0, "failed": 0}
    ]
    sql = "select count(*) as n from events where name = 'eval/accuracy'"
    counted = json.loads(workspace.here("query", "nano", sql, "--json").stdout)
    assert counted == [{"n": 9}]


def test_the_folder_says_what_was_run(finished: FinishedRun) -> None:
    sweep = finished.workspace.sweep()
    again = Experiment.from_toml(sweep / "experiment.toml")
    asked = Experiment.from_toml(finished.workspace.file)
    assert again.model_copy(update={"run": asked.run}) == asked
    assert again.run.storage == str(sweep.parent)
    resolved = json.loads((sweep / "resolved.json").read_text())
    assert resolved["experiment"]["lora"]["rank"] == 8
    assert resolved["versions"]["ray"]


def test_the_key_is_nowhere_but_in_its_file(finished: FinishedRun) -> None:
    sweep = finished.workspace.sweep()
    key_file = sweep / "service" / "api_key"
    key = key_file.read_bytes().strip()
    assert key_file.stat().st_mode & 0o777 == 0o600
    holders = [p for p in sweep.rglob("*") if p.is_file() and key in p.read_bytes()]
    assert holders == [key_file]
    assert key.decode() not in finished.stderr


def test_plan_says_what_would_run_and_touches_nothing(finished: FinishedRun) -> None:
    workspace = finished.workspace
    planned = workspace.here("plan", "nano.toml", "--name", "other", "--json")
    assert planned.returncode == 0, planned.stderr
    found = json.loads(planned.stdout)
    assert (found["trials"], found["steps"], found["train_rows"]) == (5, 4 * STEPS, 60)
    assert len(found["configurations"]) == 4
    assert not Path(found["folder"]).exists()


def test_the_official_sdk_as_transport_gives_the_same_numbers(
    finished: FinishedRun, workspace: Workspace
) -> None:
    result = workspace.crucible(
        "run", "nano.toml", "--json", "--set", 'service.transport="sdk"', "--name", "by-sdk"
    )
    assert result.returncode == 0, result.stderr
    ours, theirs = (
        {t["name"]: (t["state"], t["step"], t["metrics"]) for t in summary["trials"]}
        for summary in (finished.summary, json.loads(result.stdout))
    )
    assert theirs == ours


def test_tables_show_text_as_it_is(finished: FinishedRun) -> None:
    """Rich would make an emoji of the `:train:` in a model's id."""
    sql = "select extra ->> 'model_id' as model_id from events where kind = 'session_start'"
    shown = finished.workspace.here("query", "nano", sql)
    assert shown.stdout.count(":train:0") == 5, shown.stdout
