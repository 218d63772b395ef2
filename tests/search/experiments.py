"""Experiments with a search, and nothing else of interest."""

from __future__ import annotations

from typing import Any

from crucible_tinkex.config import Experiment

RATES = {"low": 1e-6, "high": 1.0, "log": True}
RATE = "optimizer.learning_rate"


def experiment(search: dict[str, Any], **sections: Any) -> Experiment:
    base = {"name": "e", "model": {"base": "nano"}, "data": {"train": "train.jsonl"}}
    return Experiment.build({**base, **sections, "search": search})
