"""The fake has the real shape: order, resume, planned failures, lost sessions."""

from __future__ import annotations

import math

import pytest
from service_contract import check_training_service

from crucible_tinkex.client import TrainingService
from crucible_tinkex.client.wire import (
    AdamParams,
    Datum,
    LoraConfig,
    ModelInput,
    SamplingParams,
    TensorData,
)
from crucible_tinkex.errors import (
    ConfigError,
    OperationFailedError,
    RequestRejectedError,
    SessionLostError,
)
from crucible_tinkex.testing import FakeBackend, FakeService, FakeTraining
from crucible_tinkex.testing.fake_model import VOCABULARY

BATCH = [
    Datum(
        model_input=ModelInput.from_tokens([1, 2, 3]),
        loss_fn_inputs={
            "target_tokens": TensorData(data=[2, 3, 4], dtype="int64"),
            "weights": TensorData(data=[0.0, 1.0, 1.0], dtype="float32"),
        },
    )
]


async def train(model: FakeTraining, steps: int, rate: float = 1e-3) -> list[float]:
    losses = []
    for _ in range(steps):
        backward = model.forward_backward(BATCH)
        step = model.optim_step(AdamParams(learning_rate=rate))
        losses.append((await backward).metrics["loss:sum"])
        await step
    return losses


async def test_losses_fall_depend_on_the_rate_and_repeat() -> None:
    async def losses(rate: float) -> list[float]:
        service = FakeService()
        model = await service.create_training(base_model="nano", lora=LoraConfig(rank=4))
        return await train(model, 8, rate)

    good, poor, wild = await losses(1e-3), await losses(1e-6), await losses(1.0)
    assert good == await losses(1e-3)
    assert good[-1] < poor[-1] < wild[-1]
    assert good == sorted(good, reverse=True)
    assert good[0] == pytest.approx(2 * math.log(VOCABULARY))


async def test_the_contract() -> None:
    await check_training_service(FakeService())


async def test_resume_continues_identically() -> None:
    backend = FakeBackend()
    first: TrainingService = FakeService(backend)
    model = await first.create_training(base_model="nano", lora=LoraConfig(rank=4, seed=3))
    assert isinstance(model, FakeTraining)
    await train(model, 3)
    path = await model.save_state("three")
    rest = await train(model, 3)
    await first.close(reason="errored")
    resumed = await FakeService(backend).create_training_from_state(path)
    assert await train(resumed, 3) == rest
    assert backend.ends == ["errored"]
    await FakeService(backend).delete_checkpoint(path)
    with pytest.raises(RequestRejectedError):
        await FakeService(backend).create_training_from_state(path)


async def test_planned_failures() -> None:
    failures = [
        ("optim_step", 2, OperationFailedError("no memory", category="server")),
        ("forward_backward", 4, SessionLostError("gone")),
    ]
    backend = FakeBackend(failures=failures)
    model = await FakeService(backend).create_training(base_model="nano", lora=LoraConfig(rank=4))
    await train(model, 1)
    with pytest.raises(OperationFailedError, match="no memory"):
        await train(model, 1)
    await train(model, 1)
    with pytest.raises(SessionLostError):
        await train(model, 1)
    with pytest.raises(SessionLostError):
        await model.save_state("late")
    assert backend.calls.count("forward_backward") == 4


async def test_a_step_without_a_gradient_changes_nothing() -> None:
    model = await FakeService().create_training(base_model="nano", lora=LoraConfig(rank=4))
    await model.optim_step(AdamParams())
    assert model.weights.step == 0


async def test_sampling_is_seeded() -> None:
    service = FakeService()
    model = await service.create_training(base_model="nano", lora=LoraConfig(rank=4))
    sampler = await model.sampler()
    params = SamplingParams(max_tokens=4, seed=1)
    answer = await sampler.sample([1, 2], params, num_samples=2, prompt_logprobs=True)
    assert answer == await sampler.sample([1, 2], params, num_samples=2, prompt_logprobs=True)
    assert answer.sequences[0].tokens != answer.sequences[1].tokens
    assert answer.prompt_logprobs is not None
    assert answer.prompt_logprobs[0] is None
    saved = await service.sampler(model_path=await model.save_for_sampler("s"))
    assert (await saved.sample([1, 2], params)).sequences[0] == answer.sequences[0]


async def test_bad_requests() -> None:
    service = FakeService()
    with pytest.raises(RequestRejectedError, match="nano"):
        await service.create_training(base_model="other", lora=LoraConfig(rank=4))
    with pytest.raises(ConfigError):
        await service.sampler()
    model = await service.create_training(base_model="nano", lora=LoraConfig(rank=4))
    with pytest.raises(ConfigError):
        model.forward_backward([])
    assert (await service.capabilities()).supported_models[0].model_name == "nano"
    assert (await model.info()).lora_rank == 4
    await service.close()
    await service.close()
    with pytest.raises(SessionLostError):
        await service.capabilities()
