"""Which checkpoints are kept: rules, protection, missing metrics; nothing is asked or deleted."""

from __future__ import annotations

import math
from typing import Any

import pytest

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.registry import (
    DONE,
    PAUSED,
    STOPPED,
    CheckpointRecord,
    SweepState,
    TrialRecord,
)
from crucible_tinkex.sweep.keeping.retention import Retention, best_first, checkpoints, plan
from crucible_tinkex.training.attempt.measurements import Measurements

META = {"experiment": {"search": {"metric": "eval/nll", "seeds": [0]}}}


def state(*, at: str = "final", trial_state: str = DONE) -> SweepState:
    """Two trials with checkpoints at steps 2, 4, 6; the sampler of each is at 6."""
    found = SweepState(
        meta={**META, "experiment": {"search": {**META["experiment"]["search"], "at": at}}},
        ended="nothing is left to do",
    )
    for index, losses in enumerate(((0.5, 0.2, 0.3), (0.4, math.nan, None))):
        trial = TrialRecord(f"t{index}", index, f"trial{index}", {}, 0, 6, state=trial_state)
        for step, loss in zip((2, 4, 6), losses, strict=True):
            metrics = {} if loss is None else {"eval/nll": loss}
            trial.results[step] = metrics
            path = f"tinker://r{index}/weights/s{step}"
            trial.checkpoints.append(CheckpointRecord(trial.trial_id, 1, step, path, metrics))
        path = f"tinker://r{index}/sampler_weights/s6"
        trial.samplers.append(CheckpointRecord(trial.trial_id, 1, 6, path, metrics, kind="sampler"))
        found.trials[trial.trial_id] = trial
    return found


def kept(found: SweepState, models: Any = None, **rules: int) -> dict[str, tuple[str, ...]]:
    keep, delete = plan(
        checkpoints(found, models or {}), Retention(**rules), metric="eval/nll", direction="min"
    )
    assert len(keep) + len(delete) == 8 and not any(c.kept_by for c in delete)
    return {c.path.removeprefix("tinker://"): tuple(c.kept_by) for c in keep}


def test_the_best_are_kept_and_what_was_not_measured_is_none_of_them() -> None:
    assert list(kept(state(), best=2)) == ["r0/weights/s4", "r0/sampler_weights/s6"]
    assert "r1/weights/s4" not in kept(state(), best=100)  # NaN
    assert len(kept(state(), best=100)) == 5
    found = checkpoints(state(), {})
    highest = best_first(found, "eval/nll", "max")
    assert [c.value("eval/nll") for c in highest][:2] == [0.5, 0.4]
    assert best_first(found, "absent", "min") == []


def test_what_a_resumed_session_needs_is_not_among_the_metrics() -> None:
    measured = Measurements()
    measured.stepped({"train/nll": 2.0}, 8.0)
    measured.evaluated(1, {"eval/nll": 1.5})
    trial = TrialRecord("t0", 0, "trial0", {}, 0, 6, state=DONE)
    saved = CheckpointRecord("t0", 1, 1, "tinker://r/weights/s1", measured.carried())
    trial.checkpoints.append(saved)
    (found,) = checkpoints(SweepState(meta=META, trials={"t0": trial}), {})
    assert found.record.metrics == {"train/nll": 2.0, "eval/nll": 1.5}
    assert set(saved.metrics) > set(found.record.metrics)


def test_the_last_and_those_of_some_steps_are_kept() -> None:
    both = [f"r{i}/{kind}/s6" for i in (0, 1) for kind in ("weights", "sampler_weights")]
    assert list(kept(state(), last=1)) == both
    assert kept(state(), every=4) == {
        "r0/weights/s4": ("step 4",),
        "r1/weights/s4": ("step 4",),
    }
    assert kept(state()) == {}
    assert kept(state(), last=1, every=6)[both[0]] == ("last of its trial", "step 6")


def test_what_is_protected_stays_whatever_the_rules_say() -> None:
    found = state(trial_state=PAUSED)
    found.trials["t0"].pinned.add("tinker://r0/weights/s2")
    models = {"tinker://r1/sampler_weights/s6": ["good:1"]}
    assert kept(found, models) == {
        "r0/weights/s2": ("pinned",),
        "r0/weights/s4": ("its trial goes on from it",),
        "r0/weights/s6": ("its trial goes on from it",),
        "r1/weights/s4": ("its trial goes on from it",),
        "r1/weights/s6": ("its trial goes on from it",),
        "r1/sampler_weights/s6": ("model good:1",),
    }


def test_the_step_that_ranks_a_trial_stays() -> None:
    assert set(kept(state(at="best"))) == {"r0/weights/s4", "r1/weights/s2"}


def test_a_seed_that_may_be_trained_to_the_end_stays() -> None:
    found = state()
    found.meta["experiment"]["search"]["seeds"] = [0, 1]
    found.trials["t1"].seed, found.trials["t1"].state = 1, STOPPED
    why = ("its trial may be trained to the end",)
    assert kept(found) == {"r1/weights/s6": why, "r1/sampler_weights/s6": why}


def test_rules_below_zero_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 or more"):
        Retention(best=-1)
