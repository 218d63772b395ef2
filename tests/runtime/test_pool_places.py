"""The pool on services that have fewer places for models than it has slots, on scripted hosts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from scripted_hosts import Plan, Script, ScriptedHost, ScriptedLauncher, make_pool, virtually

from crucible_tinkex.runtime.ports import Beat
from crucible_tinkex.runtime.width import WINDOW_S, Seen, Width
from crucible_tinkex.testing.clock import run_virtual
from crucible_tinkex.training.outcome import Outcome, Verdict


@dataclass
class Places:
    """Of a service, with those who hold one."""

    count: int
    says_full: bool = True
    held: set[str] = field(default_factory=set)


class FullHost(ScriptedHost):
    """Its sessions wait for a place of the service and hold it while they are open."""

    def __init__(self, script: Script, slots: int, places: Places) -> None:
        super().__init__(script, slots)
        self.places = places
        self.waits: set[str] = set()

    async def heartbeat(self, after_s: float, known: float) -> Beat:
        beat = await super().heartbeat(after_s, known)
        is_full = self.places.says_full and bool(self.waits)
        return beat._replace(waiting=frozenset(self.waits), is_full=is_full)

    async def advance(self, plan: Plan, to_step: int) -> Outcome:
        trial_id, held = plan.trial_id, self.places.held
        while trial_id not in held and len(held) >= self.places.count:
            self.waits.add(trial_id)
            await self._takes(1.0)
        self.waits.discard(trial_id)
        held.add(trial_id)
        outcome = await super().advance(plan, to_step)
        if to_step >= plan.total_steps:
            held.discard(trial_id)
        return outcome

    async def make_room(self, trial_id: str | None = None) -> None:
        await super().make_room(trial_id)
        if trial_id is not None:
            self.places.held.discard(trial_id)


class FullLauncher(ScriptedLauncher):
    def __init__(self, places: Places, *scripts: Script) -> None:
        super().__init__(scripts)
        self.places = places

    def launch(self, slots: int) -> ScriptedHost:
        self.hosts.append(FullHost(next(self._scripts), slots, self.places))
        return self.hosts[-1]

    def left(self) -> list[str]:
        """Trials whose parked sessions were closed."""
        heard = [said for host in self.hosts for said in host.heard]
        return [about for name, about in heard if name == "make_room" and about]


@virtually
async def test_the_one_that_is_parked_longest_leaves_and_goes_on_later() -> None:
    launcher = FullLauncher(Places(2), Script(step_s=2.0))
    pool, answers = make_pool(launcher, slots=4)
    pool.submit(Plan("a"), 5)
    await answers.wait_for(1)
    pool.submit(Plan("b"), 5)
    await answers.wait_for(2)
    pool.submit(Plan("c"), 5)
    await answers.wait_for(3)
    assert launcher.left() == ["a"]
    pool.submit(Plan("a"), 10)
    await answers.wait_for(4)
    assert launcher.left() == ["a", "b"]
    assert all(v is Verdict.ADVANCED for v in answers.verdicts().values())
    assert pool.load == 1, "c is parked"
    await pool.close()


@virtually
async def test_nobody_leaves_while_a_trial_trains_that_will_end() -> None:
    launcher = FullLauncher(Places(2), Script(step_s=2.0), Script(step_s=900.0), Script())
    pool, answers = make_pool(launcher, slots=3)
    pool.submit(Plan("a"), 5)
    await answers.wait_for(1)
    pool.submit(Plan("long"), 10)
    pool.submit(Plan("c"), 5)
    await answers.wait_for(3)
    assert launcher.left() == []
    await pool.close()


@virtually
async def test_a_trial_that_trains_to_a_rung_does_not_keep_others_waiting() -> None:
    launcher = FullLauncher(Places(2), Script(step_s=2.0), Script(step_s=900.0), Script())
    pool, answers = make_pool(launcher, slots=3)
    pool.submit(Plan("a"), 5)
    await answers.wait_for(1)
    pool.submit(Plan("long"), 5)
    pool.submit(Plan("c"), 5)
    await answers.wait_for(2)
    assert answers.given[1][0] == "c" and launcher.left() == ["a"]
    await pool.close()


@virtually
async def test_every_host_is_told_to_unload_once_and_later_ones_first() -> None:
    launcher = FullLauncher(Places(1), Script(step_s=2.0), Script(step_s=60.0), Script())
    pool, answers = make_pool(launcher, slots=3)
    pool.submit(Plan("a"), 10)
    pool.submit(Plan("b"), 10)
    await answers.wait_for(2)
    pool.submit(Plan("c"), 5)
    pool.submit(Plan("d"), 5)
    pool.submit(Plan("e"), 5)
    await answers.wait_for(5)
    for host in launcher.hosts:
        assert host.heard.count(("make_room", None)) == 1
    assert len(launcher.hosts) == 3
    assert launcher.hosts[2].heard[0] == ("make_room", None)
    await pool.close()


@virtually
async def test_a_service_that_only_asks_to_wait_is_not_asked_to_unload() -> None:
    """Some forget checkpoints with it. But a session that is parked leaves."""
    launcher = FullLauncher(Places(1, says_full=False), Script())
    pool, answers = make_pool(launcher, slots=2)
    pool.submit(Plan("a"), 5)
    await answers.wait_for(1)
    pool.submit(Plan("b"), 5)
    await answers.wait_for(2)
    assert launcher.left() == ["a"]
    assert all(("make_room", None) not in host.heard for host in launcher.hosts)
    await pool.close()


@pytest.mark.parametrize("dies_at", [32.0, 35.05, 35.5, 36.0, 40.0])
def test_a_host_that_dies_while_it_makes_room(dies_at: float) -> None:
    """Its parked trials are answered for by nobody, and go on anywhere."""

    async def test() -> None:
        places = Places(1)
        launcher = FullLauncher(places, Script(dies_at=dies_at), Script())
        pool, answers = make_pool(launcher, slots=2)
        pool.submit(Plan("a"), 5)
        await answers.wait_for(1)
        pool.submit(Plan("b"), 5)
        await asyncio.sleep(dies_at)
        places.held.discard("a")  # the service gives a lost session's place free
        await answers.wait_for(2)
        pool.submit(Plan("a"), 10)
        await answers.wait_for(3)
        assert [given[0] for given in answers.given] == ["a", "b", "a"]
        assert {v.verdict for _, v in answers.given} == {Verdict.ADVANCED}
        await pool.close()

    run_virtual(test())


@virtually
async def test_a_trial_that_is_sent_on_while_its_session_leaves_waits_until_it_has() -> None:
    launcher = FullLauncher(Places(1), Script())
    pool, answers = make_pool(launcher, slots=2)
    pool.submit(Plan("a"), 5)
    await answers.wait_for(1)
    pool.submit(Plan("b"), 10)
    host = launcher.hosts[0]
    leaving = asyncio.Event()
    leave = host.make_room

    async def make_room(trial_id: str | None = None) -> None:
        if trial_id:
            leaving.set()
        await leave(trial_id)

    host.make_room = make_room  # type: ignore[method-assign]
    await leaving.wait()
    pool.submit(Plan("a"), 10)
    assert not await pool.release("a", "stopped", None), "it is leaving already"
    await answers.wait_for(3)
    assert host.heard.count(("advance", "a")) + launcher.hosts[1].heard.count(("advance", "a")) == 2
    await pool.close()


@virtually
async def test_a_draining_pool_closes_nothing() -> None:
    launcher = FullLauncher(Places(1), Script())
    pool, answers = make_pool(launcher, slots=2)
    pool.submit(Plan("a"), 5)
    await answers.wait_for(1)
    pool.submit(Plan("b"), 5)
    await asyncio.sleep(10)
    await pool.drain()
    await asyncio.sleep(200)
    assert launcher.left() == [] and await pool.release("a", "pending", None)
    await pool.close()


@virtually
async def test_fewer_begin_on_a_full_service() -> None:
    launcher = FullLauncher(Places(3), Script(step_s=100.0))
    pool, answers = make_pool(launcher, slots=8, per_actor=8)
    for n in range(8):
        pool.submit(Plan(str(n)), 10)
    await asyncio.sleep(20)
    assert pool.capacity == 4
    await answers.wait_for(8)
    await pool.close()


def test_the_width_does_not_grow_while_somebody_waits() -> None:
    width = Width(8)
    width.look(Seen(0.0, 0, 0, True))
    width.look(Seen(1.0, 0, 1, True, waits=True))
    for time_s in range(10, 300, 5):
        width.look(Seen(float(time_s), 10 * time_s, 1, True, waits=True))
    assert width.now == 4
    width.look(Seen(300.0 + WINDOW_S, 9000, 1, True))
    assert width.now == 5
