"""Held-out metrics: rows behind them, accuracy with and without decoding, progress, failures."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trial_bench import Bench, counting, dataset, make_plan

from crucible_tinkex.client import TrainingClient
from crucible_tinkex.config import EvaluationSection
from crucible_tinkex.datasets import TokenisedDataset
from crucible_tinkex.errors import OperationFailedError, ProtocolError
from crucible_tinkex.protocol.wire import AdamParams, LoraConfig, SamplingParams
from crucible_tinkex.testing import FakeBackend, FakeService, FakeTraining
from crucible_tinkex.training.data import SweepData, decoded
from crucible_tinkex.training.outcome import Verdict
from crucible_tinkex.training.recipes.datums import datum
from crucible_tinkex.training.recipes.evaluation import (
    IN_FLIGHT,
    bounded,
    certainty,
    cost,
    evaluate,
)
from crucible_tinkex.training.recipes.recipe import Evaluation, Tell
from crucible_tinkex.training.recipes.sft import SupervisedRecipe

EVAL = dataset([*counting(60), *([7, 8, 9, t, t + 1, t] for t in range(40))])
TRAIN = dataset(counting(30))


async def trained(backend: FakeBackend, steps: int, data: TokenisedDataset = TRAIN) -> FakeTraining:
    model = await FakeService(backend).create_training(base_model="nano", lora=LoraConfig(rank=8))
    for step in range(steps):
        await model.forward_backward([datum(data, (4 * step + i) % len(data)) for i in range(4)])
        await model.optim_step(AdamParams(learning_rate=1e-3))
    return model


async def measured(
    client: TrainingClient, data: TokenisedDataset = EVAL, **options: Any
) -> Evaluation:
    section = EvaluationSection(**options)
    return await evaluate(client, data, section, tokenizer=None, tell=lambda done, of: None)


async def greedy_accuracy(client: TrainingClient, data: TokenisedDataset) -> list[bool]:
    """Every row decoded, one after another."""
    sampler = await client.sampler()
    right = []
    for i in range(len(data)):
        expected = data.completion(i)
        params = SamplingParams(max_tokens=len(expected), temperature=0.0)
        answer = await sampler.sample(data.prompt(i), params)
        right.append(answer.sequences[0].tokens[: len(expected)] == expected)
    return right


@pytest.mark.parametrize("steps", [0, 1, 3, 10, 60])
async def test_accuracy_is_that_of_decoding_every_row(steps: int) -> None:
    backend = FakeBackend()
    model = await trained(backend, steps)
    found = await measured(model)
    decoded = backend.calls.count("sample")
    right = await greedy_accuracy(model, EVAL)
    assert [e.correct for e in found.examples] == right
    assert found.metrics["eval/accuracy"] == sum(right) / len(right)
    assert decoded < len(EVAL) or steps < 60


async def test_a_well_trained_model_is_judged_without_decoding() -> None:
    backend = FakeBackend()
    distinct = dataset([[6 * r + i + 1 for i in range(6)] for r in range(8)])
    model = await trained(backend, 60, data=distinct)
    backend.calls.clear()
    found = await measured(model, distinct)
    assert found.metrics["eval/accuracy"] == 1.0
    assert not {"sample", "training_sampler"} & set(backend.calls)


async def test_rows_add_up_to_the_mean() -> None:
    found = await measured(await trained(FakeBackend(), 5))
    assert [e.example_id for e in found.examples[:2]] == ["00001", "00002"]
    assert {e.tokens for e in found.examples} == {3}
    losses = [e.nll * e.tokens for e in found.examples if e.nll is not None]
    tokens = sum(e.tokens for e in found.examples)
    assert math.fsum(losses) / tokens == pytest.approx(found.metrics["eval/nll"], rel=1e-12)
    assert len({e.nll for e in found.examples}) > 5


async def test_options_of_the_evaluation() -> None:
    model = await trained(FakeBackend(), 2)
    some = await measured(model, max_rows=7, generate=False)
    assert list(some.metrics) == ["eval/nll", "eval/perplexity"]
    assert [(e.correct, e.text) for e in some.examples] == [(None, None)] * 7
    plain = dataset(counting(5))
    object.__setattr__(plain, "has_prompts", False)
    assert "eval/accuracy" not in (await measured(model, plain)).metrics


@pytest.mark.parametrize("options", [{"generate": False}, {"generate": False, "max_rows": 7}, {}])
async def test_what_an_evaluation_uses_is_known_before(options: dict[str, Any]) -> None:
    backend = FakeBackend()
    model = await trained(backend, 0)
    backend.ledger.clear()
    await measured(model, **options)
    coming = cost(EVAL, EvaluationSection(**options))
    assert sum(e.tokens for e in backend.ledger) == coming.prefill_tokens > 0
    written, ends = sum(e.sampled for e in backend.ledger), len(EVAL)
    assert coming.sample_tokens in (written, written + ends), "all but their ends"
    answers = EvaluationSection(**options, metrics=("exact_match",), samples=3, max_tokens=8)
    rows = min(len(EVAL), answers.max_rows or len(EVAL))
    more = cost(EVAL, answers) - coming
    assert more.sample_tokens == rows * 3 * 8
    assert more.prefill_tokens == int(EVAL.prompt_lengths[:rows].sum())


async def test_likelihood_per_token_and_per_byte_are_one_number() -> None:
    model = await trained(FakeBackend(), 2)
    rows = dataset(counting(20))
    bytes_of_rows = np.arange(1, 21, dtype=np.int32)
    known = replace(rows, learnt_bytes=bytes_of_rows)
    for count in (20, 7):
        found = await measured(model, known, max_rows=count)
        nats = math.fsum(e.nll * e.tokens for e in found.examples if e.nll is not None)
        size = int(bytes_of_rows[:count].sum())
        assert found.metrics["eval/bpb"] == pytest.approx(nats / math.log(2) / size)
        nll = found.metrics["eval/nll"]
        assert found.metrics["eval/perplexity"] == pytest.approx(math.exp(nll))
    assert "eval/bpb" not in (await measured(model, rows)).metrics


class Silent:
    """A client whose service reports the loss of a batch, but no logprobs."""

    def __init__(self, client: FakeTraining) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def forward(self, data: Sequence[Any]) -> Any:
        output = await self._client.forward(data)
        output.loss_fn_outputs = [{} for _ in output.loss_fn_outputs]
        return output


async def test_a_service_without_logprobs_measures_nothing() -> None:
    """Its own sum may be a mean, or zero: nothing is concluded from that."""
    backend = FakeBackend()
    model = await trained(backend, 1)
    with pytest.raises(ProtocolError, match="row 1 of a batch with 0 logprobs for"):
        await measured(Silent(model))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("probabilities", "known"),
    [
        ((0.9, 0.9), True),
        ((0.51, 0.9), None),  # within the rounding of two passes
        ((0.3, 0.9), None),
        ((0.9, 1e-7), False),
        ((1e-7, 0.3), False),
        ((0.9, 0.0), False),
    ],
)
def test_what_probabilities_tell(probabilities: tuple[float, ...], known: bool | None) -> None:
    data = dataset([[1, 2, 3, 4, 5, 6]])
    before = [-50.0] * 3  # of the prompt: says nothing
    found = [math.log(p) if p else -math.inf for p in probabilities]
    assert certainty(data, 0, [*before, *found, -9.0]) is known


def test_rows_that_probabilities_say_nothing_of_are_decoded() -> None:
    sure = [-0.01] * 6
    ends_early = dataset([[1, 2, 3, 4, 0, 6]])  # the end-of-sequence token within
    assert certainty(ends_early, 0, sure) is None
    nothing_given = dataset([[1, 2, 3, 4, 5, 6]], prompt=0)
    assert certainty(nothing_given, 0, sure) is None
    gap = dataset([[1, 2, 3, 4, 5, 6, 7]])
    mask = gap.mask.copy()
    mask[5] = 0  # something between that is only read
    object.__setattr__(gap, "mask", mask)
    assert certainty(gap, 0, [*sure, -0.01]) is None


async def test_requests_in_flight_are_bounded() -> None:
    running = most = 0

    async def call(i: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return i

    assert await bounded([lambda i=i: call(i) for i in range(300)]) == list(range(300))
    assert most == IN_FLIGHT


async def test_a_failure_ends_the_evaluation_at_once() -> None:
    backend = FakeBackend(delays={"sample": 0.01})
    model = await trained(backend, 10)
    backend.fail("sample", OperationFailedError("no", category="server"), nth=3)
    with pytest.raises(OperationFailedError):
        await measured(model)
    begun = backend.calls.count("sample")
    assert backend.in_flight["sample"] == 0
    await asyncio.sleep(0.05)
    assert backend.calls.count("sample") == begun < len(EVAL)


async def test_a_whole_evaluation_becomes_events() -> None:
    data = SweepData(dataset(counting(20)), EVAL, "f", None)
    bench = Bench(data=data, checkpoint_every=0)
    await bench.run()
    phases = [e["extra"] for e in bench.sink.of_kind("phase")]
    assert phases[0] == {"phase": "evaluating", "done": 0, "of": 100}
    assert phases[-2:] == [
        {"phase": "evaluating", "done": 100, "of": 100},
        {"phase": "training"},
    ]
    done = [p["done"] for p in phases[:-1]]
    assert done == sorted(done)
    examples = bench.sink.of_kind("example")
    assert [e["name"] for e in examples] == [f"{i:05d}" for i in range(1, 101)]
    assert {e["step"] for e in examples} == {10}
    correct = sum(e["extra"]["correct"] for e in examples)
    assert correct / 100 == bench.trial.results[10]["eval/accuracy"]
    assert set(examples[0]["extra"]) == {"tokens", "correct", "text"}


async def test_progress_is_told_now_and_then() -> None:
    rows = dataset([[1, 2, 3, 4, t, t] for t in range(2000)])
    data = SweepData(dataset(counting(20)), rows, "f", None)
    bench = Bench(data=data, checkpoint_every=0)
    bench.plan = make_plan(reference=True)
    await bench.run()
    told = [e for e in bench.sink.of_kind("phase") if e["name"] == "evaluating"]
    assert 10 < len(told) <= 2000 * 0.25 / 2.0 + 3  # the clock moves by 0.25 a look


class NoNumber(SupervisedRecipe):
    """A recipe whose evaluation overflows."""

    async def evaluate(self, client: TrainingClient, tell: Tell) -> Evaluation:
        return Evaluation({"eval/nll": math.nan})


async def test_an_evaluation_that_is_no_number_fails_the_trial() -> None:
    bench = Bench(checkpoint_every=0)
    outcome = await bench.host(recipe=NoNumber).advance(bench.plan, 2)
    assert outcome.verdict is Verdict.FAILED
    assert "eval/nll became nan at step 2" in str(outcome.error)
    assert bench.trial.results == {}


def test_text_that_cannot_be_decoded_is_left_out(tmp_path: Path) -> None:
    assert decoded(str(tmp_path / "gone"), [[1, 2], [3]]) == [None, None]
