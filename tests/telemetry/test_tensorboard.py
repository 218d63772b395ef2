"""The files are read with TensorBoard's own code: what it would draw is what counts."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from event_trials import Trial
from google.protobuf import json_format
from tb_scalars import read_run, scalars
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment
from tensorboard.plugins.hparams import list_session_groups as groups_api
from tensorboard.util import tensor_util

from crucible_tinkex.events import Event
from crucible_tinkex.telemetry.log import EventLog
from crucible_tinkex.telemetry.query import read_events
from crucible_tinkex.telemetry.tensorboard import TensorBoardView
from crucible_tinkex.telemetry.tensorboard.configurations import Aggregate, write_configurations
from crucible_tinkex.telemetry.tensorboard.view import SHOWN_KINDS

HPARAMS = {"optimizer.learning_rate": 0.01, "lora.rank": 8, "schedule": "cosine", "bias": False}


def open_trial(
    view: TensorBoardView, t: Trial, *, attempt: int = 1, resumed_step: int = 0, **more: Any
) -> None:
    view.feed([t.start(attempt, resumed_step, hparams={**HPARAMS, **more})])


def test_scalars_have_the_events_step_and_time(tmp_path: Path, trial: Trial) -> None:
    view = TensorBoardView(tmp_path)
    open_trial(view, trial)
    events = [trial.loss(1, 1, 0.5), trial.loss(1, 2, 0.25), trial.loss(1, 2, 0.75, "eval/nll")]
    view.feed([*events, trial.end(1, 2, "done")])
    accumulator = read_run(tmp_path / "run-t1")
    assert accumulator.Tags()["scalars"] == ["train/nll", "eval/nll"]
    points = accumulator.Scalars("train/nll")
    assert [(p.step, p.value) for p in points] == [(1, 0.5), (2, 0.25)]
    assert points[0].wall_time == pytest.approx(events[0].time_us / 1e6)


def test_nothing_stays_open_between_calls(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    view = TensorBoardView(tmp_path)
    trials = [Trial(f"t{i}") for i in range(50)]
    for t in trials:
        open_trial(view, t)
    for step in (1, 2, 3):
        view.feed([t.loss(1, step, 1.0) for t in trials])
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(scalars(tmp_path)) == 150
    assert all(len(list((tmp_path / f"run-{t.trial_id}").glob("*.crucible"))) == 1 for t in trials)


def test_a_curve_does_not_double_back_after_a_resume(tmp_path: Path, trial: Trial) -> None:
    view = TensorBoardView(tmp_path)
    open_trial(view, trial)
    view.feed([trial.loss(1, step, 1.0) for step in range(1, 8)])
    open_trial(view, trial, attempt=2, resumed_step=4)
    view.feed([trial.loss(2, 5, 2.0), trial.loss(1, 8, 1.0)])  # the last from a replaced attempt
    assert sorted((step, value) for *_, step, value in scalars(tmp_path)) == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 1.0),
        (5, 2.0),
    ]


def test_another_process_goes_on_with_the_same_attempt(tmp_path: Path, trial: Trial) -> None:
    stored = TensorBoardView(tmp_path).to_json()
    for step in range(1, 11):
        view = TensorBoardView(tmp_path)
        view.load(stored)
        events = [trial.start(1, 0)] if step == 1 else []
        view.feed([*events, trial.loss(1, step, 1.0)])
        stored = json.loads(json.dumps(view.to_json()))
    assert {step for *_, step, _ in scalars(tmp_path)} == set(range(1, 11))
    assert len(list((tmp_path / "run-t1").glob("*.crucible"))) == 1


def test_the_config_is_a_code_block_that_it_cannot_break(tmp_path: Path, trial: Trial) -> None:
    view = TensorBoardView(tmp_path)
    view.feed([trial.start(1, 0, config={"prompt": "````\n# no heading"})])
    (shown,) = read_run(tmp_path / "run-t1").Tensors("config/text_summary")
    text = tensor_util.make_ndarray(shown.tensor_proto)[0].decode()
    assert text.startswith("`````\n{") and text.endswith("}\n`````")
    assert shown.step == 0


def test_charts_have_one_line_a_run_and_no_run_of_their_own(tmp_path: Path) -> None:
    view = TensorBoardView(tmp_path)
    open_trial(view, Trial("a"))
    open_trial(view, Trial("b"), extra_key=1)
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    assert set(multiplexer.Runs()) == {"run-a", "run-b"}
    assert "custom_scalars__config__" not in multiplexer.Runs()["run-b"]["tensors"]
    (declared,) = read_run(tmp_path / "run-a").Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(tensor_util.make_ndarray(declared.tensor_proto).item())
    tags = [list(chart.multiline.tag) for c in layout.category for chart in c.chart]
    assert tags == [["eval/nll"], ["eval/accuracy"], ["train/nll"], ["optim/lr"]]


class HParams:
    """The answers of the HParams plug-in for a folder, as its page gets them."""

    def __init__(self, folder: Path) -> None:
        multiplexer = EventMultiplexer()
        multiplexer.AddRunsFromDirectory(str(folder))
        multiplexer.Reload()
        provider = MultiplexerDataProvider(multiplexer, str(folder))
        self._context = backend_context.Context(
            base_plugin.TBContext(data_provider=provider, logdir=str(folder))
        )
        self._request = RequestContext()

    def columns(self) -> tuple[set[str], set[str]]:
        experiment = get_experiment.Handler(
            self._request, self._context, "", api_pb2.GetExperimentRequest(include_metrics=True)
        ).run()
        names = {info.name for info in experiment.hparam_infos}
        return names, {info.name.tag for info in experiment.metric_infos}

    def rows(self) -> list[dict[str, Any]]:
        names, metrics = self.columns()
        columns = [api_pb2.ColParams(hparam=name) for name in names]
        columns += [api_pb2.ColParams(metric=api_pb2.MetricName(tag=tag)) for tag in metrics]
        request = api_pb2.ListSessionGroupsRequest(
            start_index=0,
            slice_size=1000,
            col_params=columns,
            include_metrics=True,
            allowed_statuses=list(api_pb2.Status.values()),
        )
        answer = groups_api.Handler(self._request, self._context, "", request).run()
        return [self._row(group) for group in answer.session_groups]

    @staticmethod
    def _row(group: Any) -> dict[str, Any]:
        (session,) = group.sessions
        return {
            "name": session.name,
            "status": api_pb2.Status.Name(session.status),
            "hparams": {k: json_format.MessageToDict(v) for k, v in group.hparams.items()},
            "metrics": {m.name.tag: m.value for m in session.metric_values},
        }


def test_the_hparams_page_has_one_row_per_trial(tmp_path: Path) -> None:
    view = TensorBoardView(tmp_path)
    for index, rate in enumerate((0.1, 0.001)):
        t = Trial(f"t{index}")
        more = {"optimizer.learning_rate": rate, "note": None, "layers": [1, 2]}
        open_trial(view, t, **more)
        view.feed([t.loss(1, 1, 3.0), t.loss(1, 2, 2.0 + index), t.loss(1, 2, 0.5, "eval/nll")])
    view.feed([Trial("t0").end(1, 2, "done"), Trial("t1").end(1, 2, "paused")])
    page = HParams(tmp_path)
    assert page.columns() == (
        {*HPARAMS, "layers", "log10_lr"},
        {"train/nll", "eval/nll", "eval/accuracy"},
    )
    first, second = sorted(page.rows(), key=lambda row: str(row["name"]))
    assert first == {
        "name": "run-t0",
        "status": "STATUS_SUCCESS",
        "hparams": {
            "optimizer.learning_rate": 0.1,
            "log10_lr": -1.0,
            "lora.rank": 8.0,
            "schedule": "cosine",
            "bias": False,
            "layers": "[1, 2]",
        },
        "metrics": {"train/nll": 2.0, "eval/nll": 0.5},
    }
    assert second["metrics"] == {"train/nll": 3.0, "eval/nll": 0.5}
    assert second["status"] not in ("STATUS_SUCCESS", "STATUS_FAILURE")


def test_a_failed_trial_that_is_resumed_ends_well(tmp_path: Path, trial: Trial) -> None:
    view = TensorBoardView(tmp_path)
    open_trial(view, trial)
    view.feed([trial.loss(1, 1, 1.0), trial.end(1, 1, "failed")])
    assert HParams(tmp_path).rows()[0]["status"] == "STATUS_FAILURE"
    open_trial(view, trial, attempt=2, resumed_step=1)
    assert HParams(tmp_path).rows()[0]["status"] not in ("STATUS_SUCCESS", "STATUS_FAILURE")
    view.feed([trial.loss(2, 2, 2.0), trial.end(1, 1, "failed"), trial.end(2, 2, "done")])
    (row,) = HParams(tmp_path).rows()
    assert (row["status"], row["metrics"]) == ("STATUS_SUCCESS", {"train/nll": 2.0})


def test_a_later_process_keeps_the_columns_of_finished_trials(tmp_path: Path) -> None:
    view, later = TensorBoardView(tmp_path), TensorBoardView(tmp_path)
    open_trial(view, Trial("t1"), alpha=1.5)
    later.load(json.loads(json.dumps(view.to_json())))
    open_trial(later, Trial("t2"), beta="x")
    names, _ = HParams(tmp_path).columns()
    assert {"alpha", "beta"} < names


def test_two_trials_of_one_name_do_not_share_a_run(tmp_path: Path) -> None:
    view = TensorBoardView(tmp_path)
    for trial_id in ("a", "b"):
        t = Trial(trial_id)
        view.feed([t.start(1, 0, run_name="same"), t.loss(1, 1, 1.0)])
    assert {run for run, *_ in scalars(tmp_path)} == {"same", "same-b"}


def test_a_run_that_cannot_be_written_does_not_stop_the_others(tmp_path: Path) -> None:
    view = TensorBoardView(tmp_path)
    broken, sound = Trial("broken"), Trial("sound")
    for t in (broken, sound):
        open_trial(view, t)
    (file,) = (tmp_path / "run-broken").glob("*.crucible")
    file.unlink()
    file.mkdir()
    view.feed([broken.loss(1, 1, 1.0), sound.loss(1, 1, 1.0)])
    assert view.behind == {"broken"}
    assert "run-broken" in view.faults()[0]
    view.forget({"broken"})
    again = [broken.start(1, 0), broken.loss(1, 1, 1.0), broken.loss(1, 2, 1.0)]
    view.feed([*again, sound.loss(1, 2, 1.0)])
    assert view.faults() == ()
    assert {(run, step) for run, _, step, _ in scalars(tmp_path)} == {
        (f"run-{name}", step) for name in ("broken", "sound") for step in (1, 2)
    }
    assert HParams(tmp_path).columns()[0] >= HPARAMS.keys()  # which were in the broken run


def story() -> list[Event]:
    """Attempt 1 fails after step 5, 2 goes on from 4, 3 from 6 and measures that step again; late
    events of replaced attempts come in between, and an attempt that was never announced."""
    t = Trial("t1")
    return [
        t.start(1, 0),
        t.loss(1, 0, 9.0, "eval/nll"),
        *(t.loss(1, s, 1.0 / s) for s in range(1, 6)),
        t.loss(1, 4, 0.25, "eval/nll"),
        t.start(2, 4),
        t.loss(1, 6, 99.0),
        t.loss(1, 3, 0.75, "eval/nll"),
        *(t.loss(2, s, 2.0 / s) for s in range(5, 8)),
        t.loss(2, 4, math.nan, "eval/nll"),
        t.loss(2, 6, 0.5, "eval/nll"),
        t.start(3, 6),
        t.loss(3, 6, 0.125, "eval/nll"),
        t.loss(3, 7, 3.0),
        t.loss(4, 7, 4.0),
        t.end(3, 7, "done"),
        t.writer.event("request", trial_id="t1", name="request/x", value=1.0),
    ]


def current(events: list[Event], folder: Path) -> set[tuple[str, str, int, str]]:
    """What the view `events` has, with the precision of TensorBoard."""
    with EventLog(folder / "events") as log:
        log.append(events)
    rows = read_events(folder / "events").to_pylist()
    return {
        ("run-t1", r["name"], r["step"], str(float(np.float32(r["value"]))))
        for r in rows
        if r["kind"] in SHOWN_KINDS and r["value"] is not None
    }


@pytest.mark.parametrize("seed", range(12))
def test_equal_to_the_events_in_any_order_and_when_fed_again(tmp_path: Path, seed: int) -> None:
    chance, events = random.Random(seed), story()
    wanted = current(events, tmp_path)
    assert len(wanted) == 11
    if seed:
        first, *rest = events
        chance.shuffle(rest)
        events = [first, *rest]
    view, place = TensorBoardView(tmp_path / "tb"), chance.randrange(1, len(events))
    view.feed(events[:place])
    stored = json.loads(json.dumps(view.to_json()))
    view.feed(events[place:], again=bool(seed % 2))
    later = TensorBoardView(tmp_path / "tb")
    later.load(stored)
    later.feed(events[place:], again=True)
    assert later.faults() == ()
    assert {(*row[:3], str(row[3])) for row in scalars(tmp_path / "tb")} == wanted


def test_a_torn_end_is_cut_off_before_more_is_written(tmp_path: Path, trial: Trial) -> None:
    view = TensorBoardView(tmp_path)
    open_trial(view, trial)
    stored = view.to_json()
    events = [trial.loss(1, step, float(step)) for step in range(1, 4)]
    view.feed(events)
    (file,) = (tmp_path / "run-t1").glob("*.crucible")
    for cut in range(1, 60, 7):
        os.truncate(file, file.stat().st_size - cut)
        later = TensorBoardView(tmp_path)
        later.load(stored)
        later.feed(events, again=True)
        assert {step for *_, step, _ in scalars(tmp_path)} == {1, 2, 3}


def test_a_damaged_run_is_known_to_be_behind(tmp_path: Path, trial: Trial) -> None:
    view = TensorBoardView(tmp_path)
    open_trial(view, trial)
    view.feed([trial.loss(1, 1, 1.0)])
    (file,) = (tmp_path / "run-t1").glob("*.crucible")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    view.feed([trial.start(2, 0)])
    assert view.behind == {"t1"}


def test_how_a_trial_ended_is_a_text_of_its_run(tmp_path: Path, trial: Trial) -> None:
    view = TensorBoardView(tmp_path)
    open_trial(view, trial)
    view.feed([trial.loss(1, 1, 0.5), trial.end(1, 1, "stopped")])
    assert text(tmp_path / "run-t1", "state") == "stopped"
    open_trial(view, trial, attempt=2, resumed_step=1)
    assert "state/text_summary" not in read_run(tmp_path / "run-t1").Tags()["tensors"]


def text(run: Path, tag: str) -> str:
    (found,) = read_run(run).Tensors(f"{tag}/text_summary")
    return tensor_util.make_ndarray(found.tensor_proto).item().decode()  # type: ignore[no-any-return]


def test_configurations_have_a_run_with_a_band(tmp_path: Path) -> None:
    nll = {1: [1.0, 3.0], 2: [0.5, 1.0, 1.5]}
    stopped = Aggregate("lr = 0.1, a/b", "stopped, 0 of 2 trials done", {"eval/nll": nll})
    found = [Aggregate("lr = 0.01", "done", {"eval/nll": {2: [0.25]}}), stopped]
    for _ in range(2):  # written anew, not added to
        write_configurations(tmp_path, [*found, Aggregate("nothing", "pending", {})], time_s=1.0)
    assert scalars(tmp_path / "configurations") == {
        ("001-lr=0.01", tag, 2, 0.25) for tag in ("eval/nll", "eval/nll_min", "eval/nll_max")
    } | {
        ("002-lr=0.1,a_b", f"eval/nll{end}", step, value)
        for end, values in (("", (2.0, 1.0)), ("_min", (1.0, 0.5)), ("_max", (3.0, 1.5)))
        for step, value in zip((1, 2), values, strict=True)
    }
    run = tmp_path / "configurations" / "002-lr=0.1,a_b"
    assert text(run, "state") == "stopped, 0 of 2 trials done"
    assert "custom_scalars__config__" in read_run(run).Tags()["tensors"]
