"""A small sweep on base `nano`, in this process, that several tests look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import crucible_tinkex as ct

SPACE = {"lora.rank": [2, 4], "optimizer.learning_rate": [3e-3]}


def make_experiment(folder: Path, **sections: Any) -> ct.Experiment:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"prompt": f"{i:03}>", "completion": f"{i:03}"[::-1]}) for i in range(30)]
    (folder / "train.jsonl").write_text("\n".join(rows[:24]))
    (folder / "eval.jsonl").write_text("\n".join(rows[24:]))
    declared: dict[str, Any] = {
        "name": "small",
        "service": {"base_url": "embedded", "dtype": "fp32", "threads": 1},
        "model": {"base": "nano"},
        "lora": {"train_unembed": True},
        "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
        "train": {"max_steps": 6, "batch_size": 4, "checkpoint_every": 2, "eval_every": 2},
        "search": {"space": SPACE},
        "run": {"executor": "local", "storage": "runs"},
    }
    for name, section in sections.items():
        declared[name] = {**declared.get(name, {}), **section}
    return ct.Experiment.build(declared, folder=folder)
