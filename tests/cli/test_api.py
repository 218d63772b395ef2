"""Sweeps from Python: a script, a thread, a running event loop; background, stop, resume."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
from nano_experiment import make_experiment

import crucible_tinkex as ct
from crucible_tinkex.errors import ConfigError, InterruptedSweepError
from crucible_tinkex.telemetry.bridge import BridgeEvent


def check_done(sweep: ct.Sweep) -> None:
    assert sweep.exit_code == 0
    assert sweep.status()["state"] == "done"
    best = sweep.best()
    assert best is not None
    assert best["config"]["optimizer.learning_rate"] in (1e-3, 3e-3)
    assert sweep.leaderboard().num_rows == 3
    assert sweep.evaluations(trial_id=best["id"]).num_rows == 6
    [counted] = sweep.query("select count(*) as n from steps where step > 0").to_pylist()
    assert counted["n"] == 8
    assert ct.open_sweep("small", storage=str(sweep.paths.root.parent)).best() == best


def test_from_a_script(tmp_path: Path) -> None:
    phases = set()
    check_done(ct.run(make_experiment(tmp_path), observer=lambda view: phases.add(view.phase)))
    assert "training" in phases


def test_from_a_thread(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as thread:
        check_done(thread.submit(ct.run, make_experiment(tmp_path)).result())


async def test_where_a_loop_runs_already(tmp_path: Path) -> None:
    assert asyncio.get_running_loop().is_running()
    check_done(ct.run(make_experiment(tmp_path)))


def test_in_the_background_with_a_stop_and_a_second_run(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path, steps=400)
    running = ct.start(experiment)
    until = time.monotonic() + 60
    while not any(t.step for t in running.view.trials) and time.monotonic() < until:
        time.sleep(0.05)
    assert running.running
    assert running.status()["state"] == "running"
    with pytest.raises(TimeoutError):
        running.wait(0.01)
    running.stop()
    stopped = running.wait(60)
    assert not running.running
    assert (stopped.exit_code, stopped.status()["state"]) == (130, "interrupted")
    running.stop()  # again, when it has ended


def test_following_the_events_of_a_running_sweep(tmp_path: Path) -> None:
    running = ct.start(make_experiment(tmp_path))
    steps = running.subscribe(event_type="training_step", name="train/nll", poll_s=0.02)
    given = [(event.trial_id, event.attempt, event.step) for event in steps]
    sweep = running.wait(60)
    assert len(given) == len(set(given)) == 8
    assert [step for trial, _, step in given if trial == given[0][0]] == [1, 2, 3, 4]
    kinds = [event.kind for event in sweep.subscribe()]
    assert kinds.count("session_end") == 3


STEPS = """
async def look(ctx):
    found = await ctx.session.evaluate([{"prompt": "001>", "completion": "100"}])
    return dict(found.metrics)

def write(ctx):
    (answer,) = ctx.session.infer("001>", max_tokens=3, temperature=0.0)
    scored = ctx.session.evaluate(
        [{"prompt": "001>", "completion": "100"}],
        scorers={"same": lambda row, text: float(text == answer.text)}, max_tokens=3,
    )
    matched = ctx.session.evaluate(
        [{"prompt": "001>", "completion": answer.text}], metrics=["exact_match"], max_tokens=3
    )
    return {
        "text": answer.text,
        "same": scored.metrics["same"] * matched.metrics["eval/exact_match"],
        "before": list(ctx.results),
        "trained": ctx.results["tinkex_training"]["final_metrics"]["eval/nll"],
    }
"""


def test_steps_of_ones_own_on_every_trained_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "api_steps.py").write_text(STEPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    experiment = make_experiment(tmp_path)
    raw = experiment.model_dump(exclude_unset=True)
    steps = {"after": ["tinkex_training", "api_steps:look", "api_steps:write"]}
    sweep = ct.run(ct.Experiment.build({**raw, "steps": steps}))
    check_done(sweep)
    found = sweep.events(kind="stage").to_pylist()
    assert [row["name"] for row in found].count("write") == 2
    results = [json.loads(row["extra"])["result"] for row in found if row["name"] == "write"]
    assert all(len(r["text"]) >= 1 and r["same"] == 1.0 and r["trained"] > 0 for r in results)
    assert [r["before"] for r in results] == [["tinkex_training", "look"]] * 2
    numbers = sweep.events(kind="evaluation", name="step/look/eval/nll")
    assert sorted(numbers["step"].to_pylist()) == [4, 4]

    wrong = ct.Experiment.build({**raw, "name": "wrong", "steps": {"after": ["api_steps:missing"]}})
    with pytest.raises(ConfigError, match="api_steps has no missing"):
        ct.run(wrong)
    assert not (sweep.paths.root.parent / "wrong").exists()


def test_a_stop_that_comes_before_it_listens_counts(tmp_path: Path) -> None:
    running = ct.start(make_experiment(tmp_path, steps=4000))
    running.stop()
    with pytest.raises(InterruptedSweepError):
        running.wait(60)


def test_what_is_wrong_is_raised_before_anything_starts(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    for begin in (ct.start, ct.run):
        with pytest.raises(ConfigError, match=r"train\.jsonl"):
            begin(experiment)
    with pytest.raises(ConfigError, match="no sweep 'small'"):
        ct.open_sweep("small", storage=str(tmp_path / "runs"))


@pytest.mark.ray
async def test_on_ray_it_is_the_same_also_to_handlers_and_where_a_loop_runs_already(
    tmp_path: Path,
) -> None:
    told = {}
    for executor in EXECUTORS:
        experiment = make_experiment(tmp_path / executor)
        heard: list[BridgeEvent] = []
        telemetry = ct.Telemetry(experiment.run.storage)
        telemetry.attach("raises", _raises, ["session_start"])
        telemetry.attach("mine", heard.append)
        check_done(ct.run(experiment, executor=executor))
        told[executor] = Counter(_as_told(e) for e in heard if e.name not in AS_IT_COMES)
        about = {e.name: set(e.metadata) for e in heard}
        assert about["optim_step_stop"] >= {"trial_id", "run_name", "learning_rate", "adapter"}
        assert {e.metadata["experiment_id"] for e in heard} == {"small", ""}
        names = [e.name for e in heard]
        assert names.count("optim_step_stop") == 2 * 4
        assert names.count("session_end") == names.count("session_start") == 3
        assert names.count("dataset_loaded") == names.count("handler_detached") == 1
        assert not telemetry.detach("raises")
    assert told["local"] == told["ray"]


EXECUTORS: tuple[Literal["local", "ray"], ...] = ("local", "ray")
AS_IT_COMES = ("http_request_stop", "http_request_exception", "queue_state")
"""A matter of time: how often it was asked for an answer."""


def _as_told(event: BridgeEvent) -> tuple[object, ...]:
    step = event.measurements.get("step", event.metadata.get("step"))
    return (event.name, event.metadata.get("trial_id"), step, *sorted(event.metadata))


def _raises(event: BridgeEvent) -> None:
    raise RuntimeError("mine")


def test_the_package_lists_its_names_and_costs_nothing_to_import() -> None:
    assert {"run", "start", "RunningSweep", "Experiment", "__version__"} <= set(dir(ct))
    assert all(getattr(ct, name) for name in dir(ct))
    code = "import sys, crucible_tinkex; print(len([m for m in sys.modules if '.' not in m]))"
    code += "; print([m for m in ('ray', 'pydantic', 'pyarrow', 'asyncio') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[1] == "[]"


WITHOUT_METADATA = """
import importlib.metadata as metadata
find = metadata.Distribution.from_name
def missing(name):
    if name.replace("_", "-") == "crucible-tinkex":
        raise metadata.PackageNotFoundError(name)
    return find(name)
metadata.Distribution.from_name = missing
import crucible_tinkex
print(crucible_tinkex.run and crucible_tinkex.__version__)
"""


def test_a_copy_that_nobody_installed_is_as_good() -> None:
    """As Ray's `working_dir` brings it."""
    told = subprocess.run(
        [sys.executable, "-c", WITHOUT_METADATA], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == ct.__version__
