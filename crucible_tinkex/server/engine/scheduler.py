"""Which piece of work comes next: in turns, so that nobody's long queue holds up another's work.

Guarantees: operations of one model run strictly in the order of `add`; among everything that could
run now, what could have run for the longest time does. A model's next operation, like the next
piece of a request, goes to the back of the line. Samples of one owner keep their order, and owners
take turns, weighed by the sequences that they ask for (start-time fair queueing: Goyal, Vin and
Cheng, 1996). Pure bookkeeping: no torch, no threads.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeAlias

from crucible_tinkex.server.operations import (
    CancelSample,
    DropSnapshot,
    Operation,
    Outcome,
    Sample,
    UnloadModel,
)

Report: TypeAlias = Callable[[Outcome], None]


@dataclass(slots=True, eq=False)
class Job:
    """One submitted operation; `work` is the engine's state of a request in several pieces."""

    operation: Operation
    done: Report
    stamp: int = 0
    """When it could run; of a sample, when it came."""
    turn: int = 0
    """Of a sample: its place in the fair order."""
    work: Any = None
    alone: bool = False
    """A sample that shares no batch."""


@dataclass(slots=True, eq=False)
class Batch:
    """A batch of sampling requests under way; `state` is the engine's."""

    state: Any
    stamp: int = 0


@dataclass(slots=True)
class Scheduler:
    """Used by the engine's thread only."""

    _models: dict[str, deque[Job]] = field(default_factory=dict)
    _samples: list[Job] = field(default_factory=list)
    """In the fair order."""
    _samples_stamp: int = 0
    """Since when samples wait for a batch to begin."""
    _turn: int = 0
    """The latest of the samples that began."""
    _next_turns: dict[str, int] = field(default_factory=dict)
    """Per owner, while samples wait: the turn of its next one."""
    _batches: list[Batch] = field(default_factory=list)
    _clock: count[int] = field(default_factory=count)

    def add(self, job: Job) -> list[Job]:
        """Queue a job. Unloading and cancelling go first: returns the jobs that will never run."""
        job.stamp = next(self._clock)
        operation = job.operation
        if isinstance(operation, CancelSample):
            return self.take_samples(lambda j: _ticket(j) == operation.ticket)
        if isinstance(operation, Sample | DropSnapshot):
            self._queue(job, operation)
            return []
        if isinstance(operation, UnloadModel):
            dropped = list(self._models.pop(operation.model_id, ()))
            self._models[operation.model_id] = deque([job])
            return dropped
        self._models.setdefault(operation.model_id, deque()).append(job)
        return []

    def _queue(self, job: Job, operation: Sample | DropSnapshot) -> None:
        owner = operation.owner
        job.turn = max(self._turn, self._next_turns.get(owner, 0))
        cost = operation.num_samples if isinstance(operation, Sample) else 0
        self._next_turns[owner] = job.turn + cost
        if not self._samples:
            self._samples_stamp = job.stamp
        insort(self._samples, job, key=lambda j: j.turn)

    def heads(self) -> list[Job]:
        """The first job of every model, the longest waiting first."""
        return sorted((q[0] for q in self._models.values()), key=lambda j: j.stamp)

    def next(self, *, max_batches: int) -> Job | Batch | None:
        """What has waited longest. Samples wait while `max_batches` are under way."""
        waiting: list[Job | Batch] = [*self.heads()[:1], *self._batches]
        ready = [(item.stamp, item) for item in waiting]
        if self._samples and len(self._batches) < max_batches:
            ready.append((self._samples_stamp, self._samples[0]))
        return min(ready, key=lambda pair: pair[0], default=(0, None))[1]

    def requeue(self, item: Job | Batch) -> None:
        """Its turn is over but it is not finished."""
        item.stamp = next(self._clock)

    def finish(self, job: Job) -> None:
        """Take a model's head, or a waiting sample, off its queue."""
        operation = job.operation
        if isinstance(operation, Sample | DropSnapshot | CancelSample):
            self.take_samples(lambda other: other is job)
            return
        queue = self._models.get(operation.model_id)
        if queue and queue[0] is job:
            queue.popleft()
            if queue:
                queue[0].stamp = next(self._clock)
            else:
                del self._models[operation.model_id]

    def take_samples(self, wanted: Callable[[Job], bool]) -> list[Job]:
        """Remove and return the waiting samples that are `wanted`, in the fair order."""
        taken: list[Job] = []
        left: list[Job] = []
        for job in self._samples:
            (taken if wanted(job) else left).append(job)
        self._samples = left
        if not left:
            self._next_turns.clear()
        return taken

    def began(self, samples: Sequence[Job]) -> None:
        """These were taken to run: owners that come now queue up behind them."""
        self._turn = max((self._turn, *(job.turn for job in samples)))
        self._samples_stamp = next(self._clock)

    def again(self, sample: Job) -> None:
        """It began and has to begin anew, before those that came after it."""
        insort(self._samples, sample, key=lambda j: j.turn)

    def start(self, batch: Batch) -> None:
        batch.stamp = next(self._clock)
        self._batches.append(batch)

    def stop(self, batch: Batch) -> None:
        self._batches.remove(batch)


def _ticket(job: Job) -> str | None:
    return job.operation.ticket if isinstance(job.operation, Sample) else None
