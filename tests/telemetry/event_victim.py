"""A process made to be killed; `test_event_crash` starts it.

`loop FOLDER FIRST`: append batches for ever, rolling and merging all the time; after each
acknowledgement print the last number of the batch. `steps FOLDER`: one child per file operation of
the log, killed just before that operation, with what was acknowledged in `FOLDER/<n>.acknowledged`;
each begins with the many parts that `FOLDER/before/` has.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crucible_tinkex.events import Event
from crucible_tinkex.telemetry.log import EventLog

KINDS = ("training_step", "example")
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate")
BATCH = 20
BEFORE = 6 * BATCH


def numbered(first: int, count: int = BATCH) -> list[Event]:
    return [
        Event(
            kind=KINDS[seq % 2],
            sweep_id="s",
            experiment_id="e",
            writer="w",
            seq=seq,
            time_us=seq,
            trial_id="t",
            step=seq,
            name="train/nll",
            value=float(seq),
        )
        for seq in range(first, first + count)
    ]


def loop(folder: Path, first: int) -> None:
    log = EventLog(folder, roll_rows=3 * BATCH)
    while True:
        log.append(numbered(first))
        log.roll_if_due()
        print(first + BATCH - 1, flush=True)
        first += BATCH


def prepare(folder: Path) -> None:
    """So many parts that the next but one makes the log merge them."""
    with EventLog(folder / "events") as log:
        for first in range(1, BEFORE, BATCH):
            log.append(numbered(first))
            log.roll(state)


def state() -> dict[str, int]:
    return {"of the owner": 1}


def scenario(folder: Path, acknowledged: Path) -> None:
    log = EventLog(folder / "events")
    for first in (BEFORE + 1, BEFORE + 21):
        log.append(numbered(first))
        with acknowledged.open("a") as f:
            f.write(f"{first + BATCH - 1}\n")
        log.roll(state)
    log.close(state)
    log = EventLog(folder / "events")
    log.append(numbered(BEFORE + 41))
    with acknowledged.open("a") as f:
        f.write(f"{BEFORE + 60}\n")
    log.close()


def steps(root: Path) -> None:
    prepare(root / "before")
    shutil.copytree(root / "before", root / "warm")
    scenario(root / "warm", root / "warm.up")  # what a process does only once costs 0.2 s
    for n in range(1, 400):
        shutil.copytree(root / "before", root / f"{n}")
        child = os.fork()
        if child == 0:
            die_before(n, root / f"{n}")
            scenario(root / f"{n}", root / f"{n}.acknowledged")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))


def die_before(n: int, folder: Path) -> Callable[[], int]:
    """Returns what counts the file operations until now."""
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in OPERATIONS and str(args[0]).startswith(f"{folder}/"):
            seen += 1
            if seen == n:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: seen


if __name__ == "__main__":
    if sys.argv[1] == "loop":
        loop(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        steps(Path(sys.argv[2]))
