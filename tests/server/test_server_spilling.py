"""Idle adapters on disk: numbers never change, and a full disk harms nobody."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from server_client import Client, make_rows, train

from crucible_tinkex.server import bases
from crucible_tinkex.server.engine.engine import TorchEngine
from crucible_tinkex.server.model.base_model import BaseModel
from crucible_tinkex.server.operations import (
    Adam,
    CreateModel,
    DropSnapshot,
    LoraSpec,
    OptimStep,
    Sample,
    SamplerSource,
    TakeSnapshot,
    UnloadModel,
)
from crucible_tinkex.server.store.store import Store

_names = itertools.count()


@pytest.fixture(scope="module")
def pair(
    nano: bases.Base, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Client, Client]]:
    """One engine that keeps everything, and one that puts everything aside after each turn."""
    engines = [
        TorchEngine(
            nano,
            Store(tmp_path_factory.mktemp("data")),
            dtype=torch.bfloat16,
            memory_bytes=memory_bytes,
            token_cap=32,
        )
        for memory_bytes in (1 << 40, 0)
    ]
    yield Client(engines[0]), Client(engines[1])
    for engine in engines:
        engine.close()


def _equal(a: Any, b: Any) -> None:
    if hasattr(a, "logprobs"):
        assert all(map(np.array_equal, a.logprobs, b.logprobs))
        assert a.metrics == b.metrics
    else:
        assert a == b


@settings(max_examples=8)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["train", "step", "snapshot", "sample"])),
        min_size=4,
        max_size=14,
    )
)
def test_what_was_put_aside_goes_on_bit_for_bit(
    pair: tuple[Client, Client], steps: list[tuple[int, str]]
) -> None:
    names = [f"m{next(_names)}" for _ in range(3)]
    operations: list[Any] = [CreateModel(n, LoraSpec(4, i)) for i, n in enumerate(names)]
    taken: dict[str, str] = {}
    for number, (which, what) in enumerate(steps):
        name = names[which]
        if what == "train":
            operations.append(train(name, make_rows(number, (5, 30, 9))))
        elif what == "step":
            operations.append(OptimStep(name, Adam(learning_rate=1e-2)))
        elif what == "snapshot":
            taken[name] = f"{name}-{number}"
            operations.append(TakeSnapshot(name, taken[name]))
        elif name in taken:
            source = SamplerSource(snapshot_id=taken[name])
            operations.append(Sample(source, np.arange(5), seed=1, max_tokens=3, stop_tokens=()))
    results = [[client.one(o) for o in operations] for client in pair]
    for kept, spilled in zip(*results, strict=True):
        _equal(kept, spilled)
    assert pair[1].engine.weights.adapters.spilled_count > 0
    for name in names:
        a, b = (client.engine.weights.adapters[name] for client in pair)
        assert a.steps == b.steps
        for part in ("weights", "grad", "m", "v"):
            assert torch.equal(getattr(a, part), getattr(b, part)), part
        assert torch.equal(a.frozen().flat, b.frozen().flat)
    for client in pair:
        for name in names:
            client.one(UnloadModel(name))
        for operation in operations:
            if isinstance(operation, TakeSnapshot):
                client.one(DropSnapshot(operation.snapshot_id))


def test_nothing_is_left_of_what_is_gone(pair: tuple[Client, Client]) -> None:
    _, client = pair
    client.create("gone")
    client.one(TakeSnapshot("gone", "gone-too"))
    client.one(UnloadModel("gone"))
    client.one(DropSnapshot("gone-too"))
    client.one(UnloadModel("nobody"))  # one more turn
    assert (
        len(client.engine.weights.adapters) == 0 and client.engine.weights.adapters.size_bytes == 0
    )
    assert not list(client.engine.weights.spill_folder.rglob("*.safetensors"))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_only_idle_ones_go_while_there_is_room(nano: bases.Base, tmp_path: Path) -> None:
    clock = Clock()
    engine = TorchEngine(nano, Store(tmp_path), dtype=torch.float32, clock=clock, idle_s=100)
    client = Client(engine)
    for name in ("a", "b"):
        client.create(name)
    clock.now = 90
    client.step("a", make_rows(0, (5,)))
    clock.now = 120
    client.one(UnloadModel("nobody"))
    client.one(UnloadModel("nobody"))
    adapters, idle = engine.weights.adapters, tmp_path / "spill"
    assert (len(adapters), adapters.spilled_count) == (2, 1)
    (file,) = idle.rglob("models/*")
    assert adapters.get("a") and file.exists()
    assert adapters.get("b") and adapters.spilled_count == 0 and not file.exists()
    engine.close()
    assert not engine.weights.spill_folder.exists()


def test_a_disk_that_refuses_costs_memory_only(nano: bases.Base, tmp_path: Path) -> None:
    engine = TorchEngine(nano, Store(tmp_path), dtype=torch.float32, memory_bytes=0)
    client = Client(engine)
    shutil.rmtree(engine.weights.spill_folder)
    engine.weights.spill_folder.write_text("no folder")
    client.create("a")
    before = client.one(train("a", make_rows(0, (5,)), backward=False))
    client.step("a", make_rows(0, (5,)))
    after = client.one(train("a", make_rows(0, (5,)), backward=False))
    assert after.metrics["loss:sum"] < before.metrics["loss:sum"]
    assert engine.weights.adapters.spilled_count == 0
    engine.close()


def test_the_next_process_removes_the_files_of_a_dead_one(nano: bases.Base, tmp_path: Path) -> None:
    dead = tmp_path / "spill" / "999999999-x"
    dead.mkdir(parents=True)
    (dead / "1.safetensors").write_bytes(b"x")
    engine = TorchEngine(nano, Store(tmp_path), dtype=torch.float32)
    assert not dead.exists()
    engine.close()


def test_a_pass_fetches_only_the_adapters_that_it_trains(pair: tuple[Client, Client]) -> None:
    client = pair[1]
    names = [f"m{next(_names)}" for _ in range(4)]
    client.all([CreateModel(n, LoraSpec(8, 0)) for n in names])
    folder = client.engine.weights.spill_folder / "models"
    fetched: list[int] = []
    hidden, adapters = BaseModel.hidden, client.engine.weights.adapters

    def counted(*args: Any, **options: Any) -> torch.Tensor:
        fetched.append(len(adapters) - adapters.spilled_count)
        return hidden(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseModel, "hidden", counted)
        client.all([train(n, make_rows(0, (30,))) for n in names])
    assert fetched == [1] * 4
    assert len(list(folder.iterdir())) >= 3


def test_an_adapter_between_two_steps_has_no_gradient(pair: tuple[Client, Client]) -> None:
    client, name = pair[0], f"m{next(_names)}"
    client.create(name)
    adapter = client.engine.weights.adapters[name]
    idle_bytes = adapter.size_bytes
    client.one(train(name, make_rows(0, (9,))))
    assert adapter.size_bytes == idle_bytes + adapter.weights.nbytes
    client.one(OptimStep(name, Adam()))
    assert adapter.size_bytes == idle_bytes
    assert client.engine.weights.adapters.size_bytes >= idle_bytes
