"""Sweeps whose trials learn, or are scored, by the user's code beside the experiment."""

from __future__ import annotations

import json

import pytest
from nano_sweeps import LOCAL, Workspace

from crucible_tinkex import user_calls

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


HANGING = """
import sys, threading, time
from crucible_tinkex.training.losses.custom import nll

def prepared():
    return threading.current_thread() is threading.main_thread()

def exits(row, completion, config):
    return 1.0 if prepared() else sys.exit(3)

def spins(batch):
    while not prepared():
        pass
    return nll()(batch)

def sleeps(answer, row):
    time.sleep(60)
"""


def test_code_that_hangs_or_exits_harms_its_trial_only_without_ray(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_calls, "DEADLINE_S", 1.0)
    (workspace.folder / "hanging.py").write_text(HANGING)
    space = {
        "train.loss": ["cross_entropy", "hanging:spins"],
        "train.token_weights": ["uniform", "hanging:exits"],
    }
    axes = ", ".join(f'"{key}" = {json.dumps(values)}' for key, values in space.items())
    settings = ("train.max_steps=2", "train.eval_every=0", f"search.space={{{axes}}}")
    run = ["run", "nano.toml", *LOCAL, "--json"]
    ended = workspace.here(*run, *(part for s in settings for part in ("--set", s)))
    assert ended.returncode == 1, ended.stderr
    found = {
        tuple(t["config"][key] for key in space): (t["state"], t["error"])
        for t in json.loads(ended.stdout)["trials"]
        if t["config"]
    }
    assert found.pop(("cross_entropy", "uniform"))[0] == "done"
    state, error = found.pop(("hanging:spins", "uniform"))
    assert state == "failed" and "the custom loss did not return within 1 s" in error
    for state, error in found.values():
        assert state == "failed" and "hanging:exits: unexpected SystemExit(3)" in error


def test_a_scorer_that_hangs_fails_by_name_without_ray(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_calls, "DEADLINE_S", 0.5)
    (workspace.folder / "hanging.py").write_text(HANGING)
    settings = (
        *("train.max_steps=2", "train.eval_every=0", "search.reference=false"),
        *('evaluation.metrics=["hanging:sleeps"]', "evaluation.max_tokens=2"),
        'search.space={"lora.rank" = [2]}',
    )
    run = ["run", "nano.toml", *LOCAL, "--json"]
    ended = workspace.here(*run, *(part for s in settings for part in ("--set", s)))
    assert ended.returncode == 1, ended.stderr
    (trial,) = json.loads(ended.stdout)["trials"]
    assert trial["state"] == "failed"
    assert "hanging:sleeps, row " in trial["error"] and "within 0.5 s" in trial["error"]
