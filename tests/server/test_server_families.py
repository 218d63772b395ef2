"""Model folders of every family that we name: tiny random ones, made by `transformers`, loaded by
path; our numbers against theirs without an adapter, and our gradients against `peft`'s with one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from server_client import Client, make_rows, train
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.server import bases
from crucible_tinkex.server.bases import nano
from crucible_tinkex.server.engine.engine import TorchEngine
from crucible_tinkex.server.operations import ALPHA, Row, Sample, SampleOutput, SamplerSource
from crucible_tinkex.server.store.store import Store

pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
RANK = 4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
SHAPE: dict[str, Any] = {
    "vocab_size": nano.VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": nano.BOS,
    "eos_token_id": nano.EOS,
    "pad_token_id": nano.PAD,
}
_UNCAPPED: dict[str, Any] = {"final_logit_softcapping": None, "attn_logit_softcapping": None}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama-untied": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=None, head_dim=16),
    "mistral-window": lambda: MistralConfig(**SHAPE, sliding_window=64, head_dim=16),
    "qwen2": lambda: Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=32),
    "gemma": lambda: GemmaConfig(**SHAPE, head_dim=16),
    "gemma2": lambda: Gemma2Config(**SHAPE, head_dim=16, sliding_window=64, **_UNCAPPED),
    "gemma3_text": lambda: Gemma3TextConfig(**SHAPE, head_dim=16, sliding_window=64, **_UNCAPPED),
}


def _make(config: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too must matter
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    nano.write_tokenizer(folder)
    return folder


def _logprobs(model: Any, row: Row) -> torch.Tensor:
    logits = model(torch.from_numpy(row.tokens)[None], use_cache=False).logits[0]
    return logits.log_softmax(-1).gather(1, torch.from_numpy(row.targets)[:, None])[:, 0]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    folder = _make(FAMILIES[request.param](), tmp_path / "model")
    base = bases.ensure_base(str(folder))
    engine = TorchEngine(base, Store(tmp_path / "data"), dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    yield Client(engine), theirs.eval()
    engine.close()


def test_numbers_and_gradients(family: tuple[Client, Any]) -> None:
    client, theirs = family
    rows = make_rows(3, (7, 30, 12))
    client.create("m", rank=RANK)
    fresh = client.one(train("m", rows, backward=False))
    with torch.no_grad():
        expected = [_logprobs(theirs, r).numpy() for r in rows]
    for ours, wanted in zip(fresh.logprobs, expected, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=3e-5)

    prompt = np.arange(1, 20)
    asked = Sample(SamplerSource(), prompt, max_tokens=6, temperature=0.0, stop_tokens=())
    answer = client.one(asked)
    assert isinstance(answer, SampleOutput)
    tokens = list(prompt)
    for token, logprob in zip(
        answer.sequences[0].tokens, answer.sequences[0].logprobs, strict=True
    ):
        with torch.no_grad():
            logits = theirs(torch.tensor(tokens)[None], use_cache=False).logits[0, -1]
        assert float(logits.max() - logits[token]) < 1e-4
        assert logprob == pytest.approx(float(logits.log_softmax(-1)[token]), abs=3e-5)
        tokens.append(token)

    client.step("m", make_rows(5, (8, 13)), learning_rate=3e-3)
    adapter = client.engine.weights.adapters["m"]
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0.0)
    model = peft.get_peft_model(theirs, config)
    named = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
    pairs = {}
    for flat, kind in ((adapter.weights, "weights"), (adapter.grad, "grad")):
        for place, views in zip(adapter.layout.places, adapter.layout.views(flat), strict=True):
            name = place.slot.name if place.slot.name == "lm_head" else f"model.{place.slot.name}"
            pairs[kind, f"base_model.model.{name}.lora_A.weight"] = views[0][:, :RANK].T
            pairs[kind, f"base_model.model.{name}.lora_B.weight"] = views[1][:RANK].T
    assert {n for k, n in pairs if k == "weights"} == set(named)
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(pairs["weights", name])
    client.one(train("m", rows))
    loss = sum(-(torch.from_numpy(r.inputs["weights"]) * _logprobs(model, r)).sum() for r in rows)
    loss.backward()  # type: ignore[union-attr]
    for name, parameter in named.items():
        size = float(parameter.grad.norm())
        assert size > 0, name
        assert float((pairs["grad", name] - parameter.grad).norm()) <= 3e-5 * max(size, 1), name


def test_a_model_that_changes_its_logits_is_refused(tmp_path: Path) -> None:
    config = Gemma2Config(**SHAPE, head_dim=16, final_logit_softcapping=30.0)
    base = bases.ensure_base(str(_make(config, tmp_path / "model")))
    with pytest.raises(ConfigError, match="final_logit_softcapping"):
        bases.load_model(base, torch.float32)
