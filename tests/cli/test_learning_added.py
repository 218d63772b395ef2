"""Losses, token weights and adapters that a sweep is given while it runs, or when it is over."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from nano_experiment import SPACE, make_experiment, wait_for

import crucible_tinkex as ct
from crucible_tinkex.errors import ConfigError, SweepExistsError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.sweep.preparing.preparation import extended

CODE = """
import numpy as np
from crucible_tinkex.training.adapter.tinkex import TinkexCallbacks
from crucible_tinkex.training.losses import per_token

same = per_token(lambda p: (-p, np.full_like(p, -1.0)))

def twice(row, completion, config):
    return 2.0

def picky(row, completion, config):
    raise RuntimeError("not for these rows")

def leaves(row, completion, config):
    raise SystemExit(3)

class Same(TinkexCallbacks):
    def calculate_metrics(self, results):
        return {"rows": len(results)}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "added_code", raising=False)
    file = tmp_path / "added_code.py"
    file.write_text(CODE)
    return file


def numbers(sweep: ct.Sweep) -> dict[str, dict[str, Any]]:
    trials = {t["name"]: t for t in sweep.status()["trials"] if t["config"]}
    assert {t["state"] for t in trials.values()} == {"done"}, trials
    return trials


def check_added(sweep: ct.Sweep, file: Path) -> None:
    """Each of the three learnt by what was added, and all of it is a part of the sweep."""
    trials = numbers(sweep)
    found = {
        word: t["metrics"]
        for t in trials.values()
        for word in ("same", "twice", "Same")
        if f"added_code:{word}" in t["config"].values()
    }
    assert found.keys() == {"same", "twice", "Same"}
    assert found["Same"]["train/adapter/rows"] == 1
    assert found["twice"]["train/loss"] == pytest.approx(found["twice"]["train/nll"], rel=1e-4)
    file.write_text(CODE.replace("-1.0", "-2.0"))
    with pytest.raises(SweepExistsError) as refused:
        sweep.extend({"search.seeds": [0, 1]})
    for name in ("same", "twice", "Same"):
        assert f"the source of added_code:{name}" in str(refused.value)
    file.write_text(CODE)
    again = ct.run(ct.Experiment.from_toml(sweep.paths.experiment), name="small")
    assert numbers(again).keys() == trials.keys(), "a resumed sweep knows them again"


def test_a_running_sweep_is_given_them(tmp_path: Path, module: Path) -> None:
    long = {"train.checkpoint_every": 75}
    paths = SweepPaths.of(tmp_path / "runs", "small")
    running = ct.start(extended(make_experiment(tmp_path, steps=150), long, paths))
    wait_for(lambda: sum(t.step > 2 for t in running.view.trials) == 2)
    sweep = ct.open_sweep("small", storage=str(tmp_path / "runs"))
    sweep.pause("1")  # there is something to do until all was asked
    with pytest.raises(ConfigError, match=r"training row .*not for these rows"):
        sweep.clone("2", {"train.token_weights": "added_code:picky"}, fresh=True)
    with pytest.raises(ConfigError, match="SystemExit"):
        sweep.clone("2", {"train.token_weights": "added_code:leaves"}, fresh=True)
    with pytest.raises(ConfigError, match="has no nothing"):
        sweep.extend({"search.enqueue": [{"train.loss": "added_code:nothing"}]})
    assert sweep.extend({"search.space": {**SPACE, "train.token_weights": ["added_code:twice"]}})
    for key, value in (("train.loss", "added_code:same"), ("train.adapter", "added_code:Same")):
        assert "0" in sweep.clone("2", {key: value}, fresh=True)
    sweep.unpause()
    assert running.wait(90).exit_code == 0
    check_added(sweep, module)


def test_a_finished_sweep_is_given_them(tmp_path: Path, module: Path) -> None:
    sweep = ct.run(make_experiment(tmp_path))
    with pytest.raises(ConfigError, match="has no nothing"):
        sweep.clone("1", {"train.loss": "added_code:nothing"}, fresh=True)
    sweep.clone("1", {"train.loss": "added_code:same"}, at=2)
    sweep.clone("1", {"train.adapter": "added_code:Same"}, fresh=True)
    sweep.extend({"search.space": {**SPACE, "train.token_weights": ["added_code:twice"]}})
    again = ct.run(ct.Experiment.from_toml(sweep.paths.experiment), name="small")
    assert again.status()["state"] == "done"
    check_added(sweep, module)
