"""The client on the real embedded server, in its own process, with the base `nano`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from scripted_service import Recorder
from service_contract import check_training_service

from crucible_tinkex.client import ClientSettings, TinkexService, TrainingClient
from crucible_tinkex.client.checkpoints.download import Download
from crucible_tinkex.client.http.encoding import Preference
from crucible_tinkex.client.model.training_client import TinkexTraining
from crucible_tinkex.errors import (
    AuthenticationError,
    OperationFailedError,
    RequestRejectedError,
    ServiceError,
)
from crucible_tinkex.protocol.wire import (
    AdamParams,
    Datum,
    LoraConfig,
    ModelInput,
    SamplingParams,
    TensorData,
)

ADAM = AdamParams(learning_rate=5e-3)


@pytest.fixture
async def service(ready: dict[str, str]) -> AsyncIterator[TinkexService]:
    async with TinkexService(ready["base_url"], api_key_file=ready["api_key_file"]) as made:
        yield made


def batch(step: int) -> list[Datum]:
    rows = []
    for index in range(4):
        tokens = [(7 * i + index + step % 2) % 50 + 3 for i in range(17)]
        rows.append(
            Datum(
                model_input=ModelInput.from_tokens(tokens[:-1]),
                loss_fn_inputs={
                    "target_tokens": TensorData(data=tokens[1:], dtype="int64", shape=[16]),
                    "weights": TensorData(data=[1.0] * 16, dtype="float32", shape=[16]),
                },
            )
        )
    return rows


async def train(model: TrainingClient, steps: range) -> list[float]:
    """Back to back: all steps are submitted before any is awaited."""
    sent = [(model.forward_backward(batch(s)), model.optim_step(ADAM)) for s in steps]
    losses = []
    for backward, optim in sent:
        losses.append((await backward).metrics["loss:sum"])
        await optim
    return losses


async def create(service: TinkexService) -> TinkexTraining:
    return await service.create_training(base_model="nano", lora=LoraConfig(rank=4, seed=1))


async def test_training_resume_and_sampling(service: TinkexService) -> None:
    names = [m.model_name for m in (await service.capabilities()).supported_models]
    assert names == ["nano"]
    model = await create(service)
    assert model.model_id == f"{service.session_id}:train:0"
    before = await model.forward(batch(0))
    assert len(before.loss_fn_outputs) == 4
    assert len(before.loss_fn_outputs[0]["logprobs"].data) == 16
    losses = await train(model, range(8))
    assert losses[0] == pytest.approx(before.metrics["loss:sum"], rel=1e-5)
    assert losses[-1] < losses[0]
    state = await model.save_state("step8")
    rest = await train(model, range(8, 12))

    key_file = service._live._key.file
    async with TinkexService(str(service.address), api_key_file=key_file) as another_session:
        resumed = await another_session.create_training_from_state(state)
        assert await train(resumed, range(8, 12)) == rest
        assert (await resumed.info()).lora_rank == 4

    await model.load_state(state, optimizer=True)
    assert await train(model, range(8, 12)) == rest

    sampler = await model.sampler()
    params = SamplingParams(max_tokens=5, seed=3, stop=[])
    answer = await sampler.sample([3, 4, 5], params, num_samples=2, prompt_logprobs=True)
    assert [len(s.tokens) for s in answer.sequences] == [5, 5]
    assert answer.prompt_logprobs is not None
    assert len(answer.prompt_logprobs) == 3
    assert answer.prompt_logprobs[0] is None
    saved = await service.sampler(model_path=await model.save_for_sampler("sampler"))
    again = await saved.sample([3, 4, 5], params, num_samples=2)
    assert [s.tokens for s in again.sequences] == [s.tokens for s in answer.sequences]

    await service.delete_checkpoint(state)
    await service.delete_checkpoint(state)
    with pytest.raises(ServiceError):
        await service.create_training_from_state(state)


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
async def test_the_contract(ready: dict[str, str], encoding: Preference) -> None:
    await check_training_service(
        TinkexService(
            ready["base_url"],
            api_key_file=ready["api_key_file"],
            settings=ClientSettings(encoding=encoding),
        )
    )


async def test_protobuf_is_found_out_and_gives_the_same(ready: dict[str, str]) -> None:
    losses = []
    for encoding in ("auto", "json"):
        async with TinkexService(
            ready["base_url"],
            api_key_file=ready["api_key_file"],
            settings=ClientSettings(encoding=encoding),
        ) as service:
            model = await service.create_training(
                base_model="nano", lora=LoraConfig(rank=4, seed=1)
            )
            losses.append(await train(model, range(3)))
            if encoding == "auto":
                assert model.operations.transport.encoding.takes_protobuf is True
    assert losses[0] == losses[1]


async def test_runs_and_checkpoints_from_birth_to_death(
    service: TinkexService, tmp_path: Path
) -> None:
    model, rest = await create(service), service.rest
    await train(model, range(2))
    state = await model.save_state("kept", ttl_s=7200)
    sampler = await model.save_for_sampler("weights")
    found = {c.tinker_path: c async for c in rest.checkpoints(model.model_id)}
    assert set(found) == {state, sampler}
    assert found[state].expires_at is not None
    assert {c.tinker_path async for c in rest.checkpoints(page=1)} >= {state, sampler}
    assert (await rest.weights_info(state)).lora_rank == 4

    await rest.set_ttl(state, None)
    found = {c.tinker_path: c async for c in rest.checkpoints(model.model_id)}
    assert found[state].expires_at is None

    files = await rest.download(sampler, tmp_path / "adapter")
    assert "adapter_config.json" in {f.name for f in files}
    assert all(f.stat().st_size for f in files)
    urls = await rest._archive_url(sampler)
    archive = Download(service._live.transport(), tmp_path / "archive")
    assert {f.name for f in await archive.archive(urls)} >= {"adapter_config.json"}

    for path in (state, sampler):
        await rest.delete(path)
    assert [c async for c in rest.checkpoints(model.model_id)] == []


async def test_samplers_and_what_can_be_asked_of_them(service: TinkexService) -> None:
    model, prompt = await create(service), [3, 4, 5, 6]
    fixed = await model.sampler()
    saved = await service.sampler(model_path=await model.save_for_sampler("s"))
    await train(model, range(3))
    before = await fixed.compute_logprobs(prompt)
    moved = await model.sampler()
    assert await fixed.compute_logprobs(prompt) == before
    assert await saved.compute_logprobs(prompt) == before
    assert await moved.compute_logprobs(prompt) != before

    answer = await moved.sample(
        prompt,
        SamplingParams(max_tokens=3, seed=1, stop=[], top_k=5, top_p=0.9, temperature=0.7),
        num_samples=2,
        prompt_logprobs=True,
        topk_prompt_logprobs=2,
        topk_sample_logprobs=2,
    )
    assert answer.topk_prompt_logprobs is not None
    assert [len(best or []) for best in answer.topk_prompt_logprobs] == [0, 2, 2, 2]
    for sequence in answer.sequences:
        assert sequence.topk_logprobs is not None
        assert [len(best or []) for best in sequence.topk_logprobs] == [2, 2, 2]
    tokens = answer.sequences[0].tokens
    for stop in ([tokens[-1]], [], None):
        params = SamplingParams(max_tokens=3, seed=1, stop=stop, top_k=5, top_p=0.9)
        params.temperature = 0.7
        stopped = (await moved.sample(prompt, params, num_samples=2)).sequences[0]
        assert stopped.tokens == tokens[: len(stopped.tokens)]
        if stop:
            assert stopped.stop_reason == "stop"
            assert len(stopped.tokens) == tokens.index(tokens[-1]) + 1


async def test_sessions_do_not_disturb_each_other(service: TinkexService) -> None:
    alone = await train(await create(service), range(4))
    first, second = await create(service), await create(service)
    one = [(first.forward_backward(batch(s)), first.optim_step(ADAM)) for s in range(4)]
    two = [(second.forward_backward(batch(s)), second.optim_step(ADAM)) for s in range(4)]
    for sent in (one, two):
        losses = [(await backward).metrics["loss:sum"] for backward, _ in sent]
        assert losses == alone


async def test_refusals(service: TinkexService, ready: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises((OperationFailedError, RequestRejectedError)):
        await service.create_training(base_model="no-such-base", lora=LoraConfig(rank=4))
    wrong = tmp_path / "wrong"
    wrong.write_text("tml-wrong-key-000000000")
    wrong.chmod(0o600)
    async with TinkexService(ready["base_url"], api_key_file=wrong) as stranger:
        with pytest.raises(AuthenticationError):
            await stranger.sampler(base_model="nano")


async def test_the_session_is_finished(ready: dict[str, str]) -> None:
    heard = Recorder()
    service = TinkexService(ready["base_url"], api_key_file=ready["api_key_file"], observer=heard)
    await create(service)
    await service.close(reason="interrupted", detail="test")
    assert heard.records[-1].operation == "finish_session"
    assert heard.records[-1].error is None
    assert heard.records[-1].attempts == 1
