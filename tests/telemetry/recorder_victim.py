"""A process made to be killed; `test_recorder_crash` starts it.

`PATHS N`: record the batches of `story` and die before the Nth file operation; the numbers of the
acknowledged batches go to `PATHS/acknowledged`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from event_victim import die_before

from crucible_tinkex.events import Event
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.telemetry.recorder import Recorder

ROLL_ROWS = 25


def event(kind: str, seq: int, trial: int, attempt: int, step: int, **fields: object) -> Event:
    values = {"name": "", "value": None, **fields}
    return Event(kind, "sweep", "e", "w", seq, seq, f"t{trial}", attempt, step, **values)  # type: ignore[arg-type]


def story() -> list[list[Event]]:
    """Two trials, of three attempts each; each attempt repeats steps of the one before, measures
    the step again at which it goes on, and is told late what the older one still did."""
    batches: list[list[Event]] = []
    seq = 0

    def batch(*made: dict[str, object]) -> None:
        nonlocal seq
        events = []
        for fields in made:
            seq += 1
            events.append(event(seq=seq, **fields))  # type: ignore[arg-type]
        batches.append(events)

    for attempt, resumed in ((1, 0), (2, 4), (3, 6)):
        for trial in (1, 2):
            at = {"trial": trial, "attempt": attempt}
            start = f'{{"resumed_step": {resumed}, "run_name": "run-{trial}", "hparams": {{}}}}'
            batch({"kind": "session_start", **at, "step": resumed, "extra": start})
            scalar = {"kind": "evaluation", "name": "eval/nll", **at}
            batch({**scalar, "step": resumed, "value": attempt + trial / 4})
            for step in range(resumed + 1, resumed + 6):
                point = {"kind": "training_step", "name": "train/nll", **at, "step": step}
                batch(
                    {**point, "value": attempt + step / 8}, {**scalar, "step": step, "value": 0.5}
                )
            late = {**scalar, "attempt": attempt - 1, "step": resumed, "value": 9.0}
            batch({**late, "step": resumed + 1}, late)
        batch({"kind": "session_end", **at, "step": 9, "extra": '{"state": "done"}'})
    return batches


def main(paths: SweepPaths, n: int) -> int:
    """How many file operations there were, if it survives."""
    seen = die_before(n, paths.root)
    recorder = Recorder(paths, roll_rows=ROLL_ROWS)
    for number, events in enumerate(story(), start=1):
        recorder.record(events)
        with (paths.root.parent / f"{paths.root.name}.acknowledged").open("a") as f:
            f.write(f"{number}\n")
    recorder.close()
    return seen()


if __name__ == "__main__":
    print(main(SweepPaths(Path(sys.argv[1])), int(sys.argv[2])))
