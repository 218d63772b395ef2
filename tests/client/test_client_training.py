"""Numbers, order, poison, promises and chunks, over a real socket."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_service import FAST, NEVER_S, Answer, Recorder, ScriptedService, VirtualTime

from crucible_tinkex.client import ClientSettings, RetryPolicy, TinkexService
from crucible_tinkex.client.http.encoding import MAX_BYTES, MAX_ROWS
from crucible_tinkex.client.model.chunks import cut, merge
from crucible_tinkex.client.model.training_client import TinkexTraining
from crucible_tinkex.errors import (
    ConfigError,
    OperationFailedError,
    ProtocolError,
    RequestRejectedError,
    ServiceUnavailableError,
    SessionLostError,
)
from crucible_tinkex.protocol.wire import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    LoraConfig,
    ModelInput,
    TensorData,
)


def row(count: int = 3, *, token: int = 5) -> Datum:
    targets = TensorData(data=[1] * count, dtype="int64", shape=[count])
    return Datum(
        model_input=ModelInput.from_tokens([token] * count),
        loss_fn_inputs={"target_tokens": targets},
    )


def seqs(scripted: ScriptedService, path: str) -> list[int]:
    return [b["seq_id"] for b in scripted.bodies(path)]


async def test_a_whole_flow(scripted: ScriptedService, model: TinkexTraining) -> None:
    backward = model.forward_backward([row(), row()])
    step = model.optim_step(AdamParams(learning_rate=0.5))
    assert (await backward).metrics["loss:sum"] == 2.0
    assert (await backward).loss_fn_outputs[1]["logprobs"].data == [-1.0] * 3
    assert (await step).metrics == {"seq": 2.0}
    assert len((await model.forward([row()])).loss_fn_outputs) == 1
    assert await model.save_state("a") == "tinker://s1:train:0/weights/a"
    assert await model.save_for_sampler("b") == "tinker://s1:train:0/sampler_weights/b"
    await model.load_state("tinker://s1:train:0/weights/a", optimizer=True)
    sampler = await model.sampler()
    assert "s1:sample:0" in repr(sampler)
    assert (await model.info()).model_data.model_name == "m"
    assert seqs(scripted, "forward_backward") == [1]
    assert seqs(scripted, "optim_step") == [2]
    assert seqs(scripted, "save_weights_for_sampler") == [5, 7]
    sent = scripted.bodies("optim_step")[0]
    assert sent["adam_params"]["learning_rate"] == 0.5
    assert "ttl_seconds" not in scripted.bodies("save_weights")[0]


async def test_numbers_are_drawn_and_bodies_fixed_at_the_call(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    params = AdamParams(learning_rate=1.0)
    first, second = model.optim_step(params), model.optim_step(params)
    params.learning_rate = 9.0
    assert (await second).metrics == {"seq": 2.0}
    assert (await first).metrics == {"seq": 1.0}
    rates = {b["adam_params"]["learning_rate"] for b in scripted.bodies("optim_step")}
    assert rates == {1.0}


async def test_a_retry_that_arrives_late_keeps_its_number(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    scripted.on("forward_backward", Answer(mode="reset"), Answer(503))
    backward, step = model.forward_backward([row()]), model.optim_step(AdamParams())
    await asyncio.gather(backward, step)
    assert seqs(scripted, "forward_backward") == [1, 1, 1]
    assert len({r.body for r in scripted.requests if r.path.endswith("forward_backward")}) == 1
    assert seqs(scripted, "optim_step") == [2]


async def test_a_lost_number_poisons_the_later_ones(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    waiting = {"type": "try_again", "queue_state": "active"}
    scripted.on(
        "forward_backward", Answer(422, {"error": "token 99 is out of range"}, delay_s=0.05)
    )
    scripted.on("retrieve_future", *[Answer(408, waiting, delay_s=0.01)] * 100)
    backward, step = model.forward_backward([row()]), model.optim_step(AdamParams())
    for operation in (backward, step):
        with pytest.raises(RequestRejectedError, match="token 99"):
            await asyncio.wait_for(asyncio.ensure_future(operation), 2)
    with pytest.raises(RequestRejectedError, match="token 99") as caught:
        model.optim_step(AdamParams())
    assert caught.value.context["seq_id"] == 1


async def test_an_operation_that_has_not_started_is_poisoned_too(model: TinkexTraining) -> None:
    step = model.optim_step(AdamParams())
    model.poison(SessionLostError("gone"))
    with pytest.raises(SessionLostError):
        await step


async def test_a_failed_result_does_not_poison(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    scripted.on("retrieve_future", Answer(body={"error": "out of memory", "category": "server"}))
    with pytest.raises(OperationFailedError, match="out of memory") as caught:
        await model.forward_backward([row()])
    assert caught.value.category == "server"
    assert caught.value.request_id == "r2"
    await model.optim_step(AdamParams())


@pytest.mark.parametrize("status", [404, 410])
async def test_a_forgotten_promise_or_model_loses_the_session(
    scripted: ScriptedService, model: TinkexTraining, status: int
) -> None:
    scripted.on("retrieve_future", Answer(status, {"error": "unknown"}))
    with pytest.raises(SessionLostError):
        await model.forward_backward([row()])
    with pytest.raises(SessionLostError):
        model.optim_step(AdamParams())


async def test_a_forgotten_model_loses_the_session(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    scripted.on("optim_step", Answer(404, {"error": "no model"}))
    with pytest.raises(SessionLostError):
        await model.optim_step(AdamParams())


async def test_a_missing_checkpoint_does_not(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    scripted.on("load_weights", Answer(404, {"error": "no checkpoint"}))
    with pytest.raises(RequestRejectedError):
        await model.load_state("tinker://s1:train:0/weights/none", optimizer=False)


async def test_a_cancelled_wait_does_not_cancel_the_operation(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    scripted.on("optim_step", Answer(body={"request_id": "slow"}, delay_s=0.05))
    scripted.results["slow"] = {"metrics": {"seq": 1}}
    step = model.optim_step(AdamParams())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(step, 0.01)
    assert (await step).metrics == {"seq": 1.0}


async def test_paused_is_a_state_without_a_deadline(scripted: ScriptedService) -> None:
    time = VirtualTime()
    heard = Recorder()
    settings = ClientSettings(
        policy=RetryPolicy(total_s=60.0), clock=time.clock, heartbeat_s=NEVER_S
    )
    service = TinkexService(scripted.url, settings=settings, observer=heard)
    model = await service.create_training(base_model="m", lora=LoraConfig(rank=2))
    paused = {
        "type": "try_again",
        "request_id": "r2",
        "queue_state": "paused_capacity",
        "queue_state_reason": "full",
    }
    scripted.on("retrieve_future", *[Answer(408, paused), Answer(200, paused)] * 150)
    await model.optim_step(AdamParams())
    assert [s[:3] for s in heard.states] == [
        ("paused_capacity", "full", None),
        ("active", None, None),
    ]
    assert sum(time.slept) > 120
    await service.close()


async def test_active_without_end_has_a_deadline(scripted: ScriptedService) -> None:
    policy = RetryPolicy(active_s=20.0)
    settings = ClientSettings(policy, clock=VirtualTime().clock, heartbeat_s=NEVER_S)
    service = TinkexService(scripted.url, settings=settings)
    model = await service.create_training(base_model="m", lora=LoraConfig(rank=2))
    scripted.on("retrieve_future", *[Answer(408)] * 100)
    with pytest.raises(ServiceUnavailableError, match="optim_step is active"):
        await model.optim_step(AdamParams())
    await service.close()


async def test_metadata_is_asked_for_again(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    metadata = {"status": "complete_metadata", "response_payload_size": 5}
    scripted.on("retrieve_future", Answer(body=metadata))
    assert (await model.optim_step(AdamParams())).metrics == {"seq": 1.0}
    assert not any(b.get("allow_metadata_only") for b in scripted.bodies("retrieve_future"))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("retrieve_future", {"type": "try_again", "request_id": "another"}),
        ("retrieve_future", {"unexpected": 1}),
        ("retrieve_future", {"loss_fn_outputs": "no", "metrics": {}}),
        ("retrieve_future", [1, 2]),
        ("forward_backward", {"request_id": "r2", "model_id": "s9:train:4"}),
        ("forward_backward", {"model_id": "s1:train:0"}),
        ("forward_backward", {"request_id": 7}),
    ],
)
async def test_wrong_answers_are_refused(
    scripted: ScriptedService, model: TinkexTraining, path: str, body: Any
) -> None:
    scripted.on(path, *[Answer(body=body)] * 5)
    with pytest.raises(ProtocolError, match="forward_backward"):
        await model.forward_backward([row()])
    scripted.on(path, Answer(body=body))


async def test_outputs_must_match_the_rows(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    scripted.on("retrieve_future", Answer(body={"loss_fn_outputs": [], "metrics": {}}))
    with pytest.raises(ProtocolError, match="0 outputs for 1 rows"):
        await model.forward_backward([row()])


async def test_a_saved_path_of_another_name_is_refused(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    scripted.on("retrieve_future", Answer(body={"path": "tinker://s1:train:0/weights/other"}))
    with pytest.raises(ProtocolError):
        await model.save_state("mine")


async def test_large_batches_are_cut_and_merged(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    result = await model.forward_backward([row(1)] * 2100)
    step = await model.optim_step(AdamParams())
    assert sorted(seqs(scripted, "forward_backward")) == [1, 2, 3]
    assert step.metrics == {"seq": 4.0}
    assert len(result.loss_fn_outputs) == 2100
    assert result.metrics["loss:sum"] == 2100.0
    assert result.metrics["rows:max"] == 1024.0
    assert result.metrics["rows:mean"] == pytest.approx((1024**2 * 2 + 52**2) / 2100)
    with pytest.raises(ConfigError):
        model.forward_backward([])


async def test_a_batch_of_which_one_piece_cannot_be_sent_is_refused_whole(
    scripted: ScriptedService,
) -> None:
    """Otherwise a part of it would be in the gradient."""
    async with TinkexService(scripted.url, settings=replace(FAST, encoding="protobuf")) as service:
        model = await service.create_training(base_model="m", lora=LoraConfig(rank=2))
        with pytest.raises(ConfigError, match="cannot be sent"):
            model.forward_backward([*[row(1)] * 1500, row(1, token=2**40)])
        await model.optim_step(AdamParams())
    assert (seqs(scripted, "forward_backward"), seqs(scripted, "optim_step")) == ([], [1])


def test_cut_by_bytes() -> None:
    def sizes(data: list[Datum]) -> list[int]:
        return [len(piece) for piece in cut(data, max_rows=MAX_ROWS, max_bytes=MAX_BYTES)]

    assert sizes([row(100_000)] * 7) == [3, 3, 1]
    assert sizes([row(900_000)] * 2) == [1, 1]


def test_merge_by_suffix() -> None:
    names = ["a:sum", "a:mean", "a:min", "a:max", "a:slack", "a:unique", "a:hash2", "a:new", "a"]

    def piece(value: float, rows: int) -> ForwardBackwardOutput:
        return ForwardBackwardOutput(
            loss_fn_outputs=[{}] * rows, metrics=dict.fromkeys(names, value)
        )

    merged = merge([piece(1.0, 1), piece(5.0, 3)])
    assert merged.metrics == {
        "a:sum": 6.0,
        "a:mean": 4.0,
        "a:min": 1.0,
        "a:max": 5.0,
        "a:slack": 1.0,
        "a:unique": 1.0,
        "a:unique_1": 5.0,
        "a:hash2": 6.0,
    }
    assert len(merged.loss_fn_outputs) == 4
    assert merge([piece(1.0, 1)]).metrics["a"] == 1.0
    top = 2.0**64
    hashes = merge([piece(top - 2048, 1), piece(4096.0, 1), piece(-1.0, 1)])
    assert hashes.metrics["a:hash2"] == 2047.0
    odd = piece(2.0, 2)
    del odd.metrics["a:sum"]
    assert "a:sum" not in merge([piece(1.0, 1), odd]).metrics
    assert "a:sum" not in merge([odd, piece(1.0, 1)]).metrics
    for values in ((1.0, math.nan), (math.nan, 1.0)):
        lost = merge([piece(v, 1) for v in values]).metrics
        for name in ("a:sum", "a:mean", "a:min", "a:max", "a:slack", "a:hash2"):
            assert math.isnan(lost[name]), name
    assert math.isnan(merge([piece(math.inf, 1)] * 2).metrics["a:hash2"])
    assert merge([piece(3.0, 0)] * 2).metrics["a:mean"] == 3.0


@given(
    st.lists(
        st.tuples(st.floats(-1e6, 1e6), st.integers(1, 2**63), st.integers(1, 50)),
        min_size=2,
        max_size=5,
    )
)
def test_merge_is_the_official_one(pieces: list[tuple[float, int, int]]) -> None:
    tinker = pytest.importorskip("tinker", reason="needs the extra [sdk]")
    official = import_module("tinker.lib.chunked_fwdbwd_helpers")
    names = ("a:sum", "a:mean", "a:min", "a:max", "a:slack", "a:unique", "a:newer")
    given_metrics = [
        {**dict.fromkeys(names, value), "a:hash2": float(number)} for value, number, _ in pieces
    ]
    ours = merge(
        [
            ForwardBackwardOutput(loss_fn_outputs=[{}] * rows, metrics=metrics)
            for metrics, (_, _, rows) in zip(given_metrics, pieces, strict=True)
        ]
    )
    theirs = official.combine_fwd_bwd_output_results(
        [
            tinker.types.ForwardBackwardOutput(
                loss_fn_output_type="x", loss_fn_outputs=[{}] * rows, metrics=metrics
            )
            for metrics, (_, _, rows) in zip(given_metrics, pieces, strict=True)
        ]
    )
    assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-9, abs=1e-6)


async def test_every_call_is_observed(scripted: ScriptedService) -> None:
    heard = Recorder()
    async with TinkexService(scripted.url, settings=FAST, observer=heard) as service:
        model = await service.create_training(base_model="m", lora=LoraConfig(rank=2))
        scripted.on("optim_step", Answer(500))
        await model.optim_step(AdamParams())
    seen = [(r.operation, r.path, r.attempts, r.status) for r in heard.records]
    assert ("optim_step", "optim_step", 2, 200) in seen
    assert ("optim_step", "retrieve_future", 1, 200) in seen
    assert ("finish_session", "sessions/s1/finish", 1, 200) in seen
    assert all(r.duration_s >= 0 for r in heard.records)
