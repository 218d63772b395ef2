"""Sampling over HTTP from one sampling session.

A promise that the service forgot (410) is submitted again under a new number, because sampling
changes nothing. All sampling clients of a process share one bound on the samples in flight.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from crucible_tinkex.client.http.encoding import reads
from crucible_tinkex.client.http.transport import Call
from crucible_tinkex.client.session.futures import Promises
from crucible_tinkex.client.session.submission import MODEL_GONE
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


class TinkexSampling:
    """A `SamplingClient`. Needs no closing; ends with its service session."""

    def __init__(self, sampling_session_id: str, promises: Promises) -> None:
        self.sampling_session_id = sampling_session_id
        self._numbers = itertools.count()
        self._promises = promises
        self._transport = promises.transport

    def __repr__(self) -> str:
        return f"TinkexSampling({self.sampling_session_id!r})"

    async def sample(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        num_samples: int = 1,
        prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
    ) -> SampleResponse:
        request = SampleRequest(
            sampling_session_id=self.sampling_session_id,
            num_samples=num_samples,
            prompt=ModelInput.from_tokens(list(prompt)),
            sampling_params=params,
            prompt_logprobs=prompt_logprobs or None,
            topk_prompt_logprobs=topk_prompt_logprobs,
            topk_sample_logprobs=topk_sample_logprobs or None,
        )
        async with self._transport.sample_slots:
            for _ in range(_RESUBMISSIONS):
                envelope = await self._submit(request, next(self._numbers))
                try:
                    response = await self._promises.result(envelope, SampleResponse, _OPERATION)
                except SessionLostError as error:
                    if error.status != 410:
                        raise
                    lost = error
                else:
                    return _checked(response, request)
            raise lost

    async def compute_logprobs(self, tokens: Sequence[int]) -> list[float | None]:
        answer = await self.sample(tokens, SamplingParams(max_tokens=1), prompt_logprobs=True)
        if answer.prompt_logprobs is None or len(answer.prompt_logprobs) != len(tokens):
            raise ProtocolError("the service answered without a logprob for each token")
        return answer.prompt_logprobs

    async def _submit(self, request: SampleRequest, seq_id: int) -> FutureEnvelope:
        call = Call(
            _OPERATION,
            body=request.model_copy(update={"seq_id": seq_id}).body(),
            headers=_BACKPRESSURE,
            lost_on=MODEL_GONE,
            watch=self._promises.watch,
        )
        return await self._transport.call(call, reads(FutureEnvelope))


def _checked(response: SampleResponse, request: SampleRequest) -> SampleResponse:
    found, asked = len(response.sequences), request.num_samples
    if found != asked:
        raise ProtocolError(f"the service answered {found} sequences for {asked} samples")
    prompt, scored = request.prompt.tokens(), response.prompt_logprobs
    if scored is not None and len(scored) == len(prompt) - 1:
        # Without the first token, which has no logprob.
        response.prompt_logprobs = [None, *scored]
    return response
