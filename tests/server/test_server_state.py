"""Checkpoints: what is loaded goes on bit for bit; failures fail alone."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from server_client import Client, make_rows, train

from crucible_tinkex.errors import CrucibleError, RequestRejectedError, StorageError
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server.bases import smollm
from crucible_tinkex.server.operations import (
    LoadWeights,
    LoraSpec,
    SaveWeights,
    UnloadModel,
)
from crucible_tinkex.server.store.store import Manifest, Store

STATE = TinkerPath("run:train:0", "weights", "half")


def _weights(client: Client, name: str) -> torch.Tensor:
    return client.engine.weights.adapters[name].weights.clone()


def test_loading_with_optimizer_goes_on_bit_for_bit(start: Callable[..., Client]) -> None:
    client = start()
    client.create("m", rank=5)
    for number in range(4):
        if number == 2:
            client.one(SaveWeights("m", STATE))
        client.step("m", make_rows(number, (9, 14)))
    whole = _weights(client, "m")

    again = start()  # a new engine on the same folder
    again.one(LoadWeights("n", STATE, optimizer=True))
    for number in (2, 3):
        again.step("n", make_rows(number, (9, 14)))
    assert torch.equal(_weights(again, "n"), whole)

    again.one(LoadWeights("o", STATE, optimizer=False))
    for number in (2, 3):
        again.step("o", make_rows(number, (9, 14)))
    assert not torch.equal(_weights(again, "o"), whole)


_CHILD = """
import sys, hashlib
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
torch.set_num_threads(1)
from server_client import Client, make_rows
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server import bases
from crucible_tinkex.server.engine.engine import TorchEngine
from crucible_tinkex.server.operations import LoadWeights
from crucible_tinkex.server.store.store import Store
engine = TorchEngine(bases.ensure_base("nano"), Store(Path(sys.argv[1])), dtype=torch.bfloat16)
client = Client(engine)
client.one(LoadWeights("x", TinkerPath.parse(sys.argv[3]), True))
client.step("x", make_rows(7, (9, 14)))
print(hashlib.sha256(engine.weights.adapters["x"].weights.numpy().tobytes()).hexdigest())
engine.close()
"""


def test_a_new_process_goes_on_bit_for_bit(start: Callable[..., Client], tmp_path: Path) -> None:
    client = start(torch.bfloat16)
    client.create("m")
    client.step("m", make_rows(0, (9, 14)))
    client.one(SaveWeights("m", STATE))
    client.step("m", make_rows(7, (9, 14)))
    here = hashlib.sha256(_weights(client, "m").numpy().tobytes()).hexdigest()
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            _CHILD,
            str(tmp_path / "data"),
            str(Path(__file__).parent),
            str(STATE),
        ],
        capture_output=True,
        text=True,
        env={**os.environ},
        timeout=120,
    )
    assert child.stdout.strip() == here, child.stderr


def test_a_name_is_never_replaced_unless_asked(start: Callable[..., Client]) -> None:
    client = start()
    client.create("m")
    client.one(SaveWeights("m", STATE))
    with pytest.raises(RequestRejectedError, match="exists") as found:
        client.one(SaveWeights("m", STATE))
    assert (found.value.status, found.value.category) == (400, "user")
    client.step("m", make_rows(0, (5,)))
    client.one(SaveWeights("m", STATE, overwrite=True))
    client.one(LoadWeights("n", STATE, optimizer=True))
    assert torch.equal(_weights(client, "n"), _weights(client, "m"))


def test_a_failure_fails_alone(start: Callable[..., Client]) -> None:
    client = start()
    client.create("m")
    rows = make_rows(0, (6, 9))
    outcomes = client.all(
        [
            train("ghost", rows),
            LoadWeights("x", TinkerPath("r", "weights", "none"), optimizer=True),
            train("m", rows),
            train("ghost", rows),
        ]
    )
    assert [isinstance(o, CrucibleError) for o in outcomes] == [True, True, False, True]
    client.one(UnloadModel("m"))
    with pytest.raises(RequestRejectedError, match="does not exist"):
        client.one(train("m", rows))


def test_a_diverged_loss_is_reported_as_it_is(start: Callable[..., Client]) -> None:
    client = start()
    client.create("m")
    client.create("n")
    client.engine.weights.adapters["m"].restore(
        torch.full_like(_weights(client, "m"), float("nan")), None, None, 0
    )
    rows = make_rows(0, (6, 9))
    sick, well = client.all([train("m", rows), train("n", rows)])
    assert np.isnan(sick.metrics["loss:sum"])
    assert np.isfinite(well.metrics["loss:sum"])
    assert torch.isfinite(client.engine.weights.adapters["n"].grad).all()


def _manifest(path: TinkerPath) -> Manifest:
    return Manifest(str(path), "nano", LoraSpec(4, 1), 3, True, "2026-01-01T00:00:00+00:00")


def _write(folder: Path) -> None:
    (folder / "adapter.safetensors").write_bytes(b"abc")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def half(folder: Path) -> None:
        _write(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        store.save(_manifest(STATE), half)
    assert store.list() == [] and Store(tmp_path).list() == []
    assert list(store.folder(STATE).parent.iterdir()) == []


def test_the_store_finds_its_checkpoints_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    saved = store.save(_manifest(STATE), _write)
    other = TinkerPath("run:train:1", "sampler_weights", "x")
    store.save(_manifest(other), _write)
    again = Store(tmp_path)
    assert again.info(STATE) == saved
    assert [m.path for m in again.list("run:train:1")] == [other]
    assert json.loads((store.folder(STATE) / "manifest.json").read_text())["sha256"] == saved.sha256
    again.delete(STATE)
    with pytest.raises(RequestRejectedError, match="no checkpoint"):
        again.info(STATE)
    assert [m.path for m in Store(tmp_path).list()] == [other]


def test_a_disk_without_space_is_found_before_fetching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm, "NEEDED_BYTES", 1 << 62)
    with pytest.raises(StorageError, match=rf"needs {1 << 62} bytes in .* free"):
        smollm.ensure(tmp_path)


def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not it")
    with pytest.raises(StorageError, match="SHA-256"):
        smollm.verify(tmp_path / "x.gguf")
