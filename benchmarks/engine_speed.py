"""Training speed of the embedded engine: N adapters together, one by one, and under `peft`.

All three train the same base in the same dtype on the same rows in this process: forward, backward
and AdamW for each of N adapters of rank 8 on all seven linear layers. Tokens per second of wall
time, one thread. "Together" is what the engine makes of requests that are all in its queue; how
many of them share a pass is its own choice.
"""

from __future__ import annotations

import gc
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch

from benchmarks.rounds import Rounds
from crucible_tinkex.server import bases
from crucible_tinkex.server.engine.engine import TorchEngine
from crucible_tinkex.server.engine.launch import DTYPES, fastest_dtype
from crucible_tinkex.server.operations import (
    Adam,
    CreateModel,
    ForwardBackward,
    IntArray,
    LoraSpec,
    Operation,
    OptimStep,
    Outcome,
    Row,
)
from crucible_tinkex.server.store.store import Store

SHAPES = ((1, 16), (2, 32), (8, 64))
"""Rows and tokens per row of each adapter's batch."""
CASES = {
    "nano": [(*shape, n) for shape in SHAPES for n in (1, 4, 8, 16)],
    "smollm2-135m-instruct": [
        (1, 16, 1),
        (1, 16, 8),
        (2, 32, 1),
        (2, 32, 4),
        (8, 64, 1),
        (8, 64, 2),
    ],
}
"""Rows, tokens per row and adapters."""
BUDGET_S = {"nano": 1.5, "smollm2-135m-instruct": 6.0}
"""Per case."""
SPEC = LoraSpec(rank=8, seed=0, train_unembed=False)


def batch(rows: int, length: int) -> tuple[Row, ...]:
    draw = np.random.default_rng(0)
    ids = draw.integers(3, 250, size=(rows, length + 1))
    ones = np.ones(length, np.float32)
    return tuple(Row(r[:-1], r[1:], {"weights": ones}) for r in ids)


class Ours:
    """The engine behind the HTTP app, without HTTP."""

    def __init__(self, base: str, folder: Path, dtype: torch.dtype) -> None:
        self._engine = TorchEngine(bases.ensure_base(base), Store(folder), dtype=dtype)
        self._made: set[str] = set()

    def together(self, count: int, rows: tuple[Row, ...]) -> None:
        """All adapters' steps are in the queue before the first is awaited."""
        self.run([o for i in range(count) for o in self._step(i, rows)])

    def one_by_one(self, count: int, rows: tuple[Row, ...]) -> None:
        for i in range(count):
            self.run(self._step(i, rows))

    def _step(self, number: int, rows: tuple[Row, ...]) -> list[Operation]:
        name = f"s:train:{number}"
        if name not in self._made:
            self._made.add(name)
            self.run([CreateModel(name, SPEC)])
        return [
            ForwardBackward(name, rows, "cross_entropy", {}, backward=True),
            OptimStep(name, Adam(learning_rate=1e-4)),
        ]

    def run(self, operations: Sequence[Operation]) -> None:
        """Queue them all, then wait for all."""
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

    def __init__(self, base: str, count: int, dtype: torch.dtype) -> None:
        model = bases.load_model(bases.ensure_base(base), dtype)
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

    @torch.inference_mode()
    def generate(self, prompt: IntArray, count: int) -> None:
        """Greedy, exactly `count` tokens, with the first adapter."""
        ids = torch.from_numpy(prompt)[None]
        lengths = {"max_new_tokens": count, "min_new_tokens": count}
        self._model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, **lengths
        )


@dataclass(frozen=True, slots=True)
class Case:
    rows: int
    length: int
    adapters: int
    rounds: Rounds

    def cells(self) -> list[str]:
        tokens = self.adapters * self.rows * self.length
        return [
            f"{self.rows} x {self.length}",
            f"{self.adapters}",
            *(f"{self.rounds.rate(way, tokens):,.0f}" for way in ("together", "single", "peft")),
            *(f"{self.rounds.faster('together', way):.2f}" for way in ("single", "peft")),
        ]


def measure(ours: Ours, base: str, dtype: torch.dtype) -> list[Case]:
    cases = []
    for rows, length, count in CASES[base]:
        data = batch(rows, length)
        theirs = Peft(base, count, dtype)
        ways = {
            "together": lambda n=count, d=data: ours.together(n, d),
            "single": lambda n=count, d=data: ours.one_by_one(n, d),
            "peft": lambda p=theirs, d=data: p.one_by_one(d),
        }
        cases.append(Case(rows, length, count, Rounds(ways, budget_s=BUDGET_S[base])))
        del theirs, ways
        gc.collect()
    return cases


def table(base: str, dtype: str, cases: Sequence[Case]) -> str:
    lines = [
        f"Training tokens/s on `{base}`, {dtype}, one thread, LoRA rank 8:",
        "",
        "| batch per adapter | adapters | together | one by one | peft | x one by one | x peft |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [f"| {' | '.join(c.cells())} |" for c in cases])


def auto_dtype() -> str:
    """As the server chooses: bf16 where this CPU is fast at it."""
    fastest = fastest_dtype(torch.device("cpu"))
    return next(name for name, value in DTYPES.items() if value == fastest)


def run(base: str, dtype: str = "auto") -> str:
    """The table of one base."""
    torch.set_num_threads(1)
    dtype = auto_dtype() if dtype == "auto" else dtype
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(base, Path(folder), DTYPES[dtype])
        try:
            return table(base, dtype, measure(ours, base, DTYPES[dtype]))
        finally:
            ours.close()
