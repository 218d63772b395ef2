"""The pool of session slots: which trial trains on which host, and how many hosts there are.

Everything that happens (a submit, an answer, a host that came up, died or fell silent) ends in one
function, `_reconcile`, which looks at what waits, what is free and what is coming, and brings them
together; there is no other place where work is assigned or a host is started. Guarantees: every
submit is answered once, by its outcome or by the loss of its host; never more sessions than
`packing.slots`, and fewer while the service asks to slow down (`width`); none parked keeps a place
on the service that another has waited for (`Want`); hosts are started only for
work that neither a free nor a coming slot will take, few at a time, with a back-off after a failure
and an end after several; a host that does not answer is killed; nothing here waits without a
deadline. It knows hosts only as ports: a host may be a Ray actor or the driver's own event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from crucible_tinkex.errors import CrucibleError, HostLostError, WorkerStartError
from crucible_tinkex.runtime.members import Member, Seat, Want
from crucible_tinkex.runtime.ports import Beat, Host, HostLauncher, Packing
from crucible_tinkex.runtime.width import Seen, Width
from crucible_tinkex.training.outcome import Outcome, Verdict
from crucible_tinkex.training.plan import TrialPlan

T = TypeVar("T")

HEARTBEAT_S = 5.0
DEADLINE_S = 60.0  # a busy host on a loaded machine may take seconds to answer
START_S = 300.0
MAX_FAILED_STARTS = 3
BACK_OFF_S, MOST_DOUBLINGS = 0.5, 7
SLICES = 5
WORTH_SHARING_S = 0.5  # by how much a back-off must be longer than the one that all hosts know


@dataclass(frozen=True)
class _Work:
    """A submit that waits for a slot."""

    plan: TrialPlan
    to_step: int


class SessionPool:
    """See the module. Made and used on a running event loop; times in seconds of that loop.

    `done(trial_id, outcome)` is called from the loop, once for every submit that was not withdrawn;
    never before `submit` has returned, and never after `close`.
    """

    def __init__(
        self,
        launcher: HostLauncher,
        packing: Packing,
        *,
        done: Callable[[str, Outcome], None],
        heartbeat_s: float = HEARTBEAT_S,
        deadline_s: float = DEADLINE_S,
        start_s: float = START_S,
        max_failed_starts: int = MAX_FAILED_STARTS,
    ) -> None:
        self._launcher = launcher
        self._packing = packing
        self._width = Width(packing.slots, probes=packing.probes)
        self._tokens = self._complaints = 0
        self._want = Want()
        self._is_short = False
        self._done = done
        self._heartbeat_s = heartbeat_s
        self._deadline_s = deadline_s
        self._start_s = start_s
        self._max_failed_starts = max_failed_starts
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, _Work] = {}
        self._members: list[Member] = []
        self._leaving: set[asyncio.Future[None]] = set()
        self._failed_starts = 0
        self._why: CrucibleError | None = None
        self._start_not_before = -math.inf
        self._held_until = 0.0
        self._draining = False
        self._closed = False

    @property
    def capacity(self) -> int:
        """Sessions that may be open at the same time now: what the service bears (`width`)."""
        return self._width.now

    @property
    def load(self) -> int:
        """Trials that wait for a slot or hold one, parked ones included."""
        return len(self._waiting) + sum(len(m.seats) for m in self._members)

    def submit(self, plan: TrialPlan, to_step: int) -> None:
        """Advance a trial when it has a slot: its own if its session is parked, else any.

        Raises `ValueError` for a trial whose last call has not ended.
        """
        trial_id = plan.trial_id
        member = self._home(trial_id)
        seat = member.seats[trial_id] if member else None
        if self._closed or trial_id in self._waiting or (seat and seat.asked):
            raise ValueError(f"trial {trial_id}: a call is under way, or the pool is closed")
        if member and seat and not seat.call:
            self._advance(member, plan, to_step)
        else:
            self._waiting[trial_id] = _Work(plan, to_step)
            self._reconcile()

    def withdraw(self, trial_id: str) -> bool:
        """Take a submit back that has no slot yet; it is not answered. False: it has started."""
        return self._waiting.pop(trial_id, None) is not None

    async def release(self, trial_id: str, state: str, reason: str | None) -> bool:
        """Close a parked session; its slot becomes free. False: it is not parked here (any more),
        or was lost meanwhile, so nobody has recorded `state`."""
        member = self._home(trial_id)
        seat = member.seats[trial_id] if member else None
        if member is None or seat is None or seat.call:
            return False
        call = self._vacate(member, trial_id, member.host.release(trial_id, state, reason))
        await asyncio.wait({call})
        return _reason(call) is None

    def _vacate(
        self, member: Member, trial_id: str, leave: Awaitable[None]
    ) -> asyncio.Future[None]:
        seat = member.seats[trial_id]
        call = seat.call = asyncio.ensure_future(leave)

        def ended(task: asyncio.Future[None]) -> None:
            if self._ended(member, trial_id, seat, task):
                del member.seats[trial_id]
                self._reconcile()

        call.add_done_callback(ended)
        return call

    async def drain(self) -> None:
        """Start nothing more; running sessions finish their step, save and stop. What waits is
        answered as drained, also what is submitted later. Parked sessions stay until released."""
        self._draining = True
        for member in [m for m in self._members if not m.up]:
            self._dismiss(member)
        self._reconcile()
        await self._tell(lambda host: host.drain())

    async def interrupt(self, trial_id: str) -> None:
        """A running session finishes its step, saves, and is answered as drained."""
        if (member := self._home(trial_id)) and member.up:
            await self._tell(lambda host: host.drain(trial_id), [member])

    def renew(self) -> None:
        """What the launcher gives its hosts has changed: who takes a slot from now on takes it on a
        host that is launched from now on. Sessions that are open stay where they are."""
        for member in [m for m in self._members if not m.up]:
            self._dismiss(member)
        for member in self._members:
            member.retired = True
        self._reconcile()

    async def hold_back(self, until: float) -> None:
        """No session sends anything before `until` (Unix seconds), nor on hosts that come later."""
        self._held_until = max(until, self._held_until)
        await self._tell(lambda host: host.hold_back(until))

    async def close(self) -> None:
        """Give healthy hosts back, end the others; what was not answered never is. Takes no longer
        than the deadline of an answer."""
        self._closed = True
        self._waiting.clear()
        members, self._members = self._members, []
        for member in members:
            member.cancel()
        calls = {asyncio.ensure_future(m.host.forget()): m for m in members if m.up}
        try:
            if calls or self._leaving:
                await asyncio.wait({*calls, *self._leaving}, timeout=self._deadline_s)
        finally:
            clean = {m for call, m in calls.items() if call.done() and not _reason(call)}
            for call in calls:
                call.cancel()
            for member in members:
                member.host.keep() if member in clean else member.host.kill()

    def _reconcile(self) -> None:
        """Bring what waits and what there is together. Safe to call at any time."""
        if self._closed:
            return
        for empty in [m for m in self._members if m.retired and not m.seats]:
            self._give_back(empty)
        if self._draining:
            self._answer_waiting(lambda: Outcome(Verdict.DRAINED))
        bearable = self._bearable
        while bearable > 0 and (first := self._first()) and (member := self._roomiest()):
            bearable -= 1
            work = self._waiting.pop(first)
            self._advance(member, work.plan, work.to_step)
        if self._failed_starts >= self._max_failed_starts and not self._members:
            self._failed_starts = 0
            self._answer_waiting(self._no_host)
        self._start_hosts()

    def _first(self) -> str | None:  # whose session is being closed comes when it is
        return next((i for i in self._waiting if not self._home(i)), None)

    def _roomiest(self) -> Member | None:
        best = max(self._members, key=lambda m: m.free, default=None)
        return best if best and best.free > 0 else None

    def _start_hosts(self) -> None:  # for what no free and no coming slot will take
        if not self._waiting or self._loop.time() < self._start_not_before:
            return
        starting = [m.slots for m in self._members if not m.up]
        room = self._packing.slots - sum(m.room for m in self._members)
        at_once = max(1, self._launcher.starting_at_once())
        wanted = min(len(self._waiting), self._bearable)
        while room > 0 and wanted > sum(starting) and len(starting) < at_once:
            slots = min(self._packing.per_actor, room)
            self._start(slots)
            starting.append(slots)
            room -= slots

    def _start(self, slots: int) -> None:
        member = Member(self._launcher.launch(slots), slots)
        self._members.append(member)
        member.life = asyncio.create_task(self._live(member))
        member.life.add_done_callback(lambda task: self._lose(member, _reason(task)))

    async def _live(self, member: Member) -> None:  # ends by an error only
        await self._within(self._start_s, member.host.ready())
        if self._held_until:
            await self._within(self._deadline_s, member.host.hold_back(self._held_until))
        if self._is_short:
            await self._within(self._deadline_s, member.host.make_room())
        member.up = True
        self._failed_starts = 0
        self._start_not_before = -math.inf
        self._reconcile()
        while True:
            beat = member.host.heartbeat(self._heartbeat_s, self._held_until + WORTH_SHARING_S)
            told = await self._within(self._heartbeat_s + self._deadline_s, beat)
            is_held = told.held_until > self._held_until + WORTH_SHARING_S
            self._complaints += is_held
            self._heard(member, told)
            if is_held:
                await self.hold_back(told.held_until)
            if told.is_full and not self._is_short:
                self._is_short = True
                await self._tell(lambda host: host.make_room())

    def _heard(self, member: Member, told: Beat) -> None:
        """Take as many sessions as the service bears."""
        self._tokens += told.tokens - member.tokens
        member.tokens = told.tokens
        now, is_full = self._loop.time(), self._bearable <= 0
        member.waiting = told.waiting
        if (parked := self._want.look(self._members, now)) and not self._draining:
            self._vacate(*parked, parked[0].host.make_room(parked[1]))
        complaints = self._complaints + self._want.complaints
        self._width.look(Seen(now, self._tokens, complaints, is_full, bool(self._want.waiting)))
        self._reconcile()

    @property
    def _bearable(self) -> int:
        """How many more may train; those that are parked ask nothing of the service."""
        calls = sum(seat.call is not None for m in self._members for seat in m.seats.values())
        return self._width.now - calls

    async def _within(self, seconds: float, call: Awaitable[T]) -> T:
        """The answer of a host, or `HostLostError`. The wait is counted in slices, because a driver
        that was itself stopped for a while would find all deadlines passed and kill everything."""
        task = asyncio.ensure_future(call)
        try:
            for _ in range(SLICES):
                await asyncio.wait({task}, timeout=seconds / SLICES)
                if task.done():
                    return task.result()
        finally:
            task.cancel()
            task.add_done_callback(_reason)  # nobody waits for it any more: no word in the log
        raise HostLostError(f"the worker process did not answer for {seconds:.0f} s")

    def _advance(self, member: Member, plan: TrialPlan, to_step: int) -> None:
        """Call the host for a trial that has a seat there, or takes one now."""
        seat = member.seats.setdefault(plan.trial_id, Seat())
        call = asyncio.create_task(member.host.advance(plan, to_step))
        seat.call, seat.asked, seat.ends = call, True, to_step >= plan.total_steps

        def ended(task: asyncio.Task[Outcome]) -> None:
            if self._ended(member, plan.trial_id, seat, task):
                outcome = task.result()
                self._answer(plan.trial_id, outcome)
                if not _parked(plan, outcome):
                    del member.seats[plan.trial_id]
                self._reconcile()

        call.add_done_callback(ended)

    def _ended(self, member: Member, trial_id: str, seat: Seat, task: asyncio.Future[Any]) -> bool:
        """Whether a call ended well, on a host that is still one of ours; the seat rests then."""
        error = _reason(task)
        if member.seats.get(trial_id) is not seat:
            return False
        if error:
            self._lose(member, error)
            return False
        seat.call, seat.asked, seat.since = None, False, self._loop.time()
        return True

    def _lose(self, member: Member, error: BaseException | None) -> None:
        """A host is gone, or must go: answer for those who sat on it. Does nothing twice."""
        if member not in self._members:
            return
        asked = [trial_id for trial_id, seat in member.seats.items() if seat.asked]
        self._dismiss(member)
        for trial_id in asked:
            self._answer(trial_id, Outcome(Verdict.RETRY, error=HostLostError(str(error))))
        if not member.up:
            self._start_failed(error)
        elif not any(m.up for m in self._members):
            self._failed_starts = 0  # those were attempts to have more than there was
        self._reconcile()

    def _dismiss(self, member: Member) -> None:  # nobody is answered
        self._members.remove(member)
        member.cancel()
        member.seats.clear()
        member.host.kill()

    def _give_back(self, member: Member) -> None:
        self._members.remove(member)
        member.cancel()
        call = asyncio.ensure_future(self._within(self._deadline_s, member.host.forget()))
        self._leaving.add(call)

        def ended(call: asyncio.Future[None]) -> None:
            self._leaving.discard(call)
            member.host.kill() if _reason(call) else member.host.keep()

        call.add_done_callback(ended)

    def _start_failed(self, error: BaseException | None) -> None:
        self._why = error if isinstance(error, CrucibleError) else WorkerStartError(str(error))
        delay = BACK_OFF_S * 2 ** min(self._failed_starts, MOST_DOUBLINGS)
        self._failed_starts += 1
        self._start_not_before = self._loop.time() + delay
        self._loop.call_at(self._start_not_before, self._reconcile)

    def _no_host(self) -> Outcome:
        text = f"no worker process could be started ({self._max_failed_starts} times): {self._why}"
        return Outcome(Verdict.STOP, error=WorkerStartError(text))

    def _answer(self, trial_id: str, outcome: Outcome) -> None:
        # Later, so that an answer may submit the next call without running into this one.
        self._loop.call_soon(self._tell_done, trial_id, outcome)

    def _tell_done(self, trial_id: str, outcome: Outcome) -> None:
        if not self._closed:
            self._done(trial_id, outcome)

    def _answer_waiting(self, outcome: Callable[[], Outcome]) -> None:
        waiting, self._waiting = self._waiting, {}
        for trial_id in waiting:
            self._answer(trial_id, outcome())

    async def _tell(
        self, message: Callable[[Host], Awaitable[None]], to: list[Member] | None = None
    ) -> None:
        """Tell these, or every host that is up; one that does not hear is lost."""
        members = [m for m in self._members if m.up] if to is None else to
        calls = [self._within(self._deadline_s, message(m.host)) for m in members]
        for member, result in zip(
            members, await asyncio.gather(*calls, return_exceptions=True), strict=True
        ):
            if isinstance(result, BaseException):
                self._lose(member, result)

    def _home(self, trial_id: str) -> Member | None:  # where a trial holds a slot
        return next((m for m in self._members if trial_id in m.seats), None)


def _parked(plan: TrialPlan, outcome: Outcome) -> bool:  # the session is still open
    if outcome.verdict is not Verdict.ADVANCED or outcome.progress is None:
        return False
    return outcome.progress.step < plan.total_steps


def _reason(task: asyncio.Future[Any]) -> BaseException | None:
    """Why a call that has ended did not end well; None if it did."""
    return HostLostError("the call was cancelled") if task.cancelled() else task.exception()
