"""Where the engine computes: on the CPU unless asked; and that CUDA works, where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from server_client import Client, make_rows, train

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server import bases
from crucible_tinkex.server.engine import losses
from crucible_tinkex.server.engine.engine import TorchEngine
from crucible_tinkex.server.engine.launch import chosen_device, fitting_threads, own_cores
from crucible_tinkex.server.operations import (
    ForwardBackward,
    ForwardOutput,
    LoadWeights,
    Row,
    Sample,
    SampleOutput,
    SamplerSource,
    SaveWeights,
    TakeSnapshot,
)
from crucible_tinkex.server.store.store import Store

HAS_CUDA = torch.cuda.is_available()


def test_the_device_is_the_cpu_unless_asked() -> None:
    assert chosen_device("cpu") == torch.device("cpu")
    assert chosen_device("auto").type == ("cuda" if HAS_CUDA else "cpu")


def test_cores_are_counted_where_there_is_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert own_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert own_cores() == 1


def test_a_tiny_base_gets_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert fitting_threads(bases.hidden_size(bases.ensure_base("nano"))) == 1
    assert fitting_threads(576) == 3


def test_a_base_of_another_kind_is_named_before_its_size_is_asked(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ConfigError, match="holds a 'clip' model"):
        bases.hidden_size(bases.ensure_base(str(tmp_path)))


@pytest.mark.skipif(HAS_CUDA, reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="no CUDA device"):
        chosen_device("cuda")


@pytest.mark.parametrize("name", ["ppo", "cispo", "gspo"])
def test_losses_stay_on_the_device_of_their_inputs(name: str) -> None:
    """`meta` refuses, as CUDA does, to meet tensors of the CPU that are more than a number."""
    inputs = {
        n: torch.ones(3, device="meta") for n in ("logprobs", "advantages", "sequence_ratio_mask")
    }
    found = losses.token_losses(name, torch.zeros(3, device="meta"), inputs, {}, (3,))
    assert found.device.type == "meta"
    assert losses.active_tokens(name, inputs).device.type == "meta"


@pytest.mark.cuda
@pytest.mark.skipif(not HAS_CUDA, reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cuda_trains_samples_saves_and_loads(
    nano: bases.Base, tmp_path: Path, dtype: torch.dtype
) -> None:
    engine = TorchEngine(nano, Store(tmp_path), dtype=dtype, device=torch.device("cuda"))
    client = Client(engine)
    client.create("m", rank=4)
    rows = make_rows(1, (9, 12, 300))
    first = client.step("m", rows)
    for name in losses.LOSS_SPECS:
        given = [Row(r.tokens, r.targets, _inputs(len(r.tokens))) for r in rows]
        output = client.one(ForwardBackward("m", tuple(given), name, {}, True))
        assert isinstance(output, ForwardOutput) and np.isfinite(output.metrics["loss:sum"])
    client.step("m", rows)
    last = client.one(train("m", rows, backward=False))
    assert isinstance(first, ForwardOutput) and isinstance(last, ForwardOutput)
    assert last.metrics["loss:sum"] < first.metrics["loss:sum"]
    client.one(TakeSnapshot("m", "snap"))
    asked = Sample(
        SamplerSource(snapshot_id="snap"), rows[0].tokens, 3, 0, 20, seed=1, prompt_logprobs=True
    )
    assert isinstance(client.one(asked), SampleOutput)
    path = TinkerPath("m", "weights", "one")
    client.one(SaveWeights("m", path))
    client.one(LoadWeights("n", path, True))
    again = client.one(train("n", rows, backward=False))
    assert isinstance(again, ForwardOutput)
    assert again.metrics["loss:sum"] == pytest.approx(last.metrics["loss:sum"], rel=1e-3)
    engine.close()


def _inputs(n: int) -> dict[str, np.ndarray]:
    names = ("weights", "logprobs", "advantages", "sequence_ratio_mask")
    return {name: np.full(n, 0.5, np.float32) for name in names}
