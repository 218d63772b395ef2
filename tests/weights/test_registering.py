"""The best trial of a sweep becomes a registered model, and the commands on models."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import in_process
import pytest
from nano_sweep import make_experiment

import crucible_tinkex as ct
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.sweep.results.registering import register_best
from crucible_tinkex.sweep.results.views.summary import read_state


def crucible(*arguments: str, code: int = 0) -> str:
    """What it prints; its errors where it is to fail."""
    done = in_process.crucible(*arguments)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def test_the_best_trial_is_registered_once(sweep: ct.Sweep, storage: Path) -> None:
    [model] = ct.ModelRegistry.open(storage).list_models("digits")
    best = sweep.best()
    assert best is not None
    entry = model.entry
    assert (entry.trial_id, entry.sweep, entry.step) == (best["id"], "small", 6)
    assert entry.checkpoint_path == best["samplers"][0]["path"]
    assert model.metrics == best["metrics"]
    assert (model.base_model, model.tags, entry.service) == ("nano", ("demo",), "embedded")
    assert entry.config == best["config"] and entry.data_fingerprint
    assert entry.lora_rank == 4, "its own, not the experiment's default"
    again = register_best(read_state(sweep.paths), sweep.paths)
    assert again is not None and again.id == "digits:1"
    found = ct.ModelRegistry.open(storage).find_for_ensemble("eval/nll", tags=["demo"])
    assert [m.id for m in found] == ["digits:1"]


def test_an_ended_sweep_that_is_asked_to_register_does(sweep: ct.Sweep, tmp_path: Path) -> None:
    shutil.copytree(sweep.paths.root.parent.parent, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "runs" / ".models")
    experiment = make_experiment(tmp_path / "copy", models={"auto_register": "later"})
    assert ct.run(experiment).exit_code == 0
    models = ct.ModelRegistry.open(tmp_path / "copy" / "runs").list_models()
    assert [m.id for m in models] == ["later:1"]


def test_wrong_names_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models\.auto_register"):
        make_experiment(tmp_path, models={"auto_register": "a/b"})
    with pytest.raises(ConfigError, match=r"models\.tags.*no spaces"):
        make_experiment(tmp_path, models={"tags": ["two words"]})


def test_the_commands(sweep: ct.Sweep, storage: Path, tmp_path: Path) -> None:
    shutil.copytree(storage / "small" / "journal", tmp_path / "small" / "journal")
    shutil.copy(storage / "small" / "resolved.json", tmp_path / "small")
    where = ("--storage", str(tmp_path))
    assert json.loads(crucible("models", "list", "--json", *where)) == []
    told = json.loads(
        crucible("models", "register", "x", "--sweep", "small", "--tag", "a", "--json", *where)
    )
    assert (told["id"], told["tags"], told["stage"]) == ("x:1", ["a"], "development")
    path = "tinker://run/sampler_weights/other"
    given = ("--base", "nano", "--metric", "eval/nll=0.001")
    assert "x:2" in crucible("models", "register", "x", "--checkpoint", path, *given, *where)
    assert "b" in crucible("models", "tag", "x:2", "b", *where)
    crucible("models", "promote", "x:1", "production", "--alias", "champion", *where)
    shown = json.loads(crucible("models", "show", "x@champion", "--json", *where))
    assert (shown["version"], shown["stage"], shown["sweep"]) == (1, "production", "small")
    assert "champion" in crucible("models", "show", "x:1", *where)
    found = json.loads(crucible("models", "find", "eval/nll", "--json", *where))
    assert [m["id"] for m in found] == ["x:2", "x:1"]
    found = json.loads(
        crucible("models", "find", "eval/nll", "--where", "eval/nll>0.01", "--json", *where)
    )
    assert [m["id"] for m in found] == ["x:1"]
    assert "x:2" in crucible("models", "list", "--tag", "b", *where)
    assert "eval/nll" in crucible("models", "list", *where).splitlines()[1]  # not by the alphabet
    folder = tmp_path / "mine"
    folder.mkdir()
    relative = os.path.relpath(folder)
    told = json.loads(
        crucible("models", "register", "y", "--checkpoint", relative, "--json", *where)
    )
    assert told["checkpoint_path"] == str(folder.resolve())


def test_commands_that_cannot_be_meant(tmp_path: Path) -> None:
    where = ("--storage", str(tmp_path))
    for arguments, told in (
        (("show", "x"), "no model 'x'"),
        (("register", "x"), "one of --sweep and --checkpoint"),
        (("register", "x", "--checkpoint", "s3://p", "--metric", "nll"), "form eval/nll=0.5"),
        (("register", "x", "--checkpoint", "no/such"), "neither a folder nor an address"),
        (("list", "--stage", "prod"), "unknown stage 'prod'"),
        (("register", "x", "--sweep", "none"), "no sweep 'none'"),
        (("promote", "x"), "give a stage"),
        (("delete", "x:1", "--yes"), "no model 'x'"),
        (("find", "nll"), "which way 'nll' is better"),
        (("find", "eval/nll", "--where", "high"), "must be like"),
    ):
        assert told in crucible("models", *arguments, *where, code=2)
