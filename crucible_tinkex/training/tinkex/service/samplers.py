"""Sampling clients of a session, kept as long as their weights are those asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from crucible_tinkex.client.interface import SamplingClient, TrainingClient, TrainingService
from crucible_tinkex.client.model.witnessed import WitnessedSampling
from crucible_tinkex.datasets import Tokenizer
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.protocol.wire import SamplingParams
from crucible_tinkex.telemetry.bridge import Bridge, Teller
from crucible_tinkex.training.attempt.meter import Meter
from crucible_tinkex.training.recipes.evaluation import bounded
from crucible_tinkex.training.tinkex.results import Completion

Prompt = str | Sequence[int]


class Samplers:
    """Of one session."""

    def __init__(self, bridge: Bridge, meter: Meter) -> None:
        self._bridge = bridge
        self._meter = meter
        self._of_path: dict[str, SamplingClient] = {}
        self._current: tuple[object, SamplingClient] | None = None

    async def of_checkpoint(self, service: TrainingService, path: str) -> SamplingClient:
        if path not in self._of_path:
            made = await service.sampler(model_path=path)
            self._of_path[path] = WitnessedSampling(
                WitnessedSampling(made, self._meter), Teller(self._bridge)
            )
            self._bridge.execute("sampler_created", path=path)
        return self._of_path[path]

    async def of_weights(self, client: TrainingClient, version: object) -> SamplingClient:
        """Of the weights as they are; `version` is another one when they have changed."""
        if self._current is None or self._current[0] != version:
            self._current = (version, await client.sampler())
            self._bridge.execute("sampler_created", path=None)
        return self._current[1]

    def forget(self) -> None:
        """The service's session is another one now."""
        self._of_path.clear()
        self._current = None


def as_prompts(given: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt, or several, as a list; tokens are one prompt."""
    if isinstance(given, str):
        return [given]
    tokens = [item for item in given if isinstance(item, int)]
    if tokens:
        return [tokens]
    return [item for item in given if not isinstance(item, int)]


async def complete(
    sampler: SamplingClient,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    num_samples: int,
) -> list[Completion]:
    """`num_samples` completions of each prompt, in the order of the prompts."""
    if num_samples < 1:
        raise ConfigError(f"num_samples = {num_samples} must be at least 1")
    answers = await bounded(
        [partial(_sampled, sampler, tokenizer, prompt, params, num_samples) for prompt in prompts]
    )
    return [completion for answer in answers for completion in answer]


async def _sampled(
    sampler: SamplingClient,
    tokenizer: Tokenizer,
    prompt: Prompt,
    params: SamplingParams,
    num_samples: int,
) -> list[Completion]:
    tokens = tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
    if not tokens:
        raise ConfigError("a prompt must not be empty")
    text = prompt if isinstance(prompt, str) else tokenizer.decode(tokens)
    response = await sampler.sample(tokens, params, num_samples=num_samples)
    return [
        Completion(text, tokenizer.decode(s.tokens), s.tokens, s.logprobs, s.stop_reason)
        for s in response.sequences
    ]
