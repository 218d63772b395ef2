"""An adapter's tensors in safetensors files: by layer, true rank, peft's orientation.

Names are `<layer>.lora_A.weight` [r, d_in] and `<layer>.lora_B.weight` [d_out, r], so a checkpoint
does not depend on how the engine lays out its flat vectors. Guarantee: write then read gives the
same bits. `export` turns such a file into what peft and vLLM load.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crucible_tinkex.errors import StorageError
from crucible_tinkex.server.model.adapters import Adapter, FrozenAdapter
from crucible_tinkex.server.model.lora import Layout
from crucible_tinkex.server.operations import LoraSpec, damaged
from crucible_tinkex.server.store.residents import Kind
from crucible_tinkex.server.store.store import ADAPTER_FILE, OPTIMIZER_FILE, Manifest, check_hash
from crucible_tinkex.storage import storage_errors


def write_adapter(adapter: Adapter, folder: Path, *, optimizer: bool) -> None:
    named = _name(adapter.weights, adapter.layout, adapter.spec.rank)
    _save(named, folder / ADAPTER_FILE)
    if optimizer:
        moments = {
            f"{moment}.{name}": tensor
            for moment, flat in (("m", adapter.m), ("v", adapter.v))
            for name, tensor in _name(flat, adapter.layout, adapter.spec.rank).items()
        }
        _save(moments, folder / OPTIMIZER_FILE)


def read_weights(folder: Path, manifest: Manifest, layout: Layout) -> Tensor:
    """Raises `DamagedCheckpointError` for a file that is not the one that was saved."""
    return _flatten(_checked(folder / ADAPTER_FILE, manifest.sha256), layout, "")


def read_moments(folder: Path, manifest: Manifest, layout: Layout) -> tuple[Tensor, Tensor]:
    """Raises `DamagedCheckpointError` for a file that is not the one that was saved."""
    named = _checked(folder / OPTIMIZER_FILE, manifest.optimizer_sha256)
    return _flatten(named, layout, "m."), _flatten(named, layout, "v.")


def _save(named: dict[str, Tensor], path: Path) -> None:
    with _refusals(path):
        save_file(named, path, metadata={"format": "pt"})


def _checked(path: Path, sha256: str) -> dict[str, Tensor]:
    check_hash(path, sha256)
    try:
        return _load(path)
    except StorageError as e:
        if isinstance(e.__cause__, SafetensorError):  # older than its hashes
            raise damaged(f"{path} is damaged: {e.__cause__}") from e
        raise


def _load(path: Path) -> dict[str, Tensor]:
    with _refusals(path):
        named: dict[str, Tensor] = load_file(path)
    return named


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Translate into `StorageError`. safetensors and torch open files themselves, and pass on what
    the system refused in their text only: "Too many open files (24)"."""
    try:
        with storage_errors(path):
            try:
                yield
            except (SafetensorError, RuntimeError) as e:
                if number := re.search(r"(?<=\(os error )\d+|(?<=\()\d+(?=\)$)", str(e)):
                    raise OSError(int(number[0]), os.strerror(int(number[0]))) from e
                raise
    except (SafetensorError, RuntimeError) as e:
        raise StorageError(f"cannot use {path}: {e}") from e


def _name(flat: Tensor, layout: Layout, rank: int) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for place, pair in zip(layout.places, layout.views(flat), strict=True):
        if place is not None and pair is not None:
            out[f"{place.slot.name}.lora_A.weight"] = pair[0][:, :rank].T.contiguous()
            out[f"{place.slot.name}.lora_B.weight"] = pair[1][:rank].T.contiguous()
    return out


def _flatten(named: dict[str, Tensor], layout: Layout, prefix: str) -> Tensor:
    """Raises `DamagedCheckpointError` if a tensor is missing."""
    flat = torch.zeros(layout.size)
    for place, pair in zip(layout.places, layout.views(flat), strict=True):
        if place is not None and pair is not None:
            a, b = (
                _tensor(named, f"{prefix}{place.slot.name}.lora_{half}.weight") for half in "AB"
            )
            pair[0][:, : a.shape[0]] = a.T
            pair[1][: a.shape[0]] = b.T
    return flat


def _tensor(named: dict[str, Tensor], name: str) -> Tensor:
    if name not in named:
        raise damaged(f"the checkpoint lacks the tensor {name}")
    return named[name]


# --- adapters put aside: flat vectors, no names --------------------------------------------------


def _spill_adapter(adapter: Adapter, path: Path) -> None:
    flat = {"weights": adapter.weights, "m": adapter.m, "v": adapter.v}
    if adapter.has_grad:
        flat["grad"] = adapter.grad
    _save(flat, path)


def _restore_adapter(
    path: Path, sketch: tuple[LoraSpec, Layout, torch.dtype, int, torch.device]
) -> Adapter:
    spec, layout, dtype, steps, device = sketch
    flat = _load(path)
    adapter = Adapter(spec, layout, flat["weights"].to(device, copy=True), dtype)
    adapter.restore(flat["weights"], flat["m"], flat["v"], steps)
    if "grad" in flat:
        adapter.grad.copy_(flat["grad"])
    return adapter


def _restore_frozen(path: Path, sketch: tuple[LoraSpec, Layout, torch.device]) -> FrozenAdapter:
    spec, layout, device = sketch
    flat = _load(path)["weights"].to(device, copy=True)
    return FrozenAdapter(spec, layout, flat, flat.dtype)


ADAPTERS: Kind[Adapter] = Kind(
    lambda a: (a.spec, a.layout, a.frozen().flat.dtype, a.steps, a.weights.device),
    _spill_adapter,
    _restore_adapter,
)
SNAPSHOTS: Kind[FrozenAdapter] = Kind(
    lambda a: (a.spec, a.layout, a.flat.device),
    lambda a, path: _save({"weights": a.flat}, path),
    _restore_frozen,
)
