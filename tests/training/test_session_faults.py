"""Whatever fails, whenever, before or after it took effect: the next attempt ends the same."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from trial_bench import STEPS, Bench

from crucible_tinkex.errors import (
    OperationFailedError,
    ServiceUnavailableError,
    SessionLostError,
    StaleAttemptError,
)
from crucible_tinkex.registry import DONE
from crucible_tinkex.training.attempt.measurements import public
from crucible_tinkex.training.outcome import Verdict

OPTIONS = {"checkpoint_every": 3, "eval_every": 4, "submit_ahead": 2}
OPERATIONS = {
    "create_training": 1,
    "forward_backward": STEPS,
    "optim_step": STEPS,
    "forward": 3,
    "training_sampler": 2,
    "sample": 4,
    "save_state": 4,
}
"""How often an undisturbed trial does each, at least."""
CASES = [
    (operation, nth, after)
    for operation, count in OPERATIONS.items()
    for nth in range(1, count + 1)
    for after in (False, True)
]
ERRORS = (
    SessionLostError("gone"),
    ServiceUnavailableError("away", status=503),
    OperationFailedError("no space left", category="server"),
)


RUNGS = (4, 7, STEPS)


async def climb(bench: Bench) -> None:
    """Rung by rung as a controller does: one that was not reached is asked for again."""
    host = bench.host()
    for rung in RUNGS:
        for _ in range(3):
            outcome = await host.advance(bench.plan, rung)
            if outcome.verdict is Verdict.ADVANCED:
                break
            assert outcome.verdict is Verdict.RETRY
    assert bench.trial.state == DONE
    await host.aclose()


@pytest.fixture(scope="module")
def whole() -> Bench:
    """The undisturbed trial."""
    bench = Bench(**OPTIONS)
    asyncio.run(climb(bench))
    return bench


def known(bench: Bench) -> set[str]:
    return {c.path for c in (*bench.trial.checkpoints, *bench.trial.samplers)}


@pytest.mark.parametrize(("operation", "nth", "after"), CASES)
async def test_any_failure_leads_to_the_same_end(
    whole: Bench, operation: str, nth: int, after: bool
) -> None:
    error = ERRORS[(nth + after) % len(ERRORS)]
    bench = Bench(**OPTIONS)
    bench.backend.fail(operation, error, nth=nth, after_effect=after)
    await climb(bench)
    assert Counter(bench.backend.calls)[operation] >= nth, "the fault never came"
    assert bench.trial.attempt == 2
    assert bench.trial.results == whole.trial.results
    for name in ("train/nll", "eval/nll", "eval/accuracy", "optim/lr"):
        assert bench.sink.curve(name) == whole.sink.curve(name)
    # Every committed checkpoint is there, was announced, and holds the weights of its step; what
    # was saved and not committed is there no more.
    assert set(bench.backend.checkpoints) == known(bench)
    for checkpoint in bench.trial.checkpoints:
        weights = bench.backend.checkpoints[checkpoint.path]
        assert weights.step == checkpoint.step
        assert checkpoint.path in bench.trial.intents
    final, expected = bench.trial.checkpoints[-1], whole.trial.checkpoints[-1]
    assert bench.backend.checkpoints[final.path] == whole.backend.checkpoints[expected.path]
    assert public(final.metrics) == public(expected.metrics)


@pytest.mark.parametrize("call", ["start", "intend", "commit", "result", "finish"])
@pytest.mark.parametrize("nth", [1, 2, 3])
async def test_a_registry_that_fails_once_loses_nothing(whole: Bench, call: str, nth: int) -> None:
    bench = Bench(**OPTIONS)
    bench.registry.fail(call, ServiceUnavailableError("the registry's actor died"), nth=nth)
    await climb(bench)
    assert bench.trial.results == whole.trial.results


async def test_an_orphan_that_cannot_be_deleted_now_is_deleted_later(whole: Bench) -> None:
    bench = Bench(**OPTIONS)
    bench.registry.fail("commit", ServiceUnavailableError("the registry's actor died"))
    bench.backend.fail("optim_step", ServiceUnavailableError("gone"), nth=6)
    bench.backend.fail("delete_checkpoint", ServiceUnavailableError("gone"), nth=1)
    await climb(bench)
    assert bench.trial.attempt == 3
    assert bench.trial.results == whole.trial.results
    (orphan,) = bench.trial.lost
    assert "a001" in orphan
    assert set(bench.backend.checkpoints) == known(bench)


async def test_what_a_replaced_attempt_saves_it_deletes() -> None:
    """The newer one may have looked before it was there."""
    bench = Bench(**OPTIONS)

    def replaced(call: str, path: str) -> None:
        if call == "intend" and bench.trial.attempt == 1:
            bench.trial.attempt = 2

    bench.registry.watch = replaced
    outcome = await bench.run()
    assert isinstance(outcome.error, StaleAttemptError)
    assert bench.trial.intents and not bench.backend.checkpoints
