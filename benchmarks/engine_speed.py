"""Training speed of the embedded engine: N adapters together, one by one, and under `peft`.

All three train the same base (fp32) on the same rows in this process: forward, backward and AdamW
for each of N adapters of rank 8 on all seven linear layers. Tokens per second of wall time.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch

from crucible_tinkex.server import bases
from crucible_tinkex.server.engine import TorchEngine
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
from crucible_tinkex.server.store import Store

ADAPTERS = (1, 4, 8)
SHAPES = ((2, 32), (8, 64))
"""Rows and tokens per row of each adapter's batch."""
REPEATS = 5
SPEC = LoraSpec(rank=8, seed=0, train_unembed=False)


def batch(rows: int, length: int) -> tuple[Row, ...]:
    draw = np.random.default_rng(0)
    ids = draw.integers(3, 250, size=(rows, length + 1))
    ones = np.ones(length, np.float32)
    return tuple(Row(r[:-1], r[1:], {"weights": ones}) for r in ids)


class Ours:
    """The engine behind the HTTP app, without HTTP."""

    def __init__(self, base: str, folder: Path) -> None:
        self._engine = TorchEngine(bases.ensure_base(base), Store(folder), dtype=torch.float32)
        self._made: set[str] = set()

    def together(self, count: int, rows: tuple[Row, ...]) -> None:
        """All adapters' steps are in the queue before the first is awaited."""
        self._run([o for i in range(count) for o in self._step(i, rows)])

    def one_by_one(self, count: int, rows: tuple[Row, ...]) -> None:
        for i in range(count):
            self._run(self._step(i, rows))

    def _step(self, number: int, rows: tuple[Row, ...]) -> list[Operation]:
        name = f"s:train:{number}"
        if name not in self._made:
            self._made.add(name)
            self._run([CreateModel(name, SPEC)])
        return [
            ForwardBackward(name, rows, "cross_entropy", {}, backward=True),
            OptimStep(name, Adam(learning_rate=1e-4)),
        ]

    def _run(self, operations: list[Operation]) -> None:
        left = threading.Semaphore(0)
        outcomes: list[Outcome] = []

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            left.release()

        for operation in operations:
            self._engine.submit(operation, done)
        for _ in operations:
            left.acquire()
        failed = [o for o in outcomes if isinstance(o, Exception)]
        if failed:
            raise failed[0]

    def close(self) -> None:
        self._engine.close()


class Peft:
    """N adapters loaded on one base, `set_adapter` and a fused AdamW step for each in turn."""

    def __init__(self, base: str, count: int) -> None:
        model = bases.load_model(bases.ensure_base(base), torch.float32)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = peft.LoraConfig(r=8, lora_alpha=32, target_modules=targets, lora_dropout=0.0)
        self._model: Any = peft.get_peft_model(model, config, adapter_name="0")
        for i in range(1, count):
            self._model.add_adapter(str(i), config)
        self._optimizers = []
        for i in range(count):
            self._model.set_adapter(str(i))
            parameters = [p for p in self._model.parameters() if p.requires_grad]
            self._optimizers.append(torch.optim.AdamW(parameters, lr=1e-4, fused=True))

    def one_by_one(self, rows: tuple[Row, ...]) -> None:
        tokens = torch.from_numpy(np.stack([r.tokens for r in rows]))
        targets = torch.from_numpy(np.stack([r.targets for r in rows]))
        for i, optimizer in enumerate(self._optimizers):
            self._model.set_adapter(str(i))
            logits = self._model(input_ids=tokens).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), reduction="sum"
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def rates(ways: dict[str, Callable[[], None]], tokens: int) -> dict[str, float]:
    """Median tokens/s of each way; the ways take turns, so that a slow moment hits all."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(REPEATS):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return {name: tokens / statistics.median(s) for name, s in seconds.items()}


def run(base: str = "nano") -> list[dict[str, float]]:
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(base, Path(folder))
        for rows, length in SHAPES:
            data = batch(rows, length)
            for count in ADAPTERS:
                theirs = Peft(base, count)
                ways = {
                    "together": lambda n=count, d=data: ours.together(n, d),
                    "one_by_one": lambda n=count, d=data: ours.one_by_one(n, d),
                    "peft": lambda p=theirs, d=data: p.one_by_one(d),
                }
                found = rates(ways, count * rows * length)
                results.append({"rows": rows, "length": length, "adapters": count, **found})
        ours.close()
    return results


def table(results: list[dict[str, float]], base: str = "nano") -> str:
    lines = [
        f"Training tokens/s on `{base}`, fp32, one thread, LoRA rank 8:",
        "",
        "| batch per adapter | adapters | together | one by one | peft | x one by one | x peft |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        cells = [
            f"{r['rows']:.0f} x {r['length']:.0f}",
            f"{r['adapters']:.0f}",
            *(f"{r[k]:,.0f}" for k in ("together", "one_by_one", "peft")),
            f"{r['together'] / r['one_by_one']:.2f}",
            f"{r['together'] / r['peft']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
