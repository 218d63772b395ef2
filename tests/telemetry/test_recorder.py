from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from event_trials import Trial
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from crucible_tinkex.names import SweepPaths
from crucible_tinkex.telemetry.log.parts import list_parts
from crucible_tinkex.telemetry.query import read_events
from crucible_tinkex.telemetry.recorder import Recorder, stored_faults


def points(paths: SweepPaths) -> list[tuple[int, float]]:
    run = EventAccumulator(str(paths.tensorboard / "run-t1")).Reload()
    return [(point.step, point.value) for point in run.Scalars("train/nll")]


def test_a_batch_sent_again_changes_no_view(tmp_path: Path, trial: Trial) -> None:
    paths = SweepPaths.of(tmp_path, "s")
    recorder = Recorder(paths)
    batch = [trial.start(1, 0), trial.loss(1, 1, 1.0)]
    assert [recorder.record(batch), recorder.record(batch)] == [2, 0]
    recorder.close()
    assert points(paths) == [(1, 1.0)]
    assert read_events(paths.events).num_rows == 2


def test_a_new_recorder_goes_on_where_the_old_one_was_killed(tmp_path: Path, trial: Trial) -> None:
    paths = SweepPaths.of(tmp_path, "s")
    other = Trial("t2")
    first = Recorder(paths)
    first.record([trial.start(1, 0), trial.loss(1, 1, 1.0), trial.loss(1, 2, 2.0)])
    first.record([trial.start(2, 1), trial.loss(2, 2, 4.0)])
    first.record([other.start(1, 0), other.loss(1, 9, 9.0), other.end(1, 9, "done")])
    before = first.changes(-1).trials
    first.close()

    second = Recorder(paths)
    assert second.changes(-1).trials == before
    assert second.record([trial.loss(2, 3, 8.0)]) == 1
    assert second.changes(-1).trials["t1"]["metrics"] == {"train/nll": 8.0}
    second.close()
    assert points(paths) == [(1, 1.0), (2, 4.0), (3, 8.0)]


def test_tensorboard_trouble_does_not_lose_an_event(tmp_path: Path, trial: Trial) -> None:
    paths = SweepPaths.of(tmp_path, "s")
    paths.root.mkdir(parents=True)
    paths.tensorboard.write_text("a file where a folder must be")
    recorder = Recorder(paths)
    assert recorder.record([trial.start(1, 0), trial.loss(1, 1, 1.0)]) == 2
    recorder.close()
    assert read_events(paths.events).num_rows == 2


def test_opening_reads_no_old_event(tmp_path: Path, trial: Trial) -> None:
    paths = SweepPaths.of(tmp_path, "s")
    recorder = Recorder(paths, roll_rows=3)
    batches = [[trial.loss(1, step, 1.0 / step) for step in (n, n + 1)] for n in range(1, 11, 2)]
    for batch in [[trial.start(1, 0)], *batches]:
        recorder.record(batch)
    before = recorder.changes(-1)
    recorder.close()
    old = {part.path: part.path.read_bytes() for part in list_parts(paths.events)}
    assert len(old) > 3
    for path, data in old.items():  # of the same size, and nothing that could be read
        path.write_bytes(b"x" * len(data))

    again = Recorder(paths)
    assert again.changes(-1) == before
    assert again.changes(before.revision).trials == {}
    assert again.record(batches[0]) == 0  # it knows what it has
    assert again.record([trial.loss(1, 11, 0.5)]) == 1
    assert again.changes(before.revision).trials["t1"]["metrics"] == {"train/nll": 0.5}
    for path, data in old.items():
        path.write_bytes(data)
    again.close()
    assert read_events(paths.events).num_rows == 12
    assert len(points(paths)) == 11


def test_a_view_that_was_behind_is_made_anew(tmp_path: Path, trial: Trial) -> None:
    paths = SweepPaths.of(tmp_path, "s")
    recorder = Recorder(paths, roll_rows=6)
    recorder.record([trial.start(1, 0), trial.loss(1, 1, 1.0)])
    (file,) = (paths.tensorboard / "run-t1").glob("*.crucible")
    file.unlink()
    file.mkdir()
    recorder.record([trial.loss(1, 2, 2.0)])
    assert "run-t1" in recorder.changes(-1).faults[0]
    recorder.record([trial.loss(1, 3, 3.0), trial.loss(1, 4, 4.0), trial.loss(1, 5, 5.0)])
    assert recorder.changes(-1).faults == ()  # the roll was an occasion
    recorder.record([trial.loss(1, 6, 6.0)])
    assert points(paths) == [(step, float(step)) for step in range(1, 7)]
    recorder.close()


@pytest.mark.parametrize("how", ["shortened", "deleted", "all deleted"])
def test_what_tensorboard_lost_is_made_anew(tmp_path: Path, trial: Trial, how: str) -> None:
    paths = SweepPaths.of(tmp_path, "s")
    recorder = Recorder(paths)
    recorder.record([trial.start(1, 0), *(trial.loss(1, step, 1.0) for step in range(1, 9))])
    recorder.close()
    (file,) = (paths.tensorboard / "run-t1").glob("*.crucible")
    if how == "shortened":  # as after a power cut
        os.truncate(file, file.stat().st_size - 100)
    elif how == "deleted":
        file.unlink()
    else:
        shutil.rmtree(paths.tensorboard)
    recorder = Recorder(paths)
    assert recorder.faults() == ()
    assert len(points(paths)) == 8
    recorder.close()


def test_a_view_that_is_behind_is_remembered(tmp_path: Path, trial: Trial) -> None:
    paths = SweepPaths.of(tmp_path, "s")
    paths.root.mkdir(parents=True)
    paths.tensorboard.write_text("a file where a folder must be")
    recorder = Recorder(paths)
    recorder.record([trial.start(1, 0), trial.loss(1, 1, 1.0)])
    recorder.close()
    (fault,) = stored_faults(paths)  # what `crucible status` shows
    assert "behind the events" in fault and str(paths.tensorboard) in fault
    paths.tensorboard.unlink()
    recorder = Recorder(paths)
    assert recorder.faults() == ()
    recorder.close()
    assert stored_faults(paths) == ()
    assert points(paths) == [(1, 1.0)]
