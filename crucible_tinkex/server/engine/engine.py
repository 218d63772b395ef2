"""The engine: one thread that owns the base model and all adapters and runs the operations.

Guarantees: what an operation computes does not depend on which others share its passes; an
operation that fails fails alone and leaves no trace: what failed in company is run again alone;
`submit` never blocks. Failures that are not ours to explain are reported as category "server" and
logged with their traceback. Should the thread end all the same, everybody who waits is told so, and
the process is asked to end.
Not here: the order of seq_ids, promises, encoding (the app's side); the weights (`weights`).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import torch
from tokenizers import Tokenizer

from crucible_tinkex.errors import CrucibleError, OperationFailedError
from crucible_tinkex.server import bases
from crucible_tinkex.server.engine.choosing import Vocabulary
from crucible_tinkex.server.engine.sampling import (
    Joined,
    Prompt,
    SampleBatch,
    cache_extent,
    prompt_bucket,
    split,
)
from crucible_tinkex.server.engine.scheduler import Batch, Job, Report, Scheduler
from crucible_tinkex.server.engine.training import TrainingWork, run_pass
from crucible_tinkex.server.engine.weights import IDLE_S, MEMORY_BYTES, Weights
from crucible_tinkex.server.model.adapters import Adapter, FrozenAdapter
from crucible_tinkex.server.model.base_model import MIN_TOKENS, BaseModel
from crucible_tinkex.server.model.products import PACKED
from crucible_tinkex.server.operations import (
    BaseInfo,
    CancelSample,
    Done,
    ForwardBackward,
    Operation,
    Outcome,
    Sample,
    refused,
)
from crucible_tinkex.server.store.store import Store

TOKEN_CAP = 1024
"""Tokens per pass: more would leave the CPU's cache."""
PASS_BYTES = 400 * 1000**2
"""What a pass on a CPU keeps for its backward; a single row may need more. It bounds a pass's
tokens, and by them how a request is cut, so it does not depend on the machine."""
MAX_BATCHES = 2
MAX_SEQUENCES = 64
"""Per batch."""
CACHE_BYTES = 1024**3
"""Keys and values of all batches under way; a single sequence may need more."""
STEPS_PER_TURN = 8
_log = logging.getLogger(__name__)

Part: TypeAlias = tuple[Job, TrainingWork, Adapter]
_Made = TypeVar("_Made")


def tokens_within(budget_bytes: int, token_bytes: int) -> int:
    """Whole tiles, and at least one."""
    return max(budget_bytes // token_bytes // PACKED, 1) * PACKED


def end_process() -> None:
    """Ask this process for the end that a signal brings."""
    os.kill(os.getpid(), signal.SIGTERM)


class TorchEngine:
    """The `Engine` that really trains. `died` is called if its thread ends by a fault."""

    def __init__(
        self,
        base: bases.Base,
        store: Store,
        *,
        dtype: torch.dtype,
        device: torch.device | None = None,
        token_cap: int = TOKEN_CAP,
        memory_bytes: int = MEMORY_BYTES,
        idle_s: float = IDLE_S,
        cache_bytes: int = CACHE_BYTES,
        clock: Callable[[], float] = time.monotonic,
        died: Callable[[], None] = end_process,
    ) -> None:
        self._model = BaseModel(base, dtype, device)
        self._token_cap = token_cap
        if self._model.device.type == "cpu":
            self._token_cap = min(token_cap, tokens_within(PASS_BYTES, self._model.kept_bytes))
        self._cache_tokens = cache_bytes // MAX_BATCHES // self._model.cache_bytes
        """Tokens of one batch whose keys and values are kept."""
        tokenizer = Tokenizer.from_file(str(base.tokenizer_folder / "tokenizer.json"))
        self._vocabulary = Vocabulary(tokenizer, bases.eos_tokens(base, self._model.config))
        self._idle_s = idle_s
        self.weights = Weights(
            self._model, store, memory_bytes=memory_bytes, idle_s=idle_s, clock=clock
        )
        self._scheduler = Scheduler()
        self._inbox: list[Job] = []
        self._open: set[Job] = set()
        """All that was asked and has no answer."""
        self._wake = threading.Condition()
        self._closed = False
        self._died = died
        self._fault: CrucibleError | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def base(self) -> BaseInfo:
        return self._model.info

    def submit(self, operation: Operation, done: Report) -> None:
        job = Job(operation, done)
        with self._wake:
            if self._fault is None:
                self._inbox.append(job)
                self._open.add(job)
                self._wake.notify()
                return
        self._answer(job, self._fault)

    def close(self) -> None:
        """Stop after the present piece of work. Raises what ended the thread before."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout=10)
        self.weights.close()
        if self._fault is not None:
            raise self._fault

    def _run(self) -> None:
        try:
            while not self._closed:
                self._piece()
        except BaseException as e:  # noqa: BLE001 - the border of the engine's thread
            _log.critical("the engine's thread ended", exc_info=True)
            self._end(OperationFailedError(f"the engine ended: {_text(e)}", category="server"))

    def _end(self, fault: CrucibleError) -> None:
        with self._wake:
            self._fault = fault
        for job in list(self._open):
            self._answer(job, fault)
        self._died()

    def _piece(self) -> None:
        with self._wake:
            item = self._scheduler.next(max_batches=MAX_BATCHES)
            if not self._inbox and not self._closed and item is None:
                self._wake.wait(timeout=self._idle_s)
            jobs, self._inbox = self._inbox, []
        for job in jobs:
            failure = _failure(lambda job=job: self._cut(job))  # type: ignore[misc]
            if failure is not None:
                self._answer(job, failure)
        failure = _failure(self.weights.spill)
        if failure is not None:
            _log.warning("idle models stay in memory: %s", failure)
        chosen = self._scheduler.next(max_batches=MAX_BATCHES)
        if chosen is None or self._closed:
            return
        failure = _failure(lambda: self._turn(chosen))
        if failure is not None:
            self._abandon(chosen, failure)

    def _cut(self, job: Job) -> None:
        """Samples that are too many for one batch come in pieces."""
        request = job.operation
        most = self._most(request) if isinstance(request, Sample) else 1
        if not isinstance(request, Sample) or request.num_samples <= most:
            self._take(job)
            return
        pieces = split(request, most)
        joined = Joined(lambda outcome: self._answer(job, outcome), len(pieces))
        for number, piece in enumerate(pieces):
            self._take(Job(piece, joined.report(number)))

    def _most(self, request: Sample) -> int:
        """How many of its samples may share a batch."""
        return max(1, min(MAX_SEQUENCES, self._cache_tokens // cache_extent(request)))

    def _take(self, job: Job) -> None:
        dropped = self._scheduler.add(job)
        is_cancel = isinstance(job.operation, CancelSample)
        why = "it was cancelled" if is_cancel else "the model was unloaded"
        for other in dropped:
            message = f"{why} before this could run"
            self._answer(other, refused(message, 410))
        if is_cancel:
            self._answer(job, Done())

    def _turn(self, item: Job | Batch) -> None:
        if isinstance(item, Batch):
            self._advance(item)
        elif isinstance(item.operation, Sample):
            self._start_batch(item)
        elif isinstance(item.operation, ForwardBackward):
            self._train(item)
        else:
            operation = item.operation
            self._finish(item, _outcome(lambda: self.weights.execute(operation)))

    def _abandon(self, item: Job | Batch, failure: CrucibleError) -> None:
        """A turn went wrong where nothing should: what it was for has failed."""
        if isinstance(item, Job):
            self._fail(item, failure)
            return
        self._scheduler.stop(item)
        for prompt in item.state.pending():
            self._answer(prompt.ticket, failure)

    def _fail(self, job: Job, failure: CrucibleError) -> None:
        """What a training request has added to a gradient goes with it."""
        operation, work = job.operation, job.work
        if isinstance(operation, ForwardBackward) and work is not None:
            _failure(lambda: work.undo(self.weights.adapter(operation.model_id)))
        self._finish(job, failure)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        """Take it off its queue, and answer."""
        self._scheduler.finish(job)
        self._answer(job, outcome)

    def _answer(self, job: Job, outcome: Outcome) -> None:
        self._open.discard(job)
        failure = _failure(lambda: job.done(outcome))
        if failure is not None and _failure(lambda: job.done(failure)) is not None:
            _log.error(
                "%s was asked, and its answer could not be given", type(job.operation).__name__
            )

    # --- passes --------------------------------------------------------------------------------

    def _train(self, first: Job) -> None:
        """One pass: the next chunk of `first` and of every other model's that fits beside it."""
        parts: list[Part] = []
        room = self._token_cap
        for job in [first, *(j for j in self._scheduler.heads() if j is not first)]:
            operation = job.operation
            if not isinstance(operation, ForwardBackward):
                continue
            if parts and operation.backward != parts[0][1].operation.backward:
                continue
            limit = room if parts else None
            part = _outcome(lambda j=job, r=limit: self._part(j, r))  # type: ignore[misc]
            if isinstance(part, CrucibleError):
                self._fail(job, part)
            elif part is not None:
                parts.append(part)
                room -= part[1].chunk.size
            if room < MIN_TOKENS:
                break
        for (job, _, _), outcome in zip(parts, self._pass(parts), strict=True):
            if outcome is None:
                self._scheduler.requeue(job)
            elif isinstance(outcome, CrucibleError):
                self._fail(job, outcome)
            else:
                self._finish(job, outcome)

    def _part(self, job: Job, room: int | None) -> Part | None:
        """None: its chunk does not fit; its adapter, which may lie on disk, is not touched."""
        operation = job.operation
        assert isinstance(operation, ForwardBackward)
        if job.work is None:
            job.work = TrainingWork(operation, self._token_cap)
        work: TrainingWork = job.work
        if room is not None and work.chunk.size > room:
            return None
        return job, work, self.weights.adapter(operation.model_id)

    def _pass(self, parts: Sequence[Part]) -> list[Outcome | None]:
        """The outcomes of what is finished; a pass that fails in company is run again one by
        one."""
        if not parts:
            return []
        failure = _failure(lambda: run_pass(self._model, [(w, a) for _, w, a in parts]))
        if failure is None:
            return [_outcome(work.output) for _, work, _ in parts]
        if len(parts) == 1:
            return [failure]
        return [outcome for part in parts for outcome in self._pass([part])]

    # --- sampling ------------------------------------------------------------------------------

    def _start_batch(self, first: Job) -> None:
        """Begin a batch with the oldest waiting sample and those of the same prompt bucket."""
        jobs = self._scheduler.take_samples(_fitting(first, self._token_cap, self._cache_tokens))
        self._scheduler.began(jobs)
        prompts: list[Prompt[Job]] = []
        for job in jobs:
            request = _sample(job)
            source: FrozenAdapter | CrucibleError | None
            source = _outcome(lambda r=request: self.weights.source(r.source))  # type: ignore[misc]
            if isinstance(source, CrucibleError):
                self._answer(job, source)
            else:
                prompts.append(Prompt(job, request, source))
        if not prompts:
            return
        state = _outcome(lambda: SampleBatch(self._model, self._vocabulary, prompts))
        if isinstance(state, CrucibleError):
            self._apart([p.ticket for p in prompts], state, company=len(prompts))
            return
        batch = Batch(state)
        self._scheduler.start(batch)
        self._advance(batch)

    def _advance(self, batch: Batch) -> None:
        state: SampleBatch[Job] = batch.state
        progress = _outcome(lambda: state.advance(STEPS_PER_TURN))
        if isinstance(progress, CrucibleError):
            self._scheduler.stop(batch)
            self._apart([p.ticket for p in state.pending()], progress, company=state.size)
            return
        finished, is_over = progress
        if is_over:
            self._scheduler.stop(batch)
        else:
            self._scheduler.requeue(batch)
        for prompt in finished:
            prompt.reported = True
            self._answer(prompt.ticket, _outcome(prompt.output))

    def _apart(self, jobs: Sequence[Job], failure: CrucibleError, *, company: int) -> None:
        """What failed in company begins again alone; what was alone has failed."""
        for job in jobs:
            if company == 1:
                self._answer(job, failure)
            else:
                job.alone = True
                self._scheduler.again(job)


def _fitting(first: Job, token_cap: int, cache_tokens: int) -> Callable[[Job], bool]:
    """Which waiting samples go into one batch with the first; they are counted as they are
    taken."""
    bucket = prompt_bucket(_sample(first))
    tokens = sequences = extent = 0

    def fits(job: Job) -> bool:
        nonlocal tokens, sequences, extent
        request = job.operation
        if not isinstance(request, Sample) or prompt_bucket(request) != bucket:
            return False
        count = sequences + request.num_samples
        longest = max(extent, cache_extent(request))
        if job is not first:
            full = tokens + bucket > token_cap or count > MAX_SEQUENCES
            full = full or count * longest > cache_tokens
            if full or job.alone or first.alone:
                return False
        tokens, sequences, extent = tokens + bucket, count, longest
        return True

    return fits


def _sample(job: Job) -> Sample:
    assert isinstance(job.operation, Sample)
    return job.operation


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _outcome(work: Callable[[], _Made]) -> _Made | CrucibleError:
    """What `work` makes; whatever goes wrong becomes an error to report, and the thread lives."""
    try:
        return work()
    except CrucibleError as e:
        return e
    except Exception as e:  # noqa: BLE001 - the border of the engine's thread
        _log.exception("an operation failed")
        return OperationFailedError(_text(e), category="server")


def _failure(work: Callable[[], None]) -> CrucibleError | None:
    return _outcome(work)
