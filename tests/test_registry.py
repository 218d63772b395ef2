"""The registry: fenced attempts, idempotent calls, and a state that is nothing but its journal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from crucible_tinkex.errors import ConfigError, StaleAttemptError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import (
    DONE,
    FAILED,
    PENDING,
    CheckpointRecord,
    Registry,
    SweepState,
    TrialRecord,
)


def trial(trial_id: str = "t1") -> TrialRecord:
    return TrialRecord(trial_id, 1, f"0001-{trial_id}", {"lora.rank": 4}, seed=0, total_steps=10)


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    return SweepPaths.of(tmp_path, "sweep")


@pytest.fixture
def registry(paths: SweepPaths) -> Iterator[Registry]:
    registry = Registry(paths, clock=lambda: 0.0)
    registry.create({"sweep": "sweep"}, [trial("t1"), trial("t2")])
    yield registry
    registry.close()


def checkpoint(attempt: int, step: int) -> CheckpointRecord:
    return CheckpointRecord("t1", attempt, step, f"tinker://m/weights/s{step}", {"eval/nll": 1.5})


def test_an_attempt_resumes_from_the_newest_checkpoint(registry: Registry) -> None:
    assert registry.start_attempt("t1").resume is None
    registry.commit_checkpoint(checkpoint(1, 4))
    registry.commit_checkpoint(checkpoint(1, 8))
    grant = registry.start_attempt("t1")
    assert (grant.attempt, grant.resume) == (2, checkpoint(1, 8))
    assert registry.state.trial("t1").step == 8


def test_an_older_attempt_can_write_nothing_more(registry: Registry, paths: SweepPaths) -> None:
    registry.start_attempt("t1")
    registry.start_attempt("t1")
    before = SweepState.read(paths)
    with pytest.raises(StaleAttemptError):
        registry.commit_checkpoint(checkpoint(1, 4))
    with pytest.raises(StaleAttemptError):
        registry.record_result("t1", 1, 4, {"eval/nll": 0.0})
    with pytest.raises(StaleAttemptError):
        registry.finish("t1", 1, FAILED, "no")
    assert SweepState.read(paths) == before


def test_repeated_calls_change_nothing(registry: Registry) -> None:
    registry.start_attempt("t1")
    registry.commit_checkpoint(checkpoint(1, 4))
    once = registry.state.trial("t1").checkpoints[:]
    registry.commit_checkpoint(checkpoint(1, 4))
    registry.create({"sweep": "other"}, [trial("t1")])
    assert registry.state.trial("t1").checkpoints == once
    assert registry.state.meta == {"sweep": "sweep"}


def test_state_is_what_the_journal_folds_to(registry: Registry, paths: SweepPaths) -> None:
    registry.start_attempt("t1")
    registry.record_result("t1", 1, 5, {"eval/nll": 2.0, "bad": float("nan")})
    registry.commit_checkpoint(checkpoint(1, 10))
    registry.finish("t1", 1, DONE, None)
    registry.start_attempt("t2")
    registry.finish("t2", 1, FAILED, "diverged")
    registry.set_sweep("done", wall_s=1.5)
    read = SweepState.read(paths)
    assert str(read) == str(registry.state)  # by text: NaN is not equal to itself
    assert read.trial("t1").state == DONE
    assert read.trial("t2").error == "diverged"
    assert read.wall_s == 1.5


def test_a_reopened_registry_goes_on(registry: Registry, paths: SweepPaths) -> None:
    registry.start_attempt("t1")
    registry.commit_checkpoint(checkpoint(1, 4))
    registry.finish("t1", 1, PENDING, None)
    registry.close()
    again = Registry(paths)
    assert again.start_attempt("t1").attempt == 2
    assert len(list(paths.journal.glob("*.log"))) == 2
    again.close()


def test_unknown_names_are_config_errors(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no trial 'x'"):
        registry.start_attempt("x")
    with pytest.raises(ConfigError, match="no sweep"):
        SweepState.read(SweepPaths.of(tmp_path, "nowhere"))


def test_records_of_newer_versions_are_passed_over(registry: Registry) -> None:
    before = str(registry.state)
    registry.state.apply({"type": "from_the_future", "x": 1})
    assert str(registry.state) == before
