"""What TensorBoard would draw, read with its own code."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Scalar = tuple[str, str, int, float]


def read_run(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return accumulator.Reload()


def scalars(tb: Path) -> set[Scalar]:
    """Run, tag, step and value of every point; no curve doubles back."""
    found = set()
    for run in tb.iterdir():
        if run.is_dir():
            accumulator = read_run(run)
            for tag in accumulator.Tags()["scalars"]:
                points = [(p.step, p.value) for p in accumulator.Scalars(tag)]
                assert len(points) == len({step for step, _ in points}), f"{tag} doubles back"
                found |= {(run.name, tag, step, value) for step, value in points}
    return found
