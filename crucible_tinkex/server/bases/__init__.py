"""The base models that the server knows: by name (`known_bases`), as a model folder, or by an id on
the Hugging Face hub (`hub`).

Guarantees: `ensure_base` brings the files into the cache or raises `ConfigError`/`StorageError`;
`load_model` returns a frozen `transformers` causal LM in evaluation mode. Folders of the families
Llama, Qwen2, Qwen3, Mistral and Gemma work; one that changes logits after the last layer
(softcapping) is refused rather than trained wrongly.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import base_name
from crucible_tinkex.server.bases import hub, nano, smollm
from crucible_tinkex.server.bases.families import check_family


@dataclass(frozen=True, slots=True)
class Base:
    """`folder` is None where the weights are generated."""

    name: str
    folder: Path | None
    tokenizer_folder: Path


KNOWN: Mapping[str, str] = {
    "nano": "a tiny byte model with made-up weights, for tests",
    smollm.NAME: smollm.ABOUT,
}
"""What each name stands for."""


def known_bases() -> tuple[str, ...]:
    return tuple(KNOWN)


def cache_folder() -> Path:
    """`$CRUCIBLE_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("CRUCIBLE_CACHE")
    if chosen:
        return Path(chosen).expanduser().resolve()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "crucible_tinkex"


def ensure_base(name: str) -> Base:
    """The base of this name, folder or hub id, its files present."""
    models_folder = cache_folder() / "models"
    name = base_name(name)
    if name == "nano":
        folder = models_folder / "nano"
        nano.write_tokenizer(folder)
        return Base(name, None, folder)
    if name == smollm.NAME:
        folder = smollm.ensure(models_folder)
        return Base(name, folder, folder)
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        path = path.resolve()
        return Base(name, path, path)
    if hub.is_hub_id(name):
        folder = hub.ensure(name)
        return Base(name, folder, folder)
    raise ConfigError(
        f"base model {name!r} is neither known ({', '.join(KNOWN)}), nor a folder with "
        "config.json, model.safetensors and tokenizer.json, nor an id on the hub (org/name)"
    )


def load_model(base: Base, dtype: torch.dtype) -> Any:
    """The frozen causal LM of `base`, computing in `dtype`."""
    model = nano.build_model() if base.folder is None else _load_folder(base.folder, dtype)
    model = model.to(dtype).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _load_folder(folder: Path, dtype: torch.dtype) -> Any:
    _config(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)


def _config(folder: Path) -> Any:
    """Of a family that is known. Raises `ConfigError`."""
    config = AutoConfig.from_pretrained(folder)
    check_family(config.to_dict(), str(folder))
    return config


def hidden_size(base: Base) -> int:
    config = nano.config() if base.folder is None else _config(base.folder)
    return int(config.hidden_size)


def max_length(config: Any) -> int:
    """The longest row: the context, or the sliding window where that is shorter."""
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    if getattr(config, "use_sliding_window", True) is False:
        window = config.max_position_embeddings
    return int(min(window, config.max_position_embeddings))


def eos_tokens(base: Base, config: Any) -> frozenset[int]:
    """Every token that ends a sequence, of the config and of generation_config.json."""
    found = [config.eos_token_id]
    path = base.folder and base.folder / "generation_config.json"
    if path and path.is_file():
        found.append(json.loads(path.read_text()).get("eos_token_id"))
    flat = [t for e in found for t in (e if isinstance(e, list) else [e])]
    return frozenset(int(t) for t in flat if t is not None)
