"""Writing to the journal of a sweep that does not run, beside the runs before and after."""

from __future__ import annotations

from pathlib import Path

import pytest

from crucible_tinkex.errors import SweepBusyError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import CheckpointRecord, Decision, Registry, Spent, SweepState
from crucible_tinkex.registry.upkeep import Upkeep

TRIAL = {"trial_id": "t1", "index": 0, "run_name": "x", "values": {}, "seed": 0, "total_steps": 8}
PATH = "tinker://m/weights/s4"


@pytest.fixture
async def paths(tmp_path: Path) -> SweepPaths:
    """A sweep that has ended, with one checkpoint."""
    paths = SweepPaths.of(tmp_path, "s")
    registry = Registry(paths, "first")
    await registry.create({"sweep": "s"})
    start = Decision("start", "t1", to_step=8, total_steps=8, reason="r", trial=TRIAL)
    await registry.decide([start], "op1")
    grant = await registry.start_attempt("t1")
    await registry.commit_checkpoint(CheckpointRecord("t1", grant.attempt, 4, PATH), Spent())
    await registry.finish("t1", grant.attempt, "done", None, Spent())
    await registry.decide([Decision("end", reason="all is done")], "op2")
    await registry.close()
    return paths


def bury(paths: SweepPaths) -> None:
    with Upkeep(paths) as upkeep:
        tombstone = {"type": "tombstone", "trial_id": "t1", "path": PATH, "reason": "pruned"}
        upkeep.write(tombstone)
        assert upkeep.state.trials["t1"].tombstones == {PATH: "pruned"}


async def test_an_ended_sweep_stays_ended(paths: SweepPaths) -> None:
    bury(paths)
    state = SweepState.read(paths)
    assert (state.complete, state.epoch) == (True, 1)
    trial = state.trials["t1"]
    assert (trial.checkpoints, trial.step) == ([], 4)  # what was learnt was learnt
    with Upkeep(paths) as upkeep:
        upkeep.write({"type": "deleted", "trial_id": "t1", "path": PATH})
    assert SweepState.read(paths).trials["t1"].tombstones == {}


async def test_a_later_run_goes_on_behind_it(paths: SweepPaths) -> None:
    bury(paths)
    registry = Registry(paths, "second")
    grant = await registry.start_attempt("t1")
    assert (grant.attempt, grant.checkpoints) == (2, ())
    await registry.close()
    assert SweepState.read(paths).epoch == 2


async def test_nobody_else_may_write_meanwhile(paths: SweepPaths) -> None:
    registry = Registry(paths, "second")
    with pytest.raises(SweepBusyError, match="in use by process"):
        Upkeep(paths)
    await registry.close()
    with Upkeep(paths) as upkeep, pytest.raises(SweepBusyError):
        Upkeep(paths)
    assert upkeep.state.epoch == 2
    Upkeep(paths).__exit__(None, None, None)  # and it is free again
