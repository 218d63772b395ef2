"""Where other servers depart from the protocol, and the client has to cope.

Each departure was seen in a server that others wrote (docs/other-servers.md says in which). Here
the scripted service departs in the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from scripted_service import Answer, ScriptedService

from crucible_tinkex.client import ClientSettings, RetryPolicy, TinkexService
from crucible_tinkex.client.training import TinkexTraining
from crucible_tinkex.client.wire import (
    AdamParams,
    Datum,
    LoraConfig,
    ModelInput,
    SamplingParams,
    TensorData,
)

FAST = ClientSettings(policy=RetryPolicy(base_s=0.002, cap_s=0.01, total_s=5.0))
LORA = LoraConfig(rank=2)
ROW = Datum(
    model_input=ModelInput.from_tokens([3, 4, 5]),
    loss_fn_inputs={
        "target_tokens": TensorData(data=[4, 5, 6], dtype="int64", shape=[3]),
        "weights": TensorData(data=[0.0, 1.0, 1.0], dtype="float32", shape=[3]),
    },
)


@pytest.fixture
async def service(scripted: ScriptedService) -> AsyncIterator[TinkexService]:
    async with TinkexService(scripted.url, settings=FAST) as opened:
        yield opened


@pytest.fixture
async def model(service: TinkexService) -> TinkexTraining:
    return await service.create_training(base_model="m", lora=LORA)


# --- the order of operations -----------------------------------------------------------------


async def test_operations_arrive_in_the_order_of_their_numbers(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    """For services that execute in the order of arrival, or refuse a number that comes early."""
    slow = Answer(body={"request_id": "r0"}, delay_s=0.05)
    scripted.results["r0"] = {"loss_fn_outputs": [{}], "metrics": {"loss:sum": 1.0}}
    scripted.on("forward_backward", Answer(503, delay_s=0.02), slow)
    before = len(scripted.requests)
    await asyncio.gather(
        model.forward_backward([ROW]),
        model.optim_step(AdamParams()),
        model.forward_backward([ROW]),
        model.optim_step(AdamParams()),
    )
    sent = [r.json["seq_id"] for r in scripted.requests[before:] if "seq_id" in r.json]
    assert sent == [1, 1, 2, 3, 4]


async def test_what_is_called_after_a_custom_loss_arrives_after_both_its_passes(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    before = len(scripted.requests)
    custom = model.forward_backward_custom([ROW], lambda logprobs: (1.0, logprobs, {}))
    await asyncio.gather(custom, model.optim_step(AdamParams()))
    sent = [r.json["seq_id"] for r in scripted.requests[before:] if "seq_id" in r.json]
    assert sent == [1, 2, 3]


# --- requests that a strict or an older service takes ------------------------------------------


async def test_optional_fields_are_not_sent_at_their_defaults(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    """For services that refuse a field that they do not know (422)."""
    await model.save_for_sampler("a")
    sampler = await model.sampler()
    await sampler.sample([1], SamplingParams(max_tokens=1, stop="."))
    for body in scripted.bodies("save_weights_for_sampler"):
        assert body.keys() <= {"model_id", "path", "seq_id", "sampling_session_seq_id", "type"}
    assert all(body.keys() == {"request_id"} for body in scripted.bodies("retrieve_future"))
    assert scripted.bodies("asample")[0]["sampling_params"]["stop"] == ["."]
    await model.sampler(kind="inflight")
    assert scripted.bodies("save_weights_for_sampler")[-1]["kind"] == "inflight"


# --- values that are new, or not the protocol's ------------------------------------------------


async def test_unusual_values_of_a_batch_are_read(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    output = {
        "logprobs": {"data": [-1.0, -2.0, -3.0], "dtype": "bfloat16"},
        "experts": {"data": [1, 2], "dtype": "uint8"},
        "masks": {"data": ["10", "01"], "dtype": "bits"},
    }
    metrics = {"loss:sum": 5.0, "moe": {"load": 1.0}, "note": "warm", "spike:max": None}
    result = {"loss_fn_outputs": [output], "metrics": metrics, "profile": [1]}
    scripted.on("retrieve_future", Answer(body=result))
    answer = await model.forward_backward([ROW])
    assert answer.metrics == {"loss:sum": 5.0}
    (row,) = answer.loss_fn_outputs
    assert {name: tensor.dtype for name, tensor in row.items()} == {
        "logprobs": "float32",
        "experts": "int64",
    }
    scripted.on("retrieve_future", Answer(body={"metrics": {"step": 1, "kernel": "fused"}}))
    assert (await model.optim_step(AdamParams())).metrics == {"step": 1.0}


async def test_a_new_stop_reason_is_a_stop(
    scripted: ScriptedService, service: TinkexService
) -> None:
    sampler = await service.sampler(base_model="m")
    sequences = [{"stop_reason": reason, "tokens": [1]} for reason in ("eos", "length")]
    scripted.on("retrieve_future", Answer(body={"sequences": sequences}))
    answer = await sampler.sample([1], SamplingParams(max_tokens=1), num_samples=2)
    assert [s.stop_reason for s in answer.sequences] == ["stop", "length"]


async def test_listings_may_count_seconds_or_know_no_time(
    scripted: ScriptedService, service: TinkexService
) -> None:
    base = {"checkpoint_type": "training", "tinker_path": "tinker://r/weights/a"}
    listed = [
        {**base, "checkpoint_id": "a", "time": 0, "expires_at": 3600.5},
        {**base, "checkpoint_id": "b", "time": None},
    ]
    scripted.on("training_runs/r/checkpoints", Answer(body={"checkpoints": listed}))
    first, second = [c async for c in service.rest.checkpoints("r")]
    assert (first.time, second.time) == ("1970-01-01T00:00:00+00:00", None)
    assert first.expires_at == "1970-01-01T01:00:00.500000+00:00"


async def test_models_listed_without_a_name_are_left_out(
    scripted: ScriptedService, service: TinkexService
) -> None:
    models = [{"model_id": "family/"}, {"model_name": "m", "supports": ["lora"]}]
    scripted.on("get_server_capabilities", Answer(body={"supported_models": models}))
    assert [m.model_name for m in (await service.capabilities()).supported_models] == ["m"]


# --- a service that reports no loss ------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss_fn", "outputs", "expected"),
    [
        ("cross_entropy", {"logprobs": [-9.0, -2.0, -3.0]}, 5.0),
        ("ppo", {"logprobs": [-9.0, -2.0, -3.0], "elementwise_loss": [0.5, 0.5, 1.0]}, 2.0),
        ("ppo", {"logprobs": [-9.0, -2.0, -3.0]}, None),
        ("cross_entropy", {"logprobs": [-2.0]}, None),
        ("cross_entropy", {}, None),
    ],
)
async def test_the_loss_is_summed_from_the_outputs_where_it_can_be(
    scripted: ScriptedService,
    model: TinkexTraining,
    loss_fn: str,
    outputs: dict[str, list[float]],
    expected: float | None,
) -> None:
    row = {name: {"data": data, "dtype": "float32"} for name, data in outputs.items()}
    result = {"loss_fn_outputs": [row], "metrics": None}
    scripted.on("retrieve_future", Answer(body=result))
    answer = await model.forward_backward([ROW], loss_fn=loss_fn)
    assert answer.metrics.get("loss:sum") == expected


async def test_a_reported_loss_is_kept(scripted: ScriptedService, model: TinkexTraining) -> None:
    row = {"logprobs": {"data": [-1.0, -1.0, -1.0], "dtype": "float32"}}
    result = {"loss_fn_outputs": [row], "metrics": {"loss:sum": 7.0}}
    scripted.on("retrieve_future", Answer(body=result))
    assert (await model.forward([ROW])).metrics["loss:sum"] == 7.0
