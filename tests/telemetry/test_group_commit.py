from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from event_trials import Trial

from crucible_tinkex.errors import CorruptLogError
from crucible_tinkex.events import Event
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.runtime.actors.telemetry_actor import TelemetryActor
from crucible_tinkex.telemetry.group_commit import GroupCommit
from crucible_tinkex.telemetry.log.parts import list_parts
from crucible_tinkex.telemetry.query import read_events
from crucible_tinkex.telemetry.recorder import Recorder


class Watched(Recorder):
    """Tells how many batches each write had, and holds the first until `gate` is set."""

    def __init__(self, paths: SweepPaths) -> None:
        super().__init__(paths)
        self.groups: list[int] = []
        self.gate = threading.Event()

    def record_batches(self, batches: Sequence[Sequence[Event]]) -> list[int]:
        self.groups.append(len(batches))
        self.gate.wait(10)
        return super().record_batches(batches)


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    return SweepPaths.of(tmp_path, "s")


async def test_batches_in_flight_are_written_together(paths: SweepPaths) -> None:
    recorder = Watched(paths)
    commit = GroupCommit(lambda: recorder)
    trials = [Trial(f"t{i}") for i in range(8)]
    first = asyncio.create_task(commit.record([trials[0].loss(1, 1, 1.0)]))
    while not recorder.groups:
        await asyncio.sleep(0.001)
    repeated = trials[1].loss(1, 2, 2.0)
    batches = [[t.loss(1, 1, 1.0), t.loss(1, 2, 2.0)] for t in trials[1:]] + [[repeated]] * 2
    others = [asyncio.create_task(commit.record(batch)) for batch in batches]
    await asyncio.sleep(0.01)
    recorder.gate.set()
    assert await asyncio.gather(first, *others) == [1, *[2] * 7, 1, 0]
    assert recorder.groups == [1, 9]
    assert set((await commit.changes(-1)).trials) == {t.trial_id for t in trials}
    await commit.close()
    assert read_events(paths.events).num_rows == 16


async def test_a_batch_that_is_refused_fails_alone(paths: SweepPaths) -> None:
    commit = GroupCommit(lambda: Recorder(paths))
    sound, broken = Trial("sound"), Trial("broken")
    bad = dataclasses.replace(broken.loss(1, 1, 1.0), step="three")  # type: ignore[arg-type]
    results = await asyncio.gather(
        commit.record([sound.loss(1, 1, 1.0)]),
        commit.record([bad]),
        commit.record([sound.loss(1, 2, 1.0)]),
        return_exceptions=True,
    )
    assert results[0] == results[2] == 1
    assert isinstance(results[1], ValueError)
    await commit.close()
    assert read_events(paths.events).num_rows == 2


async def test_the_actor_says_at_once_what_is_damaged(paths: SweepPaths, trial: Trial) -> None:
    actor = TelemetryActor()
    assert (await actor.changes(paths, 0)).trials == {}
    assert await actor.record(paths, [trial.start(1, 0), trial.loss(1, 1, 1.0)]) == 2
    seen = await actor.changes(paths, -1)
    assert seen.trials["t1"]["metrics"] == {"train/nll": 1.0}
    assert (await actor.changes(paths, seen.revision)).trials == {}
    await actor.close(paths)
    (part,) = [p for p in list_parts(paths.events) if p.kind == "training_step"]
    part.path.write_bytes(b"garbage")
    for _ in range(2):
        with pytest.raises(CorruptLogError, match=part.path.name):
            await actor.changes(paths, 0)
    await actor.close(paths)
