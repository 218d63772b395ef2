"""Facts of models: told once to the storage's handlers, and found by queries, from one record."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.registry.models import ModelRegistry
from crucible_tinkex.telemetry.bridge import BridgeEvent
from crucible_tinkex.telemetry.facts.fact import Fact
from crucible_tinkex.telemetry.facts.ledger import FOLDER, known_subjects, record, recorded
from crucible_tinkex.telemetry.history import Telemetry

PATH = "tinker://run:train:0/weights/a"
ALL = (
    "model_registered",
    "model_metrics_updated",
    "model_tagged",
    "model_promoted",
    "model_aliased",
    "model_aliased",
    "model_deleted",
)


def change_everything(models: ModelRegistry) -> None:
    models.register_model("m", checkpoint_path=PATH, sweep="s", metrics={"eval/nll": 2.0})
    models.register_model("m", checkpoint_path=PATH)  # again: nothing is new
    models.update_metrics("m", {"eval/nll": 1.5})
    models.tag("m", add=["good"])
    models.promote("m", "production")
    models.promote("m", "production")  # it is already
    models.set_alias("m", "best")
    models.drop_alias("m", "best")
    models.delete("m", 1)


def test_each_change_is_told_once_and_found_once(tmp_path: Path) -> None:
    heard: list[BridgeEvent] = []
    telemetry = Telemetry(tmp_path)
    telemetry.attach("mine", heard.append)
    change_everything(ModelRegistry.open(tmp_path))
    assert tuple(e.name for e in heard) == ALL
    first = heard[0]
    assert first.metadata["subject"] == "m:1" and first.metadata["experiment_id"] == "s"
    assert first.metadata["checkpoint_path"] == PATH and first.measurements["eval/nll"] == 2.0
    assert first.metadata["adapter"] == "tinkex" and first.metadata["crucible_version"]
    found = telemetry.query(event_type="model")
    assert tuple(found["kind"].to_pylist()) == ALL
    assert found["name"].to_pylist()[:4] == ["m:1"] * 4
    (promoted,) = telemetry.query(event_type="model_promoted").to_pylist()
    assert json.loads(promoted["extra"])["stage"] == "production"
    assert telemetry.query().num_rows == len(ALL)
    assert telemetry.detach("mine")
    ModelRegistry.open(tmp_path).register_model("n", checkpoint_path=PATH)
    assert len(heard) == len(ALL)


def test_an_imported_version_is_told_by_its_own_number(tmp_path: Path) -> None:
    source = tmp_path / "models.jsonl"
    shipped = [{"name": "m", "version": n, "checkpoint_path": f"{PATH}{n}"} for n in (5, 2)]
    source.write_text("\n".join(map(json.dumps, shipped)))
    heard: list[BridgeEvent] = []
    telemetry = Telemetry(tmp_path / "runs")
    telemetry.attach("mine", heard.append)
    models = ModelRegistry.open(tmp_path / "runs")
    models.import_models(source)
    models.register_model("m", checkpoint_path=PATH)
    assert [e.metadata["subject"] for e in heard] == ["m:5", "m:2", "m:6"]
    found = telemetry.query(event_type="model_registered")
    assert found["name"].to_pylist() == ["m:5", "m:2", "m:6"]


def test_queries_of_facts_are_filtered(tmp_path: Path) -> None:
    models = ModelRegistry.open(tmp_path)
    models.register_model("m", checkpoint_path=PATH, sweep="s", trial_id="t")
    models.register_model("m", checkpoint_path=f"{PATH}2")
    telemetry, now = Telemetry(tmp_path), datetime.now(UTC)
    ask: Any = telemetry.query
    assert ask(event_type="model_registered", experiment_id="s").num_rows == 1
    assert ask(event_type="model_registered", trial_id="t").num_rows == 1
    assert ask(event_type="model_registered", name="m:2").num_rows == 1
    assert ask(event_type="model_registered", to=now - timedelta(hours=1)).num_rows == 0
    assert ask(event_type="model_registered", from_=now - timedelta(hours=1)).num_rows == 2
    assert ask(event_type=["model_promoted", "session"]).num_rows == 0
    assert len(telemetry.aggregate(event_type="model_registered", by=["kind"])) == 0
    with pytest.raises(ConfigError, match="did you mean 'model_promoted'"):
        ask(event_type="model_promotd")
    (tmp_path / "s").mkdir()
    with pytest.raises(ConfigError, match="in no sweep's event log"):
        telemetry.subscribe("s", event_type="model_promoted")


def test_who_reads_only_hears_nothing_and_a_handler_that_raises_costs_nothing(
    tmp_path: Path,
) -> None:
    def broken(event: BridgeEvent) -> None:
        raise RuntimeError("mine")

    telemetry = Telemetry(tmp_path)
    telemetry.attach("broken", broken)
    models = ModelRegistry.open(tmp_path)
    assert models.register_model("m", checkpoint_path=PATH).version == 1
    assert models.list_models() and not telemetry.detach("broken")


def test_the_ledger_keeps_what_no_journal_has(tmp_path: Path) -> None:
    heard: list[BridgeEvent] = []
    telemetry = Telemetry(tmp_path)
    telemetry.attach("mine", heard.append, ["artifact_stored"])
    stored = Fact("artifact_stored", 12.5, "out", "s", "t", {"bytes": 7}, {"merged": False})
    record(tmp_path, [stored])
    record(tmp_path, [Fact("dataset_loaded", 13.0, "f", "s")])
    assert next(recorded(tmp_path)) == stored
    assert [e.measurements["bytes"] for e in heard] == [7]
    (row,) = telemetry.query(event_type="artifact").to_pylist()
    assert (row["value"], row["trial_id"], row["experiment_id"]) == (7.0, "t", "s")
    assert row["time"].timestamp() == 12.5
    assert known_subjects(tmp_path, "dataset_loaded") == {"f"}


def test_many_write_to_one_ledger_and_it_stays_one_file(tmp_path: Path) -> None:
    def write(writer: int) -> None:
        for i in range(10):
            record(tmp_path, [Fact("dataset_loaded", float(i), f"{writer}-{i}")])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    subjects = [fact.subject for fact in recorded(tmp_path)]
    assert sorted(subjects) == sorted(f"{w}-{i}" for w in range(4) for i in range(10))
    assert len(list((tmp_path / FOLDER).glob("*.log"))) == 1


def test_a_ledger_that_cannot_be_written_or_read_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[BridgeEvent] = []
    Telemetry(tmp_path).attach("mine", heard.append)
    (tmp_path / FOLDER).write_text("a file in its place")
    record(tmp_path, [Fact("dataset_loaded", 1.0, "f")])
    assert "dataset_loaded could not be recorded" in caplog.text
    assert [e.name for e in heard] == ["dataset_loaded"]  # it has happened all the same
    assert known_subjects(tmp_path, "dataset_loaded") == set()
