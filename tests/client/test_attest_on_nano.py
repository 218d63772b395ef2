"""Two steps on the real server prove every setting that it applies, and find each planted fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from crucible_tinkex.client import TinkexService
from crucible_tinkex.config import Experiment
from crucible_tinkex.datasets import PromptCompletion, TokenisedDataset, load_tokenizer, tokenise
from crucible_tinkex.training.attest.contrasts import RANK, SEED, STRONG, SWITCHES, contrasts_of
from crucible_tinkex.training.attest.probing import Attestation, attest

AXES: Mapping[str, list[Any]] = {
    RANK: [2, 4],
    SEED: [1, 2],
    **{key: [True, False] for key in SWITCHES},
    "optimizer.learning_rate": [1e-4, 1.1e-4],
    "optimizer.beta1": [0.9, 0.95],
    "optimizer.beta2": [0.95, 0.999],
    "optimizer.eps": [1e-12, 1e-8],
    "optimizer.weight_decay": [0.0, 0.01],
    "optimizer.grad_clip_norm": [0.0, 1.0],
}


def experiment(**search: Any) -> Experiment:
    return Experiment.build(
        {
            "name": "s",
            "model": {"base": "nano"},
            "data": {"train": "x", "eval": "y"},
            "search": {"space": AXES, "where": ["lora.train_attn or lora.train_mlp"], **search},
        }
    )


@pytest.fixture
async def attested(ready: dict[str, str]) -> Attestation:
    def connect() -> TinkexService:
        return TinkexService(ready["base_url"], api_key_file=ready["api_key_file"])

    return await attest(connect, contrasts_of(experiment()), await rows(connect()), base_model="nano")


async def rows(service: TinkexService) -> TokenisedDataset:
    async with service:
        tokenizer_id = (await service.capabilities()).supported_models[0].tokenizer_id
    assert tokenizer_id
    words = ["lamp", "stone", "river", "cloud", "grass", "amber"]
    pairs = [PromptCompletion("x", i, f"{w}>", w[::-1]) for i, w in enumerate(words)]
    return tokenise(pairs, load_tokenizer(tokenizer_id))


async def test_every_axis_is_seen_to_be_applied(attested: Attestation) -> None:
    verdicts = {f.key: f.verdict for f in attested.findings}
    assert verdicts == dict.fromkeys([*AXES, "train.loss"], "applied")
    assert set(STRONG) < set(verdicts)
    assert attested.noise < 1e-4 and attested.spent.steps == 2 * attested.models
