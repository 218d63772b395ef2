"""Sampling: reproducible by seed, true to the model's probabilities, stopping where it must."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from server_client import Client, train

from crucible_tinkex.server.engine.choosing import choose, generator_for
from crucible_tinkex.server.operations import (
    ForwardOutput,
    Row,
    Sample,
    SampleOutput,
    SamplerSource,
)

BASE = SamplerSource()
PROMPT = np.array([72, 101, 108, 108, 111], np.int64)


def _sample(client: Client, source: SamplerSource = BASE, **settings: object) -> SampleOutput:
    output = client.one(Sample(source, PROMPT, **settings))  # type: ignore[arg-type]
    assert isinstance(output, SampleOutput)
    return output


def test_a_seed_gives_distinct_samples_that_come_again(client: Client) -> None:
    settings = {"num_samples": 5, "max_tokens": 12, "stop_tokens": ()}
    first = _sample(client, seed=3, **settings)
    assert _sample(client, seed=3, **settings) == first
    assert len({s.tokens for s in first.sequences}) == 5
    assert _sample(client, seed=4, **settings) != first
    assert _sample(client, **settings) != _sample(client, **settings)


def test_a_sample_does_not_depend_on_how_many_are_asked(client: Client) -> None:
    few = _sample(client, seed=3, num_samples=2, max_tokens=12, stop_tokens=())
    many = _sample(client, seed=3, num_samples=7, max_tokens=12, stop_tokens=())
    assert many.sequences[:2] == few.sequences


@pytest.mark.parametrize("source", [BASE, SamplerSource(snapshot_id="snap")])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logprobs_are_those_of_forward(
    client: Client, source: SamplerSource, temperature: float
) -> None:
    output = _sample(
        client,
        source,
        seed=1,
        max_tokens=40,
        temperature=temperature,
        stop_tokens=(),
        prompt_logprobs=True,
        topk_prompt_logprobs=3,
    )
    sequence = output.sequences[0]
    line = np.concatenate([PROMPT, sequence.tokens])
    row = Row(line[:-1], line[1:], {"weights": np.ones(len(line) - 1, np.float32)})
    client.create("fresh", rank=4)
    name = "m" if source.snapshot_id else "fresh"
    forward = client.one(train(name, (row,), backward=False))
    assert isinstance(forward, ForwardOutput)
    n = len(PROMPT)
    np.testing.assert_allclose(sequence.logprobs, forward.logprobs[0][n - 1 :], atol=1e-4)
    assert output.prompt.logprobs is not None and output.prompt.logprobs[0] is None
    assert len(output.prompt.logprobs) == n
    np.testing.assert_allclose(output.prompt.logprobs[1:], forward.logprobs[0][: n - 1], atol=1e-4)
    assert output.prompt.topk is not None
    assert [t and len(t) for t in output.prompt.topk] == [None, 3, 3, 3, 3]


def test_temperature_0_takes_the_most_probable(client: Client) -> None:
    source = SamplerSource(snapshot_id="snap")
    tokens = _sample(client, source, max_tokens=6, temperature=0.0, stop_tokens=()).sequences[0]
    line = list(PROMPT)
    for token in tokens.tokens:
        best = _sample_best(client, np.array(line))
        assert token == best
        line.append(token)


def _sample_best(client: Client, prompt: np.ndarray) -> int:
    """The argmax by asking forward for every possible next token."""
    rows = tuple(
        Row(prompt, np.append(prompt[1:], t), {"weights": np.ones(len(prompt), np.float32)})
        for t in range(264)
    )
    output = client.one(train("m", rows, backward=False))
    assert isinstance(output, ForwardOutput)
    return int(np.argmax([p[-1] for p in output.logprobs]))


def test_stops(client: Client) -> None:
    free = _sample(client, seed=8, max_tokens=30, stop_tokens=()).sequences[0]
    assert free.stop_reason == "length" and len(free.tokens) == 30
    wanted = free.tokens[7]
    cut = _sample(client, seed=8, max_tokens=30, stop_tokens=(wanted,)).sequences[0]
    end = free.tokens.index(wanted) + 1
    assert (cut.stop_reason, cut.tokens) == ("stop", free.tokens[:end])
    letters = _sample(
        client, seed=8, max_tokens=400, stop_tokens=None, stop_strings=("e",)
    ).sequences[0]
    assert letters.stop_reason == "stop"
    assert letters.tokens[-1] in (ord("e"), 258)
    assert ord("e") not in letters.tokens[:-1]


def test_one_random_number_chooses_by_probability() -> None:
    request = Sample(BASE, PROMPT, temperature=1.0)
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    generator = generator_for(1, 0)
    counts = np.bincount([choose(logits, request, generator) for _ in range(4000)], minlength=3)
    np.testing.assert_allclose(counts / 4000, [0.5, 0.3, 0.2], atol=0.03)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [({"top_k": 1}, {1}), ({"top_k": 2}, {1, 2}), ({"top_p": 0.55}, {1, 2}), ({"top_p": 0.4}, {1})],
)
def test_top_k_and_top_p_cut_the_tail(settings: dict[str, float], allowed: set[int]) -> None:
    request = Sample(BASE, PROMPT, **settings)  # type: ignore[arg-type]
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    generator = generator_for(1, 0)
    assert {choose(logits, request, generator) for _ in range(200)} == allowed
