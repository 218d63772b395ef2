"""A campaign of faults: every call that the engine makes fails once, and nobody else notices.

A tracer raises in the engine's thread where a chosen function is entered. Whatever was asked and
failed is asked again: at most one request may have failed, and then all answers, and the weights of
the bystander and of the victim, are bit for bit those of a run without fault.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from server_client import Client, make_rows, train

import crucible_tinkex.server.engine.engine as engine_module
from crucible_tinkex.errors import CrucibleError
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server.bases import nano
from crucible_tinkex.server.operations import (
    Adam,
    CreateModel,
    DropSnapshot,
    LoadWeights,
    LoraSpec,
    Operation,
    OptimStep,
    Outcome,
    Sample,
    SamplerSource,
    SaveWeights,
    TakeSnapshot,
    UnloadModel,
)

LAYERS = 1
FAULTS = (RuntimeError("boom"), MemoryError("boom"), OSError(28, "boom"))
SERVER = Path(engine_module.__file__).parents[1]
DIRECT = {str(SERVER / "engine" / f"{n}.py") for n in ("engine", "weights")}
"""Each call of these fails in every way; those of a pass or a batch in one."""
CALLERS = DIRECT | {str(SERVER / "engine" / f"{n}.py") for n in ("training", "sampling")}
BOOKKEEPING = {str(SERVER / "engine" / f"{n}.py") for n in ("engine", "scheduler")}
"""A fault of these ends the thread, which `test_server_engine_faults` looks at."""


class Faults:
    """Traces the engine's thread; raises `fault` at the n-th call of `target`."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.direct: set[str] = set()
        self.target = ("", 0)
        self.fault: Exception = FAULTS[0]
        self.has_fired = False

    def arm(self, client: Client, target: tuple[str, int], fault: Exception) -> None:
        """The engine's thread sets its tracer itself: Python drops one that has raised."""
        client.submit(UnloadModel("nobody"))()
        self.calls.clear()
        self.target, self.fault, self.has_fired = target, fault, False
        client.engine.submit(UnloadModel("nobody"), lambda _: sys.settrace(self._trace))

    def disarm(self, client: Client) -> None:
        client.engine.submit(UnloadModel("nobody"), lambda _: sys.settrace(None))
        client.submit(UnloadModel("nobody"))()

    def _trace(self, frame: FrameType, event: str, arg: Any) -> None:
        code, caller = frame.f_code, frame.f_back
        if caller is None or caller.f_code.co_filename not in CALLERS:
            return
        path = Path(code.co_filename)
        if SERVER not in path.parents or code.co_filename in BOOKKEEPING or "<" in code.co_qualname:
            return
        name = f"{path.stem}.{code.co_qualname}"
        self.calls[name] += 1
        if caller.f_code.co_filename in DIRECT:
            self.direct.add(name)
        if not self.has_fired and (name, self.calls[name]) == self.target:
            self.has_fired = True
            raise self.fault


def _until_done(client: Client, operations: list[Operation]) -> tuple[list[Outcome], int]:
    """Ask again what failed; also how many did."""
    outcomes = client.all(operations)
    failed = [i for i, o in enumerate(outcomes) if isinstance(o, CrucibleError)]
    for i in failed:
        outcomes[i] = client.one(operations[i])
    return outcomes, len(failed)


def _story(client: Client, run: int) -> tuple[list[Any], list[torch.Tensor], int]:
    """Two models live through everything: their answers, weights, and how much had failed."""
    victim, bystander, other = f"victim-r{run}", f"bystander-r{run}", f"other-r{run}"
    state, sampler = TinkerPath(victim, "weights", "x"), TinkerPath(victim, "sampler_weights", "x")
    prompt = make_rows(9, (6,))[0].tokens

    def sample(source: SamplerSource, count: int) -> Sample:
        return Sample(source, prompt, count, 0, 3, 1, stop_tokens=(), prompt_logprobs=True)

    chapters: list[list[Operation]] = [
        [CreateModel(bystander, LoraSpec(4, 1)), CreateModel(victim, LoraSpec(4, 2))],
        [train(bystander, make_rows(1, (9, 4)))],
        [train(victim, make_rows(2, (9, 30, 20))), train(bystander, make_rows(3, (12, 5)))],
        [OptimStep(victim, Adam(learning_rate=1e-2))],
        [train(victim, make_rows(5, (7,)), backward=False)],
        [SaveWeights(victim, state), TakeSnapshot(bystander, bystander)],
        [SaveWeights(victim, sampler), LoadWeights(other, state, True)],
        [
            sample(SamplerSource(path=sampler), 2),
            sample(SamplerSource(snapshot_id=bystander), 1),
            sample(SamplerSource(), 3),
        ],
        [train(other, make_rows(4, (8,))), train(bystander, make_rows(6, (8,)))],
        [UnloadModel(other), OptimStep(bystander, Adam(learning_rate=1e-2))],
        [DropSnapshot(bystander), train(bystander, make_rows(7, (11,)), backward=False)],
    ]
    answers: list[Any] = []
    failures = 0
    for chapter in chapters:
        outcomes, failed = _until_done(client, chapter)
        answers += [repr(o).replace(f"r{run}", "") for o in outcomes]
        failures += failed
    adapters = client.engine.weights.adapters
    return answers, [adapters[n].weights.clone() for n in (victim, bystander)], failures


@pytest.fixture
def client(start: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Chunks of 32 tokens, two sequences a batch; spilling, once it failed, is soon tried again.
    Of one layer: the same calls as with four, in less than half of the time."""
    config = nano.config()
    config.num_hidden_layers = LAYERS
    monkeypatch.setattr(nano, "config", lambda: config)
    logging.disable(logging.CRITICAL)
    hours = count(0.0, 3600.0)
    cache_bytes = 2 * 2 * 2 * 24 * LAYERS * 2 * 32 * 4
    yield start(token_cap=32, cache_bytes=cache_bytes, clock=hours.__next__, idle_s=1e9)
    logging.disable(logging.NOTSET)


def test_every_call_fails_once(client: Client) -> None:
    faults = Faults()
    faults.arm(client, ("", 0), FAULTS[0])
    answers, weights, failures = _story(client, 1000)
    assert failures == 0
    calls = dict(faults.calls)
    assert len(calls) > 60 and len(faults.direct) > 20 and calls["training.run_pass"] > 4, calls
    plan = [
        (name, 1 + (times - 1) // 2 * (i % 2), FAULTS[i % 3])
        for i, (name, times) in enumerate(calls.items())
        if name not in faults.direct
    ]
    plan += [(name, 1, fault) for name in sorted(faults.direct) for fault in FAULTS]
    noticed = 0
    for run, (name, number, fault) in enumerate(plan, 1001):
        faults.arm(client, (name, number), fault)
        found = _story(client, run)
        assert faults.has_fired, (name, number)
        assert found[0] == answers, (name, number)
        assert all(map(torch.equal, found[1], weights)), (name, number)
        assert found[2] <= 1, (name, number)
        noticed += found[2]
    faults.disarm(client)
    assert noticed > len(plan) / 4
