"""The whole flow of a user of our own client, run as `sdk_flow.py` is: a script against a server.

python client_flow.py OUT.json       (TINKER_BASE_URL and TINKER_API_KEY in the environment)
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from crucible_tinkex.client import TinkexService
from crucible_tinkex.errors import RequestRejectedError
from crucible_tinkex.protocol.wire import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    LoraConfig,
    ModelInput,
    SamplingParams,
    TensorData,
)

NAME = "our client"
STEPS: list[Callable[[dict[str, Any]], Awaitable[None]]] = []
ROWS = [[1, 2, 3, 4, 5], [9, 8, 7], [100, 101, 102, 103]]
PROMPT = [97, 98, 99, 100]
PARAMS = SamplingParams(max_tokens=5, seed=5, stop=[])


def step(function: Callable[[dict[str, Any]], Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    STEPS.append(function)
    return function


def datum(row: list[int], **inputs: Any) -> Datum:
    given = inputs or {"weights": [1.0] * (len(row) - 1)}
    floats = {n: TensorData(data=list(v), dtype="float32") for n, v in given.items()}
    targets = TensorData(data=row[1:], dtype="int64")
    return Datum(
        model_input=ModelInput.from_tokens(row[:-1]),
        loss_fn_inputs={"target_tokens": targets, **floats},
    )


DATA = [datum(row) for row in ROWS]


def logprobs(output: ForwardBackwardOutput) -> list[list[float]]:
    return [list(o["logprobs"].data) for o in output.loss_fn_outputs]


async def loss(training: Any) -> float:
    found: float = (await training.forward(DATA)).metrics["loss:sum"]
    return found


async def tokens(sampler: Any) -> list[list[int]]:
    answer = await sampler.sample(PROMPT, PARAMS, num_samples=3)
    return [q.tokens for q in answer.sequences]


async def checkpoints(s: dict[str, Any]) -> dict[str, Any]:
    return {c.tinker_path: c async for c in s["rest"].checkpoints(s["run"])}


# --- training ----------------------------------------------------------------------------------


@step
async def create_training(s: dict[str, Any]) -> None:
    s["service"] = TinkexService()
    s["rest"] = s["service"].rest
    found = await s["service"].capabilities()
    assert [m.model_name for m in found.supported_models] == ["nano"]
    s["training"] = await s["service"].create_training(
        base_model="nano", lora=LoraConfig(rank=4, seed=1), user_metadata={"a": "b"}
    )
    s["run"] = s["training"].model_id


@step
async def info(s: dict[str, Any]) -> None:
    found = await s["training"].info()
    assert (found.model_id, found.lora_rank) == (s["run"], 4)
    assert found.model_data.model_name == "nano"


@step
async def forward(s: dict[str, Any]) -> None:
    plain = await s["training"].forward(DATA)
    again = await s["training"].forward_backward(DATA)
    assert [len(p) for p in logprobs(plain)] == [4, 2, 3] and logprobs(plain) == logprobs(again)
    assert math.isclose(plain.metrics["loss:sum"], -sum(map(sum, logprobs(plain))), rel_tol=1e-4)


@step
async def policy_losses(s: dict[str, Any]) -> None:
    near = logprobs(await s["training"].forward(DATA))
    pairs = zip(ROWS, near, strict=True)
    data = [datum(r, logprobs=q, advantages=np.linspace(0.5, 2, len(q))) for r, q in pairs]
    for name in ("importance_sampling", "ppo", "cispo"):
        output = await s["training"].forward_backward(data, loss_fn=name)
        expected = -sum(np.linspace(0.5, 2, len(q)).sum() for q in near)
        if name != "cispo":  # at a ratio of 1, minus the sum of the advantages
            assert math.isclose(output.metrics["loss:sum"], expected, rel_tol=1e-4), name
        assert math.isfinite(output.metrics["loss:sum"])


@step
async def custom_loss(s: dict[str, Any]) -> None:
    def negative_sum(found: list[Any]) -> tuple[float, list[Any], dict[str, float]]:
        gradients = [-np.ones_like(p) for p in found]
        return -sum(float(p.sum()) for p in found), gradients, {"seen:sum": float(len(found))}

    output = await s["training"].forward_backward_custom(DATA, negative_sum)
    assert math.isclose(output.metrics["loss:sum"], await loss(s["training"]), rel_tol=1e-4)
    assert output.metrics["seen:sum"] == 3


@step
async def optim_step(s: dict[str, Any]) -> None:
    adam = AdamParams(learning_rate=3e-3)
    sent = [(s["training"].forward_backward(DATA), s["training"].optim_step(adam)) for _ in "1234"]
    losses = [(await backward).metrics["loss:sum"] for backward, _ in sent]
    for _, stepped in sent:
        await stepped
    assert losses[-1] < 0.8 * losses[0], losses


# --- state and sampling ------------------------------------------------------------------------


@step
async def state(s: dict[str, Any]) -> None:
    s["state"] = await s["training"].save_state("one")
    assert s["state"] == f"tinker://{s['run']}/weights/one"
    expected = await loss(s["training"])
    for optimizer in (False, True):
        s["kept"] = await s["service"].create_training_from_state(s["state"], optimizer=optimizer)
        assert await loss(s["kept"]) == expected
        await s["kept"].forward_backward(DATA)
        await s["kept"].optim_step(AdamParams(learning_rate=3e-3))
        assert await loss(s["kept"]) != expected
        await s["kept"].load_state(s["state"], optimizer=optimizer)
        assert await loss(s["kept"]) == expected


@step
async def save_for_sampler(s: dict[str, Any]) -> None:
    s["sampler_path"] = await s["training"].save_for_sampler("s1")
    assert s["sampler_path"] == f"tinker://{s['run']}/sampler_weights/s1"
    s["saved"] = await s["service"].sampler(model_path=s["sampler_path"])
    s["sampler"] = await s["training"].sampler()
    base = await s["service"].sampler(base_model="nano")
    first = await tokens(s["saved"])
    assert [len(t) for t in first] == [5, 5, 5]
    assert first == await tokens(s["sampler"]) != await tokens(base)


@step
async def compute_logprobs(s: dict[str, Any]) -> None:
    found = await s["sampler"].compute_logprobs(PROMPT)
    assert found[0] is None
    trained = logprobs(await s["training"].forward([datum(PROMPT)]))[0]
    np.testing.assert_allclose(found[1:], trained, atol=1e-4)


# --- what there is -------------------------------------------------------------------------------


@step
async def ttl(s: dict[str, Any]) -> None:
    path = s["sampler_path"]
    assert {c.tinker_path async for c in s["rest"].checkpoints(page=1)} == {s["state"], path}
    found = await s["rest"].weights_info(s["state"])
    assert (found.base_model, found.lora_rank) == ("nano", 4)
    await s["rest"].set_ttl(path, 3600)
    assert (await checkpoints(s))[path].expires_at is not None
    await s["rest"].set_ttl(path, None)
    assert (await checkpoints(s))[path].expires_at is None
    await s["rest"].set_ttl(await s["training"].save_state("short", ttl_s=3600), 1)
    await asyncio.sleep(1.1)
    assert set(await checkpoints(s)) == {s["state"], path}


@step
async def download(s: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = await s["rest"].download(s["sampler_path"], Path(folder) / "adapter")
        names = {f.name for f in files if f.stat().st_size}
        assert {"adapter_config.json", "adapter_model.safetensors"} <= names


@step
async def delete(s: dict[str, Any]) -> None:
    await s["rest"].delete(s["state"])
    assert set(await checkpoints(s)) == {s["sampler_path"]}
    await s["service"].delete_checkpoint(s["state"])  # again: no error


@step
async def a_bad_request(s: dict[str, Any]) -> None:
    try:
        await s["kept"].forward_backward([datum([1, 9999])])
    except RequestRejectedError as e:
        assert "9999" in str(e), e
    else:
        raise AssertionError("an impossible token was accepted")
    await loss(s["training"])


@step
async def heartbeat(s: dict[str, Any]) -> None:
    await asyncio.sleep(float(os.environ.get("SDK_FLOW_IDLE_S", "0")))


@step
async def finish(s: dict[str, Any]) -> None:
    await s["service"].close(reason="success")


async def main(out: str) -> None:
    kept: dict[str, Any] = {}
    found = {}
    for function in STEPS:
        try:
            await function(kept)
            found[function.__name__] = "ok"
        except Exception:  # noqa: BLE001 - the test prints it
            found[function.__name__] = traceback.format_exc()
    Path(out).write_text(json.dumps({"version": NAME, "steps": found}, indent=1))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
