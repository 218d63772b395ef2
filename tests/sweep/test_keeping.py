"""`[checkpoints]`: a sweep keeps on its service what its rules and its own needs want, deletes the
rest in two phases, and neither a crash nor a service that fails changes what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from local_sweeps import Bench, make_experiment, numbers

from crucible_tinkex.config import CheckpointsSection
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.registry import DONE, STOPPED, SweepState
from crucible_tinkex.registry.journal import read_records
from crucible_tinkex.sweep.keeping.decisions import DAY_S
from crucible_tinkex.sweep.keeping.retention import checkpoints
from crucible_tinkex.sweep.results.leaderboard import best, exit_code

TRAIN = {"checkpoint_every": 2}
HALVING = {"stopping": {"rule": "halving", "eta": 2, "first_rung": 2}}


def left(bench: Bench) -> set[str]:
    """Paths that the journal says are there."""
    trials = bench.state.trials.values()
    return {c.path for t in trials for c in (*t.checkpoints, *t.samplers)}


def check(bench: Bench) -> SweepState:
    """Journal and service agree, and nothing was deleted without a tombstone before it."""
    state = bench.state
    assert left(bench) == set(bench.backend.checkpoints), "journal and service"
    assert not state.buried and all(e.done for e in state.expiries.values())
    announced: set[str] = set()
    for record in read_records(bench.paths.journal):
        if record["type"] == "tombstone":
            announced.add(record["path"])
        if record["type"] == "deleted":
            assert record["path"] in announced
    assert set(bench.store.deleted) <= announced
    return state


def winners(state: SweepState) -> set[str]:
    winner = best(state)
    assert winner is not None
    trial = winner.best_trial
    return {trial.resumable()[0].path, trial.samplers[-1].path}


def test_without_the_section_everything_stays(tmp_path: Path) -> None:
    bench = Bench(tmp_path, train=TRAIN)
    state = bench.run()
    assert state.saved == len(left(bench)) == 6 * 5 and not bench.store.deleted
    assert check(bench).deleted == 0


def test_the_rules_are_kept_while_it_runs_and_at_its_end(tmp_path: Path) -> None:
    whole = Bench(tmp_path / "whole", train=TRAIN).run()
    bench = Bench(
        tmp_path / "s", train=TRAIN, checkpoints={"keep_best": 1, "keep_last": 0, "keep_every": 8}
    )
    seen: list[int] = []
    told = bench.store.delete

    async def delete(path: str) -> None:
        seen.append(len(bench.state.open))
        await told(path)

    bench.store.delete = delete  # type: ignore[method-assign]
    state = bench.run()
    assert numbers(state) == numbers(whole), "what is kept changes no number"
    check(bench)
    at_8 = {c.path for c in checkpoints(state, {}) if c.record.step == 8}
    assert winners(state) <= left(bench) and at_8 <= left(bench)
    assert len(left(bench)) <= len(at_8) + 1
    assert any(seen), "nothing was deleted before the end"
    assert exit_code(state) == 0 and state.deleted == state.saved - len(left(bench))


@pytest.mark.parametrize("rules", [{"keep_best": 1}, {"keep_every": 8}])
def test_the_last_of_every_trial_stays_unless_it_is_said(
    tmp_path: Path, rules: dict[str, int]
) -> None:
    """So that more steps go on from where they were."""
    bench = Bench(tmp_path, train=TRAIN, checkpoints=rules)
    state = bench.run()
    check(bench)
    assert all(
        t.resumable()[0].step == t.total_steps for t in state.trials.values() if not t.reference
    )
    assert CheckpointsSection().prunes is CheckpointsSection(keep_last=0).prunes is False


def test_the_winner_can_be_exported_whatever_the_rules_keep(tmp_path: Path) -> None:
    bench = Bench(tmp_path, train=TRAIN, checkpoints={"keep_last": 0, "keep_every": 1000})
    state = bench.run()
    check(bench)
    assert left(bench) == winners(state)


def test_nothing_that_a_rung_or_a_fork_needs_is_deleted(tmp_path: Path) -> None:
    rules = {"keep_last": 0, "keep_every": 1000}
    for name, search in (
        ("halving", HALVING),
        ("population", {"stopping": {"rule": "population", "every": 2}}),
        ("confirmed", {"confirm": 2, "confirm_top": 2, **HALVING}),
        ("nobody", {"stopping": {"rule": "median", "every": 2}}),
    ):
        whole = Bench(tmp_path / name / "whole", train=TRAIN, search=search).run()
        bench = Bench(tmp_path / name / "s", train=TRAIN, search=search, checkpoints=rules)
        state = bench.run()
        assert numbers(state) == numbers(whole), name
        assert all(t.attempt <= 1 + len(t.decisions) for t in state.trials.values()), name
        check(bench)


def test_a_pause_keeps_what_trials_go_on_from(tmp_path: Path) -> None:
    whole = Bench(tmp_path / "whole", train=TRAIN).run()
    rules = {"keep_last": 0, "keep_every": 1000}
    bench = Bench(tmp_path / "s", train=TRAIN, checkpoints=rules, budget={"steps": 20})
    state = bench.run()
    assert exit_code(state) == 3
    check(bench)
    assert all(t.last_checkpoint for t in state.open.values() if t.step)
    done = [t for t in state.trials.values() if t.state == DONE and not t.reference]
    assert all(t.last_checkpoint for t in done), "the best may be any of them"
    bench.experiment = make_experiment(train=TRAIN, checkpoints=rules)
    assert numbers(bench.run(changed=["budget.steps"])) == numbers(whole)
    check(bench)


def test_pins_and_models_stay(tmp_path: Path) -> None:
    bench = Bench(tmp_path, train=TRAIN)
    state = bench.run()
    loser = next(t for t in state.trials.values() if t.checkpoints and t.step == 8)
    model = loser.checkpoints[0].path
    bench.models = {model: ["good:1"]}
    bench.experiment = make_experiment(
        train=TRAIN, checkpoints={"keep_last": 0, "keep_every": 1000, "ttl_days": 2.0}
    )
    state = bench.run(changed=["checkpoints.keep_every"])
    check(bench)
    assert left(bench) == winners(state) | {model} and not state.expiries


# --- faults ---------------------------------------------------------------------------------------


def test_a_service_that_fails_costs_no_number_and_the_next_run_finishes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, train=TRAIN, checkpoints={"keep_last": 0, "keep_every": 1000})
    bench.store.failing = 10_000
    state = bench.run()
    assert exit_code(state) == 0 and state.buried and not bench.store.deleted
    assert caplog.text.count("the next run tries again") == 1
    bench.store.failing = 0
    trained = bench.backend.calls.count("optim_step")
    bench.run()
    check(bench)
    assert bench.backend.calls.count("optim_step") == trained


@pytest.mark.parametrize("when", [3, 20])
def test_a_crash_between_decision_and_deletion_is_finished_by_the_next_run(
    tmp_path: Path, when: int
) -> None:
    """The driver dies at its n-th deletion: before, or after, the service did it."""
    rules = {"keep_last": 0, "keep_every": 1000, "ttl_days": 1.0}
    undisturbed = Bench(tmp_path / "undisturbed", train=TRAIN, checkpoints=rules)
    undisturbed.run()
    for late in (False, True):
        bench = Bench(tmp_path / f"s{late}", train=TRAIN, checkpoints=rules)
        told, calls = bench.store.delete, 0

        async def delete(path: str, told: Any = told, late: bool = late) -> None:
            nonlocal calls
            calls += 1
            if calls == when:
                if late:
                    await told(path)
                raise RuntimeError("the driver died")
            await told(path)

        bench.store.delete = delete  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="died"):
            bench.run()
        assert bench.state.buried
        bench.run()
        check(bench)
        assert numbers(bench.state) == numbers(undisturbed.state)
        assert len(left(bench)) == len(left(undisturbed))


# --- expiry ---------------------------------------------------------------------------------------


def test_what_nobody_needs_expires_once_the_sweep_has_its_answer(tmp_path: Path) -> None:
    bench = Bench(tmp_path, train=TRAIN, checkpoints={"keep_last": 1, "ttl_days": 30.0})
    state = bench.run()
    check(bench)
    assert not winners(state) & set(bench.store.ttls), "the best stays"
    assert set(bench.store.ttls) == left(bench) - winners(state)
    assert set(bench.store.ttls.values()) == {30 * DAY_S}
    before = dict(bench.store.ttls)
    bench.store.ttls.clear()
    bench.run()
    assert not bench.store.ttls, "told once"
    # Going on, trials need them again; at the end they expire again.
    bench.experiment = make_experiment(
        train={**TRAIN, "max_steps": 10}, checkpoints={"keep_last": 1, "ttl_days": 30.0}
    )
    kept_again: list[str] = []
    told = bench.store.set_ttl

    async def set_ttl(path: str, ttl_s: int | None) -> None:
        kept_again.extend([path] if ttl_s is None else [])
        await told(path, ttl_s)

    bench.store.set_ttl = set_ttl  # type: ignore[method-assign]
    state = bench.run(changed=["train.max_steps"])
    check(bench)
    assert kept_again and set(kept_again) <= set(before)
    assert {t.step for t in state.trials.values() if not t.reference} == {10}


def test_a_sweep_that_only_paused_lets_nothing_expire(tmp_path: Path) -> None:
    bench = Bench(tmp_path, train=TRAIN, checkpoints={"ttl_days": 1}, budget={"steps": 20})
    assert exit_code(bench.run()) == 3
    assert not bench.store.ttls


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section",
    [{"keep_best": -1}, {"keep_last": 1.5}, {"ttl_days": 0}, {"ttl_days": 1e6}, {"keep": 3}],
)
def test_rules_that_mean_nothing_are_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="checkpoints"):
        make_experiment(checkpoints=section)


def test_a_journal_without_the_section_is_read(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    meta = bench.meta()
    del meta["experiment"]["checkpoints"]
    bench.meta = lambda: meta  # type: ignore[method-assign]
    assert exit_code(bench.run()) == 0 and STOPPED not in {
        t.state for t in bench.state.trials.values()
    }
