"""One trial on the fake service, over as many attempts and hosts as a test wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from memory_registry import MemoryRegistry, Trial

from crucible_tinkex.client.http.watch import Observer
from crucible_tinkex.config import Experiment
from crucible_tinkex.datasets import TokenisedDataset
from crucible_tinkex.events import KINDS
from crucible_tinkex.testing import FakeBackend, FakeService
from crucible_tinkex.training.data import SweepData
from crucible_tinkex.training.host import SessionHost
from crucible_tinkex.training.outcome import Outcome
from crucible_tinkex.training.plan import TrialPlan, trial_identity

STEPS = 10


class ListSink:
    """Remembers events; `durable` is how many had been emitted at the last flush."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.durable = 0
        self.error: Exception | None = None
        """What `flush` raises."""

    def emit(self, kind: str, **fields: Any) -> None:
        assert kind in KINDS
        self.events.append({"kind": kind, **fields})

    async def flush(self) -> None:
        if self.error is not None:
            raise self.error
        self.durable = len(self.events)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["kind"] == kind]

    def curve(self, name: str) -> dict[int, float]:
        """The newest value per step."""
        return {e["step"]: e["value"] for e in self.events if e.get("name") == name}


def dataset(
    rows: Sequence[Sequence[int]], *, prompt: int = 4, eos_id: int = 0, ends: bool = True
) -> TokenisedDataset:
    """Rows of tokens of which the first `prompt` are read only; `ends` adds the end token."""
    full = [[*row, eos_id] if ends else list(row) for row in rows]
    lengths = [len(row) for row in full]
    return TokenisedDataset(
        tokens=np.concatenate([np.array(row, np.int32) for row in full]),
        mask=np.concatenate([np.array([i >= prompt for i in range(n)], np.uint8) for n in lengths]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_lengths=np.full(len(full), prompt, np.int32),
        eos_id=eos_id,
        truncated=0,
        has_prompts=True,
        fingerprint="x",
    )


def counting(rows: int, *, start: int = 1) -> list[list[int]]:
    """Rows of six tokens that count on from different numbers, modulo 50."""
    return [[(start + 3 * r + i) % 50 + 1 for i in range(6)] for r in range(rows)]


DATA = SweepData(dataset(counting(20)), dataset(counting(5)), "fingerprint", None)


def make_plan(
    *,
    reference: bool = False,
    seed: int = 0,
    index: int = 0,
    run: dict[str, Any] | None = None,
    **train: Any,
) -> TrialPlan:
    declared = {
        "name": "s",
        "model": {"base": "nano"},
        "data": {"train": "x", "eval": "y"},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"max_steps": STEPS, "epochs": 99, "batch_size": 4, **train},
        "run": run or {},
    }
    experiment = Experiment.build(declared)
    return TrialPlan(
        trial_id=trial_identity(
            experiment, seed, "f", total_steps=0 if reference else STEPS, reference=reference
        ),
        index=index,
        run_name=f"run-{index}-{seed}",
        values={},
        seed=seed,
        total_steps=0 if reference else STEPS,
        experiment=experiment,
        reference=reference,
    )


class Bench:
    """`advance` works on a host that lives until `leave`; `finish` does all in one."""

    def __init__(
        self,
        *,
        data: SweepData = DATA,
        failures: Any = (),
        backend: type[FakeBackend] = FakeBackend,
        **train: Any,
    ) -> None:
        self.data = data
        self.plan = make_plan(**train)
        self.backend = backend(failures=failures)
        self.registry = MemoryRegistry()
        self.sink = ListSink()
        self.observer = Observer()
        self.services: list[FakeService] = []
        self.now = 0.0

    def clock(self) -> float:
        self.now += 0.25
        return self.now

    def connect(self, observer: Observer) -> FakeService:
        self.observer = observer
        self.services.append(FakeService(self.backend, observer=observer))
        return self.services[-1]

    def host(self, **options: Any) -> SessionHost:
        return SessionHost(
            connect=options.pop("connect", self.connect),
            registry=self.registry,
            sink=self.sink,
            data=self.data,
            sweep="s",
            clock=self.clock,
            **options,
        )

    async def run(self, *rungs: int) -> Outcome:
        """All of the trial on a host of its own, rung by rung; the last outcome."""
        host = self.host()
        outcome = None
        for rung in rungs or (self.plan.total_steps,):
            outcome = await host.advance(self.plan, rung)
        await host.aclose()
        assert outcome is not None
        return outcome

    @property
    def trial(self) -> Trial:
        return self.registry.trial(self.plan.trial_id)


Make = Callable[..., Bench]
