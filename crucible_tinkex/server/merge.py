"""An adapter folded into its base: one Hugging Face model folder that needs neither us nor peft.

W' = W + alpha / r * B A for every adapted layer, computed in fp32 and stored in the base's own
number format; so a base in fp32 gives the logits of base and adapter to rounding, one in bfloat16
to bfloat16's. An output layer that is adapted is no longer tied to the embedding.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.utils import logging

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.server.bases import Base, ensure_base, load_model
from crucible_tinkex.server.operations import HEAD
from crucible_tinkex.storage import storage_errors

_PREFIX = "base_model.model."
_UNSUPPORTED = ("use_dora", "modules_to_save", "use_rslora", "fan_in_fan_out")
_TOKENIZER_FILES = ("tokenizer", "special_tokens", "chat_template", "vocab", "merges", "added_")


@contextmanager
def _bars_on_a_terminal_alone() -> Iterator[None]:
    """Those that transformers draws while it reads and writes a model."""
    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


@_bars_on_a_terminal_alone()
def merge(adapter: Path, out: Path, *, base: str) -> None:
    """Write the merged model and the base's tokenizer to the new folder `out`.

    `adapter` holds what peft loads. Raises `ConfigError` for an adapter that is more than LoRA, or
    that does not fit the base.
    """
    config = json.loads((adapter / "adapter_config.json").read_text())
    odd = [key for key in _UNSUPPORTED if config.get(key)]
    if config.get("peft_type") != "LORA" or odd:
        raise ConfigError(f"only plain LoRA adapters can be merged; this one has {odd or config}")
    scale = float(config["lora_alpha"]) / int(config["r"])
    known = ensure_base(base)
    model = load_model(known, torch.float32)
    for name, pair in _pairs(load_file(adapter / "adapter_model.safetensors")).items():
        _add(model, name, pair, scale, base)
    with storage_errors(out):
        model.to(_own_dtype(known)).save_pretrained(out)
        _copy_tokenizer(known, out)


def _pairs(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """A and B of every layer, by its name in the base."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        layer, _, rest = key.removeprefix(_PREFIX).partition(".lora_")
        found.setdefault(layer, {})[rest[:1]] = tensor.float()
    return found


def _add(model: Any, name: str, pair: dict[str, torch.Tensor], scale: float, base: str) -> None:
    try:
        layer = model.get_submodule(name)
        delta = scale * (pair["B"] @ pair["A"])
        weight = layer.weight.detach()
    except (AttributeError, KeyError) as e:
        raise ConfigError(f"the adapter does not fit base {base!r}: {name}: {e}") from None
    if delta.shape != weight.shape:
        shapes = f"{tuple(delta.shape)}, not {tuple(weight.shape)}"
        raise ConfigError(f"the adapter does not fit base {base!r}: {name} is {shapes}")
    layer.weight = torch.nn.Parameter(weight + delta, requires_grad=False)
    if name == HEAD:
        model.config.tie_word_embeddings = False


def _own_dtype(base: Base) -> torch.dtype:
    if base.folder is None:
        return torch.float32
    config = json.loads((base.folder / "config.json").read_text())
    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"))
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _copy_tokenizer(base: Base, out: Path) -> None:
    for path in base.tokenizer_folder.iterdir():
        if path.is_file() and path.name.startswith(_TOKENIZER_FILES):
            shutil.copy(path, out / path.name)
