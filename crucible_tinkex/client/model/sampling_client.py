"""Sampling over HTTP from one sampling session.

A promise that the service forgot (410) is submitted again under a new number, because sampling
changes nothing. All sampling clients of a process share one bound on the samples in flight.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from crucible_tinkex.client.session.futures import Promises
from crucible_tinkex.errors import ProtocolError, SessionLostError
from crucible_tinkex.protocol.wire import (
    FutureEnvelope,
    ModelInput,
    SampleRequest,
    SampleResponse,
    SamplingParams,
)

_OPERATION = "asample"
_RESUBMISSIONS = 5
_BACKPRESSURE = ((b"X-Tinker-Sampling-Backpressure", b"1"),)
"""We take a 429 for what it is."""


class _Place:
    """A sampling session, and the numbers drawn from it."""

    def __init__(self, sampling_session_id: str) -> None:
        self.sampling_session_id = sampling_session_id
        self.numbers = itertools.count()


class TinkexSampling:
    """A `SamplingClient`. Needs no closing; ends with its service session."""

    def __init__(self, sampling_session_id: str, promises: Promises) -> None:
        self._place = _Place(sampling_session_id)
        self._promises = promises
        self._transport = promises.transport

    def __repr__(self) -> str:
        return f"TinkexSampling({self.sampling_session_id!r})"

    @property
    def sampling_session_id(self) -> str:
        return self._place.sampling_session_id

    def move(self, sampling_session_id: str) -> None:
        """Sample from another session from now on; what is under way stays where it is."""
        self._place = _Place(sampling_session_id)

    async def sample(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        num_samples: int = 1,
        prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        prompt_logprobs_last_n: int | None = None,
        record_stability_info: bool = False,
    ) -> SampleResponse:
        """Beyond the interface: `prompt_logprobs_last_n` scores only the prompt's end, and raises
        `ProtocolError` where a service ignores it; `record_stability_info` keeps what the loss
        `stable_reinforce` needs.
        """
        place = self._place
        request = SampleRequest(
            sampling_session_id=place.sampling_session_id,
            num_samples=num_samples,
            prompt=ModelInput.from_tokens(list(prompt)),
            sampling_params=params,
            prompt_logprobs=prompt_logprobs or None,
            topk_prompt_logprobs=topk_prompt_logprobs,
            topk_sample_logprobs=topk_sample_logprobs or None,
            prompt_logprobs_last_n=prompt_logprobs_last_n,
            record_stability_info=record_stability_info or None,
        )
        async with self._transport.sample_slots:
            for _ in range(_RESUBMISSIONS):
                envelope = await self._submit(request, next(place.numbers))
                try:
                    response = await self._promises.result(envelope, SampleResponse, _OPERATION)
                except SessionLostError as error:
                    if error.status != 410:
                        raise
                    lost = error
                else:
                    return _named(_checked(response, request), envelope)
            raise lost

    async def compute_logprobs(
        self, tokens: Sequence[int], *, last_n: int | None = None
    ) -> list[float | None]:
        """With `last_n`, None for all tokens but the last."""
        answer = await self.sample(
            tokens,
            SamplingParams(max_tokens=1),
            prompt_logprobs=True,
            prompt_logprobs_last_n=last_n,
        )
        if answer.prompt_logprobs is None or len(answer.prompt_logprobs) != len(tokens):
            raise ProtocolError("the service answered without a logprob for each token")
        return answer.prompt_logprobs

    async def _submit(self, request: SampleRequest, seq_id: int) -> FutureEnvelope:
        return await self._transport.call(
            _OPERATION,
            "asample",
            lambda reply: FutureEnvelope.model_validate_json(reply.body),
            body=request.model_copy(update={"seq_id": seq_id}).body(),
            headers=_BACKPRESSURE,
            lost_on=frozenset({404, 410}),
            watch=self._promises.watch,
        )


def _checked(response: SampleResponse, request: SampleRequest) -> SampleResponse:
    found, asked = len(response.sequences), request.num_samples
    if found != asked:
        raise ProtocolError(f"the service answered {found} sequences for {asked} samples")
    prompt, scored = request.prompt.tokens(), response.prompt_logprobs
    if scored is not None and len(scored) == len(prompt) - 1:
        # Without the first token, which has no logprob.
        response.prompt_logprobs = scored = [None, *scored]
    last_n = request.prompt_logprobs_last_n
    if last_n is not None and scored is not None and any(p is not None for p in scored[:-last_n]):
        raise ProtocolError("the service scored the whole prompt, not its end")
    return response


def _named(response: SampleResponse, envelope: FutureEnvelope) -> SampleResponse:
    """The envelope holds the sequences' names, in order; older services have none."""
    names = envelope.sample_sequence_ids
    if names is None:
        return response
    if len(names) != len(response.sequences):
        found = len(response.sequences)
        raise ProtocolError(f"the service named {len(names)} sequences of {found}")
    for sequence, name in zip(response.sequences, names, strict=True):
        sequence.sequence_id = name
    return response
