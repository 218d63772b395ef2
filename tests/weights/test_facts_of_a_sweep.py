"""What a real sweep does to datasets, checkpoints, models and artifacts: told once, and found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from nano_sweep import make_experiment

import crucible_tinkex as ct
from crucible_tinkex.sweep.results.views.summary import read_state
from crucible_tinkex.telemetry.bridge import BridgeEvent
from crucible_tinkex.telemetry.bridge.catalogue import FACTS

RULES = {"keep_best": 1, "keep_last": 0, "ttl_days": 2.0}


def test_handlers_hear_each_fact_once_and_a_query_finds_it_once(tmp_path: Path) -> None:
    experiment = make_experiment(
        tmp_path, checkpoints=RULES, models={"auto_register": "kept"}, run={"executor": "local"}
    )
    heard: list[BridgeEvent] = []
    telemetry = ct.Telemetry(experiment.run.storage)
    telemetry.attach("mine", heard.append)
    sweep = ct.run(experiment)
    manager = sweep.checkpoints
    (first, *_) = manager.list_checkpoints(kind="state")
    manager.pin(first.path)
    manager.pin(first.path, pinned=False)
    verified = manager.verify()
    manager.copy(first.path, tmp_path / "copies")
    best = sweep.best()
    assert best is not None
    best.export(tmp_path / "adapter")
    models = ct.ModelRegistry.open(experiment.run.storage)
    models.promote("kept", "production")
    ct.run(experiment)  # nothing is left to do, so nothing is loaded again
    telemetry.detach("mine")

    state = read_state(sweep.paths)
    told = Counter(e.name for e in heard)
    assert told["dataset_registered"] == told["dataset_loaded"] == 1
    assert told["checkpoint_pruned"] == state.deleted > 0
    assert told["checkpoint_verified"] == len(verified) > 0
    assert (told["checkpoint_pinned"], told["checkpoint_unpinned"]) == (1, 1)
    assert told["artifact_stored"] == 2
    assert (told["model_registered"], told["model_promoted"]) == (1, 1)
    assert told["checkpoint_expiry_set"] == sum(e.done for e in state.expiries.values())
    for name in FACTS:
        assert telemetry.query(event_type=name).num_rows == told[name], name
    loaded = telemetry.query(event_type="dataset_loaded", experiment_id=sweep.paths.root.name)
    assert loaded["name"].to_pylist() == [state.meta["fingerprint"]]
    # Sessions ran in this process, and their handlers are the storage's, too.
    trials = {t for t, found in state.trials.items() if found.attempt}
    assert {e.metadata["trial_id"] for e in heard if e.name == "session_end"} == trials
    assert told["session_start"] == told["session_end"] == len(trials)
    steps = telemetry.query(event_type="training_step", name="train/nll").num_rows
    assert told["optim_step_stop"] == steps > 0
    assert all(e.measurements["crucible_timestamp"] > 0 for e in heard)
