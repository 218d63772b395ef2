"""The registry: repeatable calls, fenced attempts and runs, a state that is nothing but its
journal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from inspect import getsource
from pathlib import Path
from typing import Any

import pytest

from crucible_tinkex.errors import ConfigError, CorruptLogError, StaleAttemptError, StaleEpochError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import (
    DONE,
    FAILED,
    LOST,
    PAUSED,
    PENDING,
    RUNNING,
    STOPPED,
    CheckpointRecord,
    ControlPort,
    Decision,
    Registry,
    RegistryPort,
    Spent,
    SweepState,
)
from crucible_tinkex.registry.journal import read_records
from crucible_tinkex.storage import segments

ASSET = Path(__file__).parent.parent / "assets" / "sweep-0.1.0"


def start(trial_id: str = "t1", *, to_step: int = 10, index: int = 1) -> Decision:
    declared = {
        "trial_id": trial_id,
        "index": index,
        "run_name": f"{index:04d}-{trial_id}",
        "values": {"lora.rank": 4},
        "seed": 0,
        "total_steps": 10,
        "reference": False,
    }
    return Decision("start", trial_id, to_step, 10, "next", declared)


def checkpoint(attempt: int, step: int) -> CheckpointRecord:
    return CheckpointRecord("t1", attempt, step, f"tinker://m/weights/s{step}", {"eval/nll": 1.5})


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    return SweepPaths.of(tmp_path, "sweep")


@pytest.fixture
def registry(paths: SweepPaths) -> Iterator[Registry]:
    registry = Registry(paths, "run-1", clock=lambda: 0.0)

    async def declare() -> None:
        await registry.create({"sweep": "sweep"})
        await registry.decide([start("t1"), start("t2", index=2)], "op-1")

    asyncio.run(declare())
    yield registry
    registry.shut()


async def test_an_attempt_may_go_on_from_any_checkpoint_the_newest_first(
    registry: Registry,
) -> None:
    assert (await registry.start_attempt("t1")).checkpoints == ()
    await registry.commit_checkpoint(checkpoint(1, 4), Spent())
    await registry.commit_checkpoint(checkpoint(1, 8), Spent())
    grant = await registry.start_attempt("t1")
    assert (grant.attempt, grant.checkpoints) == (2, (checkpoint(1, 8), checkpoint(1, 4)))
    assert registry.state.trial("t1").step == 8
    await registry.lose_checkpoint("t1", 2, checkpoint(1, 8).path, "404")
    assert registry.state.trial("t1").step == 4
    assert (await registry.start_attempt("t1")).checkpoints == (checkpoint(1, 4),)


async def test_a_pause_is_no_try_and_a_lost_session_is_one(registry: Registry) -> None:
    def retries() -> int:
        return registry.state.trial("t1").retries

    await registry.start_attempt("t1")
    await registry.decide([Decision("pause", "t1")], "pause")
    await registry.finish("t1", 1, PENDING, None, Spent())
    await registry.decide([Decision("advance", "t1", 10, 10)], "on")
    await registry.start_attempt("t1")
    await registry.finish("t1", 2, PENDING, None, Spent())  # the run was interrupted
    await registry.start_attempt("t1")
    assert (registry.state.trial("t1").attempt, retries()) == (3, 0)
    await registry.finish("t1", 3, PENDING, "cut off", Spent())
    await registry.start_attempt("t1")
    assert retries() == 1
    await registry.start_attempt("t1")  # its host is lost
    assert retries() == 2
    await registry.finish("t1", 5, FAILED, "no", Spent())
    await registry.decide([Decision("retry", "t1")], "retry")
    await registry.start_attempt("t1")
    assert retries() == 3


async def test_others_hear_of_an_evaluation_while_it_is_under_way(registry: Registry) -> None:
    await registry.start_attempt("t1")
    await registry.start_attempt("t2")
    coming = Spent(prefill_tokens=30, sample_tokens=60)

    async def heard() -> Spent:
        return (await registry.record_spend("t2", 1, Spent())).announced

    async def announced() -> Spent:
        own = await registry.record_spend("t1", 1, Spent(), coming)
        assert own.announced == Spent(), "its own is no other's"
        assert registry.state.spent == Spent(), "it is not used yet"
        return await heard()

    assert await announced() == coming
    await registry.record_result("t1", 1, 4, {"eval/nll": 1.5}, Spent(prefill_tokens=30))
    assert await heard() == Spent()
    assert await announced() == coming
    await registry.record_spend("t1", 1, Spent())
    assert await heard() == Spent(), "taken back"
    assert await announced() == coming
    await registry.start_attempt("t1")
    assert await heard() == Spent(), "its host is lost"
    await registry.record_spend("t1", 2, Spent(), coming)
    await registry.finish("t1", 2, PENDING, "cut off", Spent())
    assert await heard() == Spent()


async def test_the_next_attempt_hears_of_what_was_saved_and_never_committed(
    registry: Registry, paths: SweepPaths
) -> None:
    saved, lost = checkpoint(1, 4), checkpoint(1, 8)
    assert (await registry.start_attempt("t1")).orphans == ()
    await registry.intend_checkpoint("t1", 1, saved.path)
    await registry.commit_checkpoint(saved, Spent())
    await registry.intend_checkpoint("t1", 1, saved.path)  # once more: it is committed
    await registry.intend_checkpoint("t1", 1, lost.path)
    registry.shut()
    again = Registry(paths, "second")
    assert (await again.start_attempt("t1")).orphans == (lost.path,)
    await again.lose_checkpoint("t1", 2, lost.path, "never committed; deleted")
    grant = await again.start_attempt("t1")
    assert (grant.orphans, grant.checkpoints) == ((), (saved,))
    again.shut()


async def test_an_older_attempt_can_write_nothing_more(
    registry: Registry, paths: SweepPaths
) -> None:
    await registry.start_attempt("t1")
    await registry.start_attempt("t1")
    before = SweepState.read(paths)
    calls: list[Callable[[], Awaitable[None]]] = [
        lambda: registry.intend_checkpoint("t1", 1, "tinker://m/weights/t1"),
        lambda: registry.commit_checkpoint(checkpoint(1, 4), Spent()),
        lambda: registry.lose_checkpoint("t1", 1, "path", "gone"),
        lambda: registry.record_result("t1", 1, 4, {"eval/nll": 0.0}, Spent()),
        lambda: registry.finish("t1", 1, FAILED, "no", Spent()),
    ]
    for call in calls:
        with pytest.raises(StaleAttemptError):
            await call()
    assert SweepState.read(paths) == before


async def every_call(registry: Registry, *, times: int) -> None:
    """One life of a trial; each call is made `times` times."""
    for _ in range(times):
        await registry.create({"sweep": "sweep"})
    for _ in range(times):
        await registry.decide([start("t3", to_step=5, index=3)], "op-2")
    for _ in range(times):
        assert (await registry.start_attempt("t3", "grant-1")).attempt == 1
    mine = CheckpointRecord("t3", 1, 5, "tinker://m/weights/t3", {})
    for _ in range(times):
        await registry.intend_checkpoint("t3", 1, mine.path)
    for _ in range(times):
        await registry.commit_checkpoint(mine, Spent(10))
    for _ in range(times):
        await registry.record_result("t3", 1, 5, {"eval/nll": float("nan")}, Spent(10, 5))
    for _ in range(times):
        assert (await registry.record_spend("t3", 1, Spent(10, 5, 2))).trial == Spent(10, 5, 2)
    for _ in range(times):
        await registry.decide([Decision("pause", "t3", reason="place 3 of 3")], "op-3")
    for _ in range(times):
        await registry.finish("t3", 1, PAUSED, None, Spent(10, 5, 0, 1.0))
    for _ in range(times):
        await registry.decide([Decision("advance", "t3", 10, 10, "place 1 of 3")], "op-4")
    for _ in range(times):
        assert (await registry.start_attempt("t3", "grant-2")).attempt == 2
    for _ in range(times):
        await registry.lose_checkpoint("t3", 2, mine.path, "404")
    mine = CheckpointRecord("t3", 2, 10, "tinker://m/weights/t3-2", {})
    await registry.commit_checkpoint(mine, Spent(20))
    for _ in range(times):
        await registry.finish("t3", 2, DONE, None, Spent(20))
    buried = {"type": "tombstone", "trial_id": "t3", "path": mine.path, "reason": "not of the best"}
    for _ in range(times):
        await registry.upkeep([buried], "op-7")
    for _ in range(times):
        await registry.upkeep([{**buried, "type": "deleted"}], "op-8")
    for _ in range(times):
        await registry.amend({"more": 1}, ["train.epochs"], "op-5")
    for _ in range(times):
        await registry.set_sweep(RUNNING, "op-6", 1.5)


def test_no_call_is_left_out() -> None:
    calls = {name for name in vars(ControlPort) | vars(RegistryPort) if not name.startswith("_")}
    assert {c for c in calls if f"registry.{c}(" not in getsource(every_call)} == {
        "changes",  # reads
        "close",
    }


async def test_every_call_may_be_repeated(tmp_path: Path) -> None:
    states = []
    for times in (1, 3):
        registry = Registry(SweepPaths.of(tmp_path, f"s{times}"), "run", clock=lambda: 0.0)
        await every_call(registry, times=times)
        states.append(str(SweepState.read(SweepPaths.of(tmp_path, f"s{times}"))))
        registry.shut()
    assert states[0] == states[1]


async def test_state_is_what_the_journal_folds_to(registry: Registry, paths: SweepPaths) -> None:
    await every_call(registry, times=1)
    read = SweepState.read(paths)
    assert str(read) == str(registry.state)  # by text: NaN is not equal to itself
    trial = read.trial("t3")
    assert (trial.state, trial.attempt, trial.checkpoints) == (DONE, 2, [])
    assert trial.spent == Spent(30, 5, 0, 1.0)
    assert [d.kind for d in trial.decisions] == ["start", "pause", "advance"]
    assert read.meta == {"sweep": "sweep", "more": 1}
    assert read.wall_s == 1.5


async def test_changes_are_what_a_mirror_needs(registry: Registry, paths: SweepPaths) -> None:
    mirror, seen = SweepState(), 0
    for life in (None, every_call):
        if life:
            await life(registry, times=1)
        changes = await registry.changes(seen)
        seen = changes.until
        mirror.fold(changes.records)
        assert str(mirror) == str(SweepState.read(paths))
    assert (await registry.changes(seen)).records == []
    registry.shut()
    again = Registry(paths, "run-1", clock=lambda: 0.0)  # the actor was replaced
    mirror.fold((await again.changes(seen)).records)
    assert str(mirror) == str(SweepState.read(paths))
    again.shut()


async def test_a_reopened_registry_goes_on_in_the_same_epoch(
    registry: Registry, paths: SweepPaths
) -> None:
    await registry.start_attempt("t1")
    await registry.commit_checkpoint(checkpoint(1, 4), Spent())
    registry.shut()
    again = Registry(paths, "run-1")
    assert again.state.epoch == 1
    assert (await again.start_attempt("t1")).attempt == 2
    again.shut()
    later = Registry(paths, "run-2")
    assert later.state.epoch == 2
    later.shut()
    with pytest.raises(StaleEpochError):
        Registry(paths, "run-1")
    Registry(paths, "run-3").shut()  # the refusal left no lock behind


async def test_a_second_driver_fences_the_first_where_the_lock_is_lost(
    registry: Registry, paths: SweepPaths
) -> None:
    (paths.journal / "lock").unlink()  # as on a file system without flock
    newer = Registry(paths, "run-2")
    with pytest.raises(StaleEpochError):
        await registry.start_attempt("t1")
    with pytest.raises(StaleEpochError):  # and never again
        await registry.set_sweep(DONE, "op-9")
    assert (await newer.start_attempt("t1")).attempt == 1
    newer.shut()
    assert SweepState.read(paths).trial("t1").attempt == 1


async def test_what_an_older_writer_adds_later_is_no_part_of_the_journal(
    registry: Registry, paths: SweepPaths
) -> None:
    old = segments(paths.journal)[0]
    registry.shut()
    newer = Registry(paths, "run-2")
    before = str(SweepState.read(paths))
    whole = old.read_bytes()
    old.write_bytes(whole + whole)
    assert str(SweepState.read(paths)) == before
    newer.shut()
    old.write_bytes(whole[:-1])
    with pytest.raises(CorruptLogError, match="000001"):
        SweepState.read(paths)


async def test_calls_in_flight_share_an_fsync(registry: Registry, paths: SweepPaths) -> None:
    for number in range(20):
        await registry.decide([start(f"x{number}", index=number)], f"start-{number}")
    await asyncio.gather(*(registry.start_attempt(f"x{n}") for n in range(20)))
    assert {t.attempt for t in SweepState.read(paths).trials.values()} == {0, 1}
    assert SweepState.read(paths).trial("x19").attempt == 1


async def test_after_a_failed_write_nothing_more_is_believed(
    registry: Registry, paths: SweepPaths
) -> None:
    registry._journal._log.close()  # as if the disk went away
    for _ in range(2):
        with pytest.raises(Exception, match="closed"):
            await registry.start_attempt("t1")
    assert SweepState.read(paths).trial("t1").attempt == 0
    assert (await registry.changes(0)).until == len(list(read_records(paths.journal)))


def test_unknown_names_are_config_errors(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no trial 'x'"):
        asyncio.run(registry.start_attempt("x"))
    with pytest.raises(ConfigError, match="no sweep"):
        SweepState.read(SweepPaths.of(tmp_path, "nowhere"))


@pytest.mark.parametrize("text", ['{"x":', "[]", '{"experiment": {}}'])
def test_a_sweep_that_only_starts_names_what_is_damaged(paths: SweepPaths, text: str) -> None:
    paths.journal.mkdir(parents=True)
    paths.resolved.write_text(text)
    with pytest.raises(CorruptLogError, match=r"resolved\.json is damaged"):
        SweepState.read(paths)


def test_records_of_newer_versions_are_passed_over(registry: Registry) -> None:
    before = str(registry.state)
    registry.state.apply({"type": "from_the_future", "x": 1})
    assert str(registry.state) == before
    newer = {**start("t9").__dict__, "from_the_future": 2}
    registry.state.apply({"type": "decision", "decision": newer, "time": 0.0, "also": 3})
    assert registry.state.trial("t9").target == 10


def test_states_that_decisions_make(registry: Registry) -> None:
    state = registry.state

    def decided(kind: Any, **fields: Any) -> str:
        decision = Decision(kind, "t1", **fields).__dict__
        state.apply({"type": "decision", "decision": decision, "time": 0.0})
        return state.trial("t1").state

    assert decided("pause") == PAUSED
    assert decided("advance", to_step=5, total_steps=10) == PENDING
    assert decided("stop", reason="worse") == STOPPED
    assert "t1" not in state.open
    assert decided("advance", to_step=9, total_steps=20) == PENDING
    state.apply({"type": "finished", "trial_id": "t1", "state": LOST, "error": "disk"})
    assert decided("retry") == PENDING
    assert state.open["t1"].error is None


def test_a_journal_of_version_0_1_0_is_read() -> None:
    state = SweepState.read(SweepPaths(ASSET))
    expected = json.loads((ASSET / "expected-status.json").read_text())
    assert (state.version, state.complete, state.state) == (1, True, DONE)
    for trial in expected["trials"]:
        found = state.trial(trial["id"])
        assert (found.state, found.step, found.attempt) == (DONE, trial["step"], trial["attempts"])
        assert found.metrics == trial["metrics"]
        assert [c.path for c in found.checkpoints] == [c["path"] for c in trial["checkpoints"]]
