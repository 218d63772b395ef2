"""The controller on fakes and a virtual clock: ask, advance, lose, drain, amend, resume."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from local_sweeps import Bench, make_experiment, numbers

from crucible_tinkex.errors import (
    AuthenticationError,
    ConfigError,
    OperationFailedError,
    ServiceUnavailableError,
    SessionLostError,
)
from crucible_tinkex.registry import DONE, FAILED, LOST, PENDING, STOPPED
from crucible_tinkex.sweep.orders.obeying import failed_trials
from crucible_tinkex.sweep.results.leaderboard import best, exit_code
from crucible_tinkex.testing import FakeBackend


def kinds(bench: Bench) -> Counter[str]:
    trials = bench.state.trials.values()
    return Counter(d.kind for t in trials for d in t.decisions)


def test_a_whole_sweep(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    state = bench.run()
    assert Counter(t.state for t in state.trials.values()) == {DONE: 7}
    assert (state.state, state.complete, exit_code(state)) == (DONE, True, 0)
    assert kinds(bench) == {"start": 7}
    assert [t.index for t in state.trials.values()] == list(range(7))
    assert all(t.attempt == 1 for t in state.trials.values())
    winner = best(state)
    assert winner and winner.values["optimizer.learning_rate"] > 1e-5
    assert max(len(h.sessions._sessions) for h in bench.hosts) == 0


def test_trials_are_asked_for_only_when_a_slot_is_free(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    most = 0

    async def watch(bench: Bench) -> None:
        nonlocal most
        while True:
            assert bench.controller
            most = max(most, len(bench.controller._state.open))
            await asyncio.sleep(0.05)

    bench.run(meanwhile=watch)
    assert most == 3


def test_a_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first = bench.run()
    calls = len(bench.backend.calls)
    assert numbers(bench.run()) == numbers(first)
    assert len(bench.backend.calls) == calls
    assert bench.state.epoch == 2


@pytest.mark.parametrize("per_actor", [1, 3])
def test_a_lost_host_costs_nothing_but_time(tmp_path: Path, per_actor: int) -> None:
    whole = Bench(tmp_path / "whole").run()
    bench = Bench(tmp_path / "killed")

    async def kill(bench: Bench) -> None:
        for after in (1.5, 1.0, 0.7):
            await asyncio.sleep(after)
            bench.hosts[-1].die()

    assert numbers(bench.run(meanwhile=kill, per_actor=per_actor)) == numbers(whole)
    assert max(t.attempt for t in bench.state.trials.values()) > 1


def test_the_last_trial_does_not_hang_when_its_packed_host_dies(tmp_path: Path) -> None:
    bench = Bench(tmp_path, search={"space": {"lora.rank": [2]}})

    async def kill(bench: Bench) -> None:
        while len(bench.state.open) != 1 or len(bench.state.trials) != 2:
            await asyncio.sleep(0.05)
        bench.hosts[0].die()

    state = bench.run(meanwhile=kill, per_actor=3)
    assert {t.state for t in state.trials.values()} == {DONE}


def test_drain_saves_and_the_next_run_goes_on(tmp_path: Path) -> None:
    whole = Bench(tmp_path / "whole").run()
    bench = Bench(tmp_path / "drained")

    async def interrupt(bench: Bench) -> None:
        await asyncio.sleep(2.05)
        assert bench.controller
        bench.controller.request_drain()

    state = bench.run(meanwhile=interrupt)
    assert (state.state, exit_code(state)) == ("interrupted", 130)
    assert {t.state for t in state.open.values()} == {PENDING}
    for trial in state.open.values():
        assert not trial.attempt or trial.step == 0 or trial.last_checkpoint
    assert numbers(bench.run()) == numbers(whole)


def test_drain_wins_against_a_service_that_never_answers(tmp_path: Path) -> None:
    bench = Bench(tmp_path, backend=FakeBackend(delay_s=10_000.0))
    times = []

    async def interrupt(bench: Bench) -> None:
        await asyncio.sleep(3)
        assert bench.controller
        bench.controller.request_drain()
        times.append(asyncio.get_running_loop().time())
        await asyncio.Event().wait()

    state = bench.run(meanwhile=interrupt)
    assert exit_code(state) == 130
    assert bench.view.training_s >= 0


def test_a_trial_that_fails_stops_no_other(tmp_path: Path) -> None:
    error = OperationFailedError("bad row", category="user")
    bench = Bench(tmp_path, backend=FakeBackend(delay_s=0.1, failures=[("optim_step", 5, error)]))
    state = bench.run()
    assert Counter(t.state for t in state.trials.values()) == {DONE: 6, FAILED: 1}
    assert exit_code(state) == 1
    failed = next(t for t in state.trials.values() if t.state == FAILED)
    assert "bad row" in str(failed.error)
    assert failed.values != best(state).values  # type: ignore[union-attr]


def test_what_is_lost_too_often_is_lost_and_the_next_run_tries_again(tmp_path: Path) -> None:
    gone = [("create_training", n, SessionLostError("gone")) for n in range(1, 22)]
    bench = Bench(tmp_path, backend=FakeBackend(delay_s=0.1, failures=gone))
    state = bench.run(max_attempts=3)
    assert Counter(t.state for t in state.trials.values()) == {LOST: 7}
    assert exit_code(state) == 1
    assert best(state) is None
    again = bench.run()
    assert {t.state for t in again.trials.values()} == {DONE}
    assert kinds(bench)["retry"] == 7


def test_an_unreachable_service_stops_the_sweep_and_loses_nothing(tmp_path: Path) -> None:
    away = [("create_training", n, ServiceUnavailableError("away")) for n in range(3, 99)]
    bench = Bench(tmp_path, backend=FakeBackend(delay_s=0.1, failures=away))
    with pytest.raises(ServiceUnavailableError):
        bench.run(max_attempts=2)
    assert not {t.state for t in bench.state.trials.values()} & {LOST, FAILED}


def test_a_refused_key_stops_the_sweep_resumably(tmp_path: Path) -> None:
    refused = [("forward_backward", 9, AuthenticationError("401"))]
    bench = Bench(tmp_path, backend=FakeBackend(delay_s=0.1, failures=refused))
    with pytest.raises(AuthenticationError):
        bench.run()
    assert bench.state.state == "interrupted"
    assert {t.state for t in bench.run().trials.values()} == {DONE}


def test_more_values_seeds_and_steps_amend_the_sweep(tmp_path: Path) -> None:
    bench = Bench(tmp_path, search={"space": {"lora.rank": [2]}})
    first = bench.run()
    trained = bench.backend.calls.count("optim_step")
    assert trained == 8
    more = Bench(
        tmp_path,
        backend=bench.backend,
        search={"space": {"lora.rank": [2, 4]}, "seeds": [0, 1]},
        train={"max_steps": 12, "batch_size": 4, "checkpoint_every": 4},
    )
    more.runs = 1
    state = more.run(changed=["search.space", "search.seeds", "train.max_steps"])
    assert set(first.trials) < set(state.trials)
    assert {t.step for t in state.trials.values() if not t.reference} == {12}
    assert bench.backend.calls.count("optim_step") == trained + 4 + 3 * 12
    assert state.amendments[0]["changed"] == ["search.space", "search.seeds", "train.max_steps"]
    fresh = Bench(
        tmp_path / "fresh",
        search={"space": {"lora.rank": [2, 4]}, "seeds": [0, 1]},
        train={"max_steps": 12, "batch_size": 4, "checkpoint_every": 4},
    ).run()
    assert {t: n[:3] for t, n in numbers(state).items()} == {
        t: n[:3] for t, n in numbers(fresh).items()
    }


HALVING = {"stopping": {"rule": "halving", "eta": 2, "first_rung": 2}}


def test_halving_trains_few_to_the_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path, search=HALVING)
    state = bench.run()
    states = Counter(t.state for t in state.trials.values() if not t.reference)
    assert set(states) == {DONE, STOPPED}
    assert states[DONE] >= 1
    stopped = [t for t in state.trials.values() if t.state == STOPPED]
    assert all("place" in str(t.error) for t in stopped)
    assert bench.backend.calls.count("optim_step") < 6 * 8
    whole = Bench(tmp_path / "whole").run()
    assert best(state).values == best(whole).values  # type: ignore[union-attr]
    assert exit_code(state) == 0


def test_a_rung_forces_an_evaluation_and_a_checkpoint(tmp_path: Path) -> None:
    state = Bench(tmp_path, search=HALVING).run()
    for trial in state.trials.values():
        if not trial.reference:
            rungs = {d.to_step for d in trial.decisions if d.kind in ("start", "advance")}
            assert rungs <= set(trial.results)
            assert rungs <= {c.step for c in trial.checkpoints}


def test_halving_decides_the_same_after_a_resume(tmp_path: Path) -> None:
    whole = Bench(tmp_path / "whole", search=HALVING, run={"max_concurrent": 1}).run()
    bench = Bench(tmp_path / "cut", search=HALVING, run={"max_concurrent": 1})

    async def interrupt(bench: Bench) -> None:
        await asyncio.sleep(3.0)
        assert bench.controller
        bench.controller.request_drain()

    while (state := bench.run(meanwhile=interrupt)).state != DONE:
        assert bench.runs < 20
    assert numbers(state) == numbers(whole)


def test_a_failed_trial_is_tried_again_when_a_person_asks(tmp_path: Path) -> None:
    error = OperationFailedError("bad row", category="user")
    bench = Bench(tmp_path, backend=FakeBackend(delay_s=0.1, failures=[("optim_step", 5, error)]))
    failed = failed_trials(bench.run())
    assert len(failed) == 1
    assert failed_trials(bench.run()) != []  # a run by itself leaves it
    bench.retry = [failed[0].trial_id]
    state = bench.run()
    assert Counter(t.state for t in state.trials.values()) == {DONE: 7}
    assert exit_code(state) == 0
    last = state.trials[failed[0].trial_id].decisions[-1]
    assert (last.kind, last.reason) == ("retry", "a person asked to try it again")
    assert numbers(state) == numbers(Bench(tmp_path / "whole").run())


def test_trials_to_retry_are_named_by_id_name_or_number(tmp_path: Path) -> None:
    error = OperationFailedError("bad row", category="user")
    bench = Bench(tmp_path, backend=FakeBackend(delay_s=0.1, failures=[("optim_step", 5, error)]))
    state = bench.run()
    [failed] = failed_trials(state)
    for name in (failed.trial_id, failed.run_name, str(failed.index)):
        assert failed_trials(state, [name]) == [failed]
    with pytest.raises(ConfigError, match="no trial 'x'"):
        failed_trials(state, ["x"])
    with pytest.raises(ConfigError, match="is done: it did not fail"):
        failed_trials(state, ["0"])


@pytest.mark.parametrize(
    "stopping",
    [
        {"rule": "topk", "keep": 2, "first_rung": 2},
        {"rule": "hyperband", "eta": 2, "first_rung": 2, "brackets": 2},
        {"rule": "median", "every": 2, "startup": 2},
        {"rule": ["median", "divergence"], "every": 2, "startup": 1},
        {"rule": "plateau", "every": 2, "patience": 0, "min_delta": 0.5},
        {"rule": "threshold", "every": 4, "threshold": 4.0},
    ],
    ids=lambda s: str(s["rule"]),
)
def test_every_rule_ends_a_sweep_and_spends_less(
    tmp_path: Path, stopping: dict[str, object]
) -> None:
    bench = Bench(tmp_path, search={"stopping": stopping})
    state = bench.run()
    states = Counter(t.state for t in state.trials.values() if not t.reference)
    assert set(states) == {DONE, STOPPED} and exit_code(state) == 0
    assert bench.backend.calls.count("optim_step") < 6 * 8
    assert all(t.error for t in state.trials.values() if t.state == STOPPED)
    again = Bench(tmp_path / "again", search={"stopping": stopping}, run={"max_concurrent": 3})

    async def interrupt(bench: Bench) -> None:
        await asyncio.sleep(2.0)
        assert bench.controller
        bench.controller.request_drain()

    while (resumed := again.run(meanwhile=interrupt)).state != DONE:
        assert again.runs < 20
    assert exit_code(resumed) == 0


@pytest.mark.parametrize(
    ("stopping", "why"),
    [
        ({"rule": "threshold"}, "needs a threshold"),
        ({"rule": ["halving", "topk"]}, "contradict"),
        ({"rule": "asha"}, "rule"),
        ({"rule": ["halving", "asha"]}, "rule"),
        ({"rule": "topk", "keep": 0}, "keep"),
    ],
)
def test_a_rule_that_says_nothing_is_refused(stopping: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        make_experiment(search={"stopping": stopping})
