"""Talking to an adapter: the form of the prompts, the memory of a conversation, the command."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import in_process
import pytest

import crucible_tinkex as ct
from crucible_tinkex.datasets import Tokenizer, load_tokenizer
from crucible_tinkex.datasets.rows import Message
from crucible_tinkex.errors import ConfigError, RequestRejectedError
from crucible_tinkex.protocol.wire import SampledSequence, SampleResponse, SamplingParams
from crucible_tinkex.server.bases import ensure_base
from crucible_tinkex.sweep.results.trained import Trained
from crucible_tinkex.weights.chat import Chat, chat_prompt, style_of

PARAMS = SamplingParams(max_tokens=8)


class Echo:
    """A `SamplingClient` that answers with what it is told to and remembers its prompts."""

    def __init__(self, tokenizer: Tokenizer, answers: Sequence[str]) -> None:
        self.prompts: list[str] = []
        self._tokenizer = tokenizer
        self._answers = iter(answers)

    async def sample(self, prompt: Sequence[int], params: Any, **_: Any) -> SampleResponse:
        self.prompts.append(self._tokenizer.decode(list(prompt)))
        answer = next(self._answers)
        if answer == "refuse":
            raise RequestRejectedError("too long", status=400)
        tokens = self._tokenizer.encode(answer)
        return SampleResponse(
            sequences=[SampledSequence(stop_reason="length", tokens=tokens)], type="sample"
        )

    async def compute_logprobs(self, tokens: Sequence[int]) -> list[float | None]:
        raise NotImplementedError


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(ensure_base("nano").tokenizer_folder)


async def test_a_conversation_is_remembered_in_the_form_of_the_template(
    tokenizer: Tokenizer,
) -> None:
    echo = Echo(tokenizer, ["hello", "refuse", "bye", "again"])
    chat = Chat(echo, tokenizer, style="chat", params=PARAMS, system="be kind")
    answer = await chat.say("hi")
    assert (answer.text, answer.cut) == ("hello", True)
    with pytest.raises(RequestRejectedError):
        await chat.say("lost")
    await chat.say("and?")
    start = "system: be kind\nuser: hi\nassistant: "
    assert echo.prompts[0] == start
    assert echo.prompts[2] == f"{start}hello\nuser: and?\nassistant: "
    chat.reset()
    await chat.say("hi")
    assert echo.prompts[3] == start


async def test_a_plain_prompt_is_asked_as_it_is(tokenizer: Tokenizer) -> None:
    echo = Echo(tokenizer, ["710", "320"])
    chat = Chat(echo, tokenizer, style="plain", params=PARAMS)
    await chat.say("017>")
    await chat.say("023>")
    assert echo.prompts == ["017>", "023>"]
    with pytest.raises(ConfigError, match="the prompt is empty"):
        await chat.say("")
    with pytest.raises(ConfigError, match="no place for a system message"):
        Chat(echo, tokenizer, style="plain", params=PARAMS, system="x")


def test_the_prompt_is_what_transformers_makes_of_it(tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(ensure_base("nano").tokenizer_folder)
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    whole = theirs.apply_chat_template(
        [m._asdict() for m in turns], add_generation_prompt=True, return_dict=False
    )
    assert chat_prompt(tokenizer, turns) == list(whole)


def test_the_style_is_that_of_the_training_rows(sweep: ct.Sweep, tokenizer: Tokenizer) -> None:
    experiment = Trained.find(sweep.paths).experiment
    assert style_of(experiment, tokenizer) == "plain"
    for declared in ("chat", "sharegpt"):  # both are learnt through the template
        data = experiment.data.model_copy(update={"format": declared})
        assert style_of(experiment.model_copy(update={"data": data}), tokenizer) == "chat"
    data = experiment.data.model_copy(update={"train": "/no/such/file"})
    assert style_of(experiment.model_copy(update={"data": data}), tokenizer) == "chat"


def crucible(storage: Path, *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    options = ("--storage", str(storage), "--temperature", "0", "--max-tokens", "3")
    return in_process.crucible("chat", "small", *arguments, *options, said=said)


def test_the_command_asks_once_and_talks(storage: Path) -> None:
    once = crucible(storage, "--prompt", "017>", "--json")
    assert once.returncode == 0, once.stderr
    answer = json.loads(once.stdout)
    assert answer["tokens"] >= 1
    talked = crucible(storage, said="017>\n\n/reset\n017>\n/exit\nnever\n")
    assert talked.returncode == 0, talked.stderr
    first, second = talked.stdout.splitlines()
    assert first == second and first.startswith(answer["text"])
    assert ">" not in talked.stderr.partition("step")[2], "nobody is asked at a pipe"
    refused = crucible(storage, "--json")
    assert (refused.returncode, "--prompt" in refused.stderr) == (2, True)
