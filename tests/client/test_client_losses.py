"""Custom losses, sampling extras, and creation from state on older services."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest
from scripted_service import Answer, ScriptedService
from test_client_training import FAST, row, seqs

from crucible_tinkex.client import TinkexService
from crucible_tinkex.client.model.training_client import TinkexTraining
from crucible_tinkex.errors import ConfigError, ProtocolError, RequestRejectedError
from crucible_tinkex.protocol.wire import AdamParams, LoraConfig, SamplingParams, TensorData


@pytest.fixture(params=["json", "protobuf"])
async def service(
    scripted: ScriptedService, request: pytest.FixtureRequest
) -> AsyncIterator[TinkexService]:
    if request.param == "protobuf":
        scripted.config, scripted.speaks = {}, {"protobuf"}
    async with TinkexService(scripted.url, settings=FAST) as made:
        yield made


@pytest.fixture
async def model(service: TinkexService) -> TinkexTraining:
    return await service.create_training(base_model="m", lora=LoraConfig(rank=2, seed=1))


def squares(logprobs: list[Any]) -> tuple[float, Sequence[Any], dict[str, float]]:
    loss = sum(float((p**2).sum()) for p in logprobs)
    return loss, [2 * p for p in logprobs], {"rows:sum": float(len(logprobs))}


def sent(scripted: ScriptedService) -> list[dict[str, Any]]:
    paths = ("/forward", "/forward_backward")
    return [r.json for r in scripted.requests if r.path.endswith(paths)]


async def test_a_custom_loss_becomes_weights(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    pending = model.forward_backward_custom([row(), row(2)], squares)
    step = model.optim_step(AdamParams())
    result = await pending
    assert result.metrics["loss:sum"] == 5.0
    assert result.metrics["rows:sum"] == 2.0
    assert result.metrics["surrogate_loss:sum"] == 2.0
    assert (await step).metrics == {"seq": 3.0}
    forward, backward = sent(scripted)
    assert (forward["seq_id"], backward["seq_id"]) == (1, 2)
    rows = backward["forward_backward_input"]["data"]
    # d(p^2)/dp at p = -1 is -2; the weights are its negative.
    assert [r["loss_fn_inputs"]["weights"]["data"] for r in rows] == [[2.0] * 3, [2.0] * 2]


async def test_n_by_k_targets_keep_their_shape(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    datum = row(2)
    targets = TensorData(data=[1, 2, 3, 4], dtype="int64", shape=[2, 2])
    datum.loss_fn_inputs["target_tokens"] = targets
    shapes: list[Any] = []

    def loss(logprobs: list[Any]) -> tuple[float, Sequence[Any], dict[str, float]]:
        shapes.extend(p.shape for p in logprobs)
        return squares(logprobs)

    await model.forward_backward_custom([datum], loss)
    assert shapes == [(2, 2)]
    weights = sent(scripted)[1]["forward_backward_input"]["data"][0]["loss_fn_inputs"]["weights"]
    assert weights["shape"] == [2, 2]


async def test_large_custom_batches_reserve_all_their_numbers(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    model.operations.transport.encoding.max_rows = 2
    result = await model.forward_backward_custom([row()] * 5, squares)
    assert len(result.loss_fn_outputs) == 5
    await model.optim_step(AdamParams())
    assert sorted(b["seq_id"] for b in sent(scripted)) == [1, 2, 3, 4, 5, 6]
    assert seqs(scripted, "optim_step") == [7]


def wrong(logprobs: list[Any]) -> tuple[float, Sequence[Any], dict[str, float]]:
    raise ZeroDivisionError("mine")


@pytest.mark.parametrize(
    ("loss", "error"),
    [
        (wrong, ZeroDivisionError),
        (lambda p: (0.0, [], {}), ConfigError),
        (lambda p: (0.0, [np.zeros(7)], {}), ConfigError),
        (lambda p: (0.0, [np.full(3, np.nan)], {}), ConfigError),
    ],
)
async def test_a_failed_custom_loss_leaves_no_gap(
    scripted: ScriptedService, model: TinkexTraining, loss: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await model.forward_backward_custom([row()], loss)
    assert (await model.optim_step(AdamParams())).metrics == {"seq": 3.0}
    assert sorted(b["seq_id"] for b in sent(scripted)) == [1, 2]
    assert all("forward_input" in b for b in sent(scripted))


async def test_a_custom_loss_needs_targets(model: TinkexTraining) -> None:
    bad = row()
    del bad.loss_fn_inputs["target_tokens"]
    with pytest.raises(ConfigError, match="target_tokens"):
        model.forward_backward_custom([bad], squares)
    with pytest.raises(ConfigError):
        model.forward_backward_custom([], squares)
    assert (await model.optim_step(AdamParams())).metrics == {"seq": 1.0}


# --- sampling ---------------------------------------------------------------------------------


async def test_every_parameter_of_a_sample_is_sent(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    sampler = await model.sampler()
    params = SamplingParams(max_tokens=7, seed=3, stop=["\n"], temperature=0.5, top_k=9, top_p=0.75)
    await sampler.sample(
        [1, 2],
        params,
        num_samples=3,
        prompt_logprobs=True,
        topk_prompt_logprobs=2,
        topk_sample_logprobs=4,
    )
    body = scripted.bodies("asample")[0]
    assert body["sampling_params"] == params.model_dump()
    assert (body["num_samples"], body["prompt_logprobs"]) == (3, True)
    assert (body["topk_prompt_logprobs"], body["topk_sample_logprobs"]) == (2, 4)


async def test_logprobs_of_given_tokens(scripted: ScriptedService, model: TinkexTraining) -> None:
    sampler = await model.sampler()
    scripted.results["given"] = {
        "sequences": [{"stop_reason": "length", "tokens": [1]}],
        "prompt_logprobs": [None, -0.5],
    }
    scripted.on("asample", Answer(body={"request_id": "given"}))
    assert await sampler.compute_logprobs([4, 5]) == [None, -0.5]
    sent = scripted.bodies("asample")[0]
    assert (sent["sampling_params"]["max_tokens"], sent["prompt_logprobs"]) == (1, True)
    with pytest.raises(ProtocolError, match="logprob"):
        await sampler.compute_logprobs([4, 5])


async def test_a_time_to_live_is_sent(scripted: ScriptedService, model: TinkexTraining) -> None:
    await model.save_state("a", ttl_s=3600)
    await model.save_for_sampler("b", ttl_s=7200)
    assert scripted.bodies("save_weights")[0]["ttl_seconds"] == 3600
    assert scripted.bodies("save_weights_for_sampler")[0]["ttl_seconds"] == 7200


# --- creation from state ----------------------------------------------------------------------

PATH = "tinker://r:train:0/weights/a"
INFO = {"base_model": "m", "is_lora": True, "lora_rank": 4, "train_unembed": False}


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_older_services_create_and_then_load(
    scripted: ScriptedService, service: TinkexService, status: int
) -> None:
    scripted.on("load_weights", Answer(status, {"error": "model_id is required"}))
    scripted.on("weights_info", Answer(body=INFO))
    model = await service.create_training_from_state(PATH, optimizer=True)
    created = scripted.bodies("create_model")[0]
    assert created["lora_config"]["rank"] == 4
    assert created["lora_config"]["train_unembed"] is False
    assert created["lora_config"]["train_mlp"] is True
    loaded = scripted.bodies("load_weights")[1]
    assert (loaded["model_id"], loaded["seq_id"], loaded["optimizer"]) == (model.model_id, 1, True)
    assert (await model.optim_step(AdamParams())).metrics == {"seq": 2.0}


@pytest.mark.parametrize("info", [Answer(404), Answer(body={"base_model": "m"})])
async def test_the_first_refusal_is_told_if_that_fails_too(
    scripted: ScriptedService, service: TinkexService, info: Answer
) -> None:
    scripted.on("load_weights", Answer(404, {"error": "no such checkpoint"}))
    scripted.on("weights_info", info)
    with pytest.raises(RequestRejectedError, match="no such checkpoint"):
        await service.create_training_from_state(PATH)
    assert scripted.bodies("create_model") == []
