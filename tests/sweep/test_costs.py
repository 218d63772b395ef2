"""What a trial costs does not grow with the number of trials (law 10): counted in operations, not
in seconds, so that a busy machine changes nothing."""

from __future__ import annotations

import asyncio
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_sweeps import Bench
from operations import lines_of

from crucible_tinkex.registry import SweepState
from crucible_tinkex.registry.journal import read_records
from crucible_tinkex.testing import FakeBackend

ROOMS = ("/sweep/", "/registry/", "/search/", "/runtime/pool")
FEW, MANY = 20, 120
GROWTH = 1.5
HALVING = {"rule": "halving", "eta": 3, "first_rung": 1}


def bench(folder: Path, trials: int, stopping: dict[str, Any]) -> Bench:
    """So many configurations of two steps each, whose losses are in no order."""
    configs = [{"lora.rank": 1 + i * 7919 % 500, "lora.seed": i} for i in range(trials)]
    made = Bench(
        folder,
        backend=FakeBackend(delay_s=0.1),
        train={"max_steps": 3, "batch_size": 1, "checkpoint_every": 0, "submit_ahead": 0},
        search={
            "strategy": "list",
            "space": {},
            "configs": configs,
            "stopping": stopping,
            "reference": False,
        },
        evaluation={"generate": False, "max_rows": 1},
        run={"max_concurrent": 4},
    )
    return made


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, where there is such a folder: what costs here is fsync."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as made:
        yield Path(made)


@pytest.mark.parametrize("stopping", [{"rule": "none"}, HALVING], ids=["none", "halving"])
def test_a_trial_costs_the_same_in_a_long_sweep(folder: Path, stopping: dict[str, Any]) -> None:
    few, many = bench(folder / "few", FEW, stopping), bench(folder / "many", MANY, stopping)
    few_lines, many_lines = lines_of(few.run, ROOMS), lines_of(many.run, ROOMS)
    dearer = {
        name: (round(few_lines[name] / FEW, 1), round(count / MANY, 1))
        for name, count in many_lines.items()
        if count / MANY > GROWTH * few_lines[name] / FEW + 2
    }
    assert not dearer, "lines per trial: few, many"
    per_trial = [
        len(list(read_records(b.paths.journal))) / n for b, n in ((few, FEW), (many, MANY))
    ]
    assert per_trial[1] < GROWTH * per_trial[0]
    assert len(SweepState.read(many.paths).trials) == MANY


def test_memory_grows_only_by_what_is_known_of_a_trial(folder: Path) -> None:
    """From the 100th trial to the last: what the driver and the registry keep of a trial."""
    trials, held = 300, []

    async def weigh(running: Bench) -> None:
        for mark in (100, trials - 20):
            while len(running.controller._state.trials) < mark:  # type: ignore[union-attr]
                await asyncio.sleep(0.5)
            held.append(tracemalloc.get_traced_memory()[0])

    weighed = bench(folder, trials, {"rule": "none"})
    weighed.backend.ledger = _Nothing()  # type: ignore[assignment]
    weighed.backend.calls = _Nothing()  # type: ignore[assignment]
    tracemalloc.start()
    try:
        weighed.run(meanwhile=weigh)
    finally:
        tracemalloc.stop()
    grown = (held[1] - held[0]) / (trials - 120)
    assert grown < 24_000, f"{grown:.0f} bytes for each trial"


class _Nothing(list[Any]):
    """Forgets: the fake service's own memory is not the driver's."""

    def append(self, _: object) -> None:
        return None
