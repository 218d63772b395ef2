"""Losses and token weights in a sweep: what is a trial of its own, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from local_sweeps import Bench

from crucible_tinkex.config import Experiment
from crucible_tinkex.datasets import Tokenizer, load_tokenizer
from crucible_tinkex.errors import ConfigError, SweepExistsError, TrialFailedError
from crucible_tinkex.protocol.wire import ForwardBackwardOutput, TensorData
from crucible_tinkex.registry import DONE, FAILED, Registry, Spent, SweepState
from crucible_tinkex.sweep.preparing.manifest import write_manifest
from crucible_tinkex.sweep.preparing.preparation import PreparedSweep, prepare
from crucible_tinkex.training.host import recipe_of
from crucible_tinkex.training.losses.objective import Objective
from crucible_tinkex.training.recipes.sft import SupervisedRecipe

LOSSES = """
import numpy as np
from crucible_tinkex.training.losses import per_token

halves = per_token(lambda p: (-p / 2, np.full_like(p, -0.5)))

def first(row, completion, config):
    return 1.0, ((0, 1, config.get("first", 2.0)),)

def breaks(batch):
    raise RuntimeError("no loss today")

def score(answer, row):
    return 1.0
"""
Make = Callable[..., Experiment]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "so_losses", raising=False)
    (tmp_path / "so_losses.py").write_text(LOSSES)
    for name in ("train", "eval"):
        rows = [json.dumps({"prompt": f"{name}{i}", "completion": "xy"}) for i in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))

    def build(space: dict[str, Any] | None = None, **sections: Any) -> Experiment:
        declared: dict[str, Any] = {
            "name": "s",
            "service": {"base_url": "embedded"},
            "model": {"base": "nano"},
            "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
            "search": {"space": space or {}},
            "run": {"storage": "runs"},
        }
        return Experiment.build({**declared, **sections}, folder=tmp_path)

    return build


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One token for each byte."""
    folder = tmp_path_factory.mktemp("bytes")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*letters, "<end>"])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    return load_tokenizer(folder)


def trials(prepared: PreparedSweep) -> dict[str, dict[str, Any]]:
    plans = [prepared.planner.plan(values, 0) for values in prepared.configurations]
    return {plan.trial_id: dict(plan.values) for plan in plans}


def test_losses_schemes_and_their_numbers_are_axes(make: Make) -> None:
    space = {
        "train.loss": ["cross_entropy", "nll + 0.5 * so_losses:halves"],
        "train.token_weights": ["uniform", "so_losses:first"],
        "train.weight_config.first": [2, 4.0],
    }
    prepared = prepare(make(space))
    assert len(trials(prepared)) == 8
    assert set(prepared.objectives.code) == {"so_losses:halves", "so_losses:first"}
    plan = prepared.planner.plan(prepared.configurations[-1], 0)
    assert Objective.of(plan.experiment.train).numbers == {"first": 4.0}
    assert set(plan.code) == {"so_losses:halves", "so_losses:first"}


def test_an_unquoted_number_of_a_scheme_is_an_axis(make: Make) -> None:
    space = {"train": {"weight_config": {"first": [1, 2]}, "token_weights": ["so_losses:first"]}}
    assert len(trials(prepare(make(space)))) == 2


def test_the_source_of_a_loss_is_a_part_of_its_trials_alone(make: Make, tmp_path: Path) -> None:
    experiment = make({"train.loss": ["nll", "so_losses:halves"]})
    before = trials(prepare(experiment))
    (tmp_path / "so_losses.py").write_text(LOSSES.replace("/ 2", "/ 2.0"))
    after = trials(prepare(experiment))
    assert [v["train.loss"] for i, v in after.items() if i not in before] == ["so_losses:halves"]


async def test_a_sweep_with_results_refuses_functions_that_have_changed(
    make: Make, tmp_path: Path
) -> None:
    def begun(**sections: Any) -> PreparedSweep:
        return prepare(make({"train.loss": ["so_losses:halves"]}, **sections))

    scored = {"evaluation": {"metrics": ["so_losses:score"]}}
    prepared = begun(**scored)
    registry = Registry(prepared.paths, "run-1")
    await registry.create(write_manifest(prepared))
    assert begun(**scored).amendments == []
    (tmp_path / "so_losses.py").write_text(LOSSES.replace("return 1.0\n", "return 0.5\n"))
    mended = begun(**scored)  # what failed in every trial is mended, and tried again
    assert set(mended.amendments) == {f"the source of so_losses:{n}" for n in ("halves", "score")}
    await registry.decide(prepared.policy().decide(SweepState(), slots=1), "op")
    (trial_id,) = registry.state.trials
    attempt = (await registry.start_attempt(trial_id)).attempt
    await registry.record_result(trial_id, attempt, 2, {"eval/nll": 1.0}, Spent())
    registry.shut()
    with pytest.raises(SweepExistsError, match="changed: the source of so_losses:score"):
        begun(**scored)
    (tmp_path / "so_losses.py").write_text(LOSSES)
    assert begun(**scored).amendments == []


async def test_a_step_may_be_mended_until_a_trial_has_ended_with_it(
    make: Make, tmp_path: Path
) -> None:
    def begun() -> PreparedSweep:
        return prepare(make({"lora.rank": [1, 2]}, steps={"after": ["so_losses:score"]}))

    prepared = begun()
    registry = Registry(prepared.paths, "run-1")
    await registry.create(write_manifest(prepared))
    await registry.decide(prepared.policy().decide(SweepState(), slots=3), "op")
    _, first, second = registry.state.trials  # after the untrained base

    async def ends(trial_id: str, state: str) -> None:
        attempt = (await registry.start_attempt(trial_id)).attempt
        await registry.record_result(trial_id, attempt, 2, {"eval/nll": 1.0}, Spent())
        await registry.finish(trial_id, attempt, state, None, Spent())

    await ends(first, FAILED)
    (tmp_path / "so_losses.py").write_text(LOSSES.replace("return 1.0\n", "return 0.5\n"))
    assert begun().amendments == ["the source of so_losses:score"]
    await ends(second, DONE)
    registry.shut()
    with pytest.raises(SweepExistsError, match="changed: the source of so_losses:score"):
        begun()


@pytest.mark.parametrize(
    ("space", "train", "message"),
    [
        ({"train.loss": ["nll", "nl"]}, {}, "train.loss: unknown loss 'nl'; did you mean 'nll'"),
        ({"lora.rank": [2]}, {"loss": "so_gone:f"}, "train.loss: .*No module named 'so_gone'"),
        (
            {"train.token_weights": ["uniform", "ufo"]},
            {},
            "unknown token-weight scheme 'ufo'",
        ),
        ({"train.weight_config.first": [1, 2]}, {}, "no effect without train.token_weights"),
        (
            {"train.weight_config.claim_wieght": [1, 2]},
            {"token_weights": "claims"},
            "no number 'claim_wieght'; did you mean 'claim_weight'",
        ),
        ({"train.weight_config": [1]}, {}, "unknown axis 'train.weight_config'"),
    ],
)
@pytest.mark.parametrize("strategy", ["grid", "tpe"])
def test_what_there_is_not_is_refused_before_anything_is_spent(
    make: Make, tmp_path: Path, strategy: str, space: Any, train: Any, message: str
) -> None:
    search = {"space": space, "strategy": strategy, "trials": 3 if strategy == "tpe" else None}
    with pytest.raises(ConfigError, match=message):
        prepare(make(train=train, search=search))
    assert not (tmp_path / "runs").exists()


def test_a_loss_is_tried_on_the_first_rows(make: Make, tokenizer: Tokenizer) -> None:
    prepared = prepare(make({"train.loss": ["nll", "so_losses:breaks"]}))
    with pytest.raises(
        ConfigError, match="on the first rows loss 'so_losses:breaks': RuntimeError: no loss today"
    ):
        prepared.tokenised(tokenizer, tokenizer.name)


def test_a_scheme_fails_on_a_later_row_before_anything_is_spent(
    make: Make, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "so_losses.py").write_text(
        "def late(row, completion, config):\n    return 1 / (row['prompt'] != 'train7')\n"
    )
    prepared = prepare(make(train={"token_weights": "so_losses:late"}))
    with pytest.raises(ConfigError, match=r"training row 00008: .*'so_losses:late': ZeroDivision"):
        prepared.tokenised(tokenizer, tokenizer.name)


def test_texts_are_kept_only_where_tokens_are_weighed(make: Make, tokenizer: Tokenizer) -> None:
    plain = prepare(make()).tokenised(tokenizer, tokenizer.name)
    weighed = prepare(make(train={"token_weights": "claims"})).tokenised(tokenizer, "t")
    assert not len(plain.train.about)
    assert weighed.train.text(0).completion == "xy"
    assert weighed.eval is not None and not len(weighed.eval.about)
    assert weighed.train.fingerprint == plain.train.fingerprint


def test_a_session_refuses_another_source_than_the_drivers(
    make: Make, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    prepared = prepare(make({"train.loss": ["so_losses:halves"]}))
    data = prepared.tokenised(tokenizer, "t")
    plan = prepared.planner.plan(prepared.configurations[0], 0)
    SupervisedRecipe(plan, data)
    (tmp_path / "so_losses.py").write_text(LOSSES + "# another copy\n")
    with pytest.raises(TrialFailedError, match="its source is not the one"):
        SupervisedRecipe(plan, data)


def test_a_loss_that_fails_while_it_trains_fails_its_own_trials_only(
    make: Make, tmp_path: Path
) -> None:
    space = {"train.loss": ["nll", "so_losses:breaks"]}
    bench = Bench(tmp_path / "bench", search={"space": space})
    state = bench.run()
    states = {t.values.get("train.loss"): t for t in state.trials.values() if not t.reference}
    assert states["nll"].step == 8
    failed = states["so_losses:breaks"]
    assert failed.state == FAILED
    assert failed.error and "loss 'so_losses:breaks': RuntimeError: no loss today" in failed.error


# --- adapters -------------------------------------------------------------------------------------

ADAPTERS = """
from crucible_tinkex.training.adapter.tinkex import TinkexCallbacks

class Shouting(TinkexCallbacks):
    def format_training_data(self, batch, **options):
        rows = [{**row, "completion": row["completion"].upper()} for row in batch]
        return super().format_training_data(rows, **options)

    def calculate_metrics(self, results):
        (step,) = results
        return {"twice": 2 * step["loss"], "words": "no number", "flag": True}

class Short(TinkexCallbacks):
    def format_training_data(self, batch, **options):
        return super().format_training_data(batch[:-1], **options)

class Broken(TinkexCallbacks):
    def format_training_data(self, batch, **options):
        raise OSError("no rows today")

class Half:
    def generate_id(self):
        return "x"
"""


@pytest.fixture
def adapters(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.delitem(sys.modules, "so_adapters", raising=False)
    (tmp_path / "so_adapters.py").write_text(ADAPTERS)
    return make


async def test_an_adapter_makes_the_rows_and_measures_the_steps(
    adapters: Make, tokenizer: Tokenizer
) -> None:
    train = {"adapter": "so_adapters:Shouting", "batch_size": 2, "token_weights": "so_losses:first"}
    prepared = prepare(adapters(train=train))
    data = replace(prepared.tokenised(tokenizer, "t"), tokenizer=tokenizer.name)
    plan = prepared.planner.plan({}, 0)
    assert set(plan.code) == {"so_losses:first", "so_adapters:Shouting"}
    recipe = recipe_of(plan, data)
    service: Any = None
    update = await recipe.update(1, service)
    tokens = update.batch[0].loss_fn_inputs["target_tokens"].data
    assert tokens[-3:] == [*tokenizer.encode("XY"), tokenizer.eos_id]
    assert update.batch[0].loss_fn_inputs["weights"].data[-3:] == [2, 1, 1]
    logprobs = [[-1.0] * len(d.loss_fn_inputs["weights"].data) for d in update.batch]
    rows = [{"logprobs": TensorData(data=p, dtype="float32", shape=[len(p)])} for p in logprobs]
    found = await recipe.measure(update, ForwardBackwardOutput(loss_fn_outputs=rows))
    assert found == {"train/nll": 1.0, "train/loss": 1.0, "train/adapter/twice": 2.0}


def test_the_source_of_an_adapter_is_a_part_of_its_trials(adapters: Make, tmp_path: Path) -> None:
    experiment = adapters({"train.adapter": ["so_adapters:Shouting", "so_adapters:Short"]})
    before = trials(prepare(experiment))
    (tmp_path / "so_adapters.py").write_text(ADAPTERS + "# edited\n")
    assert not before.keys() & trials(prepare(experiment)).keys()
    assert not before.keys() & trials(prepare(adapters())).keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("so_adapters", "train.adapter: adapter 'so_adapters' must be written module:Class"),
        ("so_adapters:Gone", "so_adapters has no Gone"),
        ("so_adapters:Half", "train.adapter: .* lacks the callbacks create_experiment"),
        ("so_adapters:Short", "format_training_data gave 11 datums for 12 rows"),
        (
            "so_adapters:Broken",
            "'so_adapters:Broken': format_training_data: OSError: no rows",
        ),
    ],
)
def test_an_adapter_that_cannot_be_is_refused_before_anything_is_spent(
    adapters: Make, tokenizer: Tokenizer, name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(adapters(train={"adapter": name})).tokenised(tokenizer, tokenizer.name)


def test_an_adapter_needs_a_tokenizer_where_trials_run(
    adapters: Make, tokenizer: Tokenizer
) -> None:
    prepared = prepare(adapters(train={"adapter": "so_adapters:Shouting"}))
    data = replace(prepared.tokenised(tokenizer, "t"), tokenizer="/no/such/folder")
    with pytest.raises(ConfigError, match=r"train\.adapter needs the tokenizer '/no/such/folder'"):
        recipe_of(prepared.planner.plan({}, 0), data)
