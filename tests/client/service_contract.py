"""What every `TrainingService` must do; run on the fake and on the real server alike."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from crucible_tinkex.client import TrainingService
from crucible_tinkex.errors import ConfigError, ServiceError
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.protocol.wire import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    LoraConfig,
    ModelInput,
    SamplingParams,
    TensorData,
)

BATCH = [
    Datum(
        model_input=ModelInput.from_tokens([3, 4, 5]),
        loss_fn_inputs={
            "target_tokens": TensorData(data=[4, 5, 6], dtype="int64", shape=[3]),
            "weights": TensorData(data=[0.0, 1.0, 1.0], dtype="float32", shape=[3]),
        },
    )
]
ADAM = AdamParams(learning_rate=5e-3)


def _likelihood(logprobs: list[Any]) -> tuple[float, list[Any], dict[str, float]]:
    gradient = np.asarray([0.0, -1.0, -1.0], np.float32)
    return float((logprobs[0] * gradient).sum()), [gradient], {"rows:sum": 1.0}


def logprobs_of(output: ForwardBackwardOutput) -> list[float]:
    return list(output.loss_fn_outputs[0]["logprobs"].data)


async def check_training_service(service: TrainingService) -> None:
    """Closes the service."""
    base_model = (await service.capabilities()).supported_models[0].model_name
    model = await service.create_training(base_model=base_model, lora=LoraConfig(rank=4, seed=1))
    other = await service.create_training(base_model=base_model, lora=LoraConfig(rank=4, seed=1))
    assert model.model_id != other.model_id
    assert (await model.info()).model_id == model.model_id

    # Submitted at the call, executed in order, by value, awaitable again.
    sent = [(model.forward_backward(BATCH), model.optim_step(ADAM)) for _ in range(4)]
    losses = [(await backward).metrics["loss:sum"] for backward, _ in sent]
    assert losses == [(await backward).metrics["loss:sum"] for backward, _ in sent]
    assert losses[3] < losses[0]
    output = await model.forward(BATCH)
    logprobs = output.loss_fn_outputs[0]["logprobs"].data
    assert output.metrics["loss:sum"] == pytest.approx(-sum(logprobs[1:]), rel=1e-4)

    # A state is exact, and deleting it twice is no error.
    state = await model.save_state("here")
    parsed = TinkerPath.parse(state)
    assert (parsed.run_id, parsed.kind, parsed.name) == (model.model_id, "weights", "here")
    resumed = await service.create_training_from_state(state)
    for client in (model, resumed):
        await client.forward_backward(BATCH)
        await client.optim_step(ADAM)
    assert await model.forward(BATCH) == await resumed.forward(BATCH)
    await service.delete_checkpoint(state)
    await service.delete_checkpoint(state)
    with pytest.raises(ServiceError):
        await service.create_training_from_state(state)

    # Samples: as many as asked, repeatable, from a snapshot or from a checkpoint.
    path = await model.save_for_sampler("s")
    assert TinkerPath.parse(path).kind == "sampler_weights"
    params = SamplingParams(max_tokens=3, seed=5, stop=[])
    answers = [
        await sampler.sample([3, 4], params, num_samples=2, prompt_logprobs=True)
        for sampler in (await model.sampler(), await service.sampler(model_path=path))
    ]
    assert [s.tokens for s in answers[0].sequences] == [s.tokens for s in answers[1].sequences]
    assert [len(s.tokens) for s in answers[0].sequences] == [3, 3]
    params.stop = [answers[0].sequences[0].tokens[0]]
    stopped = (await (await model.sampler()).sample([3, 4], params, num_samples=2)).sequences[0]
    assert (stopped.stop_reason, len(stopped.tokens)) == ("stop", 1)
    assert answers[0].prompt_logprobs is not None
    assert answers[0].prompt_logprobs[0] is None

    scores = await (await model.sampler()).compute_logprobs([3, 4, 5])
    assert scores[0] is None
    assert [score is not None and score < 0 for score in scores[1:]] == [True, True]

    # A loss of the caller's own, and what is called after it comes after it.
    custom = model.forward_backward_custom(BATCH, _likelihood)
    stepped = model.optim_step(ADAM)
    result = await custom
    await stepped
    expected = math.fsum(logprobs_of(result)[1:])
    assert result.metrics["loss:sum"] == pytest.approx(-expected, rel=1e-3)
    assert result.metrics["rows:sum"] == 1.0

    with pytest.raises(ConfigError):
        model.forward_backward([])
    with pytest.raises(ConfigError):
        await service.sampler()
    with pytest.raises(ConfigError):
        await service.create_training_from_state("not a path")
    with pytest.raises(ServiceError):
        await service.create_training(base_model="no-such-base", lora=LoraConfig(rank=4))
    await service.close()
    await service.close()
    with pytest.raises(ServiceError):
        await service.create_training(base_model=base_model, lora=LoraConfig(rank=4))
