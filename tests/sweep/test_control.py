"""Commands to a sweep while it runs: obeyed once, answered in the journal, safe at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from local_sweeps import Bench, numbers

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.registry import DONE, FAILED, PAUSED, RUNNING, STOPPED, TrialRecord
from crucible_tinkex.storage import Lock
from crucible_tinkex.sweep.orders.control import Command, Inbox, send
from crucible_tinkex.sweep.results.leaderboard import exit_code

ONE = {"space": {"lora.rank": [4]}, "reference": False}


def trial(bench: Bench, index: int = 0) -> TrialRecord:
    return list(bench.state.trials.values())[index]


def saved(bench: Bench) -> bool:
    return any(t.checkpoints for t in bench.state.trials.values())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.05)


def answers(bench: Bench) -> list[str]:
    return list(bench.state.commands.values())


def test_a_running_trial_is_stopped_and_the_others_go_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path, search={"reference": False})

    async def stop(bench: Bench) -> None:
        await asyncio.sleep(1.3)
        bench.inbox.put(Command("stop", ("1",)))
        bench.inbox.put(Command("stop", ("1",)))

    state = bench.run(meanwhile=stop)
    stopped = trial(bench, 1)
    assert (stopped.state, stopped.hold, stopped.error) == (
        STOPPED,
        "person",
        "a person stopped it",
    )
    assert 0 < stopped.step < 8 and stopped.last_checkpoint, "it saved what it had"
    assert {t.state for t in state.trials.values() if t is not state.trials[stopped.trial_id]} == {
        DONE
    }
    assert answers(bench) == ["stop: 1 trial", "stop: nothing to do, they have ended"]
    assert exit_code(state) == 0


@pytest.mark.parametrize("whole", [False, True])
def test_paused_trials_wait_until_they_are_let_go_on(tmp_path: Path, whole: bool) -> None:
    undisturbed = Bench(tmp_path / "whole").run()
    bench = Bench(tmp_path / "paused")
    names = () if whole else ("1", "2")
    trained = []

    async def pause(bench: Bench) -> None:
        await asyncio.sleep(1.6)
        bench.inbox.put(Command("pause", names))
        await asyncio.sleep(30)
        trained.append(bench.backend.calls.count("optim_step"))
        held = [t for t in bench.state.trials.values() if t.state == PAUSED]
        assert [t.hold for t in held] == ["person"] * len(held) and len(held) >= 2
        await asyncio.sleep(100)
        trained.append(bench.backend.calls.count("optim_step"))
        assert bench.state.ended is None
        bench.inbox.put(Command("unpause", names))
        await asyncio.Event().wait()

    assert numbers(bench.run(meanwhile=pause)) == numbers(undisturbed)
    assert trained[0] == trained[1]


def test_a_new_run_goes_on_with_what_was_paused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, search=ONE)

    async def pause(bench: Bench) -> None:
        await asyncio.sleep(1.6)
        bench.inbox.put(Command("pause", ("0",)))
        await until(lambda: trial(bench).state == PAUSED)
        await asyncio.sleep(5)
        bench.inbox.put(Command("stop"))

    assert exit_code(bench.run(meanwhile=pause)) == 130
    assert {t.state for t in bench.run().trials.values()} == {DONE}
    assert trial(bench).attempt == 2


def test_a_whole_sweep_is_stopped_and_can_be_resumed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def stop(bench: Bench) -> None:
        await asyncio.sleep(1.6)
        bench.inbox.put(Command("stop"))

    state = bench.run(meanwhile=stop)
    assert (state.state, exit_code(state)) == ("interrupted", 130)
    assert answers(bench) == ["stop: the sweep; it can be resumed"]
    assert numbers(bench.run()) == numbers(Bench(tmp_path / "whole").run())


def test_what_a_person_paused_waits_though_the_sweep_is_extended(tmp_path: Path) -> None:
    bench = Bench(tmp_path, search=ONE)

    async def ask(bench: Bench) -> None:
        await asyncio.sleep(1.6)
        bench.inbox.put(Command("pause", ("0",)))
        await until(lambda: trial(bench).state == PAUSED)
        bench.inbox.put(Command("extend", settings={"train.max_steps": 12}))
        await until(lambda: not bench.inbox.waiting())
        await asyncio.sleep(5)
        assert trial(bench).state == PAUSED
        bench.inbox.put(Command("unpause"))
        await asyncio.Event().wait()

    state = bench.run(meanwhile=ask)
    assert [(t.state, t.step) for t in state.trials.values()] == [(DONE, 12)]


def test_a_running_trial_is_cloned_from_its_newest_checkpoint(tmp_path: Path) -> None:
    bench = Bench(tmp_path, search=ONE, train={"max_steps": 12, "checkpoint_every": 4})
    clone = Command("clone", ("0",), {"optimizer.learning_rate": 1e-3})

    async def ask(bench: Bench) -> None:
        await until(lambda: saved(bench))
        bench.inbox.put(clone)
        await until(lambda: not bench.inbox.waiting())
        bench.inbox.put(clone)  # the same once more
        bench.inbox.put(Command("clone", ("0",), {"optimizer.learning_rate": 1e-3}, at=4))
        await asyncio.Event().wait()

    state = bench.run(meanwhile=ask)
    parent, child = state.trials.values()
    assert child.origin and (child.origin.parent, child.origin.step) == (parent.trial_id, 4)
    assert (child.state, child.step, child.index) == (DONE, 12, 1)
    assert [a.split(":")[0] for a in answers(bench)] == ["clone", "clone"]
    assert "it is there already" in answers(bench)[1]


def test_a_running_sweep_is_extended(tmp_path: Path) -> None:
    bench = Bench(tmp_path, search=ONE)

    async def extend(bench: Bench) -> None:
        await asyncio.sleep(1.6)
        more = {"train.max_steps": 12, "search.space": {"lora.rank": [4, 8]}}
        bench.inbox.put(Command("extend", settings=more))
        await until(lambda: not bench.inbox.waiting())
        bench.inbox.put(Command("extend", settings={"train.max_steps": 12}))
        bench.inbox.put(Command("extend", settings={"train.max_steps": 0}))
        await asyncio.Event().wait()

    state = bench.run(meanwhile=extend)
    assert [(t.state, t.step) for t in state.trials.values()] == [(DONE, 12)] * 2
    assert bench.backend.calls.count("optim_step") == 24
    told = answers(bench)
    assert "train.max_steps" in told[0] and "already" in told[1] and told[2].startswith("refused")
    assert len(state.amendments) == 1


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (Command("pause", ("99",)), "no trial '99'"),
        (Command("clone", ("0",), {"lora.rank": 8}), "--fresh"),
        (Command("clone"), "name the one trial"),
        (Command("retry", ("0",)), "did not fail"),
    ],
)
def test_a_command_that_cannot_be_is_refused_and_changes_nothing(
    tmp_path: Path, command: Command, why: str
) -> None:
    bench = Bench(tmp_path, search=ONE)

    async def ask(bench: Bench) -> None:
        await until(lambda: saved(bench))
        bench.inbox.put(command)
        await asyncio.Event().wait()

    state = bench.run(meanwhile=ask)
    (answer,) = answers(bench)
    assert answer.startswith("refused: ") and why in answer
    assert [t.state for t in state.trials.values()] == [DONE]


def test_a_failed_trial_is_retried_while_others_train(tmp_path: Path) -> None:
    from crucible_tinkex.errors import OperationFailedError
    from crucible_tinkex.testing import FakeBackend

    bad = ("optim_step", 2, OperationFailedError("bad row", category="user"))
    bench = Bench(tmp_path, backend=FakeBackend(delay_s=0.5, failures=[bad]))

    async def retry(bench: Bench) -> None:
        failed = lambda: any(t.state == FAILED for t in bench.state.trials.values())  # noqa: E731
        await until(failed)
        bench.inbox.put(Command("retry"))
        await asyncio.Event().wait()

    assert {t.state for t in bench.run(meanwhile=retry).trials.values()} == {DONE}


def test_a_command_is_obeyed_once_however_often_it_is_read(tmp_path: Path) -> None:
    """The driver dies between the answer and the file's end."""
    bench = Bench(tmp_path, search=ONE)
    bench.run()
    clone = Command("clone", ("0",), {"optimizer.learning_rate": 1e-3}, at=4)
    for _ in range(2):
        bench.inbox.put(clone)
        assert len(bench.run().trials) == 2
    assert len(answers(bench)) == 1


def test_what_was_meant_for_a_run_that_has_ended_is_not_done_to_the_next(tmp_path: Path) -> None:
    bench = Bench(tmp_path, search=ONE)
    bench.inbox.put(Command("stop"))
    assert exit_code(bench.run()) == 0
    assert "has ended" in answers(bench)[0]


def test_a_file_that_is_no_command_is_set_aside(tmp_path: Path) -> None:
    bench = Bench(tmp_path, search=ONE)
    bench.paths.control.mkdir(parents=True)
    for name, text in (("1", "{"), ("2", "{}"), ("3", '{"kind": "dance", "trials": []}')):
        (bench.paths.control / f"{name}.json").write_text(text)
    assert exit_code(bench.run()) == 0
    assert [f.suffix for f in sorted(bench.paths.control.iterdir())] == [".refused"] * 3


def test_a_command_to_a_sweep_that_has_ended_changes_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, search=ONE)
    bench.run()
    with pytest.raises(ConfigError, match=r"not running: there is nothing to pause; nothing"):
        send(bench.paths, Command("pause"))
    assert Inbox(bench.paths).waiting() == []


def test_a_command_is_taken_back_where_the_driver_never_answers(tmp_path: Path) -> None:
    bench = Bench(tmp_path, search=ONE)
    bench.run()
    lock = Lock(bench.paths.lock)
    try:
        assert "not answered yet" in send(bench.paths, Command("pause"), wait_s=0.3)
    finally:
        lock.close()
    assert trial(bench).state != RUNNING


def test_what_is_sent_while_a_run_starts_is_for_that_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.is_starting = True
    bench.inbox.put(Command("stop"))
    assert exit_code(bench.run()) == 130
    assert answers(bench) == ["stop: the sweep; it can be resumed"]


def test_what_came_too_late_for_a_run_is_not_for_the_next(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.inbox.put(Command("stop"))
    assert {t.state for t in bench.run().trials.values()} == {DONE}
    assert answers(bench) == ["refused: the run that it was meant for has ended"]
