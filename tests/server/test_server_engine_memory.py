"""How much memory requests take: the keys and values of sampled sequences keep within a budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from server_client import Client, make_rows

from crucible_tinkex.errors import OperationFailedError, RequestRejectedError
from crucible_tinkex.server.engine import sampling
from crucible_tinkex.server.engine.engine import PASS_BYTES, TOKEN_CAP, tokens_within
from crucible_tinkex.server.model.attention import DecodePlan
from crucible_tinkex.server.model.products import PACKED
from crucible_tinkex.server.operations import (
    CancelSample,
    Sample,
    SampleOutput,
    SamplerSource,
    TakeSnapshot,
)

SOURCES = (SamplerSource(), SamplerSource(snapshot_id="snap"))


def _sample(source: SamplerSource = SOURCES[0], seed: int = 3, **more: Any) -> Sample:
    tokens = make_rows(7, (5,))[0].tokens
    given = {"num_samples": 1, "max_tokens": 12, **more}
    return Sample(source, tokens, seed=seed, stop_tokens=(), **given)


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of the first layer's keys at every step of every batch."""
    sizes: list[int] = []
    attend = DecodePlan.attend

    def measured(self: DecodePlan, layer: int, *given: Any) -> Any:
        if layer == 0:
            sizes.append(self.cache[0][0].nbytes)
        return attend(self, layer, *given)

    monkeypatch.setattr(DecodePlan, "attend", measured)
    return sizes


def test_one_sample_keeps_one_cache(client: Client, caches: list[int]) -> None:
    client.one(_sample())
    heads, width, extent = 2, 32, 32
    assert max(caches) == heads * width * extent * 4


def test_many_samples_keep_within_the_budget_and_are_the_same(
    start: Callable[..., Client], caches: list[int]
) -> None:
    asked = [
        _sample(s, n, num_samples=1 + 40 * (n % 2), prompt_logprobs=True, topk_prompt_logprobs=2)
        for n, s in enumerate([*SOURCES, *SOURCES])
    ]
    budget = 2 * 2**20
    outputs, sizes = [], []
    for client in (start(), start(cache_bytes=budget)):
        client.create("m", rank=4)
        client.step("m", make_rows(1, (9, 12)), learning_rate=3e-3)
        client.one(TakeSnapshot("m", "snap"))
        caches.clear()
        outputs.append(client.all(asked))
        sizes.append(max(caches) * 8)  # 4 layers of keys and values
    assert all(isinstance(o, SampleOutput) for o in outputs[0]), outputs
    assert outputs[1] == outputs[0]
    assert sizes[1] <= budget / 2 < sizes[0]


def test_a_sequence_beyond_the_budget_runs_alone(start: Callable[..., Client]) -> None:
    client = start(cache_bytes=1)
    output = client.one(_sample(num_samples=3))
    assert isinstance(output, SampleOutput) and len(output.sequences) == 3


def test_a_request_in_pieces_is_answered_once(
    start: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start(cache_bytes=1)
    cancelled, gone = client.all([_sample(num_samples=50, ticket="t"), CancelSample("t")])
    assert isinstance(cancelled, RequestRejectedError) and "cancelled" in str(cancelled), gone
    with monkeypatch.context() as patch:

        def fail(*_: Any) -> None:
            raise MemoryError

        patch.setattr(sampling, "score", fail)
        failed, other = client.all([_sample(num_samples=5), _sample()])
    assert isinstance(failed, OperationFailedError) and isinstance(other, OperationFailedError)
    assert isinstance(client.one(_sample(num_samples=2)), SampleOutput)


def test_what_a_pass_keeps_bounds_its_tokens() -> None:
    """Whole tiles, whatever the base; a small base keeps the cap that its speed wants."""
    smollm_bf16 = 30 * (4 * 1536 + 10 * 576) * 2
    assert tokens_within(PASS_BYTES, smollm_bf16) == 512
    assert tokens_within(PASS_BYTES, 2 * smollm_bf16) == 256
    assert tokens_within(PASS_BYTES, 10**9) == PACKED  # never nothing
    assert tokens_within(PASS_BYTES, 10_000) > TOKEN_CAP
