"""What telemetry costs: batches made durable for many senders, and opening an old sweep.

`one by one` is a recorder that takes a batch at a time, an fsync each; `together` writes what is in
flight with one. Opening is measured with the snapshot of the last roll and without it, which is
what a scan of all events costs.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from crucible_tinkex.events import Event, EventWriter
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.telemetry.group_commit import GroupCommit
from crucible_tinkex.telemetry.query import query
from crucible_tinkex.telemetry.recorder import Recorder

PRODUCERS = 8
SECONDS = 5.0
TRIALS = 200
Record = Callable[[Sequence[Event]], Awaitable[int]]


def batch(writer: EventWriter, trial: str, step: int) -> list[Event]:
    """What a session sends after five steps."""
    if step == 0:
        extra = {"resumed_step": 0, "run_name": trial, "hparams": {"lora.rank": 8}}
        return [writer.event("session_start", trial_id=trial, attempt=1, extra=extra)]
    names = ("train/nll", "perf/step_s", "perf/tokens_per_s", "optim/lr")
    return [
        writer.event("training_step", trial_id=trial, attempt=1, step=s, name=name, value=1.0 / s)
        for s in range(step, step + 5)
        for name in names
    ]


async def produce(record: Record, trial: str, until: float) -> int:
    writer, sent = EventWriter("s", "e"), 0
    while time.perf_counter() < until:
        await record(batch(writer, trial, 5 * sent))
        sent += 1
    return sent


async def rate(record: Record) -> float:
    """Batches a second of all producers together."""
    until = time.perf_counter() + SECONDS
    sent = await asyncio.gather(*(produce(record, f"t{i}", until) for i in range(PRODUCERS)))
    return sum(sent) / SECONDS


async def one_by_one(folder: Path) -> float:
    recorder = Recorder(SweepPaths.of(folder, "one"))
    loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1)
    found = await rate(lambda events: loop.run_in_executor(thread, recorder.record, events))
    recorder.close()
    return found


async def together(folder: Path) -> float:
    commit = GroupCommit(lambda: Recorder(SweepPaths.of(folder, "all")))
    found = await rate(commit.record)
    await commit.close()
    return found


def opening(folder: Path, events: int) -> tuple[int, float, float]:
    """Rows, and seconds to open with and without the snapshot."""
    paths = SweepPaths.of(folder, "old")
    recorder = Recorder(paths)
    writers = [EventWriter("s", "e") for _ in range(TRIALS)]
    for number in range(1 + events // (TRIALS * 20)):
        made = [batch(w, f"t{i}", 5 * number) for i, w in enumerate(writers)]
        recorder.record_batches(made)
    recorder.close()
    (count,) = query(paths.events, "SELECT count(*) AS n FROM events_all")["n"].to_pylist()
    quick = _open(paths)
    (paths.events / "_snapshot.json").unlink()
    return count, quick, _open(paths)


def _open(paths: SweepPaths) -> float:
    started = time.perf_counter()
    recorder = Recorder(paths)
    seconds = time.perf_counter() - started
    recorder.close()
    return seconds


def run(events: Sequence[int] = (100_000, 1_000_000)) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before, after = asyncio.run(one_by_one(folder)), asyncio.run(together(folder))
        lines = [
            f"| batches of 20 events a second, {PRODUCERS} senders | one by one | together |",
            "|---|---|---|",
            f"| | {before:.0f} | {after:.0f} |",
            "",
            "| events of a sweep | opened with its snapshot, s | without |",
            "|---|---|---|",
        ]
        for number in events:
            place = folder / f"{number}"
            place.mkdir()
            count, quick, slow = opening(place, number)
            lines.append(f"| {count:,} | {quick:.2f} | {slow:.1f} |")
    return "\n".join(lines)
