"""Accuracy without decoding is accuracy by decoding: on real weights, with the real client."""

from __future__ import annotations

import asyncio
import random

from crucible_tinkex.client import SamplingClient, TinkexService
from crucible_tinkex.config import EvaluationSection
from crucible_tinkex.datasets import PromptCompletion, TokenisedDataset, load_tokenizer, tokenise
from crucible_tinkex.protocol.wire import AdamParams, LoraConfig, SamplingParams
from crucible_tinkex.training.recipes.datums import datum
from crucible_tinkex.training.recipes.evaluation import evaluate
from crucible_tinkex.training.recipes.recipe import Evaluation


def rows(count: int, seed: int) -> list[PromptCompletion]:
    """Some completions are easy to learn, some hard, some never seen in training."""
    draw = random.Random(seed)
    made = []
    for line in range(count):
        word = "".join(draw.choices("abcd", k=3))
        completion = "yes!" if word[0] in "ab" else word[::-1]
        if seed and line % 5 == 0:
            completion = "QZX"
        made.append(PromptCompletion("x", line, f"{word}>", completion))
    return made


async def test_accuracy_is_that_of_greedy_decoding(ready: dict[str, str]) -> None:
    async with TinkexService(ready["base_url"], api_key_file=ready["api_key_file"]) as service:
        name = (await service.capabilities()).supported_models[0].tokenizer_id
        assert name is not None
        tokenizer = load_tokenizer(name)
        train, held_out = tokenise(rows(64, 0), tokenizer), tokenise(rows(60, 1), tokenizer)
        model = await service.create_training(base_model="nano", lora=LoraConfig(rank=8, seed=1))
        seen: set[tuple[bool | None, bool]] = set()
        for steps in (0, 15, 30):
            for step in range(steps):
                batch = [datum(train, (8 * step + i) % 64) for i in range(8)]
                backward = model.forward_backward(batch)
                await model.optim_step(AdamParams(learning_rate=5e-3))
                await backward
            found = await evaluate(
                model, held_out, EvaluationSection(), tokenizer=name, tell=lambda done, of: None
            )
            sampler = await model.sampler()
            right = await asyncio.gather(
                *(decoded(sampler, held_out, i) for i in range(len(held_out)))
            )
            assert [e.correct for e in found.examples] == right
            assert found.metrics["eval/accuracy"] == sum(right) / len(right)
            check_texts(found, held_out)
            seen |= {(e.correct, e.text is None) for e in found.examples}
        # Right and wrong, with and without decoding: every way was gone.
        assert seen == {(True, True), (False, True), (True, False), (False, False)}


async def decoded(sampler: SamplingClient, data: TokenisedDataset, row: int) -> bool:
    expected = data.completion(row)
    params = SamplingParams(max_tokens=len(expected), temperature=0.0)
    answer = await sampler.sample(data.prompt(row), params)
    return answer.sequences[0].tokens[: len(expected)] == expected


def check_texts(found: Evaluation, data: TokenisedDataset) -> None:
    """The text of a decoded row is right if the row is."""
    for row, example in enumerate(found.examples):
        if example.text is not None:
            expected = bytes(data.completion(row)).decode()
            assert example.text.startswith(expected) is example.correct
