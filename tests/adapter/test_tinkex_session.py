"""The seed's session on the fake service: its training, states, checkpoints and recovery."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from desk import ROWS, Desk

from crucible_tinkex.client.http.watch import Observer
from crucible_tinkex.config import Experiment
from crucible_tinkex.datasets import TokenisedDataset, Tokenizer
from crucible_tinkex.errors import (
    ConfigError,
    DataError,
    RequestRejectedError,
    ServiceUnavailableError,
    SessionLostError,
    SessionStateError,
    TrialFailedError,
)
from crucible_tinkex.protocol.wire import LoraConfig
from crucible_tinkex.training.adapter import RecoveryPolicy
from crucible_tinkex.training.adapter.quality import monitor_callback
from crucible_tinkex.training.adapter.rows import tokenised
from crucible_tinkex.training.attempt.stepping import StepResult, take_steps
from crucible_tinkex.training.data import SweepData
from crucible_tinkex.training.plan import TrialPlan
from crucible_tinkex.training.recipes.sft import SupervisedRecipe

RECOVERY = RecoveryPolicy(enabled=True, base_s=0)


# --- training ------------------------------------------------------------------------------------


async def test_it_trains_saves_and_ends(desk: Desk) -> None:
    async with desk.session() as session:
        assert session.status == "ready"
        trained = await session.train(ROWS, epochs=3, batch_size=4, checkpoint_every=3)
        assert (session.status, session.step) == ("ready", 8)
        assert [row["step"] for row in trained.results] == list(range(1, 9))
        assert [c.step for c in trained.checkpoints] == [3, 6, 8]
        assert [row["epoch"] for row in trained.results] == [1, 1, 1, 2, 2, 3, 3, 3]
        assert trained.metrics["final_loss"] < trained.metrics["max_loss"]
        assert trained.best_checkpoint in trained.checkpoints
        assert session.metrics == list(trained.results)
    assert session.status == session.experiment.status == "completed"
    assert desk.backend.ends == ["success"]
    for checkpoint in trained.checkpoints:
        assert {checkpoint.path, checkpoint.sampler_path} <= desk.backend.checkpoints.keys()


def _sweeps_recipe(data: TokenisedDataset) -> SupervisedRecipe:
    declared = {
        "name": "s",
        "model": {"base": "nano"},
        "data": {"train": "x"},
        "optimizer": {"learning_rate": 1e-3, "schedule": "linear", "warmup_steps": 2},
        "train": {"epochs": 3, "batch_size": 4},
    }
    experiment = Experiment.build(declared)
    plan = TrialPlan("t", 0, "r", {}, 7, experiment.train.steps(len(data)), experiment)
    return SupervisedRecipe(plan, SweepData(data, None, "f", None))


async def test_its_numbers_are_those_of_a_sweeps_trial(desk: Desk, tokenizer: Tokenizer) -> None:
    data = tokenised(ROWS, tokenizer, max_length=512)
    recipe = _sweeps_recipe(data)
    service = desk.connect(Observer())
    lora = LoraConfig(rank=4, seed=7, train_unembed=False)
    client = await service.create_training(base_model="nano", lora=lora)
    expected = []

    async def done(step: StepResult) -> None:
        expected.append((await recipe.measure(step.update, step.backward))["train/nll"])

    await take_steps(recipe, client, range(1, 9), done, ahead=1, is_over=lambda: False)
    async with desk.session(seed=7) as session:
        adam = {"lr": 1e-3, "schedule": "linear", "warmup_steps": 2}
        trained = await session.train(ROWS, epochs=3, batch_size=4, adam_params=adam)
    assert [row["loss"] for row in trained.results] == pytest.approx(expected, rel=1e-12)


async def test_the_same_seed_gives_the_same_rows_and_another_does_not(desk: Desk) -> None:
    losses = []
    for seed in (1, 1, 2):
        async with desk.session() as session:
            trained = await session.train(ROWS, batch_size=3, seed=seed)
            losses.append([row["loss"] for row in trained.results])
    assert losses[0] == losses[1] != losses[2]


async def test_a_second_training_goes_on_where_the_first_ended(desk: Desk) -> None:
    async with desk.session() as session:
        await session.train(ROWS, max_steps=2)
        second = await session.train(ROWS, max_steps=2)
        assert [row["step"] for row in second.results] == [3, 4]
        assert [row["step"] for row in session.metrics] == [1, 2, 3, 4]


async def test_accumulation_changes_no_number(desk: Desk) -> None:
    losses = []
    for options in ({"batch_size": 6}, {"batch_size": 2, "accumulate": 3}):
        async with desk.session() as session:
            trained = await session.train(ROWS, epochs=2, **options)
            losses.append([row["loss"] for row in trained.results])
    assert losses[0] == pytest.approx(losses[1])


async def test_held_out_rows_choose_the_best_checkpoint(desk: Desk) -> None:
    async with desk.session() as session:
        trained = await session.train(
            ROWS, eval_dataset=ROWS[:3], epochs=4, batch_size=4, checkpoint_every=5, eval_every=5
        )
    assert trained.best_metric == "eval/nll"
    assert 0 <= trained.final_metrics["eval/accuracy"] <= 1
    values = [c.metrics["eval/nll"] for c in trained.checkpoints]
    assert trained.best_checkpoint == trained.checkpoints[values.index(min(values))]


async def test_callbacks_hear_of_steps_epochs_and_checkpoints(desk: Desk) -> None:
    steps: list[int] = []
    epochs: list[int] = []
    saved: list[int] = []
    async with desk.session() as session:
        await session.train(
            ROWS,
            epochs=2,
            batch_size=5,
            on_step_end=lambda row: steps.append(row["step"]),
            on_epoch_end=epochs.append,
            on_checkpoint=lambda c: saved.append(c.step),
        )
    assert (steps, epochs, saved) == ([1, 2, 3, 4], [1, 2], [4])


async def test_stop_finishes_what_was_sent_and_saves(desk: Desk) -> None:
    async with desk.session() as session:
        trained = await session.train(
            ROWS, epochs=9, batch_size=2, on_step_end=lambda row: session.stop()
        )
        assert [c.step for c in trained.checkpoints] == [session.step]
        assert session.step == len(trained.results) < 5


async def test_a_composite_loss_logs_its_parts(desk: Desk) -> None:
    async with desk.session() as session:
        trained = await session.train(
            ROWS, loss_fn={"nll": 1.0, "focal": 0.5}, batch_size=5, submit_ahead=0
        )
    for row in trained.results:
        parts = row["metrics"]["train/loss/nll"] + row["metrics"]["train/loss/focal"]
        assert row["loss"] == pytest.approx(parts)
        assert 0 < row["metrics"]["train/loss/focal"] <= row["metrics"]["train/loss/nll"]


async def test_gradient_hooks_see_tokens_and_one_that_raises_is_taken_off(desk: Desk) -> None:
    calls = []

    def broken(seen: Any) -> dict[str, Any]:
        calls.append(seen.step)
        raise ValueError("mine")

    async with desk.session() as session:
        trained = await session.train(
            ROWS, batch_size=5, gradient_hooks=["norm", "flow", "health", ("mine", broken)]
        )
    assert calls == [1]
    found = [row["gradients"] for row in trained.results]
    assert all(f["norm"]["token_grad_norm"] > 0 and f["norm"]["grad_norm"] is None for f in found)
    assert all(f["flow"]["available"] is False for f in found)
    assert all(f["health"]["gradient_health"] == "healthy" for f in found)


async def test_invalid_citations_are_weighed_and_measured(desk: Desk) -> None:
    rows = [
        {"prompt": "p", "completion": "CLAIM[c1]: x (citing 1)", "doc_ids": [1]},
        {"prompt": "p", "completion": "CLAIM[c1]: y (citing 2)", "doc_ids": [1]},
    ]
    async with desk.session() as session:
        trained = await session.train(
            rows, loss_fn="citation_validity", citation_validity_weight=5.0, batch_size=2
        )
    assert trained.results[0]["citation_invalid_rate"] == 0.5
    assert trained.metrics["mean_citation_invalid_rate"] == 0.5


# --- operation by operation ----------------------------------------------------------------------


async def test_single_operations_give_the_seeds_answers(desk: Desk) -> None:
    async with desk.session() as session:
        first = await session.forward_backward(ROWS)
        await session.optim_step({"lr": 1e-3})
        second = await session.forward_backward(ROWS)
        step = await session.optim_step()
        assert 0 < second["loss"] < first["loss"]
        assert step["grad_norm"] is None
        assert session.step == step["step"] == 2
        assert [row["loss"] for row in session.metrics] == [first["loss"], second["loss"]]


async def test_evaluate_and_infer(desk: Desk) -> None:
    async with desk.session() as session:
        trained = await session.train(ROWS, epochs=8, batch_size=5)
        before = session.step
        found = await session.evaluate(
            ROWS, scorers={"right": lambda row, text: float(row["completion"].strip() in text)}
        )
        assert found.metrics["eval/nll"] < 2.0
        assert 0 <= found.metrics["right"] <= 1
        assert len(found.samples) == len(ROWS)
        assert found.samples[0].nll is not None
        assert (session.status, session.step) == ("ready", before)
        texts = await session.infer(["say 1", "say 2"], num_samples=2, max_tokens=3, seed=1)
        assert [c.prompt for c in texts] == ["say 1", "say 1", "say 2", "say 2"]
        old = await session.evaluate(ROWS, checkpoint=trained.checkpoints[-1].name)
        assert old.metrics["eval/nll"] == found.metrics["eval/nll"]
        assert old.checkpoint == trained.checkpoints[-1].name


async def test_evaluate_measures_what_an_evaluation_of_a_sweep_does(desk: Desk) -> None:
    asked = ["exact_match", "classification", "pass@k", {"regex": r"^\s*\d", "name": "digit"}]
    async with desk.session() as session:
        saved = await session.save_checkpoint()
        found = await session.evaluate(
            ROWS,
            checkpoint=saved,
            metrics=asked,
            samples=2,
            temperature=0.5,
            max_tokens=3,
            stop="x",
        )
    for name in ("exact_match", "class_accuracy", "f1_macro", "pass@2", "score/digit"):
        assert 0 <= found.metrics[f"eval/{name}"] <= 1
    assert [len(row.answers) for row in found.samples] == [2] * len(ROWS)
    assert found.samples[0].expected == " 0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["f1"]}, "evaluate: metrics: no metric 'f1'; there are .*classification"),
        ({"samples": 3}, "samples has no effect without metrics"),
        ({"metrics": ["pass@1"], "samples": 2, "temperature": 0}, "temperature 0"),
        ({"metrics": ["no_such_module:f"]}, "no_such_module:f"),
        ({"scorers": [len]}, "must be functions by name"),
    ],
)
async def test_an_evaluation_that_cannot_be_measured_is_refused(
    desk: Desk, options: dict[str, Any], message: str
) -> None:
    async with desk.session() as session:
        with pytest.raises(ConfigError, match=message):
            await session.evaluate(ROWS, **options)
        assert session.status == "ready"


async def test_a_monitor_ends_a_training_that_misses_its_target_by_far(desk: Desk) -> None:
    heard: list[tuple[str, int]] = []
    monitor = monitor_callback(
        {"eval/nll": 0.001},
        on_warning=lambda found: heard.append(("warning", found["step"])),
        on_failure=lambda found: heard.append(("failure", found["step"])),
    )
    async with desk.session() as session:
        trained = await session.train(
            ROWS, eval_dataset=ROWS[:3], batch_size=2, eval_every=2, on_evaluation=monitor
        )
        assert session.status == "ready"
    assert [row["step"] for row in trained.results] == [1, 2]
    assert [c.step for c in trained.checkpoints] == [2]
    assert heard == [("failure", 2)]


@pytest.mark.parametrize(
    ("accuracy", "nll", "verdict"),
    [(0.9, 1.0, "ok"), (0.85, 1.0, "warn"), (0.85, 1.5, "fail"), (None, 1.0, "ok")],
)
def test_a_monitor_warns_only_where_every_miss_is_near(
    accuracy: float | None, nll: float, verdict: str
) -> None:
    found = {"eval/accuracy": accuracy, "eval/nll": nll}
    assert monitor_callback({"eval/accuracy": 0.9, "eval/nll": 1.0})(1, found) == verdict


async def test_a_session_says_whose_it_is(desk: Desk) -> None:
    async with desk.session() as session:
        assert session.experiment_id == session.experiment.id
        assert session.config.base_model == "nano"


async def test_a_checkpoint_brings_back_weights_and_step(desk: Desk) -> None:
    async with desk.session() as session:
        trained = await session.train(ROWS, epochs=2, batch_size=4, checkpoint_every=2)
        whole = [row["loss"] for row in trained.results]
        await session.load_checkpoint(trained.checkpoints[0])
        assert session.step == 2
        again = await session.train(ROWS, epochs=2, batch_size=4, start_step=2)
        assert [row["loss"] for row in again.results] == whole[2:]
        assert [row["step"] for row in again.results] == [3, 4, 5]


async def test_two_saves_of_one_step_have_two_names(desk: Desk) -> None:
    async with desk.session() as session:
        first, second = await session.save_checkpoint(), await session.save_checkpoint()
        assert (first.step, second.step) == (0, 0)
        assert first.name == f"{session.experiment.id}_step_00000000"
        assert second.name == f"{first.name}_r2"


# --- states --------------------------------------------------------------------------------------


async def test_one_thing_at_a_time(desk: Desk) -> None:
    desk.backend.delay_s = 0.01
    async with desk.session() as session:
        saved = await session.save_checkpoint()
        training = asyncio.ensure_future(session.train(ROWS, epochs=4, batch_size=5))
        while session.status != "training":
            await asyncio.sleep(0)
        for refused in (
            session.train(ROWS),
            session.evaluate(ROWS),
            session.forward_backward(ROWS),
            session.optim_step(),
            session.save_checkpoint(),
            session.load_checkpoint(saved),
            session.infer("say"),
        ):
            with pytest.raises(SessionStateError, match="training"):
                await refused
        assert len(await session.infer("say", checkpoint=saved, max_tokens=2)) == 1
        await training
        assert session.status == "ready"


async def test_a_failed_step_fails_the_session_until_it_is_recovered(desk: Desk) -> None:
    async with desk.session() as session:
        await session.train(ROWS, max_steps=2)
        desk.backend.fail("optim_step", RequestRejectedError("no", status=422, category="user"))
        with pytest.raises(RequestRejectedError) as caught:
            await session.train(ROWS, max_steps=2)
        assert caught.value.context["operation"] == "train"
        assert session.status == "failed"
        with pytest.raises(SessionStateError, match="recover"):
            await session.train(ROWS)
        await session.recover()
        assert (session.status, session.step) == ("ready", 2)
        await session.train(ROWS, max_steps=1)
    assert desk.names("session_start", "session_end") == ["session_start", "session_end"]


def _gradientless(logprobs: Any) -> Any:
    return 1.0, [row * float("nan") for row in logprobs], {}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_sise": 4}, "did you mean 'batch_size'"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"epochs": 0}, "epochs"),
        ({"loss_fn": "cross_entopy"}, "did you mean 'cross_entropy'"),
        ({"loss_fn": "chirality"}, "no published definition"),
        ({"loss_fn": lambda rows: 3}, "train: loss_fn: on the first rows"),
        ({"loss_fn": lambda rows: _gradientless}, "row 0 is not finite: nan at token 0"),
        ({"token_weights": "claims", "weight_config": {"claim_wieght": 3}}, "mean 'claim_weight'"),
        ({"token_weights": "calims"}, "unknown token-weight scheme 'calims'"),
        ({"adam_params": 0.1}, "adam_params"),
        ({"eval_datset": ROWS}, "did you mean 'eval_dataset'"),
        ({"loss_fn": "ppo"}, "'ppo' needs logprobs and advantages of a sampler"),
        ({"loss_fn": {"cross_entropy": 1.0}}, "part of a composite"),
        ({"adam_params": {"lr": -1}}, "learning_rate"),
        ({"adam_params": {"momentum": 1}}, "momentum"),
        ({"gradient_hooks": ["nrom"]}, "nrom"),
        ({"start_step": 3}, "load the checkpoint"),
    ],
)
async def test_what_is_wrong_is_refused_before_anything_is_sent(
    desk: Desk, wrong: dict[str, Any], message: str
) -> None:
    async with desk.session() as session:
        before = list(desk.backend.calls)
        with pytest.raises(ConfigError, match=message):
            await session.train(ROWS, **wrong)
        assert (session.status, desk.backend.calls) == ("ready", before)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{"prompt": "a"}], "line 1: found the keys prompt"),
        ([ROWS[0], {"prompt": "a", "completion": 3}], "line 2: 'completion'"),
        ([ROWS[0], "text"], "line 2: expected a dict"),
        ([{**ROWS[0], "weight": -1.0}], "line 1: the row's weight must be a finite"),
        ([{**ROWS[0], "weight": 0.0}], "every token has the weight 0"),
        ([{"messages": [{"role": "user"}]}], "needs 'role' and 'content'"),
    ],
)
async def test_bad_rows_are_named_and_damage_nothing(
    desk: Desk, rows: list[Any], message: str
) -> None:
    async with desk.session() as session:
        with pytest.raises((DataError, ConfigError), match=message):
            await session.train(rows, batch_size=1)
        assert session.status == "ready"
        assert "forward_backward" not in desk.backend.calls


async def test_a_session_that_cannot_begin_ends_all_the_same(desk: Desk) -> None:
    desk.backend.fail("create_training", ServiceUnavailableError("away"))
    session = desk.session()
    with pytest.raises(ServiceUnavailableError) as caught:
        await session.open()
    assert caught.value.context["operation"] == "open"
    assert (session.status, session.experiment.status) == ("failed", "failed")
    assert desk.names() == ["session_end"]
    assert desk.backend.ends == ["errored"]


async def test_a_closed_session_refuses_everything_and_closes_once(desk: Desk) -> None:
    async with desk.session() as session:
        saved = await session.save_checkpoint()
    await session.close()
    assert desk.names("session_end") == ["session_end"]
    with pytest.raises(SessionStateError, match="closed"):
        await session.train(ROWS)
    with pytest.raises(SessionStateError, match="closed"):
        await session.infer("say", checkpoint=saved)
    with pytest.raises(SessionStateError):
        await session.recover()


async def test_a_checkpoint_that_is_gone_leaves_the_weights_alone(desk: Desk) -> None:
    async with desk.session() as session:
        saved = await session.save_checkpoint()
        desk.backend.forget(saved.path)
        with pytest.raises(RequestRejectedError):
            await session.load_checkpoint(saved)
        assert session.status == "ready"
        with pytest.raises(ConfigError, match="for sampling only"):
            await session.load_checkpoint(f"{saved.sampler_path}-of-another", step=1)
        with pytest.raises(ConfigError, match=f"saved: {saved.name}"):
            await session.load_checkpoint("nothing")
        with pytest.raises(ConfigError, match="the Tinker API takes no uploads"):
            await session.load_checkpoint("s3://bucket/adapters/t/n")


async def test_a_loss_that_is_not_finite_fails_with_its_remedy(desk: Desk) -> None:
    async with desk.session() as session:
        with pytest.raises(TrialFailedError, match="lower learning rate"):
            await session.train(
                ROWS,
                loss_fn=lambda batch: (
                    lambda logprobs: (
                        0.0 if (logprobs[0] == -1).all() else float("nan"),  # not where it is tried
                        [row * 0 for row in logprobs],
                        {},
                    )
                ),
            )


# --- recovery ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost_at", range(1, 6))
async def test_a_lost_session_is_recovered_to_the_same_numbers(desk: Desk, lost_at: int) -> None:
    options: dict[str, Any] = {"epochs": 2, "batch_size": 4, "checkpoint_every": 2}
    async with desk.session() as session:
        whole = await session.train(ROWS, **options)
    desk.backend.fail("optim_step", SessionLostError("gone"), nth=lost_at)
    async with desk.session() as session:
        trained = await session.train(ROWS, **options, recovery=RECOVERY)
    assert [r["loss"] for r in trained.results] == [r["loss"] for r in whole.results]
    assert [r["step"] for r in trained.results] == [1, 2, 3, 4, 5]
    assert trained.final_metrics == whole.final_metrics
    assert desk.names("recovery_started", "recovery_completed") == [
        "recovery_started",
        "recovery_completed",
    ]


async def test_recovery_gives_up_after_its_attempts(desk: Desk) -> None:
    for nth in range(1, 6):
        desk.backend.fail("optim_step", SessionLostError("gone"), nth=nth)
    async with desk.session() as session:
        with pytest.raises(SessionLostError):
            await session.train(ROWS, recovery=replace(RECOVERY, max_attempts=2))
        assert session.status == "failed"
    assert desk.names("recovery_started", "recovery_failed") == [
        "recovery_started",
        "recovery_started",
        "recovery_failed",
    ]


async def test_what_the_request_is_to_blame_for_is_not_recovered(desk: Desk) -> None:
    desk.backend.fail("optim_step", RequestRejectedError("no", status=400, category="user"))
    async with desk.session() as session:
        with pytest.raises(RequestRejectedError):
            await session.train(ROWS, recovery=RECOVERY)
    assert not desk.names("recovery_started")


def test_waits_before_a_recovery_double_up_to_a_minute() -> None:
    policy = RecoveryPolicy()
    assert [policy.delay_s(n) for n in range(1, 7)] == [5, 10, 20, 40, 60, 60]


# --- events --------------------------------------------------------------------------------------


async def test_every_operation_is_told_once(desk: Desk) -> None:
    async with desk.session() as session:
        await session.train(ROWS, max_steps=3, batch_size=2, accumulate=2)
        await session.infer("say", max_tokens=1)
    counts = {name: desk.names().count(name) for name in desk.names()}
    assert counts["forward_backward_start"] == counts["forward_backward_stop"] == 6
    assert counts["optim_step_start"] == counts["optim_step_stop"] == 3
    assert counts["save_weights_stop"] == 2
    assert counts["checkpoint_saved"] == counts["session_start"] == counts["session_end"] == 1
    assert counts["sample_stop"] == 1
    stop = next(e for e in desk.events if e.name == "forward_backward_stop")
    assert stop.measurements["duration_s"] >= 0
    assert stop.measurements["crucible_timestamp"] > 1.7e12
    assert stop.metadata["adapter"] == "tinkex"
    assert stop.metadata["experiment_id"] == session.experiment.id
    assert stop.metadata["crucible_version"]


async def test_a_failed_operation_is_told_as_an_exception(desk: Desk) -> None:
    desk.backend.fail("forward_backward", RequestRejectedError("no", status=422))
    async with desk.session() as session:
        with pytest.raises(RequestRejectedError):
            await session.forward_backward(ROWS)
    told = next(e for e in desk.events if e.name == "forward_backward_exception")
    assert told.metadata["error_type"] == "validation"
    assert not desk.names("forward_backward_stop")
