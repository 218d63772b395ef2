"""The base models: what is known, what is refused, and the real one answers sensibly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.server import bases


def test_an_unknown_base_lists_the_known_ones(cache: Path) -> None:
    with pytest.raises(ConfigError, match="nano, smollm2-135m-instruct"):
        bases.ensure_base("gpt-9")


def test_nano_is_the_same_every_time_and_reads_bytes(nano: bases.Base) -> None:
    first, second = (bases.load_model(nano, torch.float32) for _ in range(2))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
        assert not one.requires_grad
    tokenizer = AutoTokenizer.from_pretrained(nano.tokenizer_folder)
    assert tokenizer.encode("hé") == list("hé".encode())
    assert tokenizer.decode(list("grüße".encode())) == "grüße"
    assert bases.eos_tokens(nano, first.config) == {tokenizer.eos_token_id}


def test_a_model_folder_is_a_base(nano: bases.Base, tmp_path: Path) -> None:
    model = bases.load_model(nano, torch.float32)
    model.save_pretrained(tmp_path)
    base = bases.ensure_base(str(tmp_path))
    loaded = bases.load_model(base, torch.float32)
    tokens = torch.arange(12)[None]
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_a_family_that_would_be_trained_wrongly_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ConfigError, match="gpt2"):
        bases.load_model(bases.ensure_base(str(tmp_path)), torch.float32)


@pytest.mark.model
def test_smollm_knows_the_capital_of_france(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRUCIBLE_CACHE", raising=False)
    base = bases.ensure_base("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(base.tokenizer_folder)
    prompt = tokenizer.encode("The capital of France is")
    assert prompt == [504, 3575, 282, 4649, 314]
    model = bases.load_model(base, torch.bfloat16)
    best = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
    assert tokenizer.decode([best]) == " Paris"
