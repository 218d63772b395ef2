"""Helpers of the server tests: an engine's client that waits, and rows of random tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from crucible_tinkex.errors import CrucibleError
from crucible_tinkex.server.engine.engine import TorchEngine
from crucible_tinkex.server.operations import (
    Adam,
    CreateModel,
    ForwardBackward,
    LoraSpec,
    Operation,
    OptimStep,
    Outcome,
    Row,
)


class Client:
    """Submits operations to an engine and waits for their outcomes."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine = engine

    def submit(self, operation: Operation) -> Callable[[], Outcome]:
        ready = threading.Event()
        found: list[Outcome] = []

        def done(outcome: Outcome) -> None:
            found.append(outcome)
            ready.set()

        self.engine.submit(operation, done)

        def result() -> Outcome:
            assert ready.wait(60), f"no answer to {type(operation).__name__}"
            return found[0]

        return result

    def all(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Outcomes of operations that are all queued before the engine can begin any."""
        with self.engine._wake:
            waiting = [self.submit(o) for o in operations]
        return [w() for w in waiting]

    def one(self, operation: Operation) -> Outcome:
        outcome = self.submit(operation)()
        if isinstance(outcome, CrucibleError):
            raise outcome
        return outcome

    def create(self, model_id: str, rank: int = 8, seed: int = 1, **targets: bool) -> None:
        self.one(CreateModel(model_id, LoraSpec(rank, seed, **targets)))

    def step(self, model_id: str, rows: tuple[Row, ...], learning_rate: float = 1e-2) -> Outcome:
        out = self.one(train(model_id, rows))
        self.one(OptimStep(model_id, Adam(learning_rate=learning_rate)))
        return out


def make_rows(seed: int, lengths: Sequence[int]) -> tuple[Row, ...]:
    rng = np.random.default_rng(seed)
    return tuple(
        Row(
            rng.integers(0, 256, n),
            rng.integers(0, 256, n),
            {"weights": (rng.random(n) * (rng.random(n) < 0.7)).astype(np.float32)},
        )
        for n in lengths
    )


def train(
    model_id: str, rows: tuple[Row, ...], *, backward: bool = True, loss: str = "cross_entropy"
) -> ForwardBackward:
    return ForwardBackward(model_id, rows, loss, {}, backward)
