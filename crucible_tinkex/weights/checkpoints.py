"""`CheckpointManager`: the checkpoints that a sweep left on its service.

Guarantees: the journal is the one list of them; nothing is deleted before its tombstone is in the
journal, and what is protected (`retention`) is never deleted; a prune that broke off is finished by
the next one; also freed is what an ended trial announced and never committed. A sweep that runs
can be looked at, not changed. Copies elsewhere are `copies`.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from crucible_tinkex.client.interface import (
    SamplingClient,
    TrainingClient,
    TrainingService,
)
from crucible_tinkex.client.service import TinkexService
from crucible_tinkex.config import Experiment
from crucible_tinkex.errors import ConfigError, RequestRejectedError, ServiceError
from crucible_tinkex.metrics import better
from crucible_tinkex.names import SweepPaths, TinkerPath
from crucible_tinkex.protocol.listings import Checkpoint as ServiceCheckpoint
from crucible_tinkex.registry import TERMINAL, CheckpointRecord, Spent, SweepState
from crucible_tinkex.registry.records import CheckpointKind
from crucible_tinkex.registry.upkeep import Upkeep
from crucible_tinkex.sweep.keeping.decisions import tombstone
from crucible_tinkex.sweep.keeping.retention import (
    Checkpoint,
    Retention,
    best_first,
    checkpoints,
    plan,
)
from crucible_tinkex.sweep.keeping.store import registered
from crucible_tinkex.sweep.results.leaderboard import Objective
from crucible_tinkex.sweep.results.trained import Trained, chosen_trial
from crucible_tinkex.sweep.results.views.summary import existing_sweep, read_state
from crucible_tinkex.telemetry.facts import ledger as facts
from crucible_tinkex.telemetry.facts.fact import Fact
from crucible_tinkex.weights.copies import Copies, Copy
from crucible_tinkex.weights.export import fetch_adapter
from crucible_tinkex.weights.service import blocking, service_of

_GONE = (404, 410)


@dataclass(frozen=True)
class Pruning:
    """What a prune keeps and deletes. `orphans`: announced by ended trials, never committed."""

    kept: Sequence[Checkpoint]
    deleted: Sequence[Checkpoint]
    orphans: Sequence[str]


@dataclass(frozen=True)
class Verified:
    """What the service says of a checkpoint that the journal has. `wrong`: in words, or None."""

    checkpoint: Checkpoint
    there: bool
    wrong: str | None
    size_bytes: int | None = None
    expires: str | None = None


class CheckpointManager:
    """See the module. Blocks, except where a client is handed in. Holds nothing open."""

    def __init__(self, paths: SweepPaths) -> None:
        self._paths = paths

    @classmethod
    def open(cls, sweep: str, *, storage: str = "runs") -> CheckpointManager:
        """Raises `ConfigError` if there is no such sweep."""
        return cls(existing_sweep(storage, sweep))

    # --- looking ------------------------------------------------------------------------------

    @property
    def metric(self) -> str:
        """By which the sweep ranks."""
        return _ranking(read_state(self._paths), None, None)[0]

    def list_checkpoints(
        self, trial: str | None = None, *, kind: CheckpointKind | None = None
    ) -> list[Checkpoint]:
        """Trial by trial, oldest first; of one trial by its id, name or number."""
        state = read_state(self._paths)
        wanted = chosen_trial(state, trial).trial_id if trial is not None else None
        return [
            c
            for c in checkpoints(state, self._models())
            if wanted in (None, c.record.trial_id) and kind in (None, c.record.kind)
        ]

    def get_best_checkpoint(
        self,
        metric: str | None = None,
        direction: str | None = None,
        *,
        kind: CheckpointKind | None = None,
    ) -> Checkpoint:
        """Of all trials, by a metric (default: the sweep's). Raises `ConfigError` if there is no
        checkpoint, or none with a finite value."""
        state = read_state(self._paths)
        metric, direction = _ranking(state, metric, direction)
        found = checkpoints(state, self._models())
        best = best_first(found, metric, direction, kind=kind)
        if best:
            return best[0]
        names = sorted({name for c in found for name in c.record.metrics})
        if not found:
            raise ConfigError(f"sweep {self._paths.root.name!r} has no checkpoint")
        raise ConfigError(
            f"no checkpoint has a finite {metric!r}; measured: {', '.join(names) or 'nothing'}"
        )

    def verify(self, found: Sequence[Checkpoint] | None = None) -> list[Verified]:
        """Ask the service for every checkpoint of the journal, or those of `found`; one request for
        each model that saved any."""
        state = read_state(self._paths)
        found = checkpoints(state, self._models()) if found is None else found

        async def asked() -> dict[str, ServiceCheckpoint]:
            async with service_of(self._paths, self._experiment(state)) as service:
                return await _on_service(service, {_run_of(c.path) for c in found})

        there = blocking(asked()) if found else {}
        verified = [_verified(c, there.get(c.path)) for c in found]
        root = self._paths.root
        facts.record(root.parent, [_verification(v, state, root.name) for v in verified])
        return verified

    # --- keeping ------------------------------------------------------------------------------

    def pin(self, path: str, *, pinned: bool = True) -> None:
        """Keep a checkpoint whatever the rules say, or no longer."""
        with Upkeep(self._paths) as upkeep:
            record = self._known(upkeep.state, path).record
            upkeep.write(
                {"type": "pinned", "trial_id": record.trial_id, "path": path, "pinned": pinned}
            )

    def set_ttl(self, path: str, ttl_s: int | None) -> None:
        """Let the service delete a checkpoint in `ttl_s` seconds; None: never. Refused for one that
        is protected."""
        state = read_state(self._paths)
        checkpoint = self._known(state, path)
        if ttl_s is not None and checkpoint.protected:
            raise ConfigError(f"{path} must stay: {checkpoint.protected}")

        async def change() -> None:
            async with service_of(self._paths, self._experiment(state)) as service:
                await service.rest.set_ttl(path, ttl_s)

        blocking(change())
        at = None if ttl_s is None else time.time() + ttl_s
        trial_id = checkpoint.record.trial_id
        about = {"path": path, "at": at}
        facts.record_of(self._paths, "checkpoint_expiry_set", path, trial_id, {}, about)

    def prune_checkpoints(
        self,
        keep_count: int | None = None,
        metric: str | None = None,
        *,
        direction: str | None = None,
        rules: Retention | None = None,
        dry_run: bool = False,
    ) -> Pruning:
        """Keep the `keep_count` best by `metric` (default: the sweep's), or what `rules` say, and
        what is protected; delete the others on the service. `dry_run` changes nothing."""
        if (keep_count is None) == (rules is None):
            raise ConfigError("prune takes one of keep_count and rules")
        rules = rules or Retention(best=keep_count or 0)
        if dry_run:
            return self._pruning(read_state(self._paths), rules, metric, direction)
        with Upkeep(self._paths) as upkeep:
            pruning = self._pruning(upkeep.state, rules, metric, direction)
            reason = f"pruned: {rules}"
            upkeep.write(
                *(tombstone(c.record.trial_id, c.path, reason) for c in pruning.deleted),
                *(
                    tombstone(trial.trial_id, path, "never committed")
                    for trial in upkeep.state.trials.values()
                    for path in trial.intents.values()
                    if path in pruning.orphans
                ),
            )
            blocking(self._bury(upkeep))
        return pruning

    def _pruning(
        self, state: SweepState, rules: Retention, metric: str | None, direction: str | None
    ) -> Pruning:
        metric, direction = _ranking(state, metric, direction)
        found = checkpoints(state, self._models())
        kept, deleted = plan(found, rules, metric=metric, direction=direction)
        ended = [t for t in state.trials.values() if t.state in TERMINAL]
        return Pruning(kept, deleted, [p for t in ended for p in t.intents.values()])

    async def _bury(self, upkeep: Upkeep) -> None:
        """Delete everything that has a tombstone, also an older one's."""
        buried = [(t, path) for t in upkeep.state.trials.values() for path in [*t.tombstones]]
        if not buried:
            return
        experiment = self._experiment(upkeep.state)
        async with service_of(self._paths, experiment, owned=True) as service:
            for trial, path in buried:
                try:
                    await service.delete_checkpoint(path)
                except ServiceError as e:
                    raise e.with_context(checkpoint=path, again="prune continues it") from None
                upkeep.write({"type": "deleted", "trial_id": trial.trial_id, "path": path})

    # --- using --------------------------------------------------------------------------------

    async def save(
        self,
        training: TrainingClient,
        trial: str,
        step: int,
        metrics: Mapping[str, float] | None = None,
        *,
        kind: CheckpointKind = "state",
    ) -> CheckpointRecord:
        """Save a model by hand as a checkpoint of a trial of a sweep that does not run: announced,
        saved, committed. `step` is at least 1."""
        if step < 1:
            raise ConfigError(f"step is {step}; a checkpoint comes after at least 1 step")
        with Upkeep(self._paths) as upkeep:
            found = chosen_trial(upkeep.state, trial)
            name = f"{found.trial_id}-hand-step{step:08d}-{uuid.uuid4().hex[:8]}"
            folder = "weights" if kind == "state" else "sampler_weights"
            intended = str(TinkerPath(training.model_id, folder, name))
            upkeep.write({"type": "intent", "trial_id": found.trial_id, "path": intended})
            save = training.save_state if kind == "state" else training.save_for_sampler
            path = await save(name)
            record = CheckpointRecord(
                found.trial_id, found.attempt, step, path, dict(metrics or {}), kind=kind
            )
            spent = found.spends.get(found.attempt, Spent())
            upkeep.write(
                {"type": "checkpoint", "checkpoint": {**vars(record)}, "spent": {**vars(spent)}}
            )
        return record

    async def load_for_sampling(
        self, service: TrainingService, path: str | None = None
    ) -> SamplingClient:
        """A client with the weights of a checkpoint for sampling, by default the best one's."""
        if path is None:
            path = self.get_best_checkpoint(kind="sampler").path
        return await service.sampler(model_path=path)

    async def load_for_training(
        self, service: TrainingService, path: str | None = None, *, optimizer: bool = True
    ) -> TrainingClient:
        """A new model that goes on from a resumable checkpoint, by default the best."""
        if path is None:
            path = self.get_best_checkpoint(kind="state").path
        return await service.create_training_from_state(path, optimizer=optimizer)

    def copy(self, path: str, place: str | Path) -> Copy:
        """Copy the adapter of a checkpoint to a folder or a bucket; see `copies`."""
        state = read_state(self._paths)
        record = self._known(state, path).record
        copies = Copies(place, self._paths.root.name)
        if (found := copies.find(record)) and not copies.verify(found):
            return found
        trial = state.trial(record.trial_id)
        experiment = self._experiment(state).configured(trial.values)
        trained = Trained(self._paths, experiment, trial, record)
        about = {
            "sweep_id": state.meta.get("sweep_id"),
            "trial_id": record.trial_id,
            "step": record.step,
            "base_model": trained.base,
        }
        with tempfile.TemporaryDirectory() as folder:
            adapter = Path(folder) / "adapter"
            fetch_adapter(trained, adapter)
            copy = copies.put(record, adapter, about)
        size = sum(file["size_bytes"] for file in copy.files.values())
        told = {"checkpoint": path, "files": list(copy.files), "merged": False}
        subject = f"{copies.objects.url}/{copy.prefix}"
        numbers = {"bytes": size}
        facts.record_of(self._paths, "artifact_stored", subject, record.trial_id, numbers, told)
        return copy

    # --- small things -------------------------------------------------------------------------

    def _known(self, state: SweepState, path: str) -> Checkpoint:
        for checkpoint in checkpoints(state, self._models()):
            if checkpoint.path == path:
                return checkpoint
        raise ConfigError(f"no checkpoint {path!r}; `crucible checkpoints list` shows them")

    def _models(self) -> Mapping[str, Sequence[str]]:
        return registered(self._paths.root.parent)

    def _experiment(self, state: SweepState) -> Experiment:
        return Experiment.loaded(state.meta["experiment"], folder=self._paths.root)


def _ranking(state: SweepState, metric: str | None, direction: str | None) -> tuple[str, str]:
    """The sweep's own metric and direction, unless others are given."""
    objective = Objective.of(state)
    if metric in (None, objective.metric):
        return objective.metric, direction or objective.direction
    return metric or "", better(metric or "", direction)  # type: ignore[arg-type]


def _run_of(path: str) -> str:
    return TinkerPath.read(path).run_id


async def _on_service(service: TinkexService, runs: set[str]) -> dict[str, ServiceCheckpoint]:
    found = {}
    for run_id in sorted(runs):
        try:
            async for checkpoint in service.rest.checkpoints(run_id):
                found[checkpoint.tinker_path] = checkpoint
        except RequestRejectedError as e:
            if e.status not in _GONE:
                raise
    return found


def _verified(checkpoint: Checkpoint, there: ServiceCheckpoint | None) -> Verified:
    if there is None:
        return Verified(checkpoint, False, "the service does not have it")
    expires = None if there.expires_at is None else str(there.expires_at)
    found = Verified(checkpoint, True, None, there.size_bytes, expires)
    if expires and checkpoint.protected:
        return replace(found, wrong=f"it expires, and must stay: {checkpoint.protected}")
    return found


def _verification(verified: Verified, state: SweepState, sweep: str) -> Fact:
    """What was asked of the service; `expired` is what it has deleted as it was told to."""
    path, now = verified.checkpoint.path, time.time()
    expiry = state.expiries.get(path)
    is_expired = not verified.there and expiry is not None and (expiry.at or now) < now
    return Fact(
        "checkpoint_expired" if is_expired else "checkpoint_verified",
        now,
        path,
        sweep,
        verified.checkpoint.record.trial_id,
        {} if verified.size_bytes is None else {"size_bytes": verified.size_bytes},
        {"there": verified.there, "wrong": verified.wrong, "expires": verified.expires},
    )
