"""The pool on a virtual clock: hosts start, fail, die and fall silent; every submit is answered."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from scripted_hosts import Plan, Script, ScriptedLauncher, make_pool, virtually

from crucible_tinkex.errors import HostLostError, WorkerStartError
from crucible_tinkex.testing import clock
from crucible_tinkex.testing.clock import DeadlockError, run_virtual
from crucible_tinkex.training.outcome import Outcome, Verdict


def plans(count: int) -> list[Plan]:
    return [Plan(f"t{i}") for i in range(count)]


def now() -> float:
    return asyncio.get_running_loop().time()


@virtually
async def test_more_work_than_slots_is_done_in_turn() -> None:
    launcher = ScriptedLauncher()
    pool, answers = make_pool(launcher, slots=3)
    for plan in plans(9):
        pool.submit(plan, 10)
    assert pool.load == 9 and pool.capacity == 3
    await answers.wait_for(9)
    order = [trial_id for trial_id, _ in answers.given]
    assert [sorted(order[i : i + 3]) for i in (0, 3, 6)] == [
        ["t0", "t1", "t2"],
        ["t3", "t4", "t5"],
        ["t6", "t7", "t8"],
    ], "first come, first served"
    assert now() == pytest.approx(1.0 + 3 * 1.0)
    assert len(launcher.hosts) == 3 and pool.load == 0
    await pool.close()
    assert [h.ended for h in launcher.hosts] == ["kept"] * 3


@virtually
async def test_hosts_are_started_for_what_waits_and_no_more() -> None:
    """The pool before this one started a host for every event: 2,161 in 0.3 s."""
    launcher = ScriptedLauncher([Script(starts_after=5)])
    pool, answers = make_pool(launcher, slots=100, per_actor=4)
    for plan in plans(6):
        pool.submit(plan, 10)
        pool.withdraw("nobody")
    assert [h.slots for h in launcher.hosts] == [4, 4]
    await answers.wait_for(6)
    pool.submit(Plan("late"), 10)
    await answers.wait_for(7)
    assert len(launcher.hosts) == 2
    await pool.close()


@virtually
async def test_a_few_hosts_start_at_once() -> None:
    launcher = ScriptedLauncher([Script(starts_after=5)], at_once=2)
    pool, answers = make_pool(launcher, slots=6)
    for plan in plans(6):
        pool.submit(plan, 10)
    assert len(launcher.hosts) == 2
    await answers.wait_for(2)
    assert len(launcher.hosts) == 4
    await answers.wait_for(6)
    await pool.close()


@virtually
async def test_the_last_trial_of_a_packed_host_that_dies_goes_on_elsewhere() -> None:
    """Hung for ever before: other slots were free, and nothing was started."""
    scripts = [Script(step_s=3), Script(dies_at=1.0, step_s=3), Script(starts_after=100)]
    pool, answers = make_pool(ScriptedLauncher(scripts), slots=4, per_actor=2)
    retried = []

    def again(trial_id: str, outcome: Outcome) -> None:
        if outcome.verdict is Verdict.RETRY:
            assert isinstance(outcome.error, HostLostError)
            retried.append(trial_id)
            pool.submit(Plan(trial_id), 10)

    answers.then = again
    for plan in plans(3):
        pool.submit(plan, 10)
    await answers.wait_for(4)
    assert retried == ["t2"]
    assert now() == pytest.approx(1 + 3 + 3), "in the first slot that became free"
    await pool.close()


@virtually
async def test_a_silent_host_is_killed_and_its_trials_are_tried_again() -> None:
    launcher = ScriptedLauncher([Script(hangs_at=0.5), Script()])
    pool, answers = make_pool(launcher, slots=2, per_actor=2, heartbeat_s=5, deadline_s=20)
    for plan in plans(2):
        pool.submit(plan, 10)
    await answers.wait_for(2)
    assert now() == pytest.approx(1 + 5 + 20)
    assert set(answers.verdicts().values()) == {Verdict.RETRY}
    assert "did not answer for 25 s" in str(answers.error_of("t0"))
    assert launcher.hosts[0].ended == "killed"
    await pool.close()


@virtually
async def test_a_driver_that_was_stopped_does_not_blame_its_hosts() -> None:
    """After SIGCONT all deadlines have passed at once; an answer is on its way all the same."""
    launcher = ScriptedLauncher([Script(step_s=300)])
    pool, answers = make_pool(launcher, slots=1, heartbeat_s=5, deadline_s=20)
    pool.submit(Plan("t"), 10)
    loop: Any = asyncio.get_running_loop()
    await asyncio.sleep(6.0005)  # a heartbeat is under way
    loop._jump.now += 19
    await answers.wait_for(1)
    assert answers.verdicts() == {"t": Verdict.ADVANCED}
    await pool.close()


@virtually
async def test_failed_starts_end_with_the_reason() -> None:
    launcher = ScriptedLauncher([Script(fails="no module named crucible")])
    pool, answers = make_pool(launcher, slots=2, max_failed_starts=3)
    for plan in plans(5):
        pool.submit(plan, 10)
    await answers.wait_for(5)
    assert set(answers.verdicts().values()) == {Verdict.STOP}
    error = answers.error_of("t4")
    assert isinstance(error, WorkerStartError) and error.exit_code == 4
    assert "no module named crucible" in str(error)
    assert len(launcher.hosts) <= 4 and pool.load == 0
    assert {h.ended for h in launcher.hosts} == {"killed"}


@virtually
async def test_a_host_that_never_comes_up_is_a_failed_start() -> None:
    launcher = ScriptedLauncher([Script(starts_after=1e9)])
    pool, answers = make_pool(launcher, slots=1, start_s=60, max_failed_starts=2)
    pool.submit(Plan("t"), 10)
    await answers.wait_for(1)
    assert "did not answer for 60 s" in str(answers.error_of("t"))
    assert len(launcher.hosts) == 2


@virtually
async def test_one_failed_start_is_made_good() -> None:
    launcher = ScriptedLauncher([Script(fails="out of memory"), Script()])
    pool, answers = make_pool(launcher, slots=1)
    pool.submit(Plan("t"), 10)
    await answers.wait_for(1)
    assert answers.verdicts() == {"t": Verdict.ADVANCED}
    await pool.close()


@virtually
async def test_a_sweep_goes_on_with_the_hosts_it_has() -> None:
    """Starts that fail end nothing while a host is up."""
    launcher = ScriptedLauncher([Script(), Script(fails="no room")])
    pool, answers = make_pool(launcher, slots=4, max_failed_starts=2)
    for plan in plans(12):
        pool.submit(plan, 10)
    await answers.wait_for(12)
    assert set(answers.verdicts().values()) == {Verdict.ADVANCED}
    assert len(launcher.hosts) < 12, "with a back-off"
    await pool.close()


@virtually
async def test_the_loss_of_the_last_host_is_made_good_whatever_failed_before() -> None:
    no_room = Script(starts_after=0, fails="no room")
    launcher = ScriptedLauncher(
        [Script(dies_at=1.2, step_s=10), no_room, no_room, Script()], at_once=1
    )
    pool, answers = make_pool(launcher, slots=2, max_failed_starts=1)
    for plan in plans(2):
        pool.submit(plan, 10)
    await answers.wait_for(2)
    assert answers.verdicts() == {"t0": Verdict.RETRY, "t1": Verdict.ADVANCED}
    await pool.close()


@virtually
async def test_a_parked_trial_goes_on_in_its_own_slot() -> None:
    launcher = ScriptedLauncher()
    pool, answers = make_pool(launcher, slots=2)
    for plan in plans(3):
        pool.submit(plan, 5)
    await answers.wait_for(2)
    await asyncio.sleep(100)
    assert pool.load == 3 and len(answers.given) == 2, "parked sessions keep their slots"
    pool.submit(Plan("t0"), 10)
    await answers.wait_for(3)
    home = [h for h in launcher.hosts if ("advance", "t0") in h.heard]
    assert len(home) == 1 and home[0].heard.count(("advance", "t0")) == 2
    await answers.wait_for(4)  # t2 took the slot of t0
    assert await pool.release("t1", "stopped", "rung 1")
    assert [h.heard[-1] for h in launcher.hosts if h is not home[0]] == [
        ("release", ("t1", "stopped", "rung 1"))
    ]
    assert not await pool.release("t1", "stopped", None), "it has gone"
    assert not await pool.release("t0", "stopped", None), "it has ended"
    assert pool.load == 1
    await pool.close()


@virtually
async def test_a_parked_trial_whose_host_is_gone_goes_on_anywhere() -> None:
    launcher = ScriptedLauncher([Script(dies_at=10), Script()])
    pool, answers = make_pool(launcher, slots=1)
    pool.submit(Plan("t"), 5)
    await answers.wait_for(1)
    await asyncio.sleep(20)
    assert len(answers.given) == 1, "nobody waits for an answer"
    assert pool.load == 0
    assert not await pool.release("t", "paused", None)
    pool.submit(Plan("t"), 10)
    await answers.wait_for(2)
    assert answers.verdicts() == {"t": Verdict.ADVANCED}
    await pool.close()


@virtually
async def test_a_release_ends_with_its_host() -> None:
    launcher = ScriptedLauncher([Script(hangs_at=3)])
    pool, answers = make_pool(launcher, slots=1, heartbeat_s=5, deadline_s=20)
    pool.submit(Plan("t"), 5)
    await answers.wait_for(1)
    await asyncio.sleep(2)
    assert not await pool.release("t", "paused", None)
    assert pool.load == 0
    await pool.close()


@virtually
async def test_withdraw_only_takes_what_has_not_started() -> None:
    pool, answers = make_pool(ScriptedLauncher(), slots=1)
    pool.submit(Plan("a"), 10)
    pool.submit(Plan("b"), 10)
    await asyncio.sleep(1.5)
    assert not pool.withdraw("a")
    assert pool.withdraw("b") and not pool.withdraw("b")
    await asyncio.sleep(10)
    assert list(answers.verdicts()) == ["a"]
    await pool.close()


@virtually
async def test_a_second_call_for_a_busy_trial_is_refused() -> None:
    pool, answers = make_pool(ScriptedLauncher(), slots=1)
    pool.submit(Plan("a"), 10)
    with pytest.raises(ValueError, match="trial a"):
        pool.submit(Plan("a"), 10)
    await asyncio.sleep(1.5)
    with pytest.raises(ValueError, match="trial a"):
        pool.submit(Plan("a"), 10)
    await answers.wait_for(1)
    await pool.close()
    with pytest.raises(ValueError, match="closed"):
        pool.submit(Plan("a"), 10)


@virtually
async def test_drain_answers_what_waits_and_tells_what_runs() -> None:
    launcher = ScriptedLauncher([Script(), Script(starts_after=50)])
    pool, answers = make_pool(launcher, slots=2)
    for plan in plans(4):
        pool.submit(plan, 10)
    await asyncio.sleep(1.5)
    await pool.drain()
    await answers.wait_for(4)
    counts = Counter(answers.verdicts().values())
    assert counts == {Verdict.ADVANCED: 1, Verdict.DRAINED: 3}
    assert ("drain", None) in launcher.hosts[0].heard
    assert launcher.hosts[1].ended == "killed", "nothing starts any more"
    pool.submit(Plan("late"), 10)
    await answers.wait_for(5)
    assert answers.verdicts()["late"] is Verdict.DRAINED
    await pool.close()


@virtually
async def test_a_host_that_comes_later_hears_of_the_back_off_first() -> None:
    launcher = ScriptedLauncher()
    pool, answers = make_pool(launcher, slots=2)
    pool.submit(Plan("a"), 10)
    await answers.wait_for(1)
    await pool.hold_back(1e9)
    pool.submit(Plan("b"), 10)
    pool.submit(Plan("c"), 10)
    await answers.wait_for(3)
    assert launcher.hosts[0].heard[1] == ("hold_back", 1e9)
    assert launcher.hosts[1].heard[0] == ("hold_back", 1e9)
    await pool.close()


@virtually
async def test_a_back_off_of_one_host_reaches_the_others_at_once() -> None:
    launcher = ScriptedLauncher([Script(held=(0.25, 1e9)), Script()])
    pool, answers = make_pool(launcher, slots=2, heartbeat_s=5)
    pool.submit(Plan("a"), 10)
    pool.submit(Plan("b"), 10)
    await asyncio.sleep(1.2501)
    assert ("hold_back", 1e9) in launcher.hosts[1].heard
    await answers.wait_for(2)
    await asyncio.sleep(20)
    assert launcher.hosts[1].heard.count(("hold_back", 1e9)) == 1
    await pool.close()


@virtually
async def test_close_ends_whatever_state_the_hosts_are_in() -> None:
    launcher = ScriptedLauncher([Script(), Script(hangs_at=1), Script(starts_after=1e6)])
    pool, answers = make_pool(launcher, slots=3, deadline_s=20)
    for plan in plans(5):
        pool.submit(plan, 10)
    await asyncio.sleep(2.5)
    given, began = len(answers.given), now()
    await pool.close()
    assert now() - began == pytest.approx(20)
    assert [h.ended for h in launcher.hosts] == ["kept", "killed", "killed"]
    await asyncio.sleep(100)
    assert len(answers.given) == given, "nothing is answered after close"
    await pool.close()


@virtually
async def test_a_close_that_is_cancelled_leaves_no_host() -> None:
    launcher = ScriptedLauncher([Script(hangs_at=1)])
    pool, _ = make_pool(launcher, slots=1)
    pool.submit(Plan("t"), 10)
    await asyncio.sleep(2.5)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await pool.close()
    assert [h.ended for h in launcher.hosts] == ["killed"]


def draw_script(draw: random.Random) -> Script:
    """A host of a bad machine: one in three does what it should."""
    fate = draw.choice(["well", "fails", "dies", "hangs", "slow", "well"])
    return Script(
        starts_after=draw.choice([0.0, 0.3, 2.0, 1e6 if fate == "slow" else 5.0]),
        fails="no memory" if fate == "fails" else None,
        dies_at=draw.uniform(0, 30) if fate == "dies" else None,
        hangs_at=draw.uniform(0, 30) if fate == "hangs" else None,
        step_s=draw.choice([0.0, 0.1, 1.0, 10.0]),
        held=draw.choice([None, (draw.uniform(0, 40), draw.uniform(10, 1000))]),
        tokens_per_s=10.0,
    )


async def storm(seed: int) -> None:
    """Random work on random hosts: rungs, pauses, retries, withdrawals, renewals, and a service
    that asks to slow down; ends with all answered."""
    draw, renews = random.Random(seed), seed % 3 == 0
    slots = draw.randint(1, 8)
    launcher = ScriptedLauncher([draw_script(draw) for _ in range(300)], at_once=draw.randint(1, 4))
    per_actor, probes = draw.randint(1, slots), seed % 2 == 0
    pool, answers = make_pool(
        launcher, slots=slots, per_actor=per_actor, probes=probes, deadline_s=20, start_s=30
    )
    work = [Plan(f"t{i}") for i in range(draw.randint(1, 60))]
    submitted: Counter[str] = Counter()
    ended: set[str] = set()
    over = asyncio.Event()

    def submit(trial_id: str) -> None:
        submitted[trial_id] += 1
        pool.submit(Plan(trial_id), draw.choice([5, 10]))

    def finish(trial_id: str) -> None:
        ended.add(trial_id)
        if len(ended) == len(work):
            over.set()

    async def pause(trial_id: str) -> None:
        """Leave the slot to others for a while; by then the host may be gone."""
        await asyncio.sleep(draw.uniform(0, 3))
        await pool.release(trial_id, "paused", None)
        await asyncio.sleep(draw.uniform(0, 3))
        submit(trial_id)

    pauses = []

    def then(trial_id: str, outcome: Outcome) -> None:
        assert launcher.running <= slots
        if outcome.verdict is Verdict.ADVANCED and outcome.progress and outcome.progress.step < 10:
            if draw.random() < 0.5:
                submit(trial_id)
            else:
                pauses.append(asyncio.ensure_future(pause(trial_id)))
        elif outcome.verdict in (Verdict.RETRY, Verdict.STOP):
            submit(trial_id)
        else:
            finish(trial_id)

    async def renewals() -> None:
        while renews:
            await asyncio.sleep(draw.uniform(0, 20))
            pool.renew()

    renewing = asyncio.ensure_future(renewals())
    answers.then = then
    for plan in work:
        submit(plan.trial_id)
    withdrawn = draw.choice(work).trial_id
    if pool.withdraw(withdrawn):
        submitted[withdrawn] -= 1
        finish(withdrawn)
    await over.wait()
    renewing.cancel()
    assert Counter(t for t, _ in answers.given) == +submitted, "each submit is answered once"
    assert all(task.done() and not task.exception() for task in pauses)
    assert pool.load == 0
    lost = sum(h.ended == "killed" for h in launcher.hosts)
    assert renews or len(launcher.hosts) <= lost + slots, (
        "a host is started only for one that is gone"
    )
    began = now()
    await pool.close()
    assert now() - began < 20.1
    assert all(h.ended for h in launcher.hosts)


@pytest.mark.parametrize("block", range(4))
def test_storms(block: int) -> None:
    for seed in range(100 * block, 100 * (block + 1)):
        try:
            run_virtual(storm(seed))
        except (AssertionError, DeadlockError) as e:
            raise AssertionError(f"seed {seed}") from e


def test_the_virtual_clock_names_a_deadlock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "THREAD_S", 0.05)

    async def forever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError):
        run_virtual(forever())


def test_the_virtual_clock_jumps() -> None:
    async def a_day() -> float:
        await asyncio.sleep(86_400)
        return now()

    assert run_virtual(a_day()) == pytest.approx(86_400)


@virtually
async def test_fewer_sessions_train_while_the_service_asks_to_slow_down() -> None:
    scripts = [Script(step_s=20, held=(7.0, 1e9)), Script(step_s=20)]
    launcher = ScriptedLauncher(scripts)
    pool, answers = make_pool(launcher, slots=4)
    for plan in plans(10):
        pool.submit(plan, 10)
    most = []
    while len(answers.given) < 10:
        await asyncio.sleep(5)
        most.append((pool.capacity, launcher.running))
    assert most[0] == (4, 4)
    assert (2, 2) in most, "none begins beyond what the service bears"
    await asyncio.sleep(100)
    assert pool.capacity == 4
    await pool.close()


@virtually
async def test_auto_begins_with_few_and_takes_more_while_more_is_trained() -> None:
    launcher = ScriptedLauncher([Script(step_s=1e4, tokens_per_s=100.0)])
    pool, _ = make_pool(launcher, slots=16, probes=True)
    for plan in plans(20):
        pool.submit(plan, 10)
    await asyncio.sleep(10)
    assert (pool.capacity, launcher.running, len(launcher.hosts)) == (2, 2, 2)
    await asyncio.sleep(300)
    assert (pool.capacity, launcher.running) == (16, 16)
    await pool.close()


@virtually
async def test_after_a_renewal_open_sessions_stay_and_others_get_new_hosts() -> None:
    launcher = ScriptedLauncher()
    pool, answers = make_pool(launcher, slots=4, per_actor=2)
    for plan in plans(4):
        pool.submit(plan, 5 if plan.trial_id in ("t0", "t2") else 10)
    await answers.wait_for(4)
    first = list(launcher.hosts)
    assert sum(len(h.parked) for h in first) == 2
    pool.renew()
    pool.submit(Plan("new"), 10)
    pool.submit(Plan("t0"), 10)
    await answers.wait_for(6)
    assert [("advance", "new") in h.heard for h in launcher.hosts] == [False, False, True]
    (home,) = [h for h in first if ("advance", "t0") in h.heard]
    assert home.heard.count(("advance", "t0")) == 2, "where its session was open"
    await asyncio.sleep(1)
    assert home.heard[-1] == ("forget", None) and home.ended == "kept", "given back when empty"
    assert [h.ended for h in first].count(None) == 1, "t2 is parked there"
    for i in range(5):
        pool.submit(Plan(f"more{i}"), 10)
    await answers.wait_for(11)
    assert len(launcher.hosts) == 4, "never more sessions than slots"
    await pool.close()
    assert [h.ended for h in launcher.hosts] == ["kept"] * 4


@virtually
async def test_a_renewal_forgets_hosts_that_were_starting() -> None:
    launcher = ScriptedLauncher([Script(starts_after=5), Script()])
    pool, answers = make_pool(launcher, slots=2)
    pool.submit(Plan("t"), 10)
    await asyncio.sleep(1)
    pool.renew()
    await answers.wait_for(1)
    assert [h.ended for h in launcher.hosts] == ["killed", None]
    await pool.close()


@virtually
async def test_a_retired_host_that_does_not_answer_is_killed() -> None:
    launcher = ScriptedLauncher([Script(hangs_at=3), Script()])
    pool, answers = make_pool(launcher, slots=2)
    pool.submit(Plan("t"), 5)
    await answers.wait_for(1)
    pool.renew()
    pool.submit(Plan("t"), 10)
    await answers.wait_for(2)
    await asyncio.sleep(0)
    await pool.close()
    assert launcher.hosts[0].ended is not None
