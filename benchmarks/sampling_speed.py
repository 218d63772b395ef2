"""Decoding speed of the embedded engine: one sequence alone, and eight adapters' in one batch.

Greedy, from snapshots of trained adapters of rank 8; prompts of 24 tokens. Tokens per second of
wall time, one thread; `generate` is transformers' with one of the adapters loaded by peft.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.engine_speed import Ours, Peft, auto_dtype, batch
from benchmarks.rounds import Rounds
from crucible_tinkex.server.engine.launch import DTYPES
from crucible_tinkex.server.operations import Sample, SamplerSource, TakeSnapshot

ADAPTERS = 8
PROMPT = 24
NEW_TOKENS = {"nano": 64, "smollm2-135m-instruct": 24}
BUDGET_S = {"nano": 2.0, "smollm2-135m-instruct": 8.0}


def _requests(base: str) -> list[Sample]:
    draw = np.random.default_rng(0)
    return [
        Sample(
            SamplerSource(snapshot_id=f"s:sample:{i}"),
            draw.integers(3, 250, PROMPT),
            max_tokens=NEW_TOKENS[base],
            temperature=0.0,
            stop_tokens=(),
        )
        for i in range(ADAPTERS)
    ]


def run(base: str, dtype: str = "auto") -> str:
    """One row of markdown cells for `table`."""
    torch.set_num_threads(1)
    dtype = auto_dtype() if dtype == "auto" else dtype
    requests = _requests(base)
    theirs = Peft(base, 1, DTYPES[dtype])
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(base, Path(folder), DTYPES[dtype])
        try:
            ours.together(ADAPTERS, batch(1, 16))
            ours.run([TakeSnapshot(f"s:train:{i}", f"s:sample:{i}") for i in range(ADAPTERS)])
            rounds = Rounds(
                {
                    "alone": lambda: ours.run(requests[:1]),
                    "batch": lambda: ours.run(requests),
                    "generate": lambda: theirs.generate(requests[0].prompt, NEW_TOKENS[base]),
                },
                budget_s=BUDGET_S[base],
            )
        finally:
            ours.close()
    tokens = NEW_TOKENS[base]
    cells = [
        f"`{base}`, {dtype}",
        f"{rounds.rate('alone', tokens):,.0f}",
        f"{rounds.rate('batch', ADAPTERS * tokens):,.0f}",
        f"{rounds.rate('generate', tokens):,.0f}",
        f"{ADAPTERS * rounds.faster('batch', 'alone'):.2f}",
        f"{ADAPTERS * rounds.faster('batch', 'generate'):.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def table(rows: list[str]) -> str:
    heads = (
        "| | one sequence alone | 8 adapters' sequences in one batch | `generate` with peft, alone "
        "| x alone | x `generate` |"
    )
    title = f"Sampled tokens/s, one thread, prompts of {PROMPT} tokens, greedy:"
    return "\n".join([title, "", heads, "|---|---|---|---|---|---|", *rows])
