"""The fake has the real shape: order, resume, planned failures, lost sessions."""

from __future__ import annotations

import asyncio
import math

import pytest
from service_contract import check_training_service

from crucible_tinkex.client import TrainingService
from crucible_tinkex.client.http.watch import Observer, QueueState
from crucible_tinkex.errors import (
    ConfigError,
    OperationFailedError,
    RequestRejectedError,
    SessionLostError,
)
from crucible_tinkex.protocol.wire import (
    AdamParams,
    Datum,
    LoraConfig,
    ModelInput,
    SamplingParams,
    TensorData,
)
from crucible_tinkex.testing import (
    Effect,
    FakeBackend,
    FakeService,
    FakeTraining,
    batch_digest,
)
from crucible_tinkex.testing.clock import run_virtual
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


async def test_an_answer_may_be_lost_after_the_work_is_done() -> None:
    backend = FakeBackend()
    model = await FakeService(backend).create_training(base_model="nano", lora=LoraConfig(rank=4))
    await train(model, 1)
    backend.fail("optim_step", SessionLostError("gone"), nth=2, after_effect=True)
    await train(model, 1)
    with pytest.raises(SessionLostError):
        await train(model, 1)
    assert [e.operation for e in backend.ledger].count("optim_step") == 3
    assert model.weights.step == 3


async def test_the_ledger_lists_what_was_done() -> None:
    backend = FakeBackend()
    service = FakeService(backend)
    model = await service.create_training(base_model="nano", lora=LoraConfig(rank=4))
    backend.fail("forward", OperationFailedError("no"))
    with pytest.raises(OperationFailedError):
        await model.forward(BATCH)
    await train(model, 1)
    path = await model.save_state("s")
    await (await model.sampler()).sample([1, 2, 3], SamplingParams(max_tokens=5), num_samples=2)
    assert backend.ledger == [
        Effect(model.model_id, "forward_backward", 2, batch_digest(BATCH), tokens=3),
        Effect(model.model_id, "optim_step", 3),
        Effect(model.model_id, "save_state", 4, "s"),
        Effect(model.model_id, "training_sampler", 5),
        Effect("", "sample", 0, tokens=3, sampled=10),
    ]
    assert path in backend.checkpoints


def row(tokens: list[int]) -> Datum:
    return Datum(
        model_input=ModelInput.from_tokens(tokens[:-1]),
        loss_fn_inputs={"target_tokens": TensorData(data=tokens[1:], dtype="int64")},
    )


async def test_training_lowers_the_loss_of_similar_rows_and_of_no_others() -> None:
    model = await FakeService().create_training(base_model="nano", lora=LoraConfig(rank=4))
    same, similar, other = row([5, 6, 7, 8]), row([9, 6, 7, 3]), row([20, 21, 22, 23])

    async def losses() -> list[float]:
        outputs = [await model.forward([r]) for r in (same, similar, other)]
        return [o.metrics["loss:sum"] for o in outputs]

    before = await losses()
    await model.forward_backward([same])
    await model.optim_step(AdamParams(learning_rate=1e-3))
    after = await losses()
    assert after[0] < after[1] < before[1] == pytest.approx(before[0])
    assert after[2] == before[2]


async def test_probabilities_add_up_and_greedy_takes_the_largest() -> None:
    model = await FakeService().create_training(base_model="nano", lora=LoraConfig(rank=4))
    for tokens in ([1, 2], [1, 2], [1, 3]):
        await model.forward_backward([row(tokens)])
        await model.optim_step(AdamParams(learning_rate=1e-3))
    shares = [math.exp(model.weights.logprob(1, t)) for t in range(VOCABULARY)]
    assert sum(shares) == pytest.approx(1.0)
    assert max(range(VOCABULARY), key=shares.__getitem__) == 2
    sampler = await model.sampler()
    greedy = await sampler.sample([1], SamplingParams(max_tokens=1, temperature=0.0))
    assert greedy.sequences[0].tokens == [2]
    drawn = await sampler.sample([1], SamplingParams(max_tokens=1, seed=3), num_samples=2000)
    counts = [sum(s.tokens == [t] for s in drawn.sequences) / 2000 for t in (2, 3)]
    assert counts == [pytest.approx(shares[t], abs=0.04) for t in (2, 3)]


async def test_ranks_and_seeds_have_floors_of_their_own() -> None:
    found = []
    for rank, seed in ((2, 0), (2, 1), (16, 0)):
        lora = LoraConfig(rank=rank, seed=seed)
        model = await FakeService().create_training(base_model="nano", lora=lora)
        found.append((await train(model, 200))[-1])
    assert len(set(found)) == 3
    assert found[2] < min(found[:2])


async def test_checkpoints_may_go_or_be_damaged() -> None:
    backend = FakeBackend()
    model = await FakeService(backend).create_training(base_model="nano", lora=LoraConfig(rank=4))
    gone, damaged = await model.save_state("a"), await model.save_state("b")
    backend.forget(gone)
    backend.damage(damaged)
    with pytest.raises(RequestRejectedError, match="no checkpoint"):
        await FakeService(backend).create_training_from_state(gone)
    with pytest.raises(OperationFailedError, match="damaged"):
        await FakeService(backend).create_training_from_state(damaged)


class Told(Observer):
    def __init__(self) -> None:
        self.states: list[str] = []

    def on_queue_state(self, state: QueueState) -> None:
        self.states.append(state.state)


async def test_a_service_that_holds_says_so() -> None:
    backend, told = FakeBackend(), Told()
    service = FakeService(backend, observer=told)
    model = await service.create_training(base_model="nano", lora=LoraConfig(rank=4))
    backend.hold("slow down")
    step = model.optim_step(AdamParams())
    await asyncio.sleep(0.01)
    assert told.states == ["paused_rate_limit"]
    assert (backend.calls, backend.in_flight["optim_step"]) == (["create_training"], 1)
    backend.let_go()
    await step
    assert told.states == ["paused_rate_limit", "active"]
    assert backend.in_flight["optim_step"] == 0


def test_delays_are_of_the_loops_clock() -> None:
    async def waits() -> float:
        backend = FakeBackend(delay_s=3600.0, delays={"save_state": 60.0})
        service = FakeService(backend)
        model = await service.create_training(base_model="nano", lora=LoraConfig(rank=4))
        await train(model, 1)
        await model.save_state("s")
        return asyncio.get_running_loop().time()

    assert run_virtual(waits()) == 2 * 3600.0 + 60.0


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
