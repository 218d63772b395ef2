"""Copies of adapters on a real S3 server: whole, verified, brought back, deleted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from s3_server import BUCKET, ENVIRONMENT

from crucible_tinkex.errors import CorruptLogError, StorageError
from crucible_tinkex.registry import CheckpointRecord
from crucible_tinkex.weights.copies import MANIFEST, Copies

CHECKPOINT = CheckpointRecord(
    "t1", 1, 6, "tinker://run:train:0/sampler_weights/x", {}, kind="sampler"
)


@pytest.fixture
def copies(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copies:
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": s3}.items():
        monkeypatch.setenv(name, value)
    return Copies(f"s3://{BUCKET}/{tmp_path.name}", "sweep")


def test_an_adapter_goes_to_a_bucket_and_comes_back(copies: Copies, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    content = {"adapter_model.safetensors": os.urandom(7_000_000), "adapter_config.json": b"{}"}
    for name, data in content.items():
        (adapter / name).write_bytes(data)
    assert copies.find(CHECKPOINT) is None
    made = copies.put(CHECKPOINT, adapter, {"step": 6})
    assert copies.find(CHECKPOINT) == made and copies.all() == [made]
    assert copies.verify(made) == []
    copies.fetch(made, tmp_path / "back")
    assert {p.name: p.read_bytes() for p in (tmp_path / "back").iterdir()} == content

    copies.objects.put(f"{made.prefix}/adapter_config.json", b"[]")
    assert len(copies.verify(made)) == 1
    with pytest.raises(StorageError, match="copy it again"):
        copies.fetch(made, tmp_path / "again")
    copies.objects.delete(f"{made.prefix}/adapter_config.json")
    assert "there is no such object" in copies.verify(made)[0]
    copies.objects.put(f"{made.prefix}/{MANIFEST}", b"{")
    with pytest.raises(CorruptLogError, match="delete it and copy again"):
        copies.find(CHECKPOINT)
    copies.delete(made)
    assert copies.all() == copies.objects.listing() == []
