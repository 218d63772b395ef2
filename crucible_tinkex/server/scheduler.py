"""Which piece of work comes next: the oldest first, in turns.

Guarantees: operations of one model run strictly in the order of `add`; among everything that could
run now, the piece that has waited longest does. A request of several pieces goes to the back after
each, so a large one does not hold up small ones. Pure bookkeeping: no torch, no threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
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
    work: Any = None


@dataclass(slots=True, eq=False)
class Batch:
    """A batch of sampling requests under way; `state` is the engine's."""

    state: Any
    stamp: int = 0


@dataclass(slots=True)
class Scheduler:
    """Used by the engine's thread only."""

    _models: dict[str, deque[Job]] = field(default_factory=dict)
    _samples: deque[Job] = field(default_factory=deque)
    _batches: list[Batch] = field(default_factory=list)
    _clock: count[int] = field(default_factory=count)

    def add(self, job: Job) -> list[Job]:
        """Queue a job. Unloading and cancelling go first: returns the jobs that will never run."""
        job.stamp = next(self._clock)
        operation = job.operation
        if isinstance(operation, CancelSample):
            return self.take_samples(lambda j: _ticket(j) == operation.ticket)
        if isinstance(operation, Sample | DropSnapshot):
            self._samples.append(job)
            return []
        if isinstance(operation, UnloadModel):
            dropped = list(self._models.pop(operation.model_id, ()))
            self._models[operation.model_id] = deque([job])
            return dropped
        self._models.setdefault(operation.model_id, deque()).append(job)
        return []

    def heads(self) -> list[Job]:
        """The first job of every model, the longest waiting first."""
        return sorted((q[0] for q in self._models.values()), key=lambda j: j.stamp)

    def next(self, *, max_batches: int) -> Job | Batch | None:
        """What has waited longest. Samples wait while `max_batches` are under way."""
        ready: list[Job | Batch] = [*self.heads()[:1], *self._batches]
        if self._samples and len(self._batches) < max_batches:
            ready.append(self._samples[0])
        return min(ready, key=lambda item: item.stamp, default=None)

    def requeue(self, item: Job | Batch) -> None:
        """Its turn is over but it is not finished."""
        item.stamp = next(self._clock)

    def finish(self, job: Job) -> None:
        """Take a model's head off its queue."""
        operation = job.operation
        assert not isinstance(operation, Sample | DropSnapshot | CancelSample)
        queue = self._models.get(operation.model_id)
        if queue and queue[0] is job:
            queue.popleft()
            if not queue:
                del self._models[operation.model_id]

    def take_samples(self, wanted: Callable[[Job], bool]) -> list[Job]:
        """Remove and return the waiting samples that are `wanted`, in order."""
        taken = [j for j in self._samples if wanted(j)]
        chosen = set(map(id, taken))
        self._samples = deque(j for j in self._samples if id(j) not in chosen)
        return taken

    def start(self, batch: Batch) -> None:
        batch.stamp = next(self._clock)
        self._batches.append(batch)

    def stop(self, batch: Batch) -> None:
        self._batches.remove(batch)


def _ticket(job: Job) -> str | None:
    return job.operation.ticket if isinstance(job.operation, Sample) else None
