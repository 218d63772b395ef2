"""One trial's loop on the in-memory service: order, milestones, resume, drain, failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible_tinkex.client.watch import ACTIVE, Observer, QueueState, RequestRecord
from crucible_tinkex.config import Experiment
from crucible_tinkex.datasets import TokenisedDataset
from crucible_tinkex.errors import SessionLostError, StaleAttemptError, TrialFailedError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import DONE, AttemptGrant, CheckpointRecord, Registry
from crucible_tinkex.session import Session, SweepData
from crucible_tinkex.testing import FakeBackend, FakeService
from crucible_tinkex.trial import TrialPlan, plan_trials


class LocalRegistry:
    """The registry without an actor in between."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    async def start_attempt(self, trial_id: str) -> AttemptGrant:
        return self.registry.start_attempt(trial_id)

    async def commit_checkpoint(self, checkpoint: CheckpointRecord) -> None:
        self.registry.commit_checkpoint(checkpoint)

    async def record_result(
        self, trial_id: str, attempt: int, step: int, metrics: Mapping[str, float]
    ) -> None:
        self.registry.record_result(trial_id, attempt, step, metrics)

    async def finish(self, trial_id: str, attempt: int, state: str, error: str | None) -> None:
        self.registry.finish(trial_id, attempt, state, error)


class ListSink:
    """Remembers events; `durable` is how many had been emitted at the last flush."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.durable = 0

    def emit(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, **fields})

    async def flush(self) -> None:
        self.durable = len(self.events)

    def curve(self, name: str) -> dict[int, float]:
        """The newest value per step."""
        return {e["step"]: e["value"] for e in self.events if e.get("name") == name}


def dataset(rows: int, *, length: int = 6) -> TokenisedDataset:
    total = rows * length
    return TokenisedDataset(
        tokens=np.arange(total, dtype=np.int32) % 50,
        mask=np.tile(np.array([0] * (length - 2) + [1, 1], np.uint8), rows),
        offsets=np.arange(0, total + 1, length, dtype=np.int64),
        prompt_lengths=np.full(rows, length - 2, np.int32),
        eos_id=0,
        truncated=0,
        has_prompts=True,
        fingerprint="x",
    )


DATA = SweepData(dataset(20), dataset(5))


class Bench:
    """A trial, its registry and its service, over as many attempts as a test wants."""

    def __init__(self, folder: Path, *, failures: Any = (), **train: Any) -> None:
        declared = {
            "name": "s",
            "model": {"base": "nano"},
            "data": {"train": "x", "eval": "y"},
            "optimizer": {"learning_rate": 1e-3},
            "train": {"max_steps": 10, "epochs": 99, "batch_size": 4, **train},
        }
        experiment = Experiment.build(declared)
        self.reference, self.plan = plan_trials(experiment, fingerprint="f", rows=20)
        self.backend = FakeBackend(failures=failures)
        self.registry = Registry(SweepPaths.of(folder, "s"))
        self.registry.create({}, [self.plan.record(), self.reference.record()])
        self.sink = ListSink()
        self.drain = asyncio.Event()
        self.observer = Observer()

    def session(self, plan: TrialPlan | None = None) -> Session:
        return Session(
            plan or self.plan,
            DATA,
            connect=self.connect,
            registry=LocalRegistry(self.registry),
            sink=self.sink,
            drain=self.drain,
        )

    def connect(self, observer: Observer) -> FakeService:
        self.observer = observer
        return FakeService(self.backend)

    async def run(self) -> Session:
        session = self.session()
        await session.open()
        await session.advance(self.plan.total_steps)
        await session.close(DONE)
        return session

    @property
    def record(self) -> Any:
        return self.registry.state.trial(self.plan.trial_id)


Make = Callable[..., Bench]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes benches, each in a folder of its own, and closes their registries."""
    made: list[Bench] = []

    def build(**options: Any) -> Bench:
        made.append(Bench(tmp_path / str(len(made)), **options))
        return made[-1]

    yield build
    for bench in made:
        bench.registry.close()


async def test_a_whole_trial(make: Make) -> None:
    bench = make(checkpoint_every=4, eval_every=5)
    await bench.run()
    assert [c.step for c in bench.record.checkpoints] == [4, 8, 10]
    assert bench.record.state == DONE
    assert sorted(bench.sink.curve("train/nll")) == list(range(1, 11))
    assert sorted(bench.sink.curve("eval/nll")) == [5, 10]
    assert bench.record.metrics["eval/nll"] == bench.sink.curve("eval/nll")[10]
    assert bench.backend.ends == ["success"]
    assert bench.sink.durable == len(bench.sink.events)


async def test_steps_are_submitted_ahead_and_in_order(make: Make) -> None:
    bench = make(checkpoint_every=0)
    await bench.run()
    training = [c for c in bench.backend.calls if c in ("forward_backward", "optim_step")]
    assert training == ["forward_backward", "optim_step"] * 10


@pytest.mark.parametrize("ahead", [0, 1, 3])
async def test_submitting_ahead_changes_no_number(make: Make, ahead: int) -> None:
    bench = make(submit_ahead=ahead)
    session = await bench.run()
    assert session.metrics == (await make(submit_ahead=2).run()).metrics


@pytest.mark.parametrize("lost_at", range(1, 11))
async def test_a_lost_session_resumes_to_the_same_numbers(make: Make, lost_at: int) -> None:
    whole = make(checkpoint_every=4, eval_every=5)
    await whole.run()
    failures = [("optim_step", lost_at, SessionLostError("gone"))]
    bench = make(checkpoint_every=4, eval_every=5, failures=failures)
    with pytest.raises(SessionLostError):
        await bench.run()
    await bench.run()
    assert bench.record.attempt == 2
    assert bench.record.metrics == whole.record.metrics
    for name in ("train/nll", "eval/nll"):
        assert bench.sink.curve(name) == whole.sink.curve(name)


async def test_drain_saves_where_it_stands_and_resumes_there(make: Make) -> None:
    bench = make(checkpoint_every=0)
    session = bench.session()
    await session.open()
    bench.drain.set()
    progress = await session.advance(bench.plan.total_steps)
    assert progress.drained
    assert 0 < progress.step < 10
    assert bench.record.last_checkpoint.step == progress.step
    bench.drain.clear()
    await bench.run()
    assert sorted(bench.sink.curve("train/nll")) == list(range(1, 11))


async def test_a_finished_trial_that_was_not_closed_trains_nothing_more(make: Make) -> None:
    bench = make()
    session = bench.session()
    await session.open()
    await session.advance(10)
    before = bench.backend.calls.count("optim_step")
    again = await bench.run()
    assert bench.backend.calls.count("optim_step") == before
    assert again.metrics == session.metrics
    assert bench.record.state == DONE


async def test_a_checkpoint_is_committed_after_its_telemetry_is_durable(make: Make) -> None:
    bench = make(checkpoint_every=3)
    seen: list[tuple[int, int]] = []
    commit = bench.registry.commit_checkpoint

    class Watching(LocalRegistry):
        async def commit_checkpoint(self, checkpoint: CheckpointRecord) -> None:
            seen.append((bench.sink.durable, len(bench.sink.events)))
            commit(checkpoint)

    session = bench.session()
    session._registry = Watching(bench.registry)
    await session.open()
    await session.advance(10)
    assert seen
    assert all(durable == emitted for durable, emitted in seen)


async def test_a_nan_loss_fails_the_trial_with_advice(make: Make) -> None:
    bench = make()
    session = bench.session()
    await session.open()
    training: Any = session._training
    object.__setattr__(training.weights, "excess", float("nan"))
    with pytest.raises(TrialFailedError, match=r"nan at step 1; try a lower learning rate"):
        await session.advance(10)


async def test_an_older_attempt_is_fenced(make: Make) -> None:
    bench = make()
    old = bench.session()
    await old.open()
    await bench.run()
    with pytest.raises(StaleAttemptError):
        await old.advance(10)
    assert {c.attempt for c in bench.record.checkpoints} == {2}


async def test_the_reference_is_evaluated_and_never_trained(make: Make) -> None:
    bench = make()
    session = bench.session(bench.reference)
    await session.open()
    progress = await session.advance(0)
    assert "eval/nll" in progress.metrics
    assert not progress.drained
    assert "optim_step" not in bench.backend.calls


async def test_waits_and_troubled_requests_become_events(make: Make) -> None:
    bench = make()
    await bench.run()
    quiet = RequestRecord("optim_step", "optim_step", 0.1, 0.0, 1, 200, None)
    bench.observer.on_request(quiet)
    assert not [e for e in bench.sink.events if e["kind"] in ("request", "queue_state")]
    bench.observer.on_request(quiet._replace(attempts=3, duration_s=4.5, queued_s=2.0))
    bench.observer.on_queue_state(QueueState("paused_capacity", "full"))
    bench.observer.on_queue_state(ACTIVE)
    request, paused, active = bench.sink.events[-3:]
    assert (request["kind"], request["name"]) == ("request", "request/optim_step")
    assert request["value"] == 4.5
    assert request["extra"]["attempts"] == 3
    assert (paused["kind"], paused["name"]) == ("queue_state", "paused_capacity")
    assert paused["extra"] == {"reason": "full", "resume_at": None}
    assert (paused["trial_id"], paused["attempt"], paused["step"]) == (bench.plan.trial_id, 1, 10)
    assert active["name"] == "active"
