"""One model in training over HTTP: what a `TrainingClient` does, as numbered operations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from typing_extensions import Unpack

from crucible_tinkex.client.http.encoding import reads
from crucible_tinkex.client.http.transport import LOST, Call
from crucible_tinkex.client.interface import CROSS_ENTROPY, LossOptions
from crucible_tinkex.client.model import custom_loss
from crucible_tinkex.client.model.chunks import cut, merge
from crucible_tinkex.client.model.custom_loss import CustomLoss
from crucible_tinkex.client.model.loss import with_loss
from crucible_tinkex.client.model.sampling_client import TinkexSampling
from crucible_tinkex.client.session.futures import Promises
from crucible_tinkex.client.session.submission import MODEL_GONE, Answer, Operations, Pending
from crucible_tinkex.errors import ConfigError, ProtocolError, ServiceError
from crucible_tinkex.protocol.wire import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    ForwardInput,
    LoadWeightsRequest,
    LoadWeightsResponse,
    ModelInfo,
    ModelRequest,
    OptimStepRequest,
    OptimStepResponse,
    SaveWeightsForSamplerRequest,
    SaveWeightsRequest,
    SaveWeightsResponse,
    Wire,
)
from crucible_tinkex.user_calls import called

R = TypeVar("R", bound=Wire)


class TinkexTraining:
    """A `TrainingClient`. Made by `TinkexService`, and closed by it."""

    def __init__(
        self,
        model_id: str,
        *,
        promises: Promises,
        snapshot: Callable[[str], TinkexSampling],
        next_sampling_seq: Callable[[], int],
    ) -> None:
        self.operations = Operations(model_id, promises)
        self._snapshot = snapshot
        self._next_sampling_seq = next_sampling_seq

    def __repr__(self) -> str:
        return f"TinkexTraining({self.model_id!r}, last_seq={self.operations.last_seq})"

    @property
    def model_id(self) -> str:
        return self.operations.model_id

    # --- batches ------------------------------------------------------------------------------

    def forward_backward(
        self, data: Sequence[Datum], **loss: Unpack[LossOptions]
    ) -> Awaitable[ForwardBackwardOutput]:
        return _whole(self._batch(data, backward=True, **loss))

    def forward(
        self, data: Sequence[Datum], **loss: Unpack[LossOptions]
    ) -> Awaitable[ForwardBackwardOutput]:
        return _whole(self._batch(data, backward=False, **loss))

    def forward_backward_custom(
        self, data: Sequence[Datum], loss_fn: CustomLoss
    ) -> Awaitable[ForwardBackwardOutput]:
        """Both passes draw their numbers now, so what is called next comes after both.

        If `loss_fn` raises, the numbers of the backward pass are used up by forward passes of
        one row, because the service would wait for them; the model can be used further.
        """
        copied = [datum.model_copy(deep=True) for datum in data]
        forward = self._batch(custom_loss.forward_rows(copied), backward=False)
        numbers = self.operations.reserve(len(forward))
        return Pending(asyncio.create_task(self._custom(copied, forward, numbers, loss_fn)))

    async def _custom(
        self,
        data: Sequence[Datum],
        forward: Sequence[Pending[ForwardBackwardOutput]],
        numbers: range,
        loss_fn: CustomLoss,
    ) -> ForwardBackwardOutput:
        try:
            outputs = await asyncio.gather(*forward)
            weighed = await called(
                custom_loss.weigh, data, merge(outputs), loss_fn, what="the custom loss"
            )
            rows = iter(weighed.rows)  # The same cuts as before: one number was drawn for each.
            cuts = [list(islice(rows, len(output.loss_fn_outputs))) for output in outputs]
            pieces = self._submit(cuts, backward=True, numbers=numbers)
        except BaseException:
            await self._use_up(numbers, data[0])
            raise
        return custom_loss.reported(merge(await asyncio.gather(*pieces)), weighed)

    async def _use_up(self, numbers: Sequence[int], row: Datum) -> None:
        try:
            cuts = [custom_loss.forward_rows([row])] * len(numbers)
            await asyncio.gather(*self._submit(cuts, backward=False, numbers=numbers))
        except ServiceError as error:
            self.operations.poison(error)

    def _batch(
        self, data: Sequence[Datum], *, backward: bool, **loss: Unpack[LossOptions]
    ) -> list[Pending[ForwardBackwardOutput]]:
        if not data:
            raise ConfigError("a batch needs at least one row")
        encoding = self.operations.transport.encoding
        cuts = list(cut(data, max_rows=encoding.max_rows, max_bytes=encoding.max_bytes))
        return self._submit(cuts, backward=backward, **loss)

    def _submit(
        self,
        cuts: Sequence[Sequence[Datum]],
        *,
        backward: bool,
        numbers: Sequence[int] = (),
        loss_fn: str = CROSS_ENTROPY,
        loss_fn_config: Mapping[str, float] | None = None,
    ) -> list[Pending[ForwardBackwardOutput]]:
        config = None if loss_fn_config is None else dict(loss_fn_config)
        parts = [
            ForwardInput.model_construct(data=list(rows), loss_fn=loss_fn, loss_fn_config=config)
            for rows in cuts
        ]
        return self.operations.submit_batches(parts, _rows, backward=backward, numbers=numbers)

    # --- the rest -----------------------------------------------------------------------------

    def optim_step(self, params: AdamParams) -> Awaitable[OptimStepResponse]:
        return self.operations.submit(
            "optim_step",
            lambda seq: OptimStepRequest(model_id=self.model_id, seq_id=seq, adam_params=params),
            Answer(OptimStepResponse, _same),
        )

    def save_state(self, name: str, *, ttl_s: int | None = None) -> Awaitable[str]:
        return self._save("save_weights", SaveWeightsRequest, name, ttl_s)

    def save_for_sampler(self, name: str, *, ttl_s: int | None = None) -> Awaitable[str]:
        return self._save("save_weights_for_sampler", SaveWeightsForSamplerRequest, name, ttl_s)

    def _save(
        self,
        operation: str,
        request: type[SaveWeightsRequest | SaveWeightsForSamplerRequest],
        name: str,
        ttl_s: int | None,
    ) -> Awaitable[str]:
        return self.operations.submit(
            operation,
            lambda seq: request(model_id=self.model_id, path=name, seq_id=seq, ttl_seconds=ttl_s),
            _saved(name),
        )

    def load_state(self, path: str, *, optimizer: bool) -> Awaitable[None]:
        return self.operations.submit(
            "load_weights",
            lambda seq: LoadWeightsRequest(
                model_id=self.model_id,
                path=path,
                seq_id=seq,
                optimizer=optimizer,
            ),
            Answer(LoadWeightsResponse, lambda answer: None),
            lost_on=LOST,
        )

    async def sampler(self) -> TinkexSampling:
        number = self._next_sampling_seq()
        session_id = await self.operations.submit(
            "save_weights_for_sampler",
            lambda seq: SaveWeightsForSamplerRequest(
                model_id=self.model_id,
                seq_id=seq,
                sampling_session_seq_id=number,
            ),
            Answer(SaveWeightsResponse, _sampling_session),
        )
        return self._snapshot(session_id)

    async def info(self) -> ModelInfo:
        self.operations.check()
        call = Call(
            "get_info",
            body=ModelRequest(model_id=self.model_id, type="get_info").body(),
            lost_on=MODEL_GONE,
            watch=self.operations.promises.watch,
        )
        return await self.operations.transport.call(call, reads(ModelInfo))

    def poison(self, error: ServiceError) -> None:
        self.operations.poison(error)

    async def aclose(self) -> None:
        """Abandon what is under way; the service may still execute it."""
        await self.operations.aclose()


def _same(answer: R) -> R:
    return answer


def _rows(batch: ForwardInput) -> Answer[ForwardBackwardOutput, ForwardBackwardOutput]:
    def read(answer: ForwardBackwardOutput) -> ForwardBackwardOutput:
        found, asked = len(answer.loss_fn_outputs), len(batch.data)
        if found != asked:
            raise ProtocolError(f"the service answered {found} outputs for {asked} rows")
        return with_loss(answer, batch)

    return Answer(ForwardBackwardOutput, read)


def _whole(
    pieces: Sequence[Pending[ForwardBackwardOutput]],
) -> Awaitable[ForwardBackwardOutput]:
    if len(pieces) == 1:
        return pieces[0]
    return Pending(asyncio.create_task(_merged(pieces)))


async def _merged(pieces: Sequence[Pending[ForwardBackwardOutput]]) -> ForwardBackwardOutput:
    return merge(await asyncio.gather(*pieces))


def _saved(name: str) -> Answer[SaveWeightsResponse, str]:
    def read(answer: SaveWeightsResponse) -> str:
        if answer.path is None or answer.path.rpartition("/")[2] != name:
            raise ProtocolError(f"saving {name!r} was answered with the path {answer.path!r}")
        return answer.path

    return Answer(SaveWeightsResponse, read)


def _sampling_session(answer: SaveWeightsResponse) -> str:
    if answer.sampling_session_id is None:
        raise ProtocolError("the service answered a snapshot without a sampling session")
    return answer.sampling_session_id
