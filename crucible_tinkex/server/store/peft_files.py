"""A checkpoint as the two files that peft, vLLM and others load.

Guarantees: `PeftModel.from_pretrained(base, out)` gives the same logits as our server (tested).
An adapter on the output layer is exported too; vLLM refuses such adapters. No torch here, so that
the app can export without the engine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from crucible_tinkex.names import hub_id
from crucible_tinkex.server.operations import ALPHA, HEAD, damaged
from crucible_tinkex.server.store.store import ADAPTER_FILE, check_hash, read_manifest
from crucible_tinkex.storage import storage_errors, write_atomic


def export_peft(checkpoint: Path, out: Path, *, base_model: str | None = None) -> None:
    """Write adapter_model.safetensors and adapter_config.json of a checkpoint folder to `out`.

    Raises `DamagedCheckpointError` before anything is written if the adapter is not what was saved.
    """
    manifest = read_manifest(checkpoint)
    check_hash(checkpoint / ADAPTER_FILE, manifest.sha256)
    named = {_peft_name(n): t for n, t in _load(checkpoint / ADAPTER_FILE).items()}
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    save_file(named, out / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model or hub_id(manifest.base_model),
        "r": manifest.spec.rank,
        "lora_alpha": ALPHA,
        "target_modules": sorted({n.split(".lora_")[0].rsplit(".", 1)[-1] for n in named}),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
    write_atomic(out / "adapter_config.json", json.dumps(config, indent=2).encode())


def _load(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except SafetensorError as e:  # older than its hashes
        raise damaged(f"{path} is damaged: {e}") from e


def _peft_name(name: str) -> str:
    return f"base_model.model.{name if name.startswith(HEAD) else f'model.{name}'}"
