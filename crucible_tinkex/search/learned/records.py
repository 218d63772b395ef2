"""What is known of trials that are over: those of this storage, and published grids.

How a record is made of a storage's sweep is `sweep.preparing.experience`'s.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

RATE, RANK = "optimizer.learning_rate", "lora.rank"

USUAL_WAY: Mapping[str, Any] = {
    "train.loss": "cross_entropy",
    "train.adapter": None,
    "lora.train_attn": True,
    "lora.train_mlp": True,
    "lora.train_unembed": False,
}
"""Settings that make a learning rate mean something else, as they usually are."""


def way_of(settings: Mapping[str, Any]) -> str:
    """What of the dotted `settings` makes a learning rate mean something else, in words; empty
    where all is usual."""
    unusual = {k: settings[k] for k, v in USUAL_WAY.items() if settings.get(k, v) != v}
    return ", ".join(f"{key} = {value}" for key, value in unusual.items())


@dataclass(frozen=True)
class Record:
    """One trial that is over. `metric`: smaller is better, and never negative."""

    base: str
    learning_rate: float
    rank: int
    batch_size: int
    steps: int
    metric: float
    sweep: str = ""
    """Trials of one sweep, base, batch size and length are compared with each other; no others."""
    way: str = ""
    """How it learns, where that is not usual; see `way_of`."""
    published: bool = False
    """By others; else it is of the storage's own sweeps."""
    outdone: bool = False
    """Stopped for the sake of others of its sweep; `metric` is no better than the best of those."""


@cache
def published() -> tuple[Record, ...]:
    """The grids that come with this package; see `recorded/README.md`."""
    folder = resources.files("crucible_tinkex.search") / "recorded"
    text = (folder / "tinker_sft_grids.csv").read_text(encoding="utf-8")
    return tuple(grid_records(text.splitlines(), sweep="tulu3"))


def grid_records(lines: Iterable[str], *, sweep: str) -> list[Record]:
    """The rows of a table like the published one, which was made with batch 128 and 780 steps."""
    return [
        Record(
            base=row["base_model"],
            learning_rate=float(row["learning_rate"]),
            rank=int(row["lora_rank"]),
            batch_size=128,
            steps=780,
            metric=float(row["test_nll"]),
            sweep=sweep,
            published=True,
        )
        for row in csv.DictReader(lines)
    ]
