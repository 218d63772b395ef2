"""A sweep on Ray whose trials learn by code of the user's that lies beside the experiment."""

from __future__ import annotations

import json

import pytest
from nano_sweeps import Workspace

CODE = """
import numpy as np
from crucible_tinkex.training.adapter.tinkex import TinkexCallbacks
from crucible_tinkex.training.losses import per_token

same = per_token(lambda p: (-p, np.full_like(p, -1.0)))

def twice(row, completion, config):
    return config["factor"]

class Same(TinkexCallbacks):
    def calculate_metrics(self, results):
        return {"rows": len(results)}
"""


def test_losses_weights_and_an_adapter_of_the_users(workspace: Workspace) -> None:
    (workspace.folder / "own_code.py").write_text(CODE)
    axes = {
        "train.loss": ["cross_entropy", "own_code:same"],
        "train.token_weights": ["uniform", "own_code:twice"],
        "train.weight_config.factor": [2.0],
        "train.adapter": ["own_code:Same"],
    }
    space = ", ".join(f'"{key}" = {json.dumps(values)}' for key, values in axes.items())
    changes = ("train.max_steps=3", "train.eval_every=0", "optimizer.learning_rate=3e-3")
    settings = [part for change in changes for part in ("--set", change)]
    run = ("run", "nano.toml", "--set", f"search.space={{{space}}}", *settings)
    result = workspace.crucible(*run, "--json")
    assert result.returncode == 0, result.stderr
    found = {
        (t["config"]["train.loss"], t["config"]["train.token_weights"]): t["metrics"]
        for t in json.loads(result.stdout)["trials"]
        if t["config"]
    }
    plain, own = (found[loss, "uniform"] for loss in ("cross_entropy", "own_code:same"))
    weighed = found["own_code:same", "own_code:twice"]
    assert own["eval/nll"] == pytest.approx(plain["eval/nll"], abs=1e-4)
    # AdamW divides a gradient by its size, so one that is doubled everywhere teaches the same.
    assert weighed["eval/nll"] == pytest.approx(own["eval/nll"], abs=1e-3)
    assert weighed["train/loss"] == pytest.approx(weighed["train/nll"], rel=1e-5)
    assert weighed["train/adapter/rows"] == 1

    (workspace.folder / "own_code.py").write_text(CODE.replace("-1.0", "-2.0"))
    again = workspace.crucible(*run)
    assert again.returncode == 2
    assert "the source of own_code:same" in again.stderr
