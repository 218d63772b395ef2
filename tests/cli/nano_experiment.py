"""A small experiment on base `nano`, in this process: no Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crucible_tinkex import Experiment

SPACE = {"lora.rank": [2], "optimizer.learning_rate": [1e-3, 3e-3]}


def make_experiment(folder: Path, *, steps: int = 4, **run: Any) -> Experiment:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"prompt": f"{i:03}>", "completion": f"{i:03}"[::-1]}) for i in range(30)]
    (folder / "train.jsonl").write_text("\n".join(rows[:24]))
    (folder / "eval.jsonl").write_text("\n".join(rows[24:]))
    return Experiment.build(
        {
            "name": "small",
            "service": {"base_url": "embedded", "dtype": "fp32", "threads": 1},
            "model": {"base": "nano"},
            "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
            "train": {"max_steps": steps, "epochs": 1000, "batch_size": 4, "checkpoint_every": 2},
            "search": {"space": SPACE},
            "run": {"executor": "local", "storage": "runs", **run},
        },
        folder=folder,
    )


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)
