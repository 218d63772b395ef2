"""Sampling over HTTP from one sampling session.

Numbers start at 0. A promise that the service forgot (410) is submitted again under a new number,
because sampling changes nothing. All sampling clients of a process share one bound on the samples
in flight.
"""

from __future__ import annotations

from collections.abc import Sequence

from crucible_tinkex.client.futures import Promises
from crucible_tinkex.client.transport import RequestObserver, Transport
from crucible_tinkex.client.wire import (
    FutureEnvelope,
    ModelInput,
    SampleRequest,
    SampleResponse,
    SamplingParams,
)
from crucible_tinkex.errors import ProtocolError, SessionLostError

_OPERATION = "asample"
_RESUBMISSIONS = 5


class TinkexSampling:
    """A `SamplingClient`. Needs no closing; ends with its service session."""

    def __init__(
        self,
        sampling_session_id: str,
        *,
        transport: Transport,
        promises: Promises,
        on_request: RequestObserver | None = None,
    ) -> None:
        self.sampling_session_id = sampling_session_id
        self._transport = transport
        self._promises = promises
        self._on_request = on_request
        self._next_seq = 0

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
    ) -> SampleResponse:
        request = SampleRequest(
            sampling_session_id=self.sampling_session_id,
            num_samples=num_samples,
            prompt=ModelInput.from_tokens(list(prompt)),
            sampling_params=params,
            prompt_logprobs=prompt_logprobs or None,
            topk_prompt_logprobs=topk_prompt_logprobs,
        )
        async with self._transport.sample_slots:
            for _ in range(_RESUBMISSIONS):
                envelope = await self._submit(request)
                try:
                    response = await self._promises.result(envelope, SampleResponse, _OPERATION)
                except SessionLostError as error:
                    if error.status != 410:
                        raise
                    lost = error
                else:
                    return _checked(response, request)
            raise lost

    async def _submit(self, request: SampleRequest) -> FutureEnvelope:
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        return await self._transport.call(
            _OPERATION,
            "asample",
            lambda reply: FutureEnvelope.model_validate_json(reply.body),
            body=request.model_copy(update={"seq_id": seq}).body(),
            lost_on=frozenset({404, 410}),
            on_request=self._on_request,
        )


def _checked(response: SampleResponse, request: SampleRequest) -> SampleResponse:
    found, asked = len(response.sequences), request.num_samples
    if found != asked:
        raise ProtocolError(f"the service answered {found} sequences for {asked} samples")
    return response
