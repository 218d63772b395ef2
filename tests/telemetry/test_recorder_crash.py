"""TensorBoard's files equal the events, wherever the process was killed."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import recorder_victim as victim
from tb_scalars import scalars

from crucible_tinkex.names import SweepPaths
from crucible_tinkex.telemetry.query import query
from crucible_tinkex.telemetry.recorder import Recorder, rebuild_tensorboard

CURRENT = """
SELECT 'run-' || trial_id[2:] AS run, name, step, value FROM events WHERE value IS NOT NULL
"""


def events_of(paths: SweepPaths) -> set[tuple[str, str, int, float]]:
    return {tuple(row.values()) for row in query(paths.events, CURRENT).to_pylist()}


def die(paths: SweepPaths, n: int) -> int | None:
    """The number of file operations, if fewer than `n`."""
    child = os.fork()
    if child == 0:
        try:
            (paths.root.parent / "operations").write_text(f"{victim.main(paths, n)}")
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return int((paths.root.parent / "operations").read_text()) if os.WIFEXITED(status) else None


def test_equal_to_the_events_after_a_kill(tmp_path: Path) -> None:
    undisturbed = SweepPaths.of(tmp_path, "undisturbed")
    operations = die(undisturbed, 10**9)
    assert operations is not None and operations > 200
    wanted = events_of(undisturbed)
    assert len(wanted) == 2 * (11 + 12)
    assert scalars(undisturbed.tensorboard) == wanted
    chance = random.Random(11)
    for point in sorted(chance.sample(range(1, operations), 25)):
        paths = SweepPaths.of(tmp_path, f"killed-{point}")
        assert die(paths, point) is None
        # as when the sessions died with it: nobody sends again
        Recorder(paths, roll_rows=victim.ROLL_ROWS).close()
        if paths.tensorboard.exists():
            assert scalars(paths.tensorboard) == events_of(paths), point
        recorder = Recorder(paths, roll_rows=victim.ROLL_ROWS)
        stored = sum(recorder.record(batch) for batch in victim.story())
        assert recorder.changes(-1).faults == ()
        recorder.close()
        assert stored <= sum(map(len, victim.story()))
        assert scalars(paths.tensorboard) == events_of(paths) == wanted, point
        ids = query(paths.events, "SELECT event_id FROM events_all")["event_id"].to_pylist()
        assert max(Counter(ids).values()) == 1


def test_a_kill_while_another_kill_is_recovered(tmp_path: Path) -> None:
    chance = random.Random(5)
    for round_ in range(10):
        paths = SweepPaths.of(tmp_path, f"killed-{round_}")
        for _ in range(4):
            die(paths, chance.randrange(1, 150))
        assert die(paths, 10**9) is not None
        assert scalars(paths.tensorboard) == events_of(paths)


def test_rebuilt_equals_live(tmp_path: Path) -> None:
    paths = SweepPaths.of(tmp_path, "s")
    die(paths, 10**9)
    live = scalars(paths.tensorboard)
    (file, *_) = paths.tensorboard.glob("*/*.crucible")
    file.unlink()
    assert scalars(paths.tensorboard) < live
    assert rebuild_tensorboard(paths) == ()
    assert scalars(paths.tensorboard) == live
    assert not [p for p in paths.root.iterdir() if p.name.endswith(".tmp")]
