"""The right name of a base: the older one is an alias, for who asks and for what was saved."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from crucible_tinkex.errors import ConfigError, RequestRejectedError
from crucible_tinkex.names import base_name, hub_id
from crucible_tinkex.server import bases
from crucible_tinkex.server.bases import smollm
from crucible_tinkex.server.operations import BaseInfo, LoraSpec
from crucible_tinkex.server.sessions import checks
from crucible_tinkex.server.store.peft_files import export_peft
from crucible_tinkex.server.store.store import (
    ADAPTER_FILE,
    MANIFEST_FILE,
    Manifest,
    Store,
    read_manifest,
)
from crucible_tinkex.server.web.serve import DEFAULT_BASE, base_of

OLD, NEW = "smollm2-135m", "smollm2-135m-instruct"


def manifest(base: str) -> Manifest:
    return Manifest(
        tinker_path="tinker://run/weights/one",
        base_model=base,
        spec=LoraSpec(rank=1, seed=0, train_attn=True, train_mlp=False, train_unembed=False),
        steps=1,
        optimizer=False,
        created="2026-01-01T00:00:00+00:00",
    )


def test_an_alias_means_the_same_base_everywhere(tmp_path: Path) -> None:
    assert base_name(OLD) == base_name(NEW) == smollm.NAME == NEW
    assert base_name("nano") == "nano"
    assert DEFAULT_BASE == NEW
    assert bases.known_bases() == ("nano", NEW)
    assert "dequantised from Q4_1" in bases.KNOWN[NEW]


def test_what_an_earlier_version_fetched_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRUCIBLE_CACHE", str(tmp_path))
    folder = tmp_path / "models" / OLD
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for name in (OLD, NEW):
        assert bases.ensure_base(name) == bases.Base(NEW, folder, folder)


def test_a_session_may_ask_for_either_name() -> None:
    served = BaseInfo(NEW, tokenizer_id="folder", vocab_size=9, max_length=9)
    for name in (OLD, NEW, None):
        checks.base_model(name, served)
    for name in ("folder", "folder/"):  # where its tokenizer lies: what the cookbook loads
        checks.base_model(name, served)
    with pytest.raises(RequestRejectedError, match="this server has 'smollm2-135m-instruct'"):
        checks.base_model("nano", served)


def test_a_checkpoint_of_an_earlier_version_belongs_to_the_base(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(dataclasses.asdict(manifest(OLD))))
    assert read_manifest(tmp_path).base_model == NEW


def test_a_folder_is_served_on_the_base_of_its_checkpoints(tmp_path: Path) -> None:
    assert base_of(Store(tmp_path)) == DEFAULT_BASE  # nothing is there yet
    for run, base in (("first", "nano"), ("second", "org/other")):
        folder = tmp_path / "checkpoints" / run / "weights" / "one"
        folder.mkdir(parents=True)
        path = f"tinker://{run}/weights/one"
        told = dataclasses.replace(manifest(base), tinker_path=path)
        (folder / MANIFEST_FILE).write_text(json.dumps(dataclasses.asdict(told)))
        if run == "first":
            assert base_of(Store(tmp_path)) == "nano"
    with pytest.raises(ConfigError, match="checkpoints of nano, org/other: choose one with --base"):
        base_of(Store(tmp_path))


def test_an_export_names_a_base_that_others_can_load(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(dataclasses.asdict(manifest(OLD))))
    name = "layers.0.self_attn.q_proj.lora_A.weight"
    save_file({name: np.zeros((1, 1), np.float32)}, tmp_path / ADAPTER_FILE)
    export_peft(tmp_path, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert found["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert hub_id("nano") == "nano"
