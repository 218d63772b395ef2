"""Talking to a trained adapter, in the form in which it was trained.

An adapter that was trained on conversations is asked through its tokenizer's chat template, turn
after turn; one that was trained on plain prompts gets the prompt as it is, and remembers nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from crucible_tinkex.client.interface import SamplingClient
from crucible_tinkex.client.service import TinkexService
from crucible_tinkex.config import Experiment
from crucible_tinkex.datasets import Tokenizer, load_tokenizer, open_rows
from crucible_tinkex.datasets.rows import Message
from crucible_tinkex.errors import ConfigError, DataError
from crucible_tinkex.protocol.wire import SamplingParams
from crucible_tinkex.sweep.results.trained import Trained
from crucible_tinkex.weights.service import sampling_path, service_of

Style: TypeAlias = Literal["chat", "plain"]
_ANY_ANSWER = Message("assistant", "x")


@dataclass(frozen=True)
class Answer:
    """What the model wrote. `cut`: it had not finished when `max_tokens` were written."""

    text: str
    tokens: int
    cut: bool


class Chat:
    """One conversation. `say` takes turns; not for two callers at once."""

    def __init__(
        self,
        sampler: SamplingClient,
        tokenizer: Tokenizer,
        *,
        style: Style,
        params: SamplingParams,
        system: str | None = None,
    ) -> None:
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._style = style
        self._params = params
        self._start = [Message("system", system)] if system else []
        if system and style == "plain":
            raise ConfigError("a plain prompt has no place for a system message; leave it out")
        self.messages: list[Message] = list(self._start)
        """The turns so far."""

    async def say(self, text: str) -> Answer:
        """The model's answer. A turn that fails is not remembered."""
        turns = [*self.messages, Message("user", text)]
        if self._style == "chat":
            prompt = chat_prompt(self._tokenizer, turns)
        else:
            prompt = self._tokenizer.encode_prompt(text)
        if not prompt:
            raise ConfigError("the prompt is empty")
        response = await self._sampler.sample(prompt, self._params)
        [sequence] = response.sequences
        written = self._tokenizer.decode(sequence.tokens)
        if self._style == "chat":
            self.messages = [*turns, Message("assistant", written)]
        return Answer(written, len(sequence.tokens), sequence.stop_reason == "length")

    def reset(self) -> None:
        """Begin again."""
        self.messages = list(self._start)


def chat_prompt(tokenizer: Tokenizer, turns: list[Message]) -> list[int]:
    """The tokens after which the model writes the next answer: what stands before an assistant's
    turn where the same conversation is trained on. Raises `ConfigError` without a template."""
    parts = tokenizer.chat_parts([*turns, _ANY_ANSWER])
    last = max(i for i, (_, learnt) in enumerate(parts) if learnt)
    return [token for text, _ in parts[:last] for token in tokenizer.encode(text)]


def style_of(experiment: Experiment, tokenizer: Tokenizer) -> Style:
    """As the training rows were; where they are gone, as the tokenizer can."""
    found: str | None = experiment.data.format
    if found is None:
        with contextlib.suppress(DataError):
            found = next(iter(open_rows(experiment.data.files))).format
    if found is None:
        return "chat" if tokenizer.chat_template else "plain"
    return "chat" if found in ("chat", "sharegpt") else "plain"


@contextlib.asynccontextmanager
async def chat_with(
    trained: Trained,
    *,
    style: Style | None,
    params: SamplingParams,
    system: str | None = None,
) -> AsyncIterator[Chat]:
    """A `Chat` with a trial's weights, on the service where they are."""
    async with service_of(trained.paths, trained.experiment) as service:
        tokenizer = await tokenizer_of(service, trained.experiment)
        path = await sampling_path(service, trained.checkpoint)
        yield Chat(
            await service.sampler(model_path=path),
            tokenizer,
            style=style or style_of(trained.experiment, tokenizer),
            params=params,
            system=system,
        )


async def tokenizer_of(service: TinkexService, experiment: Experiment) -> Tokenizer:
    """The experiment's, else the service's, else that of the base."""
    base = experiment.model.base
    if experiment.model.tokenizer:
        return load_tokenizer(experiment.model.tokenizer)
    return load_tokenizer((await service.capabilities()).model(base).tokenizer_id or base)
