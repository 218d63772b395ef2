"""One model in training over HTTP: sequence numbers, concurrent submission, ordered results.

Every operation draws its number when it is called and is sent at once; the service executes by
number, so requests may overtake each other on the way. A number that never arrives would leave
all later ones waiting at the service for ever: when one cannot be submitted, the client is
*poisoned*, the later ones fail with the same error, and so does every call from then on. The cure
is a new model from the last checkpoint. A failed *result* does not poison, except that a lost
session does.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from crucible_tinkex.client.chunks import cut, merge
from crucible_tinkex.client.futures import Promises
from crucible_tinkex.client.interface import SamplingClient
from crucible_tinkex.client.transport import LOST, RequestObserver, Transport
from crucible_tinkex.client.wire import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    ForwardBackwardRequest,
    ForwardInput,
    ForwardRequest,
    FutureEnvelope,
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
from crucible_tinkex.errors import ConfigError, ProtocolError, ServiceError, SessionLostError

T = TypeVar("T")
R = TypeVar("R", bound=Wire)

MODEL_GONE = frozenset({404, 410})
_POLLS_AT_ONCE = 2


class Pending(Generic[T]):
    """An operation under way. Await it as often as needed; a cancelled wait does not cancel it."""

    __slots__ = ("_task",)

    def __init__(self, task: asyncio.Task[T]) -> None:
        self._task = task
        # An error that nobody awaits is not logged as forgotten: the next call raises it.
        task.add_done_callback(_retrieve)

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.shield(self._task).__await__()

    def done(self) -> bool:
        return self._task.done()


class TinkexTraining:
    """A `TrainingClient`. Made by `TinkexService`, and closed by it."""

    def __init__(
        self,
        model_id: str,
        *,
        transport: Transport,
        promises: Promises,
        snapshot: Callable[[str], SamplingClient],
        next_sampling_seq: Callable[[], int],
        on_request: RequestObserver | None = None,
    ) -> None:
        self._model_id = model_id
        self._transport = transport
        self._promises = promises
        self._snapshot = snapshot
        self._next_sampling_seq = next_sampling_seq
        self._on_request = on_request
        self._last_seq = 0
        self._failure: ServiceError | None = None
        self._under_way: dict[int, asyncio.Task[Any]] = {}
        # Results come in order, so one poll finds its answer and the next waits behind it.
        self._polls = asyncio.Semaphore(_POLLS_AT_ONCE)

    def __repr__(self) -> str:
        return f"TinkexTraining({self._model_id!r}, last_seq={self._last_seq})"

    @property
    def model_id(self) -> str:
        return self._model_id

    def forward_backward(
        self,
        data: Sequence[Datum],
        *,
        loss_fn: str = "cross_entropy",
        loss_fn_config: Mapping[str, float] | None = None,
    ) -> Awaitable[ForwardBackwardOutput]:
        config = dict(loss_fn_config) if loss_fn_config is not None else None
        return self._batch("forward_backward", data, loss_fn, config)

    def forward(
        self, data: Sequence[Datum], *, loss_fn: str = "cross_entropy"
    ) -> Awaitable[ForwardBackwardOutput]:
        return self._batch("forward", data, loss_fn, None)

    def _batch(
        self,
        operation: str,
        data: Sequence[Datum],
        loss_fn: str,
        config: dict[str, float] | None,
    ) -> Awaitable[ForwardBackwardOutput]:
        if not data:
            raise ConfigError(f"{operation} needs at least one row")
        pieces = []
        for rows in cut(data):
            part = ForwardInput(data=list(rows), loss_fn=loss_fn, loss_fn_config=config)
            pieces.append(
                self._submit(operation, self._batch_request(operation, part), _rows(rows))
            )
        if len(pieces) == 1:
            return pieces[0]
        return Pending(asyncio.create_task(_merged(pieces)))

    def _batch_request(self, operation: str, part: ForwardInput) -> Callable[[int], Wire]:
        if operation == "forward":
            return lambda seq: ForwardRequest(
                model_id=self._model_id, seq_id=seq, forward_input=part
            )
        return lambda seq: ForwardBackwardRequest(
            model_id=self._model_id, seq_id=seq, forward_backward_input=part
        )

    def optim_step(self, params: AdamParams) -> Awaitable[OptimStepResponse]:
        return self._submit(
            "optim_step",
            lambda seq: OptimStepRequest(model_id=self._model_id, seq_id=seq, adam_params=params),
            _As(OptimStepResponse, _same),
        )

    def save_state(self, name: str) -> Awaitable[str]:
        return self._submit(
            "save_weights",
            lambda seq: SaveWeightsRequest(model_id=self._model_id, path=name, seq_id=seq),
            _As(SaveWeightsResponse, lambda answer: _saved(answer, name)),
        )

    def save_for_sampler(self, name: str) -> Awaitable[str]:
        return self._submit(
            "save_weights_for_sampler",
            lambda seq: SaveWeightsForSamplerRequest(
                model_id=self._model_id, path=name, seq_id=seq, kind="snapshot"
            ),
            _As(SaveWeightsResponse, lambda answer: _saved(answer, name)),
        )

    def load_state(self, path: str, *, optimizer: bool) -> Awaitable[None]:
        return self._submit(
            "load_weights",
            lambda seq: LoadWeightsRequest(
                model_id=self._model_id, path=path, seq_id=seq, optimizer=optimizer
            ),
            _As(LoadWeightsResponse, lambda answer: None),
            lost_on=LOST,
        )

    async def sampler(self) -> SamplingClient:
        number = self._next_sampling_seq()
        session_id = await self._submit(
            "save_weights_for_sampler",
            lambda seq: SaveWeightsForSamplerRequest(
                model_id=self._model_id,
                seq_id=seq,
                sampling_session_seq_id=number,
                kind="snapshot",
            ),
            _As(SaveWeightsResponse, _sampling_session),
        )
        return self._snapshot(session_id)

    async def info(self) -> ModelInfo:
        self._check()
        return await self._transport.call(
            "get_info",
            "get_info",
            lambda status, body: ModelInfo.model_validate_json(body),
            body=ModelRequest(model_id=self._model_id, type="get_info").body(),
            lost_on=MODEL_GONE,
            on_request=self._on_request,
        )

    # --- submission ---------------------------------------------------------------------------

    def _submit(
        self,
        operation: str,
        request: Callable[[int], Wire],
        answer: _As[R, T],
        *,
        lost_on: frozenset[int] = MODEL_GONE,
    ) -> Pending[T]:
        """Draw the number and serialise now; send in a task."""
        self._check()
        seq = self._last_seq + 1
        body = request(seq).body()
        self._last_seq = seq
        return Pending(asyncio.create_task(self._run(operation, seq, body, answer, lost_on)))

    def _check(self) -> None:
        if self._failure is not None:
            raise copy.copy(self._failure)

    async def _run(
        self,
        operation: str,
        seq: int,
        body: bytes,
        answer: _As[R, T],
        lost_on: frozenset[int],
    ) -> T:
        self._check()
        # Not before the task runs: a cancel would kill an unstarted one without a reason.
        self._under_way[seq] = _current_task()
        try:
            envelope = await self._send(operation, seq, body, lost_on)
            async with self._polls:
                result = await self._promises.result(envelope, answer.model, operation)
            return answer.read(result)
        except SessionLostError as error:
            self.poison(error, after=seq)
            raise
        except asyncio.CancelledError:
            if self._failure is None:
                raise
            raise copy.copy(self._failure) from None
        finally:
            del self._under_way[seq]

    async def _send(
        self, operation: str, seq: int, body: bytes, lost_on: frozenset[int]
    ) -> FutureEnvelope:
        try:
            return await self._transport.call(
                operation,
                operation,
                self._envelope,
                body=body,
                lost_on=lost_on,
                on_request=self._on_request,
            )
        except ServiceError as error:
            error.with_context(model_id=self._model_id, seq_id=seq)
            self.poison(error, after=seq)
            raise

    def _envelope(self, status: int, body: bytes) -> FutureEnvelope:
        envelope = FutureEnvelope.model_validate_json(body)
        if envelope.model_id not in (None, self._model_id):
            raise ValueError("the answer is for another model")
        return envelope

    def poison(self, error: ServiceError, *, after: int = 0) -> None:
        """Fail all operations numbered above `after`, and every later call, with `error`."""
        if self._failure is None:
            self._failure = copy.copy(error)
        for seq, task in list(self._under_way.items()):
            if seq > after:
                task.cancel()

    async def aclose(self) -> None:
        """Abandon what is under way; the service may still execute it."""
        self.poison(SessionLostError("this training client is closed"))
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)


class _As(Generic[R, T]):
    """How an operation's result is read: the answer's model, and what the caller gets of it."""

    __slots__ = ("model", "read")

    def __init__(self, model: type[R], read: Callable[[R], T]) -> None:
        self.model = model
        self.read = read


def _same(answer: R) -> R:
    return answer


def _rows(rows: Sequence[Datum]) -> _As[ForwardBackwardOutput, ForwardBackwardOutput]:
    count = len(rows)

    def read(answer: ForwardBackwardOutput) -> ForwardBackwardOutput:
        if len(answer.loss_fn_outputs) != count:
            found = len(answer.loss_fn_outputs)
            raise ProtocolError(f"the service answered {found} outputs for {count} rows")
        return answer

    return _As(ForwardBackwardOutput, read)


def _saved(answer: SaveWeightsResponse, name: str) -> str:
    if answer.path is None or answer.path.rpartition("/")[2] != name:
        raise ProtocolError(f"saving {name!r} was answered with the path {answer.path!r}")
    return answer.path


def _sampling_session(answer: SaveWeightsResponse) -> str:
    if answer.sampling_session_id is None:
        raise ProtocolError("the service answered a snapshot without a sampling session")
    return answer.sampling_session_id


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def _merged(pieces: Sequence[Pending[ForwardBackwardOutput]]) -> ForwardBackwardOutput:
    return merge(await asyncio.gather(*pieces))


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
