"""The guarantee: the same requests give the same bits, whichever other sessions share the pass."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from server_client import Client, make_rows, train

from crucible_tinkex.server import bases
from crucible_tinkex.server.model.base_model import BaseModel
from crucible_tinkex.server.operations import (
    Adam,
    CreateModel,
    ForwardOutput,
    LoraSpec,
    OptimStep,
    Sample,
    SampleOutput,
    SamplerSource,
    TakeSnapshot,
)

LENGTHS = {
    **{"a": (5, 9, 17, 3), "b": (30, 2), "c": (64,), "d": (11, 11, 12), "e": (1,)},
    **{"f": (30, 2), "g": (28, 3), "h": (64,), "i": (30, 2)},
}
"""Some are alike, so that their products run side by side; some only share their rows' length."""
RANKS = {"a": 4, "b": 8, "c": 16, "d": 8, "e": 1, "f": 8, "g": 8, "h": 16, "i": 4}


def _create(name: str) -> CreateModel:
    return CreateModel(name, LoraSpec(RANKS[name], ord(name), train_unembed=name != "c"))


def _run(client: Client, names: list[str]) -> dict[str, tuple[list[np.ndarray], torch.Tensor]]:
    """Three steps of every model, each step's requests queued together."""
    client.all([_create(n) for n in names])
    seen: dict[str, list[np.ndarray]] = {n: [] for n in names}
    for number in range(3):
        outputs = client.all([train(n, make_rows(number, LENGTHS[n])) for n in names])
        client.all([OptimStep(n, Adam(learning_rate=1e-2)) for n in names])
        outputs += client.all([train(n, make_rows(9, LENGTHS[n]), backward=False) for n in names])
        for name, output in zip([*names, *names], outputs, strict=True):
            assert isinstance(output, ForwardOutput)
            seen[name] += output.logprobs
    weights = {n: client.engine.weights.adapters[n].weights.clone() for n in names}
    return {n: (seen[n], weights[n]) for n in names}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
def test_training_alone_equals_training_in_company(
    start: Callable[..., Client], dtype: torch.dtype, threads: int
) -> None:
    torch.set_num_threads(threads)
    try:
        together = _run(start(dtype), list(LENGTHS))
        for name in LENGTHS:
            alone = _run(start(dtype), [name])[name]
            assert torch.equal(alone[1], together[name][1]), name
            assert all(map(np.array_equal, alone[0], together[name][0])), name
    finally:
        torch.set_num_threads(1)


def test_requests_really_share_passes(
    start: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start()
    client.all([_create(n) for n in LENGTHS])
    sizes: list[int] = []
    hidden = BaseModel.hidden

    def counted(self, tokens, positions, plan, stacks, *, backward):  # type: ignore[no-untyped-def]
        sizes.append(sum(s.count for s in stacks))
        assert len(stacks) < sizes[-1]
        return hidden(self, tokens, positions, plan, stacks, backward=backward)

    monkeypatch.setattr(BaseModel, "hidden", counted)
    client.all([train(n, make_rows(0, LENGTHS[n])) for n in LENGTHS])
    assert sizes == [len(LENGTHS)]


def test_a_large_request_is_cut_the_same_way_in_company(start: Callable[..., Client]) -> None:
    rows = make_rows(3, [20, 7, 31, 16, 2, 25, 40, 12])
    results = []
    for names in (["a"], ["b", "a", "d"]):
        client = start(token_cap=64)
        client.all([_create(n) for n in names])
        client.all([train(n, rows if n == "a" else make_rows(5, LENGTHS[n])) for n in names])
        results.append(client.engine.weights.adapters["a"].grad.clone())
    assert results[0].abs().max() > 0
    assert torch.equal(*results)


def test_cutting_changes_no_more_than_rounding(start: Callable[..., Client]) -> None:
    rows = make_rows(3, [20, 7, 31, 16, 2, 25, 40, 12])
    outputs, gradients = [], []
    for cap in (1024, 48):
        client = start(token_cap=cap)
        client.create("a")
        outputs.append(client.one(train("a", rows)))
        gradients.append(client.engine.weights.adapters["a"].grad.clone())
    assert [len(p) for p in outputs[1].logprobs] == [20, 7, 31, 16, 2, 25, 40, 12]
    for whole, cut in zip(outputs[0].logprobs, outputs[1].logprobs, strict=True):
        np.testing.assert_allclose(whole, cut, atol=1e-4)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_ranks_are_padded_with_exact_zeros(start: Callable[..., Client]) -> None:
    client = start()
    client.create("a", rank=5)
    for number in range(4):
        client.step("a", make_rows(number, (9, 14)))
    adapter = client.engine.weights.adapters["a"]
    assert adapter.layout.rank == 8
    for flat in (adapter.weights, adapter.m, adapter.v):
        for pair in adapter.layout.views(flat):
            assert pair is not None
            assert pair[0][:, :5].any() and pair[1][:5].any()
            assert not pair[0][:, 5:].any() and not pair[1][5:].any()


def _samples(client: Client, prompts: dict[int, Sample]) -> dict[int, SampleOutput]:
    outputs = client.all(list(prompts.values()))
    assert all(isinstance(o, SampleOutput) for o in outputs), outputs
    return dict(zip(prompts, outputs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
def test_sampling_alone_equals_sampling_in_company(
    start: Callable[..., Client], dtype: torch.dtype, threads: int
) -> None:
    torch.set_num_threads(threads)
    try:
        client = start(dtype)
        for name in ("a", "b"):
            client.create(name, rank=RANKS[name])
            client.step(name, make_rows(1, (12, 9)))
            client.one(TakeSnapshot(name, name))
        rng = np.random.default_rng(0)
        prompts = {
            i: Sample(
                SamplerSource(snapshot_id=("a", "b", None)[i % 3]),
                rng.integers(0, 256, 3 + i % 20),
                num_samples=1 + i % 3,
                max_tokens=3 + (i * 7) % 30,
                seed=i,
                temperature=0.0 if i % 4 == 0 else 0.8,
                top_p=0.9 if i % 5 == 0 else 1.0,
                stop_tokens=(),
                prompt_logprobs=True,
            )
            for i in range(30)
        }
        together = _samples(client, prompts)
        assert len({s.tokens for o in together.values() for s in o.sequences}) > 20
        for i in prompts:
            assert _samples(client, {i: prompts[i]})[i] == together[i], i
    finally:
        torch.set_num_threads(1)


@pytest.mark.model
def test_it_holds_for_a_real_base(
    start: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its products are large enough for kernels that `nano` never meets."""
    monkeypatch.delenv("CRUCIBLE_CACHE", raising=False)
    base = bases.ensure_base("smollm2-135m-instruct")
    lengths = {
        "a": (5, 9, 17, 3),
        "b": (30,) * 5,
        "d": (11, 11, 12),
        "f": (30,) * 5,
        "c": (40,) * 7,
    }
    torch.set_num_threads(2)
    try:
        found: dict[str, list[torch.Tensor]] = {name: [] for name in lengths}
        for names in (list(lengths), *([name] for name in lengths)):
            client = start(torch.bfloat16, base=base)
            client.all([_create(n) for n in names])
            for number in range(2):
                client.all([train(n, make_rows(number, lengths[n])) for n in names])
                client.all([OptimStep(n, Adam(learning_rate=1e-3)) for n in names])
            for name in names:
                found[name].append(client.engine.weights.adapters[name].weights.clone())
            if len(names) > 1:
                together = _samples(client, _prompts(client))
                alone = {i: _samples(client, {i: p})[i] for i, p in _prompts(client).items()}
                assert alone == together
    finally:
        torch.set_num_threads(1)
    for name, (company, alone_weights) in found.items():
        assert torch.equal(company, alone_weights), name


def _prompts(client: Client) -> dict[int, Sample]:
    client.one(TakeSnapshot("a", "a"))
    rng = np.random.default_rng(0)
    return {
        i: Sample(
            SamplerSource(snapshot_id=("a", None)[i % 2]),
            rng.integers(0, 256, 3 + 5 * i),
            num_samples=2,
            max_tokens=6,
            seed=i,
            temperature=0.8,
            top_p=1.0,
            stop_tokens=(),
            prompt_logprobs=True,
        )
        for i in range(6)
    }
