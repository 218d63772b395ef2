"""Which encoding the client chooses, on services that speak JSON, protobuf, or both."""

from __future__ import annotations

import asyncio

import pytest
from scripted_service import Answer, ScriptedService
from test_client_training import FAST, row, seqs

from crucible_tinkex.client import TinkexService
from crucible_tinkex.client.model.training_client import TinkexTraining
from crucible_tinkex.errors import RequestRejectedError
from crucible_tinkex.protocol import proto
from crucible_tinkex.protocol.wire import AdamParams, LoraConfig, SamplingParams


async def create(service: TinkexService) -> TinkexTraining:
    return await service.create_training(base_model="m", lora=LoraConfig(rank=2, seed=1))


def takes_protobuf(model: TinkexTraining) -> bool | None:
    return model.operations.transport.encoding.takes_protobuf


def encodings(scripted: ScriptedService) -> list[str]:
    return [
        "protobuf" if r.is_protobuf else "json"
        for r in scripted.requests
        if r.path.endswith(("/forward_backward", "/forward"))
    ]


async def flow(service: TinkexService) -> TinkexTraining:
    model = await create(service)
    backward = model.forward_backward([row(), row(2)], loss_fn="ppo", loss_fn_config={"b": 2.0})
    step = model.optim_step(AdamParams())
    assert [o["logprobs"].data for o in (await backward).loss_fn_outputs] == [
        [-1.0] * 3,
        [-1.0] * 2,
    ]
    assert (await backward).metrics["loss:sum"] == 2.0
    assert (await step).metrics == {"seq": 2.0}
    assert len((await model.forward([row()])).loss_fn_outputs) == 1
    answer = await (await model.sampler()).sample([1], SamplingParams(), num_samples=2)
    assert [s.tokens for s in answer.sequences] == [[0], [0]]
    return model


async def test_a_service_without_client_config_gets_json(scripted: ScriptedService) -> None:
    async with TinkexService(scripted.url, settings=FAST) as service:
        assert takes_protobuf(await flow(service)) is False
    assert encodings(scripted) == ["json", "json"]
    accepts = {r.headers["accept"] for r in scripted.requests}
    assert accepts == {"application/json"}


@pytest.mark.parametrize("speaks", [{"protobuf"}, {"protobuf", "json"}])
async def test_a_service_that_takes_protobuf_keeps_getting_it(
    scripted: ScriptedService, speaks: set[str]
) -> None:
    scripted.config, scripted.speaks = {}, speaks
    async with TinkexService(scripted.url, settings=FAST) as service:
        assert takes_protobuf(await flow(service)) is True
    assert encodings(scripted) == ["protobuf", "protobuf"]
    batch = scripted.bodies("forward_backward")[0]["forward_backward_input"]
    assert batch["loss_fn"] == "ppo"
    assert batch["loss_fn_config"] == {"b": 2.0}


@pytest.mark.parametrize("status", [400, 415, 422, 500, 501])
async def test_a_service_that_refuses_protobuf_gets_the_same_batch_as_json(
    scripted: ScriptedService, status: int
) -> None:
    scripted.config, scripted.refusal = {"pjwt_auth_enabled": False}, status
    async with TinkexService(scripted.url, settings=FAST) as service:
        assert takes_protobuf(await flow(service)) is False
    assert encodings(scripted) == ["protobuf", "json", "json"]
    assert seqs(scripted, "forward_backward") == [1, 1]


async def test_a_bad_batch_teaches_nothing(scripted: ScriptedService) -> None:
    scripted.config, scripted.speaks = {}, {"protobuf", "json"}
    bad = Answer(400, {"error": "token 9 is out of range"})
    scripted.on("forward_backward", bad, bad)
    async with TinkexService(scripted.url, settings=FAST) as service:
        model = await create(service)
        with pytest.raises(RequestRejectedError, match="token 9"):
            await model.forward_backward([row()])
        assert takes_protobuf(model) is None


async def test_the_first_error_counts_where_json_is_not_spoken(scripted: ScriptedService) -> None:
    scripted.config, scripted.speaks = {}, {"protobuf"}
    scripted.on("forward_backward", Answer(400, {"error": "token 9 is out of range"}))
    async with TinkexService(scripted.url, settings=FAST) as service:
        with pytest.raises(RequestRejectedError, match="token 9"):
            await (await create(service)).forward_backward([row()])


async def test_what_the_first_form_was_refused_for_is_told_too(scripted: ScriptedService) -> None:
    scripted.config, scripted.speaks = {}, {"protobuf", "json"}
    answers = [Answer(400, {"error": e}) for e in ("ppo needs advantages", "number 1 is used")]
    scripted.on("forward_backward", *answers)
    async with TinkexService(scripted.url, settings=FAST) as service:
        with pytest.raises(RequestRejectedError, match=r"number 1.*as_proto.*advantages"):
            await (await create(service)).forward_backward([row()])


async def test_once_proven_a_refusal_is_final(scripted: ScriptedService) -> None:
    scripted.config, scripted.speaks = {}, {"protobuf", "json"}
    async with TinkexService(scripted.url, settings=FAST) as service:
        model = await flow(service)
        scripted.on("forward_backward", Answer(400, {"error": "no"}))
        with pytest.raises(RequestRejectedError):
            await model.forward_backward([row()])
    assert encodings(scripted)[-1] == "protobuf"


async def test_the_sessions_of_a_process_ask_once(scripted: ScriptedService) -> None:
    scripted.config, scripted.speaks = {}, {"protobuf"}
    async with (
        TinkexService(scripted.url, settings=FAST) as one,
        TinkexService(scripted.url, settings=FAST) as two,
    ):
        await flow(one)
        await create(two)
    assert len(scripted.bodies("client/config")) == 1


async def test_a_flag_may_forbid_protobuf(scripted: ScriptedService) -> None:
    scripted.config, scripted.speaks = {"proto_write_fwdbwd": False}, {"protobuf", "json"}
    async with TinkexService(scripted.url, settings=FAST) as service:
        await flow(service)
    assert encodings(scripted) == ["json", "json"]


@pytest.mark.parametrize("answer", [Answer(body=b"<html>"), Answer(405), Answer(body=[1])])
async def test_an_odd_answer_to_client_config_means_json(
    scripted: ScriptedService, answer: Answer
) -> None:
    scripted.on("client/config", *[answer] * 5)
    async with TinkexService(scripted.url, settings=FAST) as service:
        assert takes_protobuf(await flow(service)) is False


async def test_a_setting_skips_the_negotiation(scripted: ScriptedService) -> None:
    scripted.config, scripted.speaks = {}, {"protobuf", "json"}
    for preference in ("json", "protobuf"):
        settings = type(FAST)(policy=FAST.policy, encoding=preference)
        async with TinkexService(scripted.url, settings=settings) as service:
            await flow(service)
    assert encodings(scripted) == ["json", "json", "protobuf", "protobuf"]


async def test_batches_are_compressed_and_cut_as_the_service_asks(
    scripted: ScriptedService,
) -> None:
    scripted.config = {"proto_compress_fwdbwd": True, "fwdbwd_max_chunk_len": 2}
    scripted.speaks = {"protobuf"}
    async with TinkexService(scripted.url, settings=FAST) as service:
        result = await (await create(service)).forward_backward([row()] * 5)
    assert len(result.loss_fn_outputs) == 5
    sent = [r for r in scripted.requests if r.is_protobuf]
    assert [r.headers["content-encoding"] for r in sent] == ["zstd"] * 3
    assert sorted(seqs(scripted, "forward_backward")) == [1, 2, 3]


async def test_one_of_several_batches_offers_and_the_others_wait(scripted: ScriptedService) -> None:
    scripted.config = {}
    async with TinkexService(scripted.url, settings=FAST) as service:
        model = await create(service)
        sent = [model.forward_backward([row()]) for _ in range(4)]
        await asyncio.gather(*sent)
    assert encodings(scripted) == ["protobuf", *["json"] * 4]
    assert seqs(scripted, "forward_backward") == [1, 1, 2, 3, 4]


async def test_a_malformed_protobuf_result_is_refused(scripted: ScriptedService) -> None:
    scripted.config, scripted.speaks = {}, {"protobuf"}
    odd = Answer(body=b"\xff\xff", headers={"Content-Type": proto.CONTENT_TYPE})
    scripted.on("retrieve_future", Answer(body={"model_id": "s1:train:0"}), odd)
    async with TinkexService(scripted.url, settings=FAST) as service:
        assert (await (await create(service)).forward_backward([row()])).metrics["loss:sum"] == 1.0
