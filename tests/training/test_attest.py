"""Two steps tell which settings a service applies, which it does not, and when nobody can say."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible_tinkex.config import Experiment
from crucible_tinkex.config.axes import NUMBERS, axis_keys
from crucible_tinkex.datasets import TokenisedDataset
from crucible_tinkex.errors import (
    ConfigError,
    OperationFailedError,
    RequestRejectedError,
    SessionLostError,
)
from crucible_tinkex.protocol.wire import AdamParams, OptimStepResponse
from crucible_tinkex.testing import FakeBackend, FakeService, FakeTraining
from crucible_tinkex.testing.clock import run_virtual
from crucible_tinkex.training.attest.contrasts import (
    BY_SESSIONS,
    CONTRASTED,
    MOVES,
    base_of,
    contrasts_of,
)
from crucible_tinkex.training.attest.judging import Reading, judge, noise_of
from crucible_tinkex.training.attest.policies import loss_contrasts
from crucible_tinkex.training.attest.probing import Attestation, attest, cost
from crucible_tinkex.training.attest.settings import Settings

AXES: Mapping[str, list[Any]] = {
    "lora.rank": [4, 8],
    "lora.seed": [1, 2],
    "lora.train_attn": [True, False],
    "lora.train_mlp": [True, False],
    "lora.train_unembed": [True, False],
    "optimizer.learning_rate": [1e-4, 3e-4],
    "optimizer.beta1": [0.9, 0.95],
    "optimizer.beta2": [0.95, 0.99],
    "optimizer.eps": [1e-12, 1e-8],
    "optimizer.weight_decay": [0.0, 0.01],
    "optimizer.grad_clip_norm": [0.0, 1.0],
    "optimizer.schedule": ["constant", "linear"],
    "train.accumulate": [1, 2],
    "train.loss": ["cross_entropy", "focal"],
}


def experiment(space: Mapping[str, Any] | None = None, **sections: Any) -> Experiment:
    """Of one axis or of several."""
    search = {"space": AXES if space is None else space, **sections.pop("search", {})}
    return Experiment.build(
        {
            "name": "s",
            "model": {"base": "nano"},
            "data": {"train": "x", "eval": "y"},
            "search": search,
            **sections,
        }
    )


def rows(count: int = 6) -> TokenisedDataset:
    return TokenisedDataset(
        tokens=np.arange(1, count * 5 + 1, dtype=np.int32),
        mask=np.tile(np.array([0, 0, 1, 1, 1], np.uint8), count),
        offsets=np.arange(count + 1, dtype=np.int64) * 5,
        prompt_lengths=np.full(count, 2, np.int32),
        eos_id=0,
        truncated=0,
        has_prompts=True,
        fingerprint="x",
    )


def attested(
    backend: FakeBackend, asked: Experiment | None = None, data: TokenisedDataset | None = None
) -> Attestation:
    return run_virtual(
        attest(
            lambda: FakeService(backend),
            contrasts_of(asked or experiment()),
            data or rows(),
            base_model="nano",
        )
    )


def verdicts(found: Attestation) -> dict[str, str]:
    return {f.key: f.verdict for f in found.findings}


SCHEDULE = "optimizer.schedule"
ALL_APPLIED = dict.fromkeys([*AXES, MOVES], "applied")


def test_what_is_applied_is_seen_and_what_it_cost_is_said() -> None:
    backend = FakeBackend()
    found = attested(backend)
    assert verdicts(found) == ALL_APPLIED
    assert found.noise == 0
    # Clipping and losses have controls of their own.
    assert len(backend.ends) == found.models == 3 + len(AXES) + 2
    steps = [e for e in backend.ledger if e.operation == "optim_step"]
    assert found.spent.steps == len(steps) == 2 * found.models
    tokens = sum(e.tokens for e in backend.ledger if e.operation == "forward_backward")
    assert found.spent.train_tokens == tokens > 0
    coming = cost(contrasts_of(experiment()), rows())
    assert (coming.models, coming.findings) == (found.models, ())
    assert coming.spent == replace(found.spent, seconds=0.0), "what was announced"
    assert cost([], rows()).models == 0


@pytest.mark.parametrize("key", AXES)
@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_a_setting_that_is_ignored_is_found_and_no_other(key: str, noise: float) -> None:
    found = attested(FakeBackend(ignores=[key], tells_rank=False, noise=noise))
    lost = [key, *([SCHEDULE] if key == "optimizer.learning_rate" else [])]
    assert verdicts(found) == {**ALL_APPLIED, **dict.fromkeys(lost, "not applied")}
    assert [f.key for f in found.findings if f.refused] == lost


def test_the_rank_is_what_the_service_says() -> None:
    loud = attested(FakeBackend(ignores=["lora.rank"]), experiment({"lora.rank": [4, 16]}))
    rank = loud.findings[0]
    assert (rank.key, rank.verdict) == ("lora.rank", "not applied")
    assert "rank 8 where 4 was asked for" in rank.why


def test_noise_that_would_hide_an_effect_is_said_and_refuses_nothing() -> None:
    found = attested(FakeBackend(noise=3.0, ignores=["optimizer.beta1"]))
    assert verdicts(found)["optimizer.beta1"] == "cannot be told"
    assert not any(f.refused for f in found.findings)


def test_a_service_that_learns_nothing_proves_nothing() -> None:
    class Idle(FakeTraining):
        def optim_step(self, params: AdamParams) -> Awaitable[OptimStepResponse]:
            return super().optim_step(params.model_copy(update={"learning_rate": 1e-12}))

    class IdleService(FakeService):
        async def create_training(self, **asked: Any) -> FakeTraining:
            made = await super().create_training(**asked)
            return Idle(made.model_id, made.weights, self)

    asked = contrasts_of(experiment())
    found = run_virtual(
        attest(lambda: IdleService(FakeBackend()), asked, rows(), base_model="nano")
    )
    assert set(verdicts(found).values()) == {"cannot be told"}


def test_only_what_varies_is_refused_and_what_is_declared_is_named() -> None:
    asked = experiment(
        {"optimizer.learning_rate": [1e-4, 1e-3]}, optimizer={"beta2": 0.999}, lora={"rank": 16}
    )
    found = attested(FakeBackend(ignores=["optimizer.beta2"]), asked)
    assert verdicts(found)["optimizer.beta2"] == "not applied"
    assert not any(f.refused for f in found.findings)
    assert set(verdicts(found)) == {
        "optimizer.learning_rate",
        "optimizer.beta2",
        "lora.rank",
        MOVES,
    }


def test_what_sessions_do_themselves_needs_no_proof() -> None:
    space = {"train.batch_size": [1, 2], "train.epochs": [1, 2]}
    assert [c.key for c in contrasts_of(experiment(space))] == [MOVES]
    assert [c.key for c in contrasts_of(experiment({"lora.rank": [8]}))] == [MOVES]


def test_every_key_that_can_be_an_axis_is_contrasted_or_is_done_by_sessions() -> None:
    assert sorted({*axis_keys(), NUMBERS}) == sorted([*CONTRASTED, *BY_SESSIONS])
    page = (Path(__file__).parents[2] / "docs" / "attest.md").read_text(encoding="utf-8")
    table, sessions = page.split("## What needs no proof")
    named = {key: f"`{key}" for key in (*CONTRASTED, *BY_SESSIONS)}
    short = {key: f"`{key.partition('.')[2]}`" for key in named}
    for key in CONTRASTED:
        assert named[key] in table or short[key] in table, key
    for key in BY_SESSIONS:
        assert named[key] in sessions, key


@pytest.mark.parametrize(
    "space",
    [
        {"train.token_weights": ["uniform", "claims"]},
        {"train.weight_config.claim_weight": [2.0, 5.0]},
        {"train.adapter": ["mine:A", "mine:B"]},
    ],
)
def test_what_is_weighed_here_is_proved_by_the_weights(space: dict[str, list[Any]]) -> None:
    train = {"token_weights": "claims"} if "weight_config" in str(space) else {}
    asked = experiment(space, train=train)
    (key,) = space
    assert verdicts(attested(FakeBackend(), asked))[key] == "applied"
    deaf = attested(FakeBackend(ignores=["train.token_weights"]), asked)
    assert [f.key for f in deaf.findings if f.refused] == [key]


def test_losses_that_are_equal_in_numbers_accuse_nobody() -> None:
    asked = experiment({"train.loss": ["cross_entropy", "nll"]})
    assert verdicts(attested(FakeBackend(), asked))["train.loss"] == "applied"


def test_a_service_that_takes_no_negative_weights_has_not_been_told() -> None:
    class Refusing(FakeTraining):
        def forward_backward(self, data: Any, **loss: Any) -> Any:
            if min(min(d.loss_fn_inputs["weights"].data) for d in data) < 0:
                raise RequestRejectedError("weights must be positive", status=400)
            return super().forward_backward(data, **loss)

    class Service(FakeService):
        async def create_training(self, **asked: Any) -> FakeTraining:
            made = await super().create_training(**asked)
            return Refusing(made.model_id, made.weights, self)

    asked = contrasts_of(experiment({"train.loss": ["cross_entropy", "nll"]}))
    found = run_virtual(
        attest(lambda: Service(FakeBackend()), asked, rows(), base_model="nano")
    ).findings[0]
    assert found.verdict == "cannot be told" and "weights must be positive" in found.why


def test_a_declared_loss_is_named_where_it_has_no_effect() -> None:
    asked = experiment({"lora.rank": [4, 8]}, train={"loss": "nll"})
    found = {f.key: f for f in attested(FakeBackend(ignores=["train.loss"]), asked).findings}
    assert found["train.loss"].verdict == "not applied" and not found["train.loss"].refused


def test_what_accumulating_and_losses_on_samples_cost_is_announced() -> None:
    base = base_of(contrasts_of(experiment({"lora.rank": [4, 8]})))
    asked = [
        *loss_contrasts(["importance_sampling", "ppo", "dro"], base),
        *contrasts_of(experiment({"train.accumulate": [1, 2]})),
    ]
    backend = FakeBackend()
    found = run_virtual(attest(lambda: FakeService(backend), asked, rows(), base_model="nano"))
    assert cost(asked, rows()).spent == replace(found.spent, seconds=0.0)
    with pytest.raises(ConfigError, match="unknown loss 'grpo' of a service; there are imp"):
        loss_contrasts(["ppo", "grpo"], base)


def test_configurations_that_are_listed_or_tried_first_vary_too() -> None:
    listed = experiment({}, search={"strategy": "list", "configs": [{"lora.rank": 32}, {}]})
    assert listed_ranks(listed) == {32, 8}
    guessed = experiment({"train.epochs": [1, 2]}, search={"enqueue": [{"lora.rank": 4}]})
    assert listed_ranks(guessed) == {4, 8}
    ranged = experiment(
        {"lora.rank": {"low": 4, "high": 64, "log": True}},
        search={"strategy": "random", "trials": 3},
    )
    assert listed_ranks(ranged) == {4, 64}


def listed_ranks(asked: Experiment) -> set[Any]:
    return next(set(c.asked) for c in contrasts_of(asked) if c.key == "lora.rank" and c.varies)


def test_seeds_need_the_adapters_seed() -> None:
    asked = experiment({"train.epochs": [1, 2]}, search={"seeds": [3, 4]})
    seeds = next(c for c in contrasts_of(asked) if c.key == "lora.seed")
    assert seeds.probed == (3, 4) and not seeds.varies


# --- faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operation", ["create_training", "forward_backward", "optim_step", "forward"]
)
@pytest.mark.parametrize("nth", [1, 9])
def test_a_service_that_dies_ends_the_proof_and_leaves_no_model(operation: str, nth: int) -> None:
    backend = FakeBackend(delay_s=0.1, failures=[(operation, nth, SessionLostError("gone"))])
    with pytest.raises(SessionLostError, match="gone"):
        attested(backend)
    made = backend.calls.count("create_training")
    assert len(backend.ends) >= made
    assert sum(backend.in_flight.values()) == 0


def test_a_setting_that_is_refused_is_a_finding() -> None:
    class Refusing(FakeService):
        async def create_training(self, *, base_model: str, lora: Any, **more: Any) -> Any:
            if lora.train_unembed:
                raise RequestRejectedError("no output layer here", status=400)
            return await super().create_training(base_model=base_model, lora=lora, **more)

    asked = experiment({"lora.train_unembed": [True, False]})
    found = run_virtual(
        attest(lambda: Refusing(FakeBackend()), contrasts_of(asked), rows(), base_model="nano")
    )
    first = found.findings[0]
    assert first.refused and "no output layer here" in first.why


def test_a_base_that_the_service_refuses_is_no_setting() -> None:
    with pytest.raises(RequestRejectedError, match="no base model"):
        attested(FakeBackend(base_models=["other"]))


def test_a_failure_of_the_service_is_no_refusal() -> None:
    failed = OperationFailedError("out of memory", category="server")
    with pytest.raises(OperationFailedError, match="out of memory"):
        attested(FakeBackend(failures=[("optim_step", 12, failed)]))


def test_numbers_that_are_none_tell_nothing() -> None:
    contrast = contrasts_of(experiment({"lora.rank": [4, 8]}))[0]
    broken = Reading((math.nan,), math.nan)
    readings: dict[Settings, Any] = {contrast.a: broken, contrast.b: broken}
    assert judge(contrast, readings, 0.0).verdict == "cannot be told"
    assert math.isnan(noise_of([broken, broken]))


def test_one_row_is_enough() -> None:
    assert verdicts(attested(FakeBackend(), data=rows(1)))["optimizer.learning_rate"] == "applied"
