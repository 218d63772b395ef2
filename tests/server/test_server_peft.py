"""Gradients, losses, steps and exports against `peft` on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from server_client import Client, make_rows, train

from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server import bases
from crucible_tinkex.server.operations import (
    ALPHA,
    Adam,
    ForwardOutput,
    OptimStep,
    Row,
    SaveWeights,
)
from crucible_tinkex.server.store.peft_files import export_peft

# peft warns that our base's output layer is tied to its embedding; the adapter is on one of them
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
RANK = 4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


@pytest.fixture
def pair(start: Callable[..., Client], nano: bases.Base) -> tuple[Client, Any]:
    """Our engine with one trained model, and peft with the same adapter."""
    client = start()
    client.create("m", rank=RANK)
    client.step("m", make_rows(5, (8, 13)), learning_rate=3e-3)  # so that B is not 0
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0.0)
    base = bases.load_model(nano, torch.float32)
    model = peft.get_peft_model(base, config)
    _copy(client, model)
    return client, model


def _peft_tensors(model: Any) -> dict[str, torch.Tensor]:
    return {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}


def _ours(client: Client, flat: torch.Tensor) -> dict[str, torch.Tensor]:
    layout = client.engine.weights.adapters["m"].layout
    out = {}
    for place, views in zip(layout.places, layout.views(flat), strict=True):
        assert place is not None and views is not None
        name = place.slot.name if place.slot.name == "lm_head" else f"model.{place.slot.name}"
        out[f"base_model.model.{name}.lora_A.weight"] = views[0][:, :RANK].T
        out[f"base_model.model.{name}.lora_B.weight"] = views[1][:RANK].T
    return out


def _copy(client: Client, model: Any) -> None:
    theirs, ours = _peft_tensors(model), _ours(client, client.engine.weights.adapters["m"].weights)
    assert theirs.keys() == ours.keys()
    with torch.no_grad():
        for name, tensor in ours.items():
            theirs[name].copy_(tensor)


def _logprobs(model: Any, row: Row) -> torch.Tensor:
    logits = model(torch.from_numpy(row.tokens)[None]).logits[0]
    return logits.log_softmax(-1).gather(1, torch.from_numpy(row.targets)[:, None])[:, 0]


def _loss(name: str, logp: torch.Tensor, row: Row) -> torch.Tensor:
    x = {k: torch.from_numpy(v) for k, v in row.inputs.items()}
    if name == "cross_entropy":
        return -(x["weights"] * logp).sum()
    ratio = torch.exp(logp - x["logprobs"])
    clipped = ratio.clamp(0.8, 1.2)
    a = x["advantages"]
    return {
        "importance_sampling": -(ratio * a).sum(),
        "ppo": -torch.minimum(ratio * a, clipped * a).sum(),
        "cispo": -(clipped.detach() * logp * a).sum(),
        "dro": -(logp * a - 0.025 * (logp - x["logprobs"]) ** 2).sum(),
    }[name]


def _rows(name: str, model: Any) -> tuple[Row, ...]:
    rows = make_rows(11, (6, 15, 10))
    if name == "cross_entropy":
        return rows
    rng = np.random.default_rng(1)
    out = []
    for row in rows:
        with torch.no_grad():
            near = _logprobs(model, row).numpy()
        q = near + rng.normal(0, 0.3, len(near)).astype(np.float32)
        a = rng.normal(0, 1, len(near)).astype(np.float32) * (np.arange(len(near)) > 2)
        out.append(Row(row.tokens, row.targets, {"logprobs": q, "advantages": a.astype("f4")}))
    return tuple(out)


@pytest.mark.parametrize("loss", ["cross_entropy", "importance_sampling", "ppo", "cispo", "dro"])
def test_losses_and_gradients_equal_peft(pair: tuple[Client, Any], loss: str) -> None:
    client, model = pair
    rows = _rows(loss, model)
    output = client.one(train("m", rows, loss=loss))
    assert isinstance(output, ForwardOutput)
    expected = [_logprobs(model, r) for r in rows]
    total = sum(_loss(loss, p, r) for p, r in zip(expected, rows, strict=True))
    assert isinstance(total, torch.Tensor)
    total.backward()
    for got, want in zip(output.logprobs, expected, strict=True):
        np.testing.assert_allclose(got, want.detach().numpy(), atol=2e-5)
    size = sum(float(p.detach().abs().sum()) for p in expected)  # the sum itself cancels
    assert output.metrics["loss:sum"] == pytest.approx(float(total.detach()), abs=1e-5 * size)
    ours = _ours(client, client.engine.weights.adapters["m"].grad)
    for name, parameter in _peft_tensors(model).items():
        assert parameter.grad is not None
        size = float(parameter.grad.norm())
        assert size > 0, name
        assert float((ours[name] - parameter.grad).norm()) <= 1e-5 * max(size, 1.0), name


def test_steps_equal_adamw_on_peft(pair: tuple[Client, Any]) -> None:
    client, model = pair
    client.engine.weights.adapters["m"].restore(
        client.engine.weights.adapters["m"].weights, None, None, 0
    )
    theirs = _peft_tensors(model)
    optimizer = torch.optim.AdamW(
        theirs.values(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
    )
    adam = Adam(learning_rate=1e-3, eps=1e-8, weight_decay=0.1, grad_clip_norm=5.0)
    for number in range(3):
        halves = make_rows(number, (7, 12)), make_rows(number + 50, (9,))
        for rows in halves:  # two requests accumulate
            client.one(train("m", rows))
        out = client.one(OptimStep("m", adam))
        optimizer.zero_grad()
        sum(_loss("cross_entropy", _logprobs(model, r), r) for r in sum(halves, ())).backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 5.0)
        assert out.metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
        optimizer.step()
    for name, tensor in _ours(client, client.engine.weights.adapters["m"].weights).items():
        torch.testing.assert_close(tensor, theirs[name].detach(), atol=1e-5, rtol=0)


def test_export_gives_the_same_logits(
    pair: tuple[Client, Any], nano: bases.Base, tmp_path: Path
) -> None:
    client, _ = pair
    path = TinkerPath("m", "sampler_weights", "x")
    client.one(SaveWeights("m", path))
    export_peft(client.engine.weights.store.folder(path), tmp_path / "peft")
    base = bases.load_model(nano, torch.float32)
    row = make_rows(2, (20,))[0]
    with torch.no_grad():
        plain = _logprobs(base, row).numpy().copy()
        loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "peft"))
        theirs = _logprobs(loaded, row).numpy()
    ours = client.one(train("m", (row,), backward=False))
    assert isinstance(ours, ForwardOutput)
    np.testing.assert_allclose(ours.logprobs[0], theirs, atol=2e-5)
    assert np.abs(theirs - plain).max() > 0.1
