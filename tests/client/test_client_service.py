"""The session's life: creation, heartbeat, loss, end; sampling; shared transports."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest
from scripted_service import FAST, NEVER_S, Answer, ScriptedService, VirtualTime

from crucible_tinkex.client import TinkexService
from crucible_tinkex.errors import (
    ConfigError,
    ProtocolError,
    RequestRejectedError,
    SessionLostError,
)
from crucible_tinkex.protocol.wire import AdamParams, LoraConfig, SamplingParams

LORA = LoraConfig(rank=2)
SAMPLING = SamplingParams(max_tokens=1)


async def test_one_session_per_service_and_one_transport_per_process(
    scripted: ScriptedService,
) -> None:
    services = [TinkexService(scripted.url, settings=FAST) for _ in range(3)]
    for service in services:
        assert (await service.capabilities()).supported_models[0].model_name == "m"
        assert service.session_id is None
    await asyncio.gather(*[s.create_training(base_model="m", lora=LORA) for s in services * 2])
    assert len(scripted.bodies("create_session")) == 3
    numbers = sorted(b["model_seq_id"] for b in scripted.bodies("create_model"))
    assert numbers == [0, 0, 0, 1, 1, 1]
    assert len({id(s._live.transport()) for s in services}) == 1
    for service in services:
        await service.close(reason="interrupted", detail="ctrl-c")
        await service.close()
    ends = scripted.bodies("sessions/s1/finish")
    assert ends == [{"reason": {"type": "interrupted"}, "detail": "ctrl-c"}] * 3
    with pytest.raises(SessionLostError):
        await services[0].create_training(base_model="m", lora=LORA)


@pytest.mark.parametrize("refused", ["create_session", "create_model", "create_sampling_session"])
async def test_no_room_for_one_more_slows_no_other_session(
    scripted: ScriptedService, refused: str
) -> None:
    settings = replace(FAST, clock=VirtualTime().clock, heartbeat_s=NEVER_S)
    scripted.on(refused, Answer(429, {"error": "full"}, {"Retry-After": "30"}))
    async with TinkexService(scripted.url, settings=settings) as service:
        pace = service._live.transport().pace
        bound = pace.bound
        await service.create_training(base_model="m", lora=LORA)
        await service.sampler(base_model="m")
        assert len(scripted.bodies(refused)) == 2
        assert pace.bound == bound


async def test_close_never_raises(scripted: ScriptedService) -> None:
    settings = replace(FAST, close_s=0.05)
    for answer in (Answer(500), Answer(404), Answer(mode="reset"), Answer(mode="hang")):
        service = TinkexService(scripted.url, settings=settings)
        await service.sampler(base_model="m")
        scripted.on("sessions/s1/finish", *[answer] * 100)
        await service.close()


async def test_a_service_that_is_closed_before_its_first_use_stays_closed(
    scripted: ScriptedService,
) -> None:
    service = TinkexService(scripted.url)
    await service.close()
    with pytest.raises(SessionLostError, match="closed"):
        await service.capabilities()
    assert scripted.requests == []


async def test_close_ends_what_is_under_way(scripted: ScriptedService) -> None:
    service = TinkexService(scripted.url, settings=FAST)
    model = await service.create_training(base_model="m", lora=LORA)
    scripted.on("retrieve_future", Answer(mode="hang"))
    step = model.optim_step(AdamParams())
    await asyncio.sleep(0.02)
    await service.close()
    with pytest.raises(SessionLostError, match="closed"):
        await step


async def test_the_heartbeat_finds_a_lost_session(scripted: ScriptedService) -> None:
    service = TinkexService(scripted.url, settings=replace(FAST, heartbeat_s=0.02))
    model = await service.create_training(base_model="m", lora=LORA)
    scripted.on("retrieve_future", Answer(mode="hang"))
    step = model.optim_step(AdamParams())
    await asyncio.sleep(0.05)
    assert scripted.bodies("session_heartbeat")[0]["session_id"] == "s1"
    scripted.on("session_heartbeat", Answer(410, {"error": "expired"}))
    with pytest.raises(SessionLostError, match="expired"):
        await asyncio.wait_for(asyncio.ensure_future(step), 2)
    with pytest.raises(SessionLostError, match="expired"):
        await service.create_training(base_model="m", lora=LORA)
    beats = len(scripted.bodies("session_heartbeat"))
    await asyncio.sleep(0.05)
    assert len(scripted.bodies("session_heartbeat")) == beats
    await service.close()
    assert scripted.bodies("sessions/s1/finish") == []


async def test_a_silent_heartbeat_is_warned_about_once(
    scripted: ScriptedService, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(FAST, heartbeat_s=0.01, heartbeat_warning_s=0.03)
    service = TinkexService(scripted.url, settings=settings)
    scripted.on("session_heartbeat", *[Answer(500, {"error": "down"})] * 1000)
    model = await service.create_training(base_model="m", lora=LORA)
    await asyncio.sleep(0.15)
    await model.optim_step(AdamParams())
    await service.close()
    assert caplog.text.count("no heartbeat") == 1


async def test_messages_of_the_service_are_logged(
    scripted: ScriptedService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    note = {"session_id": "s1", "warning_message": "maintenance at noon"}
    scripted.on("create_session", Answer(body=note))
    async with TinkexService(scripted.url, settings=FAST) as service:
        await service.sampler(base_model="m")
    assert "maintenance at noon" in caplog.text


async def test_create_from_state(scripted: ScriptedService) -> None:
    async with TinkexService(scripted.url, settings=FAST) as service:
        model = await service.create_training_from_state("tinker://r:train:0/weights/a")
        assert model.model_id == "s1:train:0"
        sent = scripted.bodies("load_weights")[0]
        assert (sent["session_id"], sent["model_seq_id"], sent["optimizer"]) == ("s1", 0, True)
        for path in ("weights/a", "tinker://r/sampler_weights/a", "tinker://r/weights/../a"):
            with pytest.raises(ConfigError):
                await service.create_training_from_state(path)


async def test_delete_checkpoint(scripted: ScriptedService) -> None:
    async with TinkexService(scripted.url, settings=FAST) as service:
        where = "training_runs/s1:train:0/checkpoints/weights/a"
        scripted.on(where, Answer(204), Answer(404), Answer(400, {"error": "kept"}))
        await service.delete_checkpoint("tinker://s1:train:0/weights/a")
        await service.delete_checkpoint("tinker://s1:train:0/weights/a")
        with pytest.raises(RequestRejectedError):
            await service.delete_checkpoint("tinker://s1:train:0/weights/a")
        assert scripted.requests[0].method == "DELETE"
        assert scripted.requests[0].path == "/api/v1/" + where


async def test_sampling(scripted: ScriptedService) -> None:
    async with TinkexService(scripted.url, settings=FAST) as service:
        with pytest.raises(ConfigError):
            await service.sampler()
        sampler = await service.sampler(model_path="tinker://s1:train:0/sampler_weights/a")
        answers = await asyncio.gather(
            *[sampler.sample([1, 2], SAMPLING, num_samples=2, prompt_logprobs=True)] * 1,
            sampler.sample([3], SamplingParams(max_tokens=1, stop=[])),
        )
        assert [len(a.sequences) for a in answers] == [2, 1]
        sent = sorted(scripted.bodies("asample"), key=lambda b: b["seq_id"])
        assert [b["seq_id"] for b in sent] == [0, 1]
        assert sent[0]["prompt"]["chunks"][0]["tokens"] == [1, 2]
        assert sent[0]["prompt_logprobs"] is True
        assert sent[1]["sampling_params"]["stop"] == []
        assert "stop" not in sent[0]["sampling_params"]


async def test_a_forgotten_sample_is_asked_for_again_under_a_new_number(
    scripted: ScriptedService,
) -> None:
    async with TinkexService(scripted.url, settings=FAST) as service:
        sampler = await service.sampler(base_model="m")
        scripted.on("retrieve_future", Answer(410, {"error": "gone"}))
        assert (await sampler.sample([1], SAMPLING)).sequences[0].tokens == [1]
        assert [b["seq_id"] for b in scripted.bodies("asample")] == [0, 1]
        scripted.on("retrieve_future", *[Answer(410, {"error": "gone"})] * 5)
        with pytest.raises(SessionLostError):
            await sampler.sample([1], SAMPLING)
        scripted.on("asample", Answer(410, {"error": "session gone"}))
        with pytest.raises(SessionLostError):
            await sampler.sample([1], SAMPLING)


async def test_the_number_of_samples_must_be_right(scripted: ScriptedService) -> None:
    async with TinkexService(scripted.url, settings=FAST) as service:
        sampler = await service.sampler(base_model="m")
        scripted.on("retrieve_future", Answer(body={"sequences": []}))
        with pytest.raises(ProtocolError):
            await sampler.sample([1], SAMPLING)
