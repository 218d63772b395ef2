"""All weights that an engine holds beside its base: models' adapters, snapshots, checkpoints.

Guarantees: an operation that raises has changed nothing; a checkpoint whose files are not those
that were saved is refused; models and snapshots beyond the memory's budget lie on disk, but only
`spill` puts them there, so nothing that a pass uses disappears under it. Used by the engine's
thread only.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime

from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server.model.adapters import Adapter, FrozenAdapter
from crucible_tinkex.server.model.base_model import BaseModel
from crucible_tinkex.server.operations import (
    CreateModel,
    Done,
    DropSnapshot,
    LoadWeights,
    ModelReady,
    Operation,
    OptimStep,
    Result,
    SamplerSource,
    Saved,
    SaveWeights,
    StepOutput,
    TakeSnapshot,
    UnloadModel,
    refused,
)
from crucible_tinkex.server.store import adapter_files
from crucible_tinkex.server.store.residents import Residents, spill, spill_folder
from crucible_tinkex.server.store.store import Manifest, Store, expiry

MAX_LOADED = 16
"""Checkpoints that are kept for sampling."""
MEMORY_BYTES = 4 * 1024**3
"""Memory of models and snapshots; what was not used longest lies on disk."""
IDLE_S = 900.0
"""Models and snapshots that were not used for so long go to disk in any case."""
_SPILL_RETRY_S = 60.0
_log = logging.getLogger(__name__)


class Weights:
    """`adapters` by model id, `snapshots` by theirs."""

    def __init__(
        self,
        model: BaseModel,
        store: Store,
        *,
        memory_bytes: int = MEMORY_BYTES,
        idle_s: float = IDLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self.store = store
        self._memory_bytes = memory_bytes
        self._idle_s = idle_s
        self._clock = clock
        self.spill_folder = spill_folder(store.data_dir)
        self.adapters = Residents(self.spill_folder / "models", adapter_files.ADAPTERS, clock)
        self.snapshots = Residents(self.spill_folder / "snapshots", adapter_files.SNAPSHOTS, clock)
        self._spill_after_s = 0.0
        self._loaded: OrderedDict[tuple[TinkerPath, str], FrozenAdapter] = OrderedDict()

    def close(self) -> None:
        shutil.rmtree(self.spill_folder, ignore_errors=True)

    def spill(self) -> None:
        """Call it between passes, because a pass holds on to its adapters."""
        now = self._clock()
        if now < self._spill_after_s:
            return
        self._spill_after_s = now + _SPILL_RETRY_S  # unless it works
        pools = (self.adapters, self.snapshots)
        spill(pools, budget_bytes=self._memory_bytes, older_than_s=now - self._idle_s)
        self._spill_after_s = 0.0

    def adapter(self, model_id: str) -> Adapter:
        """Raises `RequestRejectedError` (404) if there is none."""
        adapter = self.adapters.get(model_id)
        if adapter is None:
            raise refused(f"model {model_id} does not exist", 404)
        return adapter

    def source(self, source: SamplerSource) -> FrozenAdapter | None:
        """What to sample from; None: the base."""
        if source.snapshot_id is not None:
            snapshot = self.snapshots.get(source.snapshot_id)
            if snapshot is None:
                raise refused(f"sampling session {source.snapshot_id} does not exist", 404)
            return snapshot
        if source.path is None:
            return None
        manifest = self._checked(source.path)
        key = (source.path, manifest.sha256)
        if key not in self._loaded:
            layout = self._model.layout(manifest.spec)
            weights = adapter_files.read_weights(self.store.folder(source.path), manifest, layout)
            weights = weights.to(self._model.device)
            self._loaded[key] = FrozenAdapter(manifest.spec, layout, weights, self._model.dtype)
        self._loaded.move_to_end(key)
        if len(self._loaded) > MAX_LOADED:
            self._loaded.popitem(last=False)
        return self._loaded[key]

    def execute(self, operation: Operation) -> Result:
        """Whatever is asked of one model or snapshot and needs no pass."""
        match operation:
            case CreateModel(model_id, spec):
                weights = self._model.initial_weights(spec)
                layout = self._model.layout(spec)
                self.adapters[model_id] = Adapter(spec, layout, weights, self._model.dtype)
                return ModelReady(model_id)
            case LoadWeights():
                return self._load(operation)
            case OptimStep(model_id, adam):
                return StepOutput(self.adapter(model_id).step(adam))
            case SaveWeights():
                return self._save(operation)
            case TakeSnapshot(model_id, snapshot_id):
                self.snapshots[snapshot_id] = self.adapter(model_id).frozen().copy()
                return Saved(sampler_id=snapshot_id)
            case UnloadModel(model_id):
                self.adapters.drop(model_id)
            case DropSnapshot(snapshot_id):
                self.snapshots.drop(snapshot_id)
            case _:
                raise AssertionError(operation)
        return Done()

    def _load(self, operation: LoadWeights) -> Result:
        manifest = self._checked(operation.path)
        layout, folder = self._model.layout(manifest.spec), self.store.folder(operation.path)
        weights = adapter_files.read_weights(folder, manifest, layout).to(self._model.device)
        m, v, steps = None, None, 0
        if operation.optimizer:
            if not manifest.optimizer:
                raise refused(f"{operation.path} holds no optimizer state", 400)
            (m, v), steps = adapter_files.read_moments(folder, manifest, layout), manifest.steps
        adapter = self.adapters.get(operation.model_id)
        if adapter is None or adapter.spec != manifest.spec:
            adapter = Adapter(manifest.spec, layout, weights, self._model.dtype)
        adapter.restore(weights, m, v, steps)
        self.adapters[operation.model_id] = adapter
        return ModelReady(operation.model_id, operation.path)

    def _checked(self, path: TinkerPath) -> Manifest:
        manifest = self.store.info(path)
        if manifest.base_model != self._model.info.name:
            raise refused(f"{path} belongs to base model {manifest.base_model}", 400)
        return manifest

    def _save(self, operation: SaveWeights) -> Result:
        adapter = self.adapter(operation.model_id)
        optimizer = operation.path.kind == "weights"
        manifest = Manifest(
            tinker_path=str(operation.path),
            base_model=self._model.info.name,
            spec=adapter.spec,
            steps=adapter.steps,
            optimizer=optimizer,
            created=datetime.now(UTC).isoformat(),
            expires=expiry(operation.ttl_seconds),
            user_metadata=operation.user_metadata,
        )
        saved = self.store.save(
            manifest,
            lambda folder: adapter_files.write_adapter(adapter, folder, optimizer=optimizer),
            overwrite=operation.overwrite,
        )
        return Saved(path=operation.path, size_bytes=saved.size_bytes)
