"""The checkpoint for sampling at a trial's end, and what happens where there can be none."""

from __future__ import annotations

import pytest
from trial_bench import STEPS, Bench

from crucible_tinkex.errors import (
    CrucibleError,
    OperationFailedError,
    RequestRejectedError,
    ServiceUnavailableError,
    StaleAttemptError,
)
from crucible_tinkex.names import sampler_name
from crucible_tinkex.registry import DONE
from crucible_tinkex.training.outcome import Verdict


async def test_a_trial_leaves_its_weights_for_sampling() -> None:
    bench = Bench(checkpoint_every=4)
    await bench.run(5, STEPS)  # not at a rung on the way
    [kept] = bench.trial.samplers
    assert (kept.step, kept.kind, kept.attempt) == (STEPS, "sampler", 1)
    name = sampler_name(bench.plan.trial_id, 1, STEPS)
    assert kept.path.endswith(f"/sampler_weights/{name}")
    assert kept.path in bench.backend.checkpoints
    assert kept.metrics == bench.trial.checkpoints[-1].metrics != {}
    assert all(c.kind == "state" for c in bench.trial.checkpoints)


async def test_none_is_saved_where_none_is_asked_for() -> None:
    bench = Bench(sampler_checkpoint=False)
    await bench.run()
    assert bench.trial.samplers == []
    assert "save_for_sampler" not in bench.backend.calls


@pytest.mark.parametrize(
    "error", [RequestRejectedError("no", status=400), OperationFailedError("broken")]
)
async def test_a_service_that_refuses_costs_no_trial(error: CrucibleError) -> None:
    bench = Bench(failures=[("save_for_sampler", 1, error)])
    assert (await bench.run()).verdict is Verdict.ADVANCED
    assert (bench.trial.state, bench.trial.samplers) == (DONE, [])
    assert any("sampler" in path for path in bench.trial.intents)  # it may be there all the same


async def test_it_is_saved_by_the_next_attempt_where_the_service_was_away() -> None:
    away = ServiceUnavailableError("away")
    bench = Bench(failures=[("save_for_sampler", 1, away)])
    assert (await bench.run()).verdict is Verdict.RETRY
    assert (await bench.run()).verdict is Verdict.ADVANCED
    assert [(c.attempt, c.step) for c in bench.trial.samplers] == [(2, STEPS)]
    assert bench.backend.calls.count("optim_step") == STEPS  # and nothing is trained twice


async def test_one_of_a_replaced_attempt_is_deleted() -> None:
    bench = Bench(checkpoint_every=0)
    bench.registry.fail("commit", StaleAttemptError("replaced"), nth=2)
    await bench.run()
    assert not any("sampler_weights" in path for path in bench.backend.checkpoints)
