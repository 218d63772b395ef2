"""Live control and clones on the embedded server, from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_process import crucible
from nano_experiment import make_experiment, wait_for

import crucible_tinkex as ct
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.sweep.launch import Launch
from crucible_tinkex.sweep.orders.control import Command, Inbox
from crucible_tinkex.sweep.orders.steering import steer
from crucible_tinkex.sweep.preparing.preparation import extended, prepare, reopened


def test_a_sweep_that_has_ended_is_cloned_extended_and_confirmed(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path)
    sweep = ct.run(experiment)
    storage = str(sweep.paths.root.parent)
    parent = sweep.best()
    assert parent
    name = str(int(parent["name"].split("-")[0]))
    cloned = crucible(
        *("clone", "small", name, "--set", "optimizer.learning_rate=2e-3", "--at", "2"),
        *("--storage", storage),
    )
    assert cloned.returncode == 0, cloned.stderr
    assert f"crucible resume small --storage {storage}`" in cloned.stdout
    assert "search.confirm" in sweep.extend({"search.confirm": 1, "search.confirm_top": 1})
    for command in ("pause", "stop", "unpause"):
        refused = crucible(command, "small", "--storage", storage)
        assert refused.returncode == 2 and "nothing was changed" in refused.stderr
    resumed = crucible("resume", "small", "--storage", storage, "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    rows = sweep.query("select * from trials order by index").to_pylist()
    child, fresh = rows[-2:]
    assert (child["parent"], child["forked_at"], child["step"]) == (parent["id"], 2, 4)
    assert (fresh["phase"], fresh["seed"], fresh["state"]) == ("confirm", 10_000, "done")
    best = sweep.status()["best_configuration"]
    assert best["phase"] == "confirm" and best["n"] == 1
    with pytest.raises(ConfigError, match="it would begin at step 4"):
        sweep.clone(name, {"optimizer.learning_rate": 5e-3})
    assert "already" in sweep.clone(name, {"optimizer.learning_rate": 2e-3}, at=3)
    assert "nothing is trained with that: budget.steps" in sweep.extend({"budget.steps": 1})


def test_a_fork_with_nothing_changed_but_the_end_repeats_its_parent_exactly(
    tmp_path: Path,
) -> None:
    """On real weights and a real optimizer: only with its moments does the child end where the
    parent does, which went the same way undisturbed."""
    experiment = make_experiment(tmp_path)
    sweep = ct.run(experiment)
    storage = str(sweep.paths.root.parent)
    sweep.clone("1", {"train.max_steps": 6}, at=2)
    assert crucible("resume", "small", "--storage", storage, "--quiet").returncode == 0
    longer = ct.run(make_experiment(tmp_path / "longer", steps=6))
    found = {t["id"]: t for t in sweep.status()["trials"]}
    [forked] = [t for t in found.values() if t["forked_at"] == 2]
    [whole] = [t for t in longer.status()["trials"] if t["name"].startswith("0001")]
    assert forked["metrics"]["eval/nll"] == whole["metrics"]["eval/nll"]


def test_a_running_sweep_hears_from_another_process(tmp_path: Path) -> None:
    running = ct.start(make_experiment(tmp_path, steps=400))
    wait_for(lambda: sum(t.step > 2 for t in running.view.trials) == 2)
    sweep = ct.open_sweep("small", storage=str(tmp_path / "runs"))
    assert sweep.pause("1") == "pause: 1 trial"
    wait_for(lambda: [t["state"] for t in sweep.status()["trials"]].count("paused") == 1)
    storage = ("--storage", str(tmp_path / "runs"))
    assert crucible("unpause", "small", *storage).stdout == "unpause: the sweep, 1 trial\n"
    assert sweep.clone("1", {"optimizer.learning_rate": 2e-3}).startswith("clone: 0003")
    assert crucible("stop", "small", "2", "3", *storage).stdout == "stop: 2 trials\n"
    refused = crucible("clone", "small", "77", "--set", "optimizer.beta1=.5", *storage)
    assert refused.returncode == 2 and "no trial '77'" in refused.stderr
    wait_for(lambda: [t["state"] for t in sweep.status()["trials"]].count("stopped") == 2)
    [listed] = json.loads(crucible("list", "--json", *storage).stdout)
    counts = {key: listed[key] for key in ("state", "trials", "done", "stopped", "failed")}
    assert counts == {"state": "running", "trials": 4, "done": 1, "stopped": 2, "failed": 0}
    told = crucible("extend", "small", "--budget", "1steps", *storage).stdout
    assert "nothing is trained with that: budget.steps" in told
    assert running.wait(60).exit_code == 3
    shown = crucible("watch", "small", "--once", *storage).stdout
    assert "crucible extend small" in shown and "steps" in shown.split("--budget ")[1]


def test_a_running_sweep_is_extended_by_epochs_of_the_rows_that_it_kept(tmp_path: Path) -> None:
    paths = SweepPaths.of(tmp_path / "runs", "small")
    settings = {"train.epochs": 1, "train.max_steps": None, "train.max_length": 8}
    experiment = extended(make_experiment(tmp_path), {**settings, "data.too_long": "drop"}, paths)
    with (tmp_path / "train.jsonl").open("a") as file:
        long = {"prompt": "1" * 20, "completion": "1"}
        file.writelines(f"\n{json.dumps({**long, 'id': str(i)})}" for i in range(4))
    prepared = prepare(experiment)
    assert prepared.planner.steps == 7
    Inbox(paths).put(Command("extend", settings={"train.epochs": 2}))
    result = Launch(prepared).run()
    assert {trial.step for trial in result.state.trials.values() if trial.values} == {12}
    # What speaks of the sweep later counts the rows that were left, too, not those of the file.
    assert reopened(paths.root.parent, "small").planner.steps == 12
    with pytest.raises(ConfigError, match="would begin at step 12 and end at 12"):
        steer(paths, Command("clone", ("1",), {"optimizer.learning_rate": 2e-3}))
