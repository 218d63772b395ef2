"""Sweeps on services that have fewer places for models than the sweep may have sessions."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from local_sweeps import Bench

from crucible_tinkex.registry import DONE, STOPPED, SweepState
from crucible_tinkex.testing import FakeBackend

HALVING = {
    "search": {
        "space": {"lora.rank": [1, 2, 3, 4, 5, 6], "optimizer.learning_rate": [1e-3]},
        "reference": False,
        "stopping": {"rule": "halving", "first_rung": 2},
    },
    "train": {"max_steps": 8},
    "run": {"max_concurrent": 6},
}


def halving(folder: Path, places: int | None) -> Bench:
    changes: dict[str, Any] = HALVING
    return Bench(folder, backend=FakeBackend(delay_s=0.1, places=places), **changes)


async def stall(bench: Bench) -> None:
    """A run that takes this long waits for what never comes."""
    await asyncio.sleep(20_000)
    assert bench.controller
    bench.controller.request_drain()


def trained_steps(bench: Bench) -> int:
    return sum(effect.operation == "optim_step" for effect in bench.backend.ledger)


def assert_same(found: SweepState, expected: SweepState) -> None:
    """At the rungs that a trial came to in both: who is promoted depends on who was first there."""
    for trial_id, trial in found.trials.items():
        other = expected.trials[trial_id]
        common = trial.results.keys() & other.results.keys()
        assert 2 in common
        assert all(trial.results[step] == other.results[step] for step in common)


@pytest.mark.parametrize("per_actor", [1, 6])
@pytest.mark.parametrize("places", [1, 2, 3, 5])
def test_parked_sessions_make_room(tmp_path: Path, places: int, per_actor: int) -> None:
    """The numbers are those of a service with room for all, and no step is trained twice."""
    expected = halving(tmp_path / "all", None).run()
    bench = halving(tmp_path / "few", places)
    state = bench.run(meanwhile=stall, per_actor=per_actor)
    assert state.complete, Counter((t.state, t.target) for t in state.trials.values())
    assert_same(state, expected)
    assert trained_steps(bench) == sum(t.step for t in state.trials.values())
    assert bench.backend.most_loaded == places
    assert {t.state for t in state.trials.values()} == {DONE, STOPPED}


def test_nobody_leaves_where_there_are_places_for_all(tmp_path: Path) -> None:
    bench = halving(tmp_path, 6)
    state = bench.run(meanwhile=stall)
    assert state.complete
    assert all(t.attempt == 1 for t in state.trials.values())


@pytest.mark.parametrize("after_s", [20.0, 33.0, 36.0, 70.0])
def test_a_process_that_dies_meanwhile_costs_no_numbers(tmp_path: Path, after_s: float) -> None:
    expected = halving(tmp_path / "all", None).run()
    bench = halving(tmp_path / "few", 2)

    async def kill(bench: Bench) -> None:
        await asyncio.sleep(after_s)
        alive = [host for host in bench.hosts if not host.gone.is_set()]
        alive[0].die()
        await asyncio.sleep(60)  # until the service misses the heartbeats of its sessions
        for session in list(alive[0].sessions._sessions.values()):
            await session.leave("pending")
        await stall(bench)

    state = bench.run(meanwhile=kill)
    assert state.complete, Counter((t.state, t.target) for t in state.trials.values())
    assert_same(state, expected)


@pytest.mark.parametrize("after_s", [5.0, 31.0, 34.0, 50.0])
def test_a_run_that_is_interrupted_meanwhile_goes_on(tmp_path: Path, after_s: float) -> None:
    expected = halving(tmp_path / "all", None).run()
    bench = halving(tmp_path / "few", 2)

    async def interrupt(bench: Bench) -> None:
        await asyncio.sleep(after_s)
        assert bench.controller
        bench.controller.request_drain()

    assert not bench.run(meanwhile=interrupt).complete
    state = bench.run(meanwhile=stall)
    assert state.complete
    assert_same(state, expected)
