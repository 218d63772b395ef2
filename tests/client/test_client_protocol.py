"""The protocol's rules on a whole flow: repeats, polls, unknown parts, exact bodies.

`test_client_retry` holds the rules of one call, `test_client_training` those of one operation.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from scripted_service import FAST, Answer, Recorder, ScriptedService, Seen
from test_client_training import row, seqs

from crucible_tinkex.client import ClientSettings, QueueState, TinkexService
from crucible_tinkex.errors import (
    AuthenticationError,
    ProtocolError,
    RequestRejectedError,
    ServiceError,
    SessionLostError,
)
from crucible_tinkex.protocol import proto
from crucible_tinkex.protocol.wire import AdamParams, LoraConfig, SamplingParams

STATE = "tinker://s1:train:0/weights/a"
LORA = LoraConfig(rank=2, seed=1)
PARAMS = SamplingParams(max_tokens=1)


async def flow(service: TinkexService) -> None:
    """Every operation once, and the results that the scripted service gives for them."""
    model = await service.create_training(base_model="m", lora=LORA, user_metadata={"a": "b"})
    backward, step = model.forward_backward([row(), row(2)]), model.optim_step(AdamParams())
    assert [len(o["logprobs"].data) for o in (await backward).loss_fn_outputs] == [3, 2]
    assert (await backward).metrics["loss:sum"] == 2.0
    assert (await step).metrics == {"seq": 2.0}
    assert len((await model.forward([row()])).loss_fn_outputs) == 1
    assert await model.save_state("a", ttl_s=3600) == STATE
    assert (await model.save_for_sampler("b")).endswith("/sampler_weights/b")
    await model.load_state(STATE, optimizer=True)
    assert (await model.info()).model_id == model.model_id
    sampler = await model.sampler()
    answer = await sampler.sample([1, 2], PARAMS, num_samples=2)
    assert [s.tokens for s in answer.sequences] == [[0], [0]]
    assert (await service.create_training_from_state(STATE)).model_id == "s1:train:1"
    await service.sampler(base_model="m")


async def run(scripted: ScriptedService, settings: ClientSettings = FAST, **more: Any) -> None:
    async with TinkexService(scripted.url, settings=settings, **more) as service:
        await flow(service)


# --- a repeat is the same request -------------------------------------------------------------

PATHS = (
    "create_session",
    "create_model",
    "forward_backward",
    "forward",
    "optim_step",
    "save_weights",
    "save_weights_for_sampler",
    "load_weights",
    "create_sampling_session",
    "asample",
    "get_info",
    "retrieve_future",
    "sessions/s1/finish",
)
FAULTS = (
    Answer(mode="reset"),
    Answer(body={"request_id": "lost", "session_id": "s1"}, mode="reset_body"),
    Answer(503, {"error": "busy"}),
    Answer(429, {"error": "slow"}),
    Answer(409, {"error": "in flight"}),
    Answer(400),
)


@pytest.mark.parametrize("path", PATHS)
async def test_a_repeat_has_the_same_bytes_and_the_same_number(
    scripted: ScriptedService, path: str
) -> None:
    """Its effect may have happened already, so the service must know it again."""
    scripted.on(path, *FAULTS)
    await run(scripted)
    sent = [r.body for r in scripted.requests if r.path == "/api/v1/" + path]
    count = len(FAULTS) + 1
    assert len(sent) >= count
    assert len(set(sent[:count])) == 1
    assert all(body != sent[0] for body in sent[count:])


async def test_a_new_operation_never_takes_an_old_number(scripted: ScriptedService) -> None:
    scripted.on("forward_backward", *FAULTS)
    scripted.on("save_weights", *FAULTS)
    await run(scripted)
    found = {p: set(seqs(scripted, p)) for p in PATHS[2:8] if p != "load_weights"}
    loads = [b for b in scripted.bodies("load_weights") if "seq_id" in b]
    numbers = sorted(n for own in found.values() for n in own) + [b["seq_id"] for b in loads]
    assert sorted(numbers) == list(range(1, 8))
    keys = [(b["session_id"], b["model_seq_id"]) for b in scripted.bodies("create_model")]
    keys += [
        (b["session_id"], b["model_seq_id"])
        for b in scripted.bodies("load_weights")
        if "session_id" in b
    ]
    assert keys == [("s1", 0), ("s1", 1)]


# --- the poll ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Answer(408),
        Answer(408, {"type": "try_again", "request_id": "r2", "queue_state": "active"}),
        Answer(200, {"type": "try_again", "request_id": "r2", "queue_state": "paused_capacity"}),
        Answer(408, {"queue_state": "from_the_future", "new": 1}),
        Answer(200, {"status": "complete_metadata", "response_payload_size": 12}),
        *[Answer(status, {"error": "x"}) for status in (409, 425, 429, 500, 502, 503, 504, 520)],
        Answer(400),
        Answer(body=b'{"metrics": '),
        Answer(body=b"<html>", headers={"Content-Type": "text/html"}),
        Answer(body=b"\xff\xff", headers={"Content-Type": proto.CONTENT_TYPE}),
        Answer(body={"metrics": {}}, mode="truncated"),
        Answer(body={"metrics": {}}, mode="reset_headers"),
    ],
    ids=lambda a: f"{a.status}-{a.mode}-{len(a.raw_body())}",
)
async def test_a_poll_goes_on_and_nothing_is_sent_twice(
    scripted: ScriptedService, fault: Answer
) -> None:
    async with TinkexService(scripted.url, settings=FAST) as service:
        model = await service.create_training(base_model="m", lora=LORA)
        scripted.on("retrieve_future", fault, fault, fault)
        assert (await model.optim_step(AdamParams())).metrics == {"seq": 1.0}
        assert len(scripted.bodies("optim_step")) == 1
        polls = [r.body for r in scripted.requests if r.path.endswith("retrieve_future")][1:]
        assert len(polls) == 4
        assert set(polls) == {b'{"request_id":"r2"}'}
        await model.optim_step(AdamParams())


@pytest.mark.parametrize(
    ("answer", "error", "is_lost"),
    [
        (Answer(400, {"error": "odd"}), RequestRejectedError, False),
        (Answer(401, {"error": "odd"}), AuthenticationError, False),
        (Answer(403, {"error": "odd"}), AuthenticationError, False),
        (Answer(404, {"error": "odd"}), SessionLostError, True),
        (Answer(410, {"error": "odd"}), SessionLostError, True),
        (Answer(422, {"error": "odd"}), RequestRejectedError, False),
    ],
    ids=lambda v: str(v.status) if isinstance(v, Answer) else "",
)
async def test_a_poll_ends_at_once(
    scripted: ScriptedService, answer: Answer, error: type[ServiceError], is_lost: bool
) -> None:
    async with TinkexService(scripted.url, settings=FAST) as service:
        model = await service.create_training(base_model="m", lora=LORA)
        scripted.on("retrieve_future", answer)
        with pytest.raises(error, match="odd"):
            await model.optim_step(AdamParams())
        assert len(scripted.bodies("retrieve_future")) == 2
        assert len(scripted.bodies("optim_step")) == 1
        if is_lost:
            with pytest.raises(SessionLostError):
                model.optim_step(AdamParams())
        else:
            await model.optim_step(AdamParams())


async def test_a_refused_answer_is_asked_for_a_few_times_only(scripted: ScriptedService) -> None:
    odd = Answer(body=b"\xff\xff", headers={"Content-Type": proto.CONTENT_TYPE})
    for bad in (odd, Answer(body=b"{"), Answer(400)):
        async with TinkexService(scripted.url, settings=FAST) as service:
            model = await service.create_training(base_model="m", lora=LORA)
            before = len(scripted.bodies("retrieve_future"))
            scripted.on("retrieve_future", *[bad] * FAST.policy.few)
            with pytest.raises((ProtocolError, RequestRejectedError)):
                await model.forward_backward([row()])
            assert len(scripted.bodies("retrieve_future")) == before + FAST.policy.few


async def test_waiting_for_capacity_is_told_with_its_reason(scripted: ScriptedService) -> None:
    heard = Recorder()
    async with TinkexService(scripted.url, settings=FAST, observer=heard) as service:
        model = await service.create_training(base_model="m", lora=LORA)
        for state in ("paused_rate_limit", "from_the_future"):
            body = {"type": "try_again", "queue_state": state, "queue_state_reason": "why"}
            scripted.on("retrieve_future", Answer(408, body))
        await model.optim_step(AdamParams())
    assert heard.states == [
        QueueState("paused_rate_limit", "why"),
        QueueState("from_the_future", "why"),
        QueueState("active"),
    ]


@pytest.mark.parametrize("path", ["asample", "create_sampling_session"])
@pytest.mark.parametrize("status", [429, 402])
async def test_a_refused_sample_keeps_its_number(
    scripted: ScriptedService, path: str, status: int
) -> None:
    settings = replace(FAST, policy=replace(FAST.policy, billing_pause_s=0.01))
    scripted.on(path, *[Answer(status, {"error": "later"})] * 3)
    async with TinkexService(scripted.url, settings=settings) as service:
        await (await service.sampler(base_model="m")).sample([1], PARAMS)
    number = "seq_id" if path == "asample" else "sampling_session_seq_id"
    assert [b[number] for b in scripted.bodies(path)] == [0] * 4


# --- what a newer service may add -------------------------------------------------------------


class Newer(ScriptedService):
    """Adds a field to every object, and one to every protobuf message, that nobody knows."""

    def _usual(self, name: str, seen: Seen) -> Answer:
        answer = super()._usual(name, seen)
        if isinstance(answer.body, bytes):
            return replace(answer, body=answer.body + b"\xfa\x3e\x03new")
        return replace(answer, body=_extended(answer.body))


def _extended(value: Any) -> Any:
    if isinstance(value, list):
        return [_extended(v) for v in value]
    if isinstance(value, dict) and "loss:sum" in value:
        return {**value, "odd:quantile": 3.0}
    if isinstance(value, dict) and not {"logprobs", "seq"} & set(value):
        return {**{k: _extended(v) for k, v in value.items()}, "new_field": {"a": [1]}}
    return value


@pytest.mark.parametrize("speaks", ["json", "protobuf"])
async def test_unknown_fields_are_ignored(speaks: str) -> None:
    async with Newer() as newer:
        newer.speaks, newer.config = {speaks}, {} if speaks == "protobuf" else None
        await run(newer)
        assert newer.requests[-1].path == "/api/v1/sessions/s1/finish"


async def test_results_are_asked_for_as_protobuf_only_where_they_have_that_form(
    scripted: ScriptedService,
) -> None:
    scripted.speaks, scripted.config = {"protobuf"}, {}
    await run(scripted)
    wanted = [
        proto.CONTENT_TYPE in r.headers["accept"]
        for r in scripted.requests
        if r.path.endswith("retrieve_future")
    ]
    # Two passes and a sample of eleven results.
    assert (sum(wanted), len(wanted)) == (3, 10)
    others = {r.headers["accept"] for r in scripted.requests if "future" not in r.path}
    assert others == {"application/json"}


# --- exact bodies -----------------------------------------------------------------------------

OFFICIAL = {
    "create_session": "CreateSessionRequest",
    "session_heartbeat": "SessionHeartbeatRequest",
    "create_model": "CreateModelRequest",
    "get_info": "GetInfoRequest",
    "optim_step": "OptimStepRequest",
    "save_weights": "SaveWeightsRequest",
    "save_weights_for_sampler": "SaveWeightsForSamplerRequest",
    "load_weights": "LoadWeightsRequest",
    "create_sampling_session": "CreateSamplingSessionRequest",
    "asample": "SampleRequest",
    "retrieve_future": "FutureRetrieveRequest",
    "client/config": "ClientConfigRequest",
}


def _forbidding(model: Any) -> Any:
    """The official model, except that fields which it does not know are an error."""
    return type(
        model.__name__, (model,), {"model_config": {**model.model_config, "extra": "forbid"}}
    )


async def test_every_body_is_one_that_the_official_sdk_could_send(
    scripted: ScriptedService,
) -> None:
    types = pytest.importorskip("tinker", reason="needs the extra [sdk]").types
    settings = replace(FAST, heartbeat_s=0.02)
    async with TinkexService(scripted.url, settings=settings) as service:
        await flow(service)
        model = await service.create_training_from_state(STATE)
        await model.save_state("c")
        await (await service.sampler(model_path=STATE)).sample(
            [1, 2],
            SamplingParams(max_tokens=1, stop=["x"], seed=1),
            prompt_logprobs=True,
            topk_prompt_logprobs=1,
            topk_sample_logprobs=1,
        )
        await asyncio.sleep(0.05)
    seen = set()
    for request in scripted.requests:
        path = request.path.removeprefix("/api/v1/")
        if path in OFFICIAL:
            seen.add(path)
            _forbidding(getattr(types, OFFICIAL[path])).model_validate_json(request.body)
            assert b"null" not in request.body
    assert seen == set(OFFICIAL)
    for body in (b'{"reason":{"type":"success"}}', b'{"reason":{"type":"success"},"detail":"x"}'):
        async with TinkexService(scripted.url, settings=FAST) as service:
            await service.sampler(base_model="m")
            await service.close(detail="x" if b"detail" in body else None)
        assert scripted.requests[-1].body == body


# --- sessions ---------------------------------------------------------------------------------


async def test_an_exception_ends_the_session_as_errored(scripted: ScriptedService) -> None:
    with pytest.raises(KeyError):
        async with TinkexService(scripted.url, settings=FAST) as service:
            await service.sampler(base_model="m")
            raise KeyError("mine")
    assert scripted.bodies("sessions/s1/finish") == [{"reason": {"type": "errored"}}]


@pytest.mark.parametrize(
    "answer",
    [Answer(404), Answer(422, {"error": "x"}), Answer(500), Answer(mode="reset"), Answer(204)],
    ids=lambda a: f"{a.status}-{a.mode}",
)
async def test_only_a_410_ends_the_heartbeat(scripted: ScriptedService, answer: Answer) -> None:
    scripted.on("session_heartbeat", *[answer] * 3)
    settings = replace(FAST, heartbeat_s=0.01)
    async with TinkexService(scripted.url, settings=settings) as service:
        model = await service.create_training(base_model="m", lora=LORA)
        while len(scripted.bodies("session_heartbeat")) < 6:
            await asyncio.sleep(0.01)
        await model.optim_step(AdamParams())
    assert set(scripted.bodies("session_heartbeat")[0]) == {"session_id", "type"}


async def test_batches_are_cut_by_the_bytes_that_the_service_wants(
    scripted: ScriptedService,
) -> None:
    scripted.speaks, scripted.config = {"protobuf"}, {"fwdbwd_max_chunk_bytes_count": 3000}
    async with TinkexService(scripted.url, settings=FAST) as service:
        model = await service.create_training(base_model="m", lora=LORA)
        result = await model.forward_backward([row(100)] * 3)
        await model.optim_step(AdamParams())
    assert len(result.loss_fn_outputs) == 3
    assert sorted(seqs(scripted, "forward_backward")) == [1, 2, 3]
    assert seqs(scripted, "optim_step") == [4]


@pytest.mark.parametrize("first", [0, 1, 2])
async def test_the_pieces_of_a_batch_may_come_in_any_order(
    scripted: ScriptedService, first: int
) -> None:
    """The service executes by number, so a piece that is late must neither lose nor swap rows."""
    scripted.speaks, scripted.config = {"protobuf"}, {"fwdbwd_max_chunk_len": 1}
    model_rows = [row(2), row(3), row(4)]
    usual = scripted._usual

    def answer(name: str, seen: Seen) -> Answer:
        found = usual(name, seen)
        if name == "forward_backward" and seen.json["seq_id"] - 1 != first:
            return replace(found, delay_s=0.03)
        return found

    scripted._usual = answer  # type: ignore[method-assign]
    async with TinkexService(scripted.url, settings=FAST) as service:
        model = await service.create_training(base_model="m", lora=LORA)
        result = await model.forward_backward(model_rows)
    assert [len(o["logprobs"].data) for o in result.loss_fn_outputs] == [2, 3, 4]
