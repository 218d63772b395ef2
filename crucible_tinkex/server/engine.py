"""The engine: one thread that owns the base model and all adapters and runs the operations.

Guarantees: what an operation computes does not depend on which others share its passes; an
operation that fails fails alone and never ends the thread; `submit` never blocks. Failures that are
not ours to explain are reported as category "server" and logged with their traceback.
Not here: the order of seq_ids, promises, encoding (the app's side).
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime

import torch
from tokenizers import Tokenizer

from crucible_tinkex.errors import CrucibleError, OperationFailedError, RequestRejectedError
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server import bases, files
from crucible_tinkex.server.adapters import Adapter, FrozenAdapter
from crucible_tinkex.server.choosing import Vocabulary
from crucible_tinkex.server.model import MIN_TOKENS, BaseModel
from crucible_tinkex.server.operations import (
    BaseInfo,
    CancelSample,
    CreateModel,
    Done,
    DropSnapshot,
    ForwardBackward,
    LoadWeights,
    ModelReady,
    Operation,
    OptimStep,
    Outcome,
    Result,
    Sample,
    Saved,
    SaveWeights,
    StepOutput,
    TakeSnapshot,
    UnloadModel,
)
from crucible_tinkex.server.residents import Residents, spill, spill_folder
from crucible_tinkex.server.sampling import Prompt, SampleBatch, prompt_bucket
from crucible_tinkex.server.scheduler import Batch, Job, Report, Scheduler
from crucible_tinkex.server.store import Manifest, Store, expiry
from crucible_tinkex.server.training import TrainingWork, run_pass

TOKEN_CAP = 1024
"""Tokens per pass: more would leave the CPU's cache."""
MAX_BATCHES = 2
MAX_SEQUENCES = 64
STEPS_PER_TURN = 8
MAX_LOADED = 16
MEMORY_BYTES = 4 * 1024**3
"""Memory of models and snapshots; what was not used longest lies on disk."""
IDLE_S = 900.0
"""Models and snapshots that were not used for so long go to disk in any case."""
_SPILL_RETRY_S = 60.0
_log = logging.getLogger(__name__)


class TorchEngine:
    """The `Engine` that really trains."""

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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = BaseModel(base, dtype, device)
        self._store = store
        self._token_cap = token_cap
        tokenizer = Tokenizer.from_file(str(base.tokenizer_folder / "tokenizer.json"))
        self._vocabulary = Vocabulary(tokenizer, bases.eos_tokens(base, self._model.config))
        self._memory_bytes = memory_bytes
        self._idle_s = idle_s
        self._clock = clock
        folder = spill_folder(store.data_dir)
        self._spill_folder = folder
        self._adapters = Residents(folder / "models", files.ADAPTERS, clock)
        self._snapshots = Residents(folder / "snapshots", files.SNAPSHOTS, clock)
        self._spill_after_s = 0.0
        self._loaded: OrderedDict[tuple[TinkerPath, str], FrozenAdapter] = OrderedDict()
        self._scheduler = Scheduler()
        self._inbox: list[Job] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def base(self) -> BaseInfo:
        return self._model.info

    def submit(self, operation: Operation, done: Report) -> None:
        with self._wake:
            self._inbox.append(Job(operation, done))
            self._wake.notify()

    def close(self) -> None:
        """Stop after the present piece of work."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout=10)
        shutil.rmtree(self._spill_folder, ignore_errors=True)

    def _run(self) -> None:
        while True:
            with self._wake:
                item = self._scheduler.next(max_batches=MAX_BATCHES)
                if not self._inbox and not self._closed and item is None:
                    self._wake.wait(timeout=self._idle_s)
                if self._closed:
                    return
                jobs, self._inbox = self._inbox, []
            for job in jobs:
                self._take(job)
            self._spill()
            chosen = self._scheduler.next(max_batches=MAX_BATCHES)
            if chosen is not None:
                self._turn(chosen)

    def _take(self, job: Job) -> None:
        dropped = self._scheduler.add(job)
        is_cancel = isinstance(job.operation, CancelSample)
        why = "it was cancelled" if is_cancel else "the model was unloaded"
        for other in dropped:
            other.done(_rejected(f"{why} before this could run", 410))
        if is_cancel:
            job.done(Done())

    def _spill(self) -> None:
        """Between turns, because a pass holds on to its adapters."""
        now = self._clock()
        if now < self._spill_after_s:
            return
        failure = _failure(
            lambda: spill(
                (self._adapters, self._snapshots),
                budget_bytes=self._memory_bytes,
                older_than_s=now - self._idle_s,
            )
        )
        if failure is not None:
            _log.warning("idle models stay in memory: %s", failure)
            self._spill_after_s = now + _SPILL_RETRY_S

    def _turn(self, item: Job | Batch) -> None:
        if isinstance(item, Batch):
            self._advance(item)
        elif isinstance(item.operation, Sample):
            self._start_batch(item.operation)
        elif isinstance(item.operation, DropSnapshot):
            self._scheduler.take_samples(lambda j: j is item)
            self._snapshots.drop(item.operation.snapshot_id)
            item.done(Done())
        elif isinstance(item.operation, ForwardBackward):
            self._train(item)
        else:
            operation = item.operation
            self._scheduler.finish(item)
            item.done(_outcome(lambda: self._execute(operation)))

    # --- one model -----------------------------------------------------------------------------

    def _adapter(self, model_id: str) -> Adapter:
        adapter = self._adapters.get(model_id)
        if adapter is None:
            raise _rejected(f"model {model_id} does not exist", 404)
        return adapter

    def _execute(self, operation: Operation) -> Result:
        match operation:
            case CreateModel(model_id, spec):
                weights = self._model.initial_weights(spec)
                layout = self._model.layout(spec)
                self._adapters[model_id] = Adapter(spec, layout, weights, self._model.dtype)
                return ModelReady(model_id)
            case LoadWeights():
                return self._load(operation)
            case OptimStep(model_id, adam):
                return StepOutput(self._adapter(model_id).step(adam))
            case SaveWeights():
                return self._save(operation)
            case TakeSnapshot(model_id, snapshot_id):
                self._snapshots[snapshot_id] = self._adapter(model_id).frozen().copy()
                return Saved(sampler_id=snapshot_id)
            case UnloadModel(model_id):
                self._adapters.drop(model_id)
                return Done()
            case _:
                raise AssertionError(operation)

    def _load(self, operation: LoadWeights) -> Result:
        manifest = self._checked(operation.path)
        layout, folder = self._model.layout(manifest.spec), self._store.folder(operation.path)
        device = self._model.device
        weights = files.read_weights(folder, layout).to(device)
        adapter = self._adapters.get(operation.model_id)
        if adapter is None or adapter.spec != manifest.spec:
            adapter = Adapter(manifest.spec, layout, weights, self._model.dtype)
        if operation.optimizer:
            if not manifest.optimizer:
                raise _rejected(f"{operation.path} holds no optimizer state", 400)
            m, v = files.read_moments(folder, layout)
            adapter.restore(weights, m, v, manifest.steps)
        else:
            adapter.restore(weights, None, None, 0)
        self._adapters[operation.model_id] = adapter
        return ModelReady(operation.model_id, operation.path)

    def _checked(self, path: TinkerPath) -> Manifest:
        manifest = self._store.info(path)
        if manifest.base_model != self.base.name:
            raise _rejected(f"{path} belongs to base model {manifest.base_model}", 400)
        return manifest

    def _save(self, operation: SaveWeights) -> Result:
        adapter = self._adapter(operation.model_id)
        optimizer = operation.path.kind == "weights"
        manifest = Manifest(
            tinker_path=str(operation.path),
            base_model=self.base.name,
            spec=adapter.spec,
            steps=adapter.steps,
            optimizer=optimizer,
            created=datetime.now(UTC).isoformat(),
            expires=expiry(operation.ttl_seconds),
            user_metadata=operation.user_metadata,
        )
        saved = self._store.save(
            manifest,
            lambda folder: files.write_adapter(adapter, folder, optimizer=optimizer),
            overwrite=operation.overwrite,
        )
        return Saved(path=operation.path, size_bytes=saved.size_bytes)

    # --- passes --------------------------------------------------------------------------------

    def _train(self, first: Job) -> None:
        """One pass: the next chunk of `first` and of every other model's that fits beside it."""
        parts: list[tuple[Job, TrainingWork, Adapter]] = []
        room = self._token_cap
        for job in [first, *(j for j in self._scheduler.heads() if j is not first)]:
            operation = job.operation
            if not isinstance(operation, ForwardBackward):
                continue
            if parts and operation.backward != parts[0][1].operation.backward:
                continue
            work = self._work(job, operation)
            if parts and work.chunk.size > room:
                continue  # its adapter, which may lie on disk, is not touched
            adapter = self._trained(job, operation.model_id)
            if adapter is not None:
                parts.append((job, work, adapter))
                room -= work.chunk.size
            if room < MIN_TOKENS:
                break
        if not parts:
            return
        failure = _failure(lambda: run_pass(self._model, [(w, a) for _, w, a in parts]))
        for job, work, adapter in parts:
            if failure is not None:
                adapter.drop_grad()
            if failure is not None or work.finished:
                self._scheduler.finish(job)
                job.done(failure or work.output())
            else:
                self._scheduler.requeue(job)

    def _work(self, job: Job, operation: ForwardBackward) -> TrainingWork:
        if job.work is None:
            job.work = TrainingWork(operation, self._token_cap)
        work: TrainingWork = job.work
        return work

    def _trained(self, job: Job, model_id: str) -> Adapter | None:
        """The adapter, or None and the job is over."""
        try:
            return self._adapter(model_id)
        except CrucibleError as e:
            self._scheduler.finish(job)
            job.done(e)
            return None

    # --- sampling ------------------------------------------------------------------------------

    def _start_batch(self, first: Sample) -> None:
        """Begin a batch with the oldest waiting sample and those of the same prompt bucket."""
        bucket = prompt_bucket(first)
        tokens = sequences = 0

        def fits(job: Job) -> bool:
            nonlocal tokens, sequences
            request = job.operation
            if not isinstance(request, Sample) or prompt_bucket(request) != bucket:
                return False
            full = tokens + bucket > self._token_cap
            full = full or sequences + request.num_samples > MAX_SEQUENCES
            if full and tokens:
                return False
            tokens += bucket
            sequences += request.num_samples
            return True

        prompts: list[Prompt[Report]] = []
        jobs = self._scheduler.take_samples(fits)
        self._scheduler.began(jobs)
        for job in jobs:
            request = job.operation
            assert isinstance(request, Sample)
            try:
                prompts.append(Prompt(job.done, request, self._source(request)))
            except CrucibleError as e:
                job.done(e)
        if prompts:
            batch = Batch(SampleBatch(self._model, self._vocabulary, prompts))
            self._scheduler.start(batch)
            self._advance(batch)

    def _source(self, request: Sample) -> FrozenAdapter | None:
        source = request.source
        if source.snapshot_id is not None:
            snapshot = self._snapshots.get(source.snapshot_id)
            if snapshot is None:
                raise _rejected(f"sampling session {source.snapshot_id} does not exist", 404)
            return snapshot
        if source.path is None:
            return None
        manifest = self._checked(source.path)
        key = (source.path, manifest.sha256)
        if key not in self._loaded:
            layout = self._model.layout(manifest.spec)
            weights = files.read_weights(self._store.folder(source.path), layout)
            weights = weights.to(self._model.device)
            self._loaded[key] = FrozenAdapter(manifest.spec, layout, weights, self._model.dtype)
        self._loaded.move_to_end(key)
        if len(self._loaded) > MAX_LOADED:
            self._loaded.popitem(last=False)
        return self._loaded[key]

    def _advance(self, batch: Batch) -> None:
        state: SampleBatch[Report] = batch.state
        failure = _failure(lambda: _report(state.advance(STEPS_PER_TURN)))
        if failure is not None:
            for prompt in state.pending():
                prompt.ticket(failure)
        if failure is not None or state.finished:
            self._scheduler.stop(batch)
        else:
            self._scheduler.requeue(batch)


def _report(finished: list[Prompt[Report]]) -> None:
    for prompt in finished:
        prompt.ticket(prompt.output())


def _rejected(message: str, status: int) -> RequestRejectedError:
    return RequestRejectedError(message, status=status, category="user")


def _failure(work: Callable[[], None]) -> CrucibleError | None:
    """Run `work`; whatever goes wrong becomes an error to report, and the thread lives on."""
    try:
        work()
    except CrucibleError as e:
        return e
    except Exception as e:  # noqa: BLE001 - the border of the engine's thread
        _log.exception("an operation failed")
        return OperationFailedError(f"{type(e).__name__}: {e}", category="server")
    return None


def _outcome(work: Callable[[], Result]) -> Outcome:
    results: list[Result] = []
    failure = _failure(lambda: results.append(work()))
    return failure or results[0]
