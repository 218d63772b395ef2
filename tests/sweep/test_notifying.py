"""Who is told of a run's end, and what never is."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from sweep_states import Journal

from crucible_tinkex.config import Experiment
from crucible_tinkex.config.sweep.notify import NotifySection
from crucible_tinkex.errors import ConfigError, ServiceUnavailableError
from crucible_tinkex.registry import SweepState
from crucible_tinkex.sweep.notifying import ended, notify, trouble

KEEP = "import sys, os, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read()"


def test_a_command_gets_the_message_and_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-secret")
    script = tmp_path / "keep.py"
    script.write_text(f"{KEEP} + str(dict(os.environ)))")
    told = tmp_path / "told"
    declared = {"model": {"base": "nano"}, "data": {"train": "t.jsonl"}}
    experiment = Experiment.build({"name": "mine", **declared}).model_dump(mode="json")
    message = ended("mine", SweepState(meta={"experiment": experiment}), 3)
    notify(NotifySection(command=f"{sys.executable} {script} {told}"), message)
    text = told.read_text()
    assert '"event": "budget reached"' in text and '"exit_code": 3' in text
    assert "tml-secret" not in text


def test_each_message_is_a_line_of_its_own(tmp_path: Path) -> None:
    told = tmp_path / "told.jsonl"
    for event in ("done", "error"):
        notify(NotifySection(command=f"tee -a {told}"), {"event": event})
    assert [json.loads(line)["event"] for line in told.read_text().splitlines()] == [
        "done",
        "error",
    ]


def test_the_metrics_of_the_best_are_means_over_its_seeds_as_the_leaderboard_has_them() -> None:
    journal = Journal(search={"space": {"lora.rank": [4, 8]}, "seeds": [0, 1]})
    journal.decide(slots=4)
    for trial in list(journal.state.trials.values()):
        worse = trial.values["lora.rank"] == 8
        journal.train(trial.trial_id, 1.0 + worse + trial.seed, **{"eval/accuracy": 0.25})
    message = ended("mine", journal.state, 0)
    assert message["best"] == {"lora.rank": 4}
    assert message["metrics"] == {"eval/nll": 1.5, "eval/accuracy": 0.25}


@pytest.mark.parametrize(
    "command", ["/no/such/program", f"{sys.executable} -c 'raise SystemExit(3)'"]
)
def test_a_command_that_fails_is_a_warning(command: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        notify(NotifySection(command=command), {"event": "done"})
    assert "notify.command failed" in caplog.text


def test_a_webhook_that_fails_is_a_warning_without_its_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        notify(NotifySection(webhook="https://127.0.0.1:1/hooks/secret"), {"event": "done"})
    assert "127.0.0.1 cannot be reached" in caplog.text and "secret" not in caplog.text


def test_trouble_is_told_without_keys() -> None:
    error = ServiceUnavailableError("no answer to tml-abcdef", status=503)
    found = trouble("mine", error)
    assert found["event"] == "error" and found["exit_code"] == 4
    assert "tml-abcdef" not in json.dumps(found)


@pytest.mark.parametrize(
    "section",
    [
        {"webhook": "http://example.org/x"},
        {"webhook": "https:///x"},
        {"command": ""},
        {"mail": "x"},
    ],
)
def test_other_ways_are_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="notify"):
        Experiment.build(
            {
                "name": "e",
                "model": {"base": "nano"},
                "data": {"train": "t.jsonl"},
                "notify": section,
            }
        )
