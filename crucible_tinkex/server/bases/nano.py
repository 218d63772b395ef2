"""The `nano` base: a seeded random Llama of about one million weights with a byte tokenizer.

Guarantees: the same bits on every machine (a seeded CPU generator, no file of weights); token ids
0 to 255 are the bytes, then pad, bos, eos. The tied embedding has standard deviation 0.3, because
with the usual 0.02 a frozen base cannot grow its logits and nothing can be learnt.
Not for: sensible text. It exists for tests and dry runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from crucible_tinkex.storage import write_atomic

PAD, BOS, EOS = 256, 257, 258
VOCAB_SIZE = 264
MAX_LENGTH = 2048
_SEED = 20240229
_SPECIALS = ("<pad>", "<bos>", "<eos>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def config() -> Any:
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def build_model() -> Any:
    """The model in fp32, weights drawn in the order of their names."""
    model = LlamaForCausalLM(config())
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.dim() < 2:
                continue
            std = 0.3 if "embed_tokens" in name else weight.shape[1] ** -0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)
    model.tie_weights()
    return model


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, readable by AutoTokenizer."""
    vocab = {char: byte for byte, char in _byte_alphabet().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in _SPECIALS])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "model_max_length": MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    write_atomic(folder / "tokenizer_config.json", json.dumps(settings, indent=2).encode())


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte, which ByteLevel uses."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in printable}
    others = (b for b in range(256) if b not in table)
    return table | {b: chr(256 + n) for n, b in enumerate(others)}
