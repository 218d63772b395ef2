"""Losses computed here, their gradients and parts, and what gradient hooks find."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.protocol.wire import (
    Datum,
    ForwardBackwardOutput,
    ModelInput,
    OptimStepResponse,
    TensorData,
)
from crucible_tinkex.training.losses import GradientHooks, default_losses
from crucible_tinkex.training.losses.custom import composite, focal, nll
from crucible_tinkex.training.losses.gradient_hooks import Seen, grad_norm, seen

WEIGHTS = [0.0, 1.0, 2.0]


def _datum(weights: list[float] = WEIGHTS) -> Datum:
    shape = [len(weights)]
    return Datum(
        model_input=ModelInput.from_tokens(list(range(len(weights)))),
        loss_fn_inputs={
            "target_tokens": TensorData(data=[1] * len(weights), dtype="int64", shape=shape),
            "weights": TensorData(data=weights, dtype="float32", shape=shape),
        },
    )


def _called(maker: Any, logprobs: list[float]) -> tuple[float, np.ndarray[Any, Any], Any]:
    loss, gradients, metrics = maker([_datum()])([np.asarray(logprobs, np.float32)])
    return loss, gradients[0], metrics


@pytest.mark.parametrize("maker", [nll(), focal(), focal(0.5), composite({"a": (0.3, focal())})])
@given(st.lists(st.floats(-5, -0.05), min_size=3, max_size=3))
def test_gradients_are_the_slopes_of_the_loss(maker: Any, logprobs: list[float]) -> None:
    _, gradient, _ = _called(maker, logprobs)
    for i in range(3):
        step = [(1e-2 if j == i else 0.0) for j in range(3)]
        above = _called(maker, [p + s for p, s in zip(logprobs, step, strict=True)])[0]
        below = _called(maker, [p - s for p, s in zip(logprobs, step, strict=True)])[0]
        assert gradient[i] == pytest.approx((above - below) / 2e-2, abs=2e-2, rel=2e-2)


def test_nll_is_the_services_cross_entropy_and_ignores_what_is_only_read() -> None:
    loss, gradient, _ = _called(nll(), [-math.inf, -1.0, -0.5])
    assert loss == pytest.approx(2.0)
    assert gradient.tolist() == [0.0, -1.0, -2.0]


def test_a_composite_is_the_sum_of_its_logged_parts() -> None:
    loss, _, metrics = _called(composite({"n": (1.0, nll()), "f": (0.5, focal())}), [-1, -1, -0.5])
    assert loss == pytest.approx(metrics["n:sum"] + metrics["f:sum"])
    assert metrics["n:sum"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.get("topological"), "no published definition"),
        (lambda r: r.get("chirality"), "no published definition"),
        (lambda r: r.get("citation_validty"), "did you mean 'citation_validity'"),
        (lambda r: r.composite({"ppo": 1.0}), "computed by the service"),
        (lambda r: r.composite({}), "at least one part"),
        (lambda r: r.register_custom("ppo", nll()), "exists already"),
        (lambda r: focal(-1), "at least 0"),
        (lambda r: GradientHooks(["norms"]), "unknown gradient hook"),
    ],
)
def test_what_there_is_not_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(default_losses())


def test_a_name_without_a_definition_can_be_given_one() -> None:
    losses = default_losses()
    losses.register_custom("chirality", focal())
    assert losses.get("chirality").custom is not None
    assert losses.get("dro").service == "dro"
    assert losses.get("claims").weights is not None


# --- hooks ---------------------------------------------------------------------------------------


def _seen(logprobs: list[float], norm: float | None = None) -> Seen:
    tensor = TensorData(data=logprobs, dtype="float32", shape=[len(logprobs)])
    output = ForwardBackwardOutput(loss_fn_outputs=[{"logprobs": tensor}])
    metrics = None if norm is None else {"grad_norm": norm}
    return seen(3, [_datum()], output, OptimStepResponse(metrics=metrics))


def test_hooks_measure_the_gradients_of_learnt_tokens() -> None:
    found = GradientHooks(["norm", "distribution", "flow", "health"]).run(
        _seen([-9.0, math.log(0.5), math.log(0.75)], norm=4.0)
    )
    assert found["norm"]["grad_norm"] == 4.0
    assert found["norm"]["token_grad_norm"] == pytest.approx(math.sqrt(0.5))
    assert found["distribution"]["mean"] == pytest.approx(-0.5)
    assert found["distribution"]["sparsity"] == 0
    assert found["flow"] == {
        "available": False,
        "reason": "a Tinker service returns no gradients per layer",
    }
    assert found["health"] == {"gradient_health": "healthy", "gradient_issues": []}


@pytest.mark.parametrize(
    ("norm", "health"),
    [
        (1e-8, "vanishing"),
        (1e4, "exploding"),
        (math.nan, "not_finite"),
        (1.0, "healthy"),
        (1600.0, "healthy"),  # of two learnt tokens
    ],
)
def test_health(norm: float, health: str) -> None:
    found = GradientHooks(["health"]).run(_seen([-1.0] * 3, norm=norm))["health"]
    assert found["gradient_health"] == health
    assert bool(found["gradient_issues"]) is (health != "healthy")


def test_without_logprobs_hooks_say_so() -> None:
    output = ForwardBackwardOutput(loss_fn_outputs=[{}])
    nothing = seen(1, [_datum()], output, OptimStepResponse())
    found = GradientHooks(["norm", "distribution", "health"]).run(nothing)
    assert found["norm"] == {"grad_norm": None, "token_grad_norm": None}
    assert found["distribution"]["available"] is False
    assert found["health"]["gradient_health"] == "unknown"


def test_the_norm_is_found_under_the_names_that_services_use() -> None:
    for name in ("grad_norm", "grad_norm:last", "optim/grad_norm:mean"):
        assert grad_norm(OptimStepResponse(metrics={name: 2.0})) == 2.0
    assert grad_norm(OptimStepResponse(metrics={"unclipped": 2.0})) is None
