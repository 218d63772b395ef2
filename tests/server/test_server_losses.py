"""Every loss against a plain reimplementation with autograd, and against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from server_client import Client, make_rows, train

import crucible_tinkex.protocol.wire as wire
from crucible_tinkex.errors import RequestRejectedError
from crucible_tinkex.server.engine.loss_specs import LOSS_SPECS
from crucible_tinkex.server.engine.losses import active_tokens, token_losses
from crucible_tinkex.server.operations import BaseInfo, ForwardBackward, Row
from crucible_tinkex.server.sessions import checks

BASE = BaseInfo("nano", "", 264, 2048)
LENGTHS = (3, 1, 4)


def _plain(name: str, p: torch.Tensor, x: dict[str, Any], low: Any, high: Any) -> torch.Tensor:
    """The total loss, row by row and token by token, as the formulas are published."""
    total = torch.zeros((), dtype=p.dtype)
    first = 0
    for length in LENGTHS:
        row = range(first, first + length)
        first += length
        marked = [float(p[t].detach() - x["logprobs"][t]) for t in row if x["mask"][t]]
        s = np.exp(np.mean(marked)) if marked else 1.0
        for t in row:
            a, q, w = x["advantages"][t], x["logprobs"][t], x["weights"][t]
            ratio = torch.exp(p[t] - q)
            if name == "gspo":
                ratio = float(s) * torch.exp(p[t] - p[t].detach())
            clipped = torch.minimum(torch.maximum(ratio, low[t]), high[t])
            if name == "cross_entropy":
                loss = -p[t]
            elif name == "importance_sampling":
                loss = -ratio * a
            elif name in ("ppo", "gspo"):
                loss = -torch.minimum(ratio * a, clipped * a)
            elif name == "cispo":
                loss = -clipped.detach() * p[t] * a
            else:
                loss = -(p[t] * a - 0.5 * 0.05 * (p[t] - q) ** 2)
            total = total + w * loss
    return total


@pytest.mark.parametrize("clips", ["settings", "tensors"])
@pytest.mark.parametrize("name", LOSS_SPECS)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_values_and_gradients_equal_the_formulas(name: str, clips: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = sum(LENGTHS)
    p = torch.tensor(-rng.random(n) * 3, requires_grad=True)
    drawn = {
        "logprobs": p.detach() + torch.tensor(rng.normal(0, 0.5, n)),
        "advantages": torch.tensor(rng.normal(0, 1, n) * (rng.random(n) < 0.7)),
        "weights": torch.tensor(rng.random(n) * (rng.random(n) < 0.8)),
        "mask": torch.tensor((rng.random(n) < 0.6).astype(float)),
    }
    low, high = torch.full((n,), 0.7), torch.full((n,), 1.1)
    config = {"clip_low_threshold": 0.7, "clip_high_threshold": 1.1}
    spec = LOSS_SPECS[name]
    inputs = {k: drawn["mask" if "mask" in k else k] for k in (*spec.required, "weights")}
    if clips == "tensors":
        low, high = (torch.tensor(rng.uniform(*r, n)) for r in ((0.5, 1), (1, 1.5)))
        inputs |= {"clip_low_threshold": low, "clip_high_threshold": high}
        config = {}
    if not spec.config or name == "dro":
        config = {}
    found = token_losses(name, p, inputs, config, LENGTHS).sum()
    (slope,) = torch.autograd.grad(found, p)
    expected = _plain(name, p, drawn, low.double(), high.double())
    (wanted,) = torch.autograd.grad(expected, p)
    torch.testing.assert_close(found.detach(), expected.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(slope, wanted, atol=1e-5, rtol=1e-5)
    assert not slope[~active_tokens(name, inputs)].any()


@pytest.mark.parametrize("name", ["importance_sampling", "ppo", "cispo", "gspo"])
def test_a_ratio_beyond_all_numbers_spoils_nothing(name: str) -> None:
    """Tokens of advantage 0, of weight 0, and one that counts."""
    p = torch.full((3,), -0.5, requires_grad=True)
    inputs = {
        "logprobs": torch.full((3,), -300.0),
        "advantages": torch.tensor([0.0, 1.0, 1.0]),
        "weights": torch.tensor([1.0, 0.0, 1.0]),
        "sequence_ratio_mask": torch.ones(3),
    }
    found = token_losses(name, p, inputs, {}, (3,))
    (slope,) = torch.autograd.grad(found.sum(), p)
    assert found[:2].tolist() == [0, 0] and slope[:2].tolist() == [0, 0]
    assert found.isfinite().all() and slope.isfinite().all() and found[2] != 0


def _wide(seed: int, lengths: tuple[int, ...], k: int) -> tuple[Row, ...]:
    rng = np.random.default_rng(seed)
    return tuple(
        Row(
            rng.integers(0, 256, n),
            rng.integers(0, 256, (n, k)),
            {"weights": rng.random((n, k)).astype(np.float32)},
        )
        for n in lengths
    )


def test_soft_targets_are_the_sum_of_hard_ones(start: Callable[..., Client]) -> None:
    """Linear in the weights: K targets per token give what K requests of one give."""
    client = start()
    rows = _wide(0, (5, 12, 3), 3)
    grads, losses = {}, {}
    for name, parts in {
        "soft": [rows],
        "hard": [
            tuple(
                Row(r.tokens, r.targets[:, j].copy(), {"weights": r.inputs["weights"][:, j].copy()})
                for r in rows
            )
            for j in range(3)
        ],
    }.items():
        client.create(name)
        client.step(name, make_rows(4, (9,)))
        found = [client.one(train(name, part)) for part in parts]
        losses[name] = sum(f.metrics["loss:sum"] for f in found)
        grads[name] = client.engine.weights.adapters[name].grad.clone()
        if name == "soft":
            assert [p.shape for p in found[0].logprobs] == [(5, 3), (12, 3), (3, 3)]
            soft = found[0].logprobs
        else:
            for i, row in enumerate(soft):
                alone = np.stack([f.logprobs[i] for f in found], 1)
                np.testing.assert_allclose(row, alone, atol=1e-6)
    assert losses["soft"] == pytest.approx(losses["hard"], rel=1e-5)
    torch.testing.assert_close(grads["soft"], grads["hard"], atol=1e-4, rtol=1e-4)


def test_the_gradient_of_gspo_is_a_slope(start: Callable[..., Client]) -> None:
    """With one token marked per row and no clipping, the surrogate's gradient is a true one."""
    client = start()
    client.create("m")
    client.step("m", make_rows(1, (9, 7)))
    rng = np.random.default_rng(3)
    rows = []
    for row in make_rows(2, (6, 5)):
        mask = np.zeros(len(row.tokens), np.float32)
        mask[2] = 1
        inputs = {
            "logprobs": rng.normal(-8, 1, len(mask)).astype(np.float32),
            "advantages": mask * 0.5,
            "sequence_ratio_mask": mask,
        }
        rows.append(Row(row.tokens, row.targets, inputs))
    config = {"clip_low_threshold": 0.0, "clip_high_threshold": 1e30}

    def loss(*, backward: bool) -> float:
        operation = ForwardBackward("m", tuple(rows), "gspo", config, backward)
        return client.one(operation).metrics["loss:sum"]

    adapter = client.engine.weights.adapters["m"]
    loss(backward=True)
    grad = adapter.grad.clone()
    direction = grad / grad.norm()
    weights, step = adapter.weights.clone(), 3e-3
    values = []
    for sign in (1, -1):
        adapter.restore(weights + sign * step * direction, None, None, 0)
        values.append(loss(backward=False))
    slope = (values[0] - values[1]) / (2 * step)
    assert slope == pytest.approx(float(grad.norm()), rel=2e-2)


def _datum(n: int = 3, **inputs: wire.TensorData) -> wire.Datum:
    return wire.Datum(
        model_input=wire.ModelInput.from_tokens(list(range(1, n + 1))), loss_fn_inputs=inputs
    )


def _ints(*data: int, **more: Any) -> wire.TensorData:
    return wire.TensorData(data=list(data), dtype="int64", **more)


def _floats(*data: float, **more: Any) -> wire.TensorData:
    return wire.TensorData(data=list(data), dtype="float32", **more)


def _checked(loss: str, *data: wire.Datum, **config: float) -> ForwardBackward:
    given = wire.ForwardInput(data=list(data), loss_fn=loss, loss_fn_config=config or None)
    return checks.forward("m", given, BASE, backward=True)


def test_what_is_missing_is_filled_in() -> None:
    bare = _datum(target_tokens=_ints(1, 2, 3))
    assert _checked("cross_entropy", bare).rows[0].inputs["weights"].tolist() == [1, 1, 1]
    policy = {"logprobs": _floats(0, 0, 0), "advantages": _floats(1, 1, 1)}
    plain = _datum(target_tokens=_ints(1, 2, 3), **policy)
    clipped = _datum(
        target_tokens=_ints(1, 2, 3), clip_high_threshold=_floats(1, 2, float("inf")), **policy
    )
    rows = _checked("ppo", plain, clipped, clip_high_threshold=1.5).rows
    assert rows[0].inputs["clip_high_threshold"].tolist() == [1.5, 1.5, 1.5]
    assert rows[1].inputs["clip_high_threshold"].tolist() == [1, 2, float("inf")]
    assert "clip_low_threshold" not in rows[0].inputs and "weights" not in rows[0].inputs


def test_sparse_targets_come_out_dense() -> None:
    sparse: dict[str, Any] = {
        "shape": [2, 3],
        "sparse_crow_indices": [0, 2, 3],
        "sparse_col_indices": [0, 2, 1],
    }
    datum = _datum(2, target_tokens=_ints(5, 6, 7, **sparse), weights=_floats(1, 2, 3, **sparse))
    row = _checked("cross_entropy", datum).rows[0]
    assert row.targets.tolist() == [[5, 0, 6], [0, 7, 0]]
    assert row.inputs["weights"].tolist() == [[1, 0, 2], [0, 3, 0]]


@pytest.mark.parametrize(
    ("loss", "inputs", "says"),
    [
        ("ppo", {"target_tokens": _ints(1, 2, 3, 4, 5, 6, shape=[3, 2])}, "one per token"),
        ("cross_entropy", {"target_tokens": _ints(1, 2, 3, shape=[2, 2])}, "shape"),
        ("cross_entropy", {"target_tokens": _ints(1, 2, 3, shape=[-1, -3])}, "shape"),
        ("cross_entropy", {"target_tokens": _ints(1, 2, shape=[2, 1])}, "entries"),
        (
            "cross_entropy",
            {"target_tokens": _ints(*range(6), shape=[3, 2]), "weights": _floats(1, 1, 1)},
            "weights has 3 entries for 6",
        ),
        ("gspo", {"target_tokens": _ints(1, 2, 3), "logprobs": _floats(0, 0, 0)}, "advantages"),
        (
            "ppo",
            {
                "target_tokens": _ints(1, 2, 3),
                "logprobs": _floats(0, 0, float("inf")),
                "advantages": _floats(1, 1, 1),
            },
            "finite",
        ),
    ],
)
def test_misshapen_inputs_are_refused(
    loss: str, inputs: dict[str, wire.TensorData], says: str
) -> None:
    with pytest.raises(RequestRejectedError, match=says):
        _checked(loss, _datum(**inputs))
