"""bf16 at a vocabulary of 49k: what a sampler reports and what the trainer computes agree."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from server_client import Client, train
from transformers import LlamaConfig, LlamaForCausalLM

from crucible_tinkex.server import bases
from crucible_tinkex.server.engine.engine import TorchEngine
from crucible_tinkex.server.model.head import Head, HeadAdapter
from crucible_tinkex.server.operations import (
    ForwardOutput,
    Row,
    Sample,
    SampleOutput,
    SamplerSource,
    TakeSnapshot,
)
from crucible_tinkex.server.store.store import Store

VOCABULARY = 49_152
HEAD_BOUND = 1e-3
"""nats; logits of about 20, rounded to bf16, are off by 0.06."""
BOUNDS = {torch.bfloat16: (0.2, 0.01), torch.float32: (1e-4, 1e-5)}
"""nats, the largest and the mean; hidden states of bf16 differ by their rounding."""


@pytest.fixture(scope="module")
def wide(nano: bases.Base, tmp_path_factory: pytest.TempPathFactory) -> bases.Base:
    """A random Llama whose logits are as large as a trained model's."""
    folder = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=144,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=False,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.4 if "lm_head" in name else weight.shape[1] ** -0.5)
    model.save_pretrained(folder)
    for file in nano.tokenizer_folder.glob("tokenizer*"):
        shutil.copy(file, folder)
    return bases.ensure_base(str(folder))


@pytest.mark.parametrize("with_adapter", [False, True])
def test_logprobs_are_those_of_unrounded_logits(with_adapter: bool) -> None:
    torch.manual_seed(0)
    weight, hidden = torch.randn(VOCABULARY, 64).bfloat16(), (2 * torch.randn(40, 64)).bfloat16()
    targets = torch.randint(VOCABULARY, (40, 1))
    logits = hidden.double() @ weight.double().T
    adapter = None
    if with_adapter:
        a, b = torch.randn(64, 8).bfloat16() / 8, torch.randn(8, VOCABULARY).bfloat16() / 8
        adapter = HeadAdapter(a, b, 0.5)
        logits += (hidden.double() @ a.double()) @ b.double() * 0.5
    likely = logits.argmax(1, keepdim=True)
    for wanted in (targets, likely):
        expected = logits.log_softmax(-1).gather(1, wanted)
        found, _ = Head(weight).logprobs(hidden, wanted, adapter, None)
        assert (found - expected).abs().max() < HEAD_BOUND


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_sampler_and_trainer_agree(wide: bases.Base, tmp_path: Path, dtype: torch.dtype) -> None:
    """Of a prompt and of drawn tokens, before and after steps."""
    engine = TorchEngine(wide, Store(tmp_path), dtype=dtype)
    client = Client(engine)
    client.create("m")
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 120)
    drifts = []
    for _ in range(2):
        client.one(TakeSnapshot("m", "snap"))
        source = SamplerSource(snapshot_id="snap")
        asked = Sample(source, tokens[:70], 2, 0, 30, seed=1, stop_tokens=(), prompt_logprobs=True)
        output, _ = client.all([asked, replace(asked, num_samples=9, seed=2)])
        assert client.one(asked) == output
        assert isinstance(output, SampleOutput)
        for sequence in output.sequences:
            line = np.concatenate([tokens[:70], sequence.tokens])
            trained = client.one(train("m", (_row(line),), backward=False))
            assert isinstance(trained, ForwardOutput)
            said = [*(output.prompt.logprobs or ())[1:], *sequence.logprobs]
            drifts.append(np.abs(np.array(said) - trained.logprobs[0]))
        for _ in range(4):
            client.step("m", (_row(tokens),), learning_rate=3e-3)
    engine.close()
    assert np.max(drifts) < BOUNDS[dtype][0] and np.mean(drifts) < BOUNDS[dtype][1]


def _row(line: np.ndarray) -> Row:
    return Row(line[:-1], line[1:], {"weights": np.ones(len(line) - 1, np.float32)})
