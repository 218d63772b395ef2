"""The eight callbacks, the configuration under the seed's names, and adapters of users."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from desk import CONFIG, ROWS, Desk

from crucible_tinkex.datasets import Tokenizer
from crucible_tinkex.errors import ConfigError, DataError
from crucible_tinkex.training.adapter import (
    AdapterConfig,
    LoraAdapter,
    TinkexAdapter,
    load_adapter,
)
from crucible_tinkex.training.adapter.tinkex import TinkexCallbacks
from crucible_tinkex.training.losses import Span, Weighing, default_losses


@pytest.fixture
def callbacks(tokenizer: Tokenizer) -> TinkexCallbacks:
    return TinkexCallbacks(tokenizer=tokenizer)


def test_it_is_a_lora_adapter(callbacks: TinkexCallbacks) -> None:
    assert isinstance(callbacks, LoraAdapter)
    assert isinstance(TinkexAdapter(), LoraAdapter)


def test_ids_are_sixteen_hex_digits(callbacks: TinkexCallbacks) -> None:
    ids = {callbacks.generate_id() for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch("[0-9a-f]{16}", i) for i in ids)


# --- experiments ---------------------------------------------------------------------------------


def test_an_experiment_with_the_seeds_own_configuration(
    callbacks: TinkexCallbacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKEX_API_KEY", "tml-secret")
    experiment = callbacks.create_experiment(
        name="SciFact Fine-tuning v2",
        config={
            "api_key": "tml-secret",
            "base_model": "llama-3-8b",
            "lora_config": {"rank": 16, "alpha": 32},
            "pool_size": 10,
            "timeout": 60_000,
        },
    )
    assert (experiment.status, experiment.metrics, experiment.checkpoints) == ("pending", [], [])
    assert (experiment.description, experiment.tags) == ("", ())
    assert experiment.config.base_model == "llama-3-8b"
    assert experiment.config.lora_config.rank == 16
    assert experiment.not_applied == ["lora_config.alpha", "timeout", "pool_size"]
    assert "secret" not in repr(experiment)


def test_names_of_the_originals_configuration() -> None:
    config = AdapterConfig.build({"default_base_model": "nano", "default_lora_rank": 4})
    assert (config.base_model, config.lora_config.rank) == ("nano", 4)
    assert AdapterConfig.build(None).base_model == "meta-llama/Llama-3.1-8B-Instruct"
    assert AdapterConfig.build({}).lora_config.rank == 16


def test_an_override_that_equals_the_default_is_one() -> None:
    config = AdapterConfig.build({"seed": 3, "max_length": 64})
    merged = config.merged({"seed": 0})
    assert (merged.seed, merged.max_length) == (0, 64)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"base_modle": "nano"}, "base_model"),
        ({"lora_config": {"rank": 0}}, "lora_config.rank"),
        ({"lora_config": {"alpha": -1}}, "lora_config.alpha"),
        ({"api_key": "tml-of-my-own"}, "TINKER_API_KEY.*api_key_file"),
    ],
)
def test_a_wrong_configuration_is_refused(
    callbacks: TinkexCallbacks, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        callbacks.create_experiment(name="e", config=config)
    assert "tml-of" not in str(caught.value)


def test_an_experiment_needs_a_name(callbacks: TinkexCallbacks) -> None:
    with pytest.raises(ConfigError, match="experiment name is required"):
        callbacks.create_experiment(name=" ")


# --- data ----------------------------------------------------------------------------------------


def test_batches_keep_order_and_lose_nothing(callbacks: TinkexCallbacks) -> None:
    assert callbacks.batch_dataset(list(range(7)), 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert callbacks.batch_dataset([], 3) == []
    with pytest.raises(ConfigError, match="batch_size = 0"):
        callbacks.batch_dataset([1], 0)


def test_rows_become_shifted_targets_with_weights(
    callbacks: TinkexCallbacks, tokenizer: Tokenizer
) -> None:
    (made,) = callbacks.format_training_data([{"input": "ab", "output": "cd"}])
    tokens = [*tokenizer.encode("abcd"), tokenizer.eos_id]
    assert made.model_input.tokens() == tokens[:-1]
    assert made.loss_fn_inputs["target_tokens"].data == tokens[1:]
    assert made.loss_fn_inputs["weights"].data == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("row", "options", "weights"),
    [
        ({"weight": 2.5}, {}, [0, 2.5, 2.5, 2.5]),
        ({}, {"token_weights": "uniform"}, [0, 1, 1, 1]),
        ({}, {"citation_validity_weight": 5.0}, [0, 1, 1, 1]),
    ],
)
def test_weights(
    callbacks: TinkexCallbacks, row: dict[str, Any], options: dict[str, Any], weights: list[float]
) -> None:
    given = {"prompt": "ab", "completion": "cd", **row}
    (made,) = callbacks.format_training_data([given], **options)
    assert made.loss_fn_inputs["weights"].data == weights


@pytest.mark.parametrize(("documents", "factor"), [([1, 2], 1.0), ([1], 6.0), (None, 1.0)])
def test_citation_validity_weighs_rows_that_cite_what_is_not_there(
    callbacks: TinkexCallbacks, documents: list[int] | None, factor: float
) -> None:
    row: dict[str, Any] = {"prompt": "p", "completion": "CLAIM[c1]: x (citing 2)"}
    if documents is not None:
        row["metadata"] = {"doc_ids": documents}
    (made,) = callbacks.format_training_data([row], citation_validity_weight=5.0)
    assert set(made.loss_fn_inputs["weights"].data) == {factor}


@pytest.mark.parametrize("before", ["", " "])  # prompt + " " + completion, as published
def test_claims_and_their_evidence_count_as_published(
    callbacks: TinkexCallbacks, before: str
) -> None:
    text = f"{before}CLAIM[c1]: a\nCLAIM[c2]: b\nend"
    (made,) = callbacks.format_training_data(
        [{"prompt": "p", "completion": text}], token_weights="claims"
    )
    first, second, rest = (len(line) for line in text.split("\n"))
    expected = [5.0] * first + [1.0] + [2.0] * second + [1.0] + [1.0] * rest + [1.0]
    assert made.loss_fn_inputs["weights"].data == expected


def test_a_scheme_of_the_users_own(tokenizer: Tokenizer) -> None:
    losses = default_losses()
    losses.register_weights("first", lambda row, text, config: Weighing(spans=(Span(0, 1, 3.0),)))
    callbacks = TinkexCallbacks(tokenizer=tokenizer, losses=losses)
    (made,) = callbacks.format_training_data(
        [{"prompt": "p", "completion": "cd"}], token_weights="first"
    )
    assert made.loss_fn_inputs["weights"].data == [3.0, 1.0, 1.0]
    with pytest.raises(ConfigError, match="exists already"):
        losses.register_weights("first", losses.scheme("uniform"))


def test_formatting_without_a_tokenizer_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        TinkexCallbacks().format_training_data([ROWS[0]])


def test_a_long_row_is_refused(callbacks: TinkexCallbacks) -> None:
    with pytest.raises(DataError, match="max_length"):
        callbacks.format_training_data([{"prompt": "a" * 50, "completion": "b"}], max_length=20)


# --- metrics and quality -------------------------------------------------------------------------

KEYS = {
    "mean_loss",
    "loss_reduction",
    "loss_reduction_fraction",
    "mean_citation_invalid_rate",
    "total_steps",
    "min_loss",
    "max_loss",
    "final_loss",
}


def test_metrics_of_steps(callbacks: TinkexCallbacks) -> None:
    found = callbacks.calculate_metrics([{"loss": 4.0}, {"loss": 1.0}, {"loss": 1.0}])
    assert found == {
        "mean_loss": 2.0,
        "loss_reduction": 3.0,
        "loss_reduction_fraction": 0.75,
        "mean_citation_invalid_rate": None,
        "total_steps": 3,
        "min_loss": 1.0,
        "max_loss": 4.0,
        "final_loss": 1.0,
    }


def test_metrics_of_no_steps_have_the_same_keys(callbacks: TinkexCallbacks) -> None:
    found = callbacks.calculate_metrics([])
    assert found.keys() == KEYS
    assert found["total_steps"] == 0
    assert found["mean_loss"] is None


def test_quality_knows_directions_and_what_was_not_measured(callbacks: TinkexCallbacks) -> None:
    targets = {
        "schema_compliance": 0.95,
        "citation_invalid_rate": 0.0,
        "eval/nll": 1.0,
        "mine": {"target": 3, "direction": "min"},
    }
    results = {"schema_compliance": 0.96, "citation_invalid_rate": 0.1, "eval/nll": 0.5, "mine": 2}
    found = callbacks.validate_quality(results, {"quality_targets": targets})
    assert [a["passed"] for a in found["assessments"]] == [True, False, True, True]
    assert found["passed"] is False
    assert found["summary"] == "3/4 quality targets met; missed: citation_invalid_rate"
    del results["citation_invalid_rate"]
    found = callbacks.validate_quality(results, targets)
    assert found["passed"] is None
    assert found["summary"] == "3/4 quality targets met; not measured: citation_invalid_rate"


def test_the_seeds_targets_are_the_defaults(callbacks: TinkexCallbacks) -> None:
    found = callbacks.validate_quality({"schema_compliance": 1, "citation_accuracy": 0.5})
    assert {a["metric"]: a["target"] for a in found["assessments"]} == {
        "schema_compliance": 0.95,
        "citation_accuracy": 0.95,
        "mean_entailment": 0.50,
        "overall_pass_rate": 0.45,
    }
    with pytest.raises(ConfigError, match="is not a number"):
        callbacks.validate_quality({}, {"x": "high"})


def test_targets_on_training_can_be_missed(callbacks: TinkexCallbacks) -> None:
    def judged(losses: list[float], **more: float) -> dict[str, Any]:
        rows = [{"step": i, "loss": x, **more} for i, x in enumerate(losses, 1)]
        found = callbacks.validate_training(rows)
        return {a["metric"]: a["status"] for a in found["assessments"]}

    wobble = [1 + 0.01 * (-1) ** i for i in range(40)]
    steep = [w * (10 if i < 4 else 0.1) for i, w in enumerate(wobble)]
    assert judged(steep, citation_invalid_rate=0.0) == {
        "loss_reduction": "met",
        "citation_invalid_rate": "met",  # of all rows that were trained on: no sample of them
        "convergence_steps": "met",
    }
    # An absolute difference of 2300 is a reduction by half.
    half = [w * (4600 if i < 20 else 2300) for i, w in enumerate(wobble)]
    assert judged(half, citation_invalid_rate=0.1)["loss_reduction"] == "missed"
    assert judged(half, citation_invalid_rate=0.1)["citation_invalid_rate"] == "missed"
    assert judged([5.0, 0.1])["loss_reduction"] == "not settled"
    assert judged([]) == dict.fromkeys(
        ("loss_reduction", "citation_invalid_rate", "convergence_steps"), "unmeasured"
    )


# --- names and sampling --------------------------------------------------------------------------


def test_checkpoint_names_are_deterministic_and_sorted(callbacks: TinkexCallbacks) -> None:
    names = [callbacks.checkpoint_name("e", step) for step in (9, 10, 100)]
    assert names == sorted(names)
    assert names[0] == callbacks.checkpoint_name("e", 9) == "e_step_00000009"
    with pytest.raises(ConfigError):
        callbacks.checkpoint_name("a/b", 1)


def test_sampling_has_the_seeds_defaults(callbacks: TinkexCallbacks) -> None:
    params = callbacks.sampling_params()
    assert (params.temperature, params.top_p, params.max_tokens, params.stop) == (
        0.7,
        0.95,
        512,
        None,
    )
    assert callbacks.sampling_params(stop_sequences=["\n"]).stop == ["\n"]
    with pytest.raises(ConfigError, match="temperature"):
        callbacks.sampling_params(temperature=-1)


# --- adapters of users ---------------------------------------------------------------------------

MINE = """
from crucible_tinkex.training.adapter.tinkex import TinkexCallbacks

class Shouting(TinkexCallbacks):
    def format_training_data(self, batch, **options):
        rows = [{"prompt": r["q"], "completion": r["a"].upper()} for r in batch]
        return super().format_training_data(rows, **options)

class Half:
    def generate_id(self):
        return "x"
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_adapters.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_adapters", raising=False)
    return "my_adapters"


async def test_a_users_adapter_decides_what_is_learnt(mine: str, tokenizer: Tokenizer) -> None:
    desk = Desk(tokenizer, callbacks=load_adapter(f"{mine}:Shouting"))
    async with desk.session() as session:
        await session.train([{"q": "say", "a": " a"}], epochs=30, batch_size=1)
        (said,) = await session.infer("say", temperature=0.0, max_tokens=2)
    assert said.text == " A"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_adapters", "module:Class"),
        ("my_adapters:Nothing", "has no Nothing"),
        ("not_there:X", "Python path"),
        ("my_adapters:Half", "lacks the callbacks create_experiment"),
    ],
)
def test_what_is_no_adapter_is_refused(mine: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_adapter(name)


# --- blocking ------------------------------------------------------------------------------------


def test_the_blocking_face_works_in_a_script(tokenizer: Tokenizer) -> None:
    desk = Desk(tokenizer)
    with TinkexAdapter(desk.connect, tokenizer=tokenizer) as adapter:
        experiment = adapter.create_experiment(name="e", config=CONFIG)
        with adapter.start_session(experiment) as session:
            trained = adapter.train(session, ROWS, epochs=2)
            assert adapter.evaluate(session, ROWS).metrics["eval/nll"] > 0
            saved = adapter.save_checkpoint(session)
            adapter.load_checkpoint(session, trained.checkpoints[-1])
            (text,) = adapter.infer(session, "say 1", checkpoint=saved, max_tokens=1)
            assert len(text.tokens) == 1
        assert session.status == "completed"
        left_open = adapter.start_session(adapter.create_experiment(name="f", config=CONFIG))
        adapter.start_session(adapter.create_experiment(name="g", config=CONFIG))  # lost at once
        gc.collect()
    assert left_open.status == "completed"
    assert desk.backend.ends == ["success"] * 3


async def test_the_blocking_face_works_where_a_loop_runs(tokenizer: Tokenizer) -> None:
    desk = Desk(tokenizer)
    with TinkexAdapter(desk.connect, tokenizer=tokenizer) as adapter:
        experiment = adapter.create_experiment(name="e", config=CONFIG)
        with adapter.start_session(experiment) as session:
            assert session.train(ROWS, max_steps=1).results[0]["loss"] > 0


def test_a_callback_that_would_wait_for_itself_is_told_so(tokenizer: Tokenizer) -> None:
    desk = Desk(tokenizer)
    with TinkexAdapter(desk.connect, tokenizer=tokenizer) as adapter:
        session = adapter.start_session(adapter.create_experiment(name="e", config=CONFIG))
        with pytest.raises(Exception, match="one of its callbacks"):
            session.train(ROWS, on_step_end=lambda row: session.infer("say"))


def test_a_subclass_trains_through_its_own_callbacks(tokenizer: Tokenizer) -> None:
    class Named(TinkexAdapter):
        def checkpoint_name(self, experiment_id: str, step: int) -> str:
            return f"mine-{step}"

    desk = Desk(tokenizer)
    with Named(desk.connect, tokenizer=tokenizer) as adapter:
        session = adapter.start_session(adapter.create_experiment(name="e", config=CONFIG))
        assert session.train(ROWS).checkpoints[-1].name == "mine-2"


# --- services ------------------------------------------------------------------------------------


async def test_a_service_that_is_no_service_is_refused(tokenizer: Tokenizer) -> None:
    adapter = TinkexAdapter(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no training service"):
        adapter.start_session(adapter.create_experiment(name="e"))
    adapter = TinkexAdapter()
    embedded = adapter.create_experiment(name="e", config={"base_url": "embedded"})
    with pytest.raises(ConfigError, match="embedded_server"):
        adapter.start_session(embedded)


def test_the_seeds_variables_are_taken_and_named(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    from crucible_tinkex.training.tinkex.service.connecting import connector

    for name in ("TINKER_API_KEY", "TINKER_BASE_URL"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("TINKEX_API_KEY", "tml-x")
    monkeypatch.setenv("TINKEX_BASE_URL", "http://127.0.0.1:9")
    with pytest.warns(DeprecationWarning, match="TINKER_API_KEY"):
        connector(None, AdapterConfig.build({}))


async def test_with_an_event_loop_it_is_the_same_and_ends_what_is_open(desk: Desk) -> None:
    async with desk.adapter as adapter:
        lost = await adapter.start_session(desk.experiment())
        async with await adapter.start_session(desk.experiment(seed=1)) as session:
            trained = await adapter.train(session, ROWS, max_steps=2, batch_size=2)
            found = await adapter.evaluate(session, ROWS[:2])
            (answer,) = await adapter.infer(session, "say 4", max_tokens=2)
            saved = await adapter.save_checkpoint(session)
            await adapter.load_checkpoint(session, saved)
        assert len(desk.names("session_start")) == 2  # no second one of the same session
        assert trained.metrics["total_steps"] == 2 and "eval/nll" in found.metrics
        assert len(answer.tokens) == 2 and session.is_closed and not lost.is_closed
    assert lost.is_closed and len(desk.names("session_end")) == 2


async def test_a_base_that_the_service_lacks_is_refused_with_what_it_has(desk: Desk) -> None:
    from crucible_tinkex.training.adapter import AsyncTinkexAdapter

    adapter = AsyncTinkexAdapter(desk.connect)
    experiment = adapter.create_experiment(name="e", config={"base_model": "nanoo"})
    with pytest.raises(ConfigError, match="it has: nano"):
        await adapter.start_session(experiment)
