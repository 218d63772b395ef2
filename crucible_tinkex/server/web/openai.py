"""Chat and completions as OpenAI's clients ask for them, over the base or any saved adapter.

`model` is the base's name or a `tinker://` path of a checkpoint. Guarantees: the same seed gives
the same answer as the protocol's own sampling; a stop string is not part of the answer; what this
server does not do (tools, penalties, log-probabilities) is refused by its name, never passed over;
an answer that nobody waits for any more is dropped if it has not begun. A stream's text comes in
one piece per choice, because the engine answers whole sequences.
Not here: the key and the bodies (`app`).
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

import crucible_tinkex.protocol.wire as wire
from crucible_tinkex.errors import ConfigError, CrucibleError, RequestRejectedError
from crucible_tinkex.server.operations import SampleOutput, gone, refused
from crucible_tinkex.server.sessions import checks
from crucible_tinkex.server.sessions.sessions import Service

ROOT = "/v1/"
POLL_S = 1.0
"""How often it is looked whether the client is still there."""
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
"""What is not done here, and the values (beside null) that ask for nothing."""


class _Asked(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    n: int = 1
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    temperature: float | None = None
    top_p: float | None = None

    id_prefix: ClassVar = "cmpl"
    kind: ClassVar = "text_completion"
    chunk_kind: ClassVar = "text_completion"

    def written(self, index: int, choice: _Choice, part: str) -> dict[str, Any]:
        """A choice of the answer; `part` is how a chat names its text, whole or in chunks."""
        reason = {"logprobs": None, "finish_reason": choice.finish_reason}
        return {"index": index, **self.said(choice.text, part), **reason}

    def said(self, text: str, part: str) -> dict[str, Any]:
        return {"text": text}

    def check(self) -> None:
        """Raises `RequestRejectedError` for what this server does not do."""
        for name, value in (self.model_extra or {}).items():
            if value is not None and value not in _NEUTRAL.get(name, (value,)):
                raise refused(f"{name} is not supported by this server; leave it out")

    def params(self, max_tokens: int | None) -> checks.SamplingParams:
        return checks.SamplingParams(
            max_tokens=max_tokens,
            seed=self.seed,
            stop=self.stop or None,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
        )


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    def plain(self) -> dict[str, str]:
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(p.text for p in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class _ChatAsked(_Asked):
    messages: list[_Message] = Field(min_length=1)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None

    id_prefix: ClassVar = "chatcmpl"
    kind: ClassVar = "chat.completion"
    chunk_kind: ClassVar = "chat.completion.chunk"

    def said(self, text: str, part: str) -> dict[str, Any]:
        return {part: {"role": "assistant", "content": text}}


class _CompletionAsked(_Asked):
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = 16

    def prompts(self) -> list[str] | list[list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise refused("prompt is empty")
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


@dataclass(frozen=True, slots=True)
class _Choice:
    text: str
    tokens: int
    finish_reason: str


Handler: TypeAlias = Callable[[bytes, Request], Awaitable[Response]]


class OpenAi:
    def __init__(self, service: Service) -> None:
        self._service = service

    def table(self) -> dict[tuple[str, str], Handler]:
        """Every handler by method and path below `ROOT`."""
        return {
            ("GET", "models"): self._models,
            ("POST", "chat/completions"): self._chat,
            ("POST", "completions"): self._complete,
        }

    async def _models(self, body: bytes, request: Request) -> Response:
        """The base, and every checkpoint for sampling that is of it, newest first."""
        base = self._service.engine.base.name
        usable = [
            m.tinker_path
            for m in self._service.store.list()
            if m.path.kind == "sampler_weights" and m.base_model == base
        ]
        names = [base, *reversed(usable)]
        models = [{"id": n, "object": "model", "created": 0, "owned_by": "crucible"} for n in names]
        return JSONResponse({"object": "list", "data": models})

    async def _chat(self, body: bytes, request: Request) -> Response:
        asked = _ChatAsked.model_validate_json(body)
        prompt = await asyncio.to_thread(self._template, [m.plain() for m in asked.messages])
        limit = asked.max_completion_tokens or asked.max_tokens
        return await self._answer(asked, [prompt], limit, request)

    async def _complete(self, body: bytes, request: Request) -> Response:
        asked = _CompletionAsked.model_validate_json(body)
        given = asked.prompts()
        prompts = await asyncio.to_thread(
            lambda: [self._tokenizer.encode(p) if isinstance(p, str) else p for p in given]
        )
        return await self._answer(asked, prompts, asked.max_tokens, request)

    async def _answer(
        self,
        asked: _Asked,
        prompts: Sequence[list[int]],
        max_tokens: int | None,
        request: Request,
    ) -> Response:
        asked.check()
        ids = self._submit(asked, prompts, max_tokens)
        count = sum(map(len, prompts))
        about = {
            "id": f"{asked.id_prefix}-{secrets.token_hex(12)}",
            "object": asked.kind,
            "created": int(time.time()),
            "model": asked.model,
        }
        if not asked.stream:
            choices = await self._choices(ids, asked, request)
            written = [asked.written(n, c, "message") for n, c in enumerate(choices)]
            return JSONResponse({**about, "choices": written, "usage": _usage(count, choices)})

        async def events() -> AsyncIterator[str]:
            chunk = {**about, "object": asked.chunk_kind}
            try:
                choices = await self._choices(ids, asked, request)
            except CrucibleError as e:
                yield _event(error_of(e)[0])
                return
            for number, choice in enumerate(choices):
                yield _event({**chunk, "choices": [asked.written(number, choice, "delta")]})
            if (asked.stream_options or {}).get("include_usage"):
                yield _event({**chunk, "choices": [], "usage": _usage(count, choices)})
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    def _submit(
        self, asked: _Asked, prompts: Sequence[list[int]], max_tokens: int | None
    ) -> list[str]:
        """All are accepted, or the first refusal is raised and none runs."""
        model = self._model(asked.model)
        ids: list[str] = []
        try:
            for prompt in prompts:
                sample = checks.SampleRequest(
                    prompt=wire.ModelInput.from_tokens(prompt),
                    num_samples=asked.n,
                    sampling_params=asked.params(max_tokens),
                    **model,
                )
                ids.append(self._service.samplers.sample(sample, b""))
        except CrucibleError:
            self._cancel(ids)
            raise
        return ids

    def _model(self, name: str) -> dict[str, str]:
        """How the protocol asks for it. Raises `RequestRejectedError` (404)."""
        try:
            if name.startswith("tinker://"):
                self._service.samplers.saved(name)
                return {"model_path": name}
            checks.base_model(name, self._service.engine.base)
        except (RequestRejectedError, ConfigError) as e:
            raise refused(f"there is no model {name!r}: {e}", 404) from e
        return {"base_model": name}

    def _cancel(self, ids: Sequence[str]) -> None:
        for request_id in ids:
            self._service.samplers.cancel(request_id)

    async def _choices(self, ids: Sequence[str], asked: _Asked, request: Request) -> list[_Choice]:
        choices: list[_Choice] = []
        try:
            for request_id in ids:
                output = await self._output(request_id, request)
                for sequence in output.sequences:
                    text = self._tokenizer.decode(sequence.tokens, skip_special_tokens=True)
                    text = _until_stop(text, asked.stop)
                    choices.append(_Choice(text, len(sequence.tokens), sequence.stop_reason))
        except BaseException:
            self._cancel(ids)
            raise
        return choices

    async def _output(self, request_id: str, request: Request) -> SampleOutput:
        while True:
            promise = await self._service.promises.wait(request_id, POLL_S)
            outcome = promise.outcome
            if isinstance(outcome, CrucibleError):
                raise outcome
            if isinstance(outcome, SampleOutput):
                return outcome
            if self._service.promises.closed or await request.is_disconnected():
                raise gone("nobody waits for this answer any more")

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer  # with the first request that needs it

        return AutoTokenizer.from_pretrained(
            self._service.engine.base.tokenizer_id, local_files_only=True
        )

    def _template(self, messages: list[dict[str, str]]) -> list[int]:
        """The conversation's tokens, up to where the assistant answers."""
        from jinja2 import TemplateError

        if self._tokenizer.chat_template is None:
            raise refused("this base has no chat template; ask for completions")
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as e:
            raise refused(f"the base's chat template refuses these messages: {e}") from e
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return tokens


def error_of(error: CrucibleError) -> tuple[dict[str, Any], int, float | None]:
    """OpenAI's form of an error, its status, and the seconds after which to ask again."""
    status: int = getattr(error, "status", None) or 500
    is_theirs = getattr(error, "category", "server") == "user"
    kind = "invalid_request_error" if is_theirs else "server_error"
    code = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}.get(status)
    body = {"message": str(error), "type": kind, "param": None, "code": code}
    return {"error": body}, status, getattr(error, "retry_after_s", None)


def refusal(error: CrucibleError) -> Response:
    body, status, retry_after_s = error_of(error)
    headers = None if retry_after_s is None else {"retry-after": f"{retry_after_s:.0f}"}
    return JSONResponse(body, status, headers)


def _until_stop(text: str, stop: str | list[str] | None) -> str:
    strings = [stop] if isinstance(stop, str) else stop or []
    return text[: min((at for s in strings if (at := text.find(s)) >= 0), default=len(text))]


def _usage(prompt_tokens: int, choices: Sequence[_Choice]) -> dict[str, int]:
    written = sum(c.tokens for c in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
    }


def _event(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
