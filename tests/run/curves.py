"""What a sweep recorded, read by the readers people use: the event log and TensorBoard's files."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import crucible_tinkex as ct

Point = tuple[str, str, int, float]
"""Run, tag, step, value (as 32 bits hold it)."""
MEASURED = ("train/", "eval/", "optim/")
"""What must not depend on interruptions; times do."""


def of_events(sweep: Path, prefixes: tuple[str, ...] = MEASURED) -> set[Point]:
    """Every point of the event log that counts. Fails if one is there twice."""
    rows = ct.open_sweep(sweep.name, storage=str(sweep.parent)).query(
        "select t.run_name, e.name, e.step, cast(e.value as float) as value from events e "
        "join trials t using (trial_id) where e.value is not null and e.kind in "
        "('training_step', 'optimizer_step', 'evaluation')"
    )
    points = [tuple(row.values()) for row in rows.to_pylist() if row["name"].startswith(prefixes)]
    assert len(points) == len({point[:3] for point in points}), "a step is there twice"
    return set(points)


def of_tensorboard(sweep: Path, prefixes: tuple[str, ...] = MEASURED) -> set[Point]:
    """Every point that TensorBoard draws. Fails if a curve doubles back."""
    found: set[Point] = set()
    for run in (sweep / "tb").iterdir():
        if run.is_dir():
            accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
            for tag in accumulator.Tags()["scalars"]:
                points = [(p.step, p.value) for p in accumulator.Scalars(tag)]
                assert len(points) == len({step for step, _ in points}), f"{tag} doubles back"
                if tag.startswith(prefixes):
                    found |= {(run.name, tag, step, value) for step, value in points}
    return found
