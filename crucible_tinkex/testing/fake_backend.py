"""What outlives the sessions of the fake service: checkpoints, plans for trouble, the ledger."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from crucible_tinkex.client.http.watch import (
    ACTIVE,
    PAUSED_CAPACITY,
    PAUSED_RATE_LIMIT,
    Observer,
    QueueState,
)
from crucible_tinkex.errors import OperationFailedError, RequestRejectedError
from crucible_tinkex.protocol.wire import Wire
from crucible_tinkex.testing.fake_model import FakeWeights, uniform

T = TypeVar("T")
S = TypeVar("S", bound=Wire)
POLL_S = 1.0


class Failure(NamedTuple):
    """The `nth` call of an operation, from 1 and over all sessions, fails."""

    operation: str
    nth: int
    error: Exception
    after_effect: bool = False
    """The answer is lost, not the work."""


class Effect(NamedTuple):
    """Something that the service really did."""

    model_id: str
    operation: str
    seq: int
    """The operation's number among all that were submitted to its model, from 1."""
    batch: str = ""
    """`batch_digest` of what was trained or scored on; the path of what was saved or loaded."""
    tokens: int = 0
    """Input tokens; of a sample, those of the prompt."""
    sampled: int = 0


@dataclass
class FakeBackend:
    """Make one per test, and a `FakeService` on it for each session."""

    base_models: Sequence[str] = ("nano",)
    delay_s: float = 0.0
    """How long each `forward_backward` and `optim_step` takes (`asyncio.sleep`)."""
    delays: Mapping[str, float] = field(default_factory=dict)
    """The same for any operation by name."""
    failures: Sequence[Failure | tuple[str, int, Exception]] = ()
    ignores: Collection[str] = ()
    """Dotted keys of an experiment (`lora.rank`, `optimizer.beta2`) that are taken without a word
    and not applied. `train.token_weights`: weights are a mask; `train.loss`: negative ones count
    nothing; `train.accumulate`: a step learns from its last pass; `optimizer.schedule`: all steps
    have the first one's rate."""
    tells_rank: bool = True
    """Whether `info` says the rank: the one that was applied."""
    noise: float = 0.0
    """Nats, at most, by which all logprobs of a call are wrong, another time by something else."""
    places: int | None = None
    """Models at most. Who asks for one more waits for a session to end, and is told so."""
    loaded: Counter[str] = field(default_factory=Counter)
    """Models by session."""
    most_loaded: int = 0
    checkpoints: dict[str, FakeWeights] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    """Operations in the order in which they began."""
    ledger: list[Effect] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    """The reason of every closed session."""
    in_flight: Counter[str] = field(default_factory=Counter)
    """Operations submitted and not answered yet, by name."""
    most_in_flight: Counter[str] = field(default_factory=Counter)
    _counts: Counter[str] = field(default_factory=Counter)
    _damaged: set[str] = field(default_factory=set)
    _sessions: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _noises: itertools.count[int] = field(default_factory=itertools.count)
    _held: QueueState | None = None
    _let_go: asyncio.Event = field(default_factory=asyncio.Event)

    # --- trouble on demand ---------------------------------------------------------------------

    def fail(
        self, operation: str, error: Exception, *, nth: int = 1, after_effect: bool = False
    ) -> None:
        """Let the `nth` call from now fail."""
        nth += self._counts[operation]
        self.failures = [*self.failures, Failure(operation, nth, error, after_effect)]

    def hold(self, reason: str = "held", *, state: str = PAUSED_RATE_LIMIT) -> None:
        """Keep everything waiting, and say so to the observers, until `let_go`."""
        if self._held is None:
            self._let_go = asyncio.Event()  # the next one may be awaited on another loop
        self._held = QueueState(state, reason)

    def let_go(self) -> None:
        self._held = None
        self._let_go.set()

    def forget(self, path: str) -> None:
        """The checkpoint is gone, as if it had expired."""
        del self.checkpoints[path]

    def damage(self, path: str) -> None:
        """The checkpoint is listed but cannot be read."""
        self._damaged.add(path)

    # --- for the fake service ------------------------------------------------------------------

    def applied(self, section: str, asked: S, usual: S) -> S:
        """The settings without those that it ignores."""
        ignored = {key.partition(".")[2] for key in self.ignores if key.startswith(section)}
        known = ignored & set(type(usual).model_fields)
        return asked.model_copy(update={name: getattr(usual, name) for name in known})

    def noise_of_call(self) -> float:
        """Of the next call: the same again in a repetition of the test."""
        return self.noise * (2 * uniform(next(self._noises)) - 1)

    async def operate(self, operation: str, effect: Callable[[], T], observer: Observer) -> T:
        """Do `effect` in the time and with the trouble that are planned for it."""
        await self._wait(observer)
        self.calls.append(operation)
        self._counts[operation] += 1
        planned = self._planned(operation)
        if planned is not None and not planned.after_effect:
            raise copy.copy(planned.error)
        short = self.delay_s if operation in ("forward_backward", "optim_step") else 0.0
        await asyncio.sleep(self.delays.get(operation, short))
        result = effect()
        if planned is not None:
            raise copy.copy(planned.error)
        return result

    async def take_place(self, session_id: str, observer: Observer) -> None:
        is_full = QueueState(PAUSED_CAPACITY, "maximum number of models reached", for_place=True)
        while self.places is not None and self.loaded.total() >= self.places:
            observer.on_queue_state(is_full)
            await asyncio.sleep(POLL_S)
            observer.on_queue_state(ACTIVE)
        self.loaded[session_id] += 1
        self.most_loaded = max(self.most_loaded, self.loaded.total())

    async def _wait(self, observer: Observer) -> None:
        if self._held is None:
            return
        observer.on_queue_state(self._held)
        try:
            while self._held is not None:
                await self._let_go.wait()
        finally:
            observer.on_queue_state(ACTIVE)

    def _planned(self, operation: str) -> Failure | None:
        failures = (Failure(*failure) for failure in self.failures)
        nth = self._counts[operation]
        return next((f for f in failures if (f.operation, f.nth) == (operation, nth)), None)

    def submitted(self, operation: str) -> None:
        self.in_flight[operation] += 1
        most = max(self.most_in_flight[operation], self.in_flight[operation])
        self.most_in_flight[operation] = most

    def answered(self, operation: str) -> None:
        self.in_flight[operation] -= 1

    def next_session_id(self) -> str:
        return f"fake-{next(self._sessions)}"

    def load(self, path: str) -> FakeWeights:
        if path not in self.checkpoints:
            raise RequestRejectedError(f"no checkpoint {path}", status=404, category="user")
        if path in self._damaged:
            raise OperationFailedError(f"cannot read {path}: damaged", category="server")
        return self.checkpoints[path]
