"""The numbered operations of one model: submission, order, and the poison of a lost number.

Every operation draws its number when it is called, and is sent once the one before it is accepted:
some services execute by number, others in the order of arrival, and some refuse a number that comes
early. A number that never arrives would leave all later ones waiting at the service for ever: when
one cannot be submitted, the model is *poisoned*, the later ones fail with the same error, and so
does every call from then on. The cure is a new model from the last checkpoint. A failed *result*
does not poison, except that a lost session does.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from crucible_tinkex.client.http.encoding import REFUSALS, Body, Form
from crucible_tinkex.client.http.exchange import Reply
from crucible_tinkex.client.http.transport import NONE, Call
from crucible_tinkex.client.session.futures import Promises
from crucible_tinkex.errors import ServiceError, SessionLostError
from crucible_tinkex.protocol.wire import ForwardInput, FutureEnvelope, Wire

T = TypeVar("T")
R = TypeVar("R", bound=Wire)

MODEL_GONE = frozenset({404, 410})
_POLLS_AT_ONCE = 2
_THREAD_BYTES = 1 << 17
"""Bodies above this are compressed off the event loop."""


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


class Answer(NamedTuple, Generic[R, T]):
    """How an operation's result is read: the answer's model, and what the caller gets of it."""

    model: type[R]
    read: Callable[[R], T]


class _Operation(NamedTuple, Generic[R, T]):
    name: str
    seq: int
    forms: Sequence[Form]
    """Ways to say it; see `Encoding.forms`."""
    answer: Answer[R, T]
    lost_on: frozenset[int]


class _Turns:
    """Who may submit: one number after the other. A number that fails ends it all (`poison`)."""

    def __init__(self) -> None:
        self._next = 1
        self._waiting: dict[int, asyncio.Event] = {}

    async def wait(self, seq: int) -> None:
        if seq > self._next:
            await self._waiting.setdefault(seq, asyncio.Event()).wait()

    def give_on(self, seq: int) -> None:
        self._next = seq + 1
        if (event := self._waiting.pop(self._next, None)) is not None:
            event.set()


class Operations:
    """See the module. Not shared between models; closed by whoever made it."""

    def __init__(self, model_id: str, promises: Promises) -> None:
        self.model_id = model_id
        self.promises = promises
        self.transport = promises.transport
        self.last_seq = 0
        self._failure: ServiceError | None = None
        self._under_way: dict[int, asyncio.Task[Any]] = {}
        self._turns = _Turns()
        # Results come in order, so one poll finds its answer and the next waits behind it.
        self._polls = asyncio.Semaphore(_POLLS_AT_ONCE)

    def submit(
        self,
        name: str,
        request: Callable[[int], Wire],
        answer: Answer[R, T],
        *,
        lost_on: frozenset[int] = MODEL_GONE,
    ) -> Pending[T]:
        """Draw the number and serialise now; send in a task."""
        self.check()
        form = Form(name, Body(request(self.last_seq + 1).body()))
        (seq,) = self.reserve(1)
        return self._start(_Operation(name, seq, [form], answer, lost_on))

    def submit_batches(
        self,
        batches: Sequence[ForwardInput],
        answer: Callable[[ForwardInput], Answer[R, T]],
        *,
        backward: bool,
        numbers: Sequence[int] = (),
    ) -> list[Pending[T]]:
        """As `submit`, in an encoding that the service takes. `numbers` are reserved ones.

        All are serialised before one is sent: what cannot be sent is refused whole. That is also
        the cheapest copy of them, which the caller may change after the call: for 1024 rows of 128
        tokens 15 ms, where a copy of the lists to be serialised later takes 9 to 38.
        """
        self.check()
        seqs = numbers or range(self.last_seq + 1, self.last_seq + 1 + len(batches))
        forms = [
            self.transport.encoding.forms(self.model_id, seq, batch, backward=backward)
            for seq, batch in zip(seqs, batches, strict=True)
        ]
        if not numbers:
            self.reserve(len(batches))
        name = "forward_backward" if backward else "forward"
        return [
            self._start(_Operation(name, seq, form, answer(batch), MODEL_GONE))
            for seq, form, batch in zip(seqs, forms, batches, strict=True)
        ]

    def reserve(self, count: int) -> range:
        """Numbers that the caller promises to use: the service waits for each of them."""
        first = self.last_seq + 1
        self.last_seq += count
        return range(first, first + count)

    def check(self) -> None:
        """Raises the error that poisoned the model."""
        if self._failure is not None:
            raise copy.copy(self._failure)

    def _start(self, operation: _Operation[R, T]) -> Pending[T]:
        return Pending(asyncio.create_task(self._run(operation)))

    async def _run(self, operation: _Operation[R, T]) -> T:
        self.check()
        name, seq, answer = operation.name, operation.seq, operation.answer
        # Not before the task runs: a cancel would kill an unstarted one without a reason.
        self._under_way[seq] = _current_task()
        try:
            envelope = await self._send(operation)
            async with self._polls:
                return answer.read(await self.promises.result(envelope, answer.model, name))
        except SessionLostError as error:
            self.poison(error, after=seq)
            raise
        except asyncio.CancelledError:
            if self._failure is None:
                raise
            raise copy.copy(self._failure) from None
        finally:
            del self._under_way[seq]

    async def _send(self, operation: _Operation[R, T]) -> FutureEnvelope:
        await self._turns.wait(operation.seq)
        try:
            envelope = await self._accepted(operation)
        except ServiceError as error:
            error.with_context(model_id=self.model_id, seq_id=operation.seq)
            self.poison(error, after=operation.seq)
            raise
        self._turns.give_on(operation.seq)
        return envelope

    async def _accepted(self, operation: _Operation[R, T]) -> FutureEnvelope:
        """In the form that the service takes. While that is unknown, one batch tries both, and
        those that were called meanwhile wait for what it learns; see `client.http.encoding`."""
        encoding, (form, *others) = self.transport.encoding, operation.forms
        if others:
            async with encoding.settling:
                settled = encoding.settled(operation.forms)
                if settled is None:
                    return await self._try_both(operation, form, *others)
            form = settled
        return await self._post(operation, form)

    async def _try_both(
        self, operation: _Operation[R, T], first: Form, second: Form
    ) -> FutureEnvelope:
        encoding = self.transport.encoding
        try:
            envelope = await self._post(operation, first, final_on=REFUSALS)
        except ServiceError as refusal:
            if refusal.status not in REFUSALS:
                raise
            try:
                envelope = await self._post(operation, second)
            except ServiceError as error:
                if error.status == 415:
                    raise refusal from None
                if error.message != refusal.message:  # it may speak of the number only
                    error.with_context(as_protobuf=refusal.message)
                raise
            encoding.took(is_protobuf=False)
        else:
            encoding.took(is_protobuf=True)
        return envelope

    async def _post(
        self, operation: _Operation[R, T], form: Form, *, final_on: frozenset[int] = NONE
    ) -> FutureEnvelope:
        pack = self.transport.encoding.packed
        is_large = len(form.body.data) > _THREAD_BYTES
        call = Call(
            operation.name,
            form.path,
            await asyncio.to_thread(pack, form.body) if is_large else pack(form.body),
            lost_on=operation.lost_on,
            final_on=final_on,
            watch=self.promises.watch,
        )
        return await self.transport.call(call, self._envelope)

    def _envelope(self, reply: Reply) -> FutureEnvelope:
        envelope = FutureEnvelope.model_validate_json(reply.body)
        if envelope.model_id not in (None, self.model_id):
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


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
