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
from crucible_tinkex.client.wire import AdamParams, Datum, LoraConfig, ModelInput, TensorData

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
