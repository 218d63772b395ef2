"""What a request may ask about its prompt: given tokens' probabilities, and drawn alternatives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from app_client import AppClient
from server_client import Client

from crucible_tinkex.server import bases
from crucible_tinkex.server.choosing import generator_for
from crucible_tinkex.server.operations import (
    PromptScores,
    Sample,
    SampleOutput,
    SamplerSource,
    Targets,
)
from crucible_tinkex.server.scoring import _draw

LONG = np.random.default_rng(3).integers(0, 256, 300)
"""More rows than the head takes at a time."""


def _ask(client: Client, prompt: Any = LONG, **asked: Any) -> tuple[PromptScores, SampleOutput]:
    source = SamplerSource(snapshot_id="snap")
    output = client.one(Sample(source, prompt, max_tokens=3, stop_tokens=(), **asked))
    assert isinstance(output, SampleOutput)
    return output.prompt, output


def test_given_tokens_have_the_probabilities_of_the_prompt_and_of_topk(client: Client) -> None:
    n = len(LONG) - 1
    plain, _ = _ask(client, prompt_logprobs=True, topk_prompt_logprobs=2)
    assert plain.logprobs is not None and plain.topk is not None
    best = [row[1][0] for row in plain.topk[1:] if row]
    ids = np.stack([LONG[1:], best, np.full(n, -1)], 1)
    targets = Targets(ids.ravel(), np.repeat(np.arange(n), 3), (n, 3))
    scores, _ = _ask(client, targets=targets)
    assert scores.targets is targets and scores.target_logprobs is not None
    found = scores.target_logprobs.reshape(n, 3)
    np.testing.assert_allclose(found[:, 0], plain.logprobs[1:], atol=1e-5)
    np.testing.assert_allclose(found[:, 1], [r[1][1] for r in plain.topk[1:] if r], atol=1e-5)
    assert (found[:, 2] == 0).all()


def test_alternatives_come_again_and_change_no_sample(client: Client) -> None:
    scores, output = _ask(client, seed=5, alternatives=4, temperature=0.8)
    again, _ = _ask(client, seed=5, alternatives=4, temperature=0.8)
    _, without = _ask(client, seed=5, temperature=0.8)
    assert output.sequences == without.sequences
    drawn = scores.alternatives
    assert drawn is not None and again.alternatives is not None
    assert (drawn.tokens == again.alternatives.tokens).all()
    assert drawn.tokens.shape == drawn.logprobs.shape == (len(LONG) - 1, 4)
    assert len({tuple(row) for row in drawn.tokens}) > 200
    rows = np.repeat(np.arange(len(LONG) - 1), 4)
    targets = Targets(drawn.tokens.ravel(), rows, drawn.tokens.shape)  # type: ignore[arg-type]
    told, _ = _ask(client, targets=targets)
    np.testing.assert_allclose(told.target_logprobs, drawn.logprobs.ravel(), atol=1e-5)


def test_alternatives_at_temperature_0_are_the_most_probable(client: Client) -> None:
    scores, _ = _ask(client, alternatives=2, temperature=0.0, topk_prompt_logprobs=1)
    assert scores.alternatives is not None and scores.topk is not None
    best = [row[0][0] for row in scores.topk[1:] if row]
    assert scores.alternatives.tokens.tolist() == [[b, b] for b in best]


def test_alternatives_are_drawn_by_probability_at_the_temperature() -> None:
    chances = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    for temperature in (1.0, 0.5):
        drawn = _draw(chances.log(), 20_000, temperature, generator_for(1, 0))
        expected = chances ** (1 / temperature)
        expected /= expected.sum(1, keepdim=True)
        counts = torch.stack([(drawn == t).float().mean(1) for t in range(3)], 1)
        torch.testing.assert_close(counts, expected, atol=0.015, rtol=0)


# --- as requests -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def api(nano: bases.Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    client = AppClient(nano, tmp_path_factory.mktemp("data"))
    yield client
    client.close()


def _asked(*tokens: int, **more: Any) -> dict[str, Any]:
    prompt = {"chunks": [{"type": "encoded_text", "tokens": list(tokens)}]}
    return {"base_model": "nano", "prompt": prompt, "sampling_params": {"max_tokens": 1}, **more}


def _ids(data: list[int], shape: list[int], **sparse: list[int]) -> dict[str, Any]:
    return {"target_prompt_logprobs": {"data": data, "dtype": "int64", "shape": shape, **sparse}}


def test_a_sparse_tensor_goes_back_as_it_came(api: AppClient) -> None:
    dense = api.result("asample", **_asked(1, 2, 3, 4, **_ids([5, -1, -1, -1, 6, 7], [3, 2])))
    values = dense["target_prompt_logprobs"]["data"]
    assert [v < 0 for v in values] == [True, False, False, False, True, True]
    layout = {"sparse_crow_indices": [0, 1, 1, 3], "sparse_col_indices": [0, 0, 1]}
    sparse = api.result("asample", **_asked(1, 2, 3, 4, **_ids([5, 6, 7], [3, 2], **layout)))
    assert sparse["target_prompt_logprobs"] == {
        "data": [v for v in values if v < 0],
        "dtype": "float32",
        "shape": [3, 2],
        **layout,
    }


@pytest.mark.parametrize(
    "more",
    [
        _ids([1, 2], [2]),
        _ids([1, 2], [2, 1]),
        _ids([1, 2, 3, 4], [3, 1]),
        _ids([-1, -1, -1], [3, 1]),
        _ids([1, 2, 9999], [3, 1]),
        _ids([1, 2, -2], [3, 1]),
        _ids([], [3, 0]),
        _ids([1], [3, 2], sparse_crow_indices=[0, 1, 1], sparse_col_indices=[0]),
        _ids([1], [3, 2], sparse_crow_indices=[0, 2, 1, 1], sparse_col_indices=[0]),
        _ids([1], [3, 2], sparse_crow_indices=[0, 1, 1, 1], sparse_col_indices=[2]),
        _ids([1], [3, 2], sparse_crow_indices=[0, 1, 1, 1], sparse_col_indices=[-1]),
        _ids([1] * 303, [3, 101]),
        {"prompt_alt_tokens_k": -1},
        {"prompt_alt_tokens_k": 101},
        {"record_stability_info": True},
    ],
)
def test_what_makes_no_sense_is_refused(api: AppClient, more: dict[str, Any]) -> None:
    answer = api.post("asample", **_asked(1, 2, 3, 4, **more))
    assert answer.status_code == 400 and next(iter(more)) in answer.json()["error"], answer.text


def test_a_prompt_of_one_token_has_no_alternatives(api: AppClient) -> None:
    found = api.result("asample", **_asked(1, prompt_alt_tokens_k=2))["prompt_alt_tokens"]
    assert found["tokens"] == {"data": [], "dtype": "int64", "shape": [0, 2]}
    assert api.post("asample", **_asked(1, **_ids([], [0, 1]))).status_code == 400
