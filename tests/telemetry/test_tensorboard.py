"""The files are read with TensorBoard's own code: what it would draw is what counts."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from event_trials import Trial
from google.protobuf import json_format
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment
from tensorboard.plugins.hparams import list_session_groups as groups_api
from tensorboard.util import tensor_util

from crucible_tinkex.errors import StorageError
from crucible_tinkex.events import Event
from crucible_tinkex.telemetry.log import EventLog
from crucible_tinkex.telemetry.tensorboard import Run, TensorBoardView, rebuild

HPARAMS = {"optimizer.learning_rate": 0.01, "lora.rank": 8, "schedule": "cosine", "bias": False}


def open_trial(
    view: TensorBoardView, trial_id: str, *, attempt: int = 1, resumed_step: int = 0, **more: Any
) -> None:
    view.open_run(
        trial_id,
        f"run-{trial_id}",
        hparams={**HPARAMS, **more},
        config_text='name = "x"',
        attempt=attempt,
        resumed_step=resumed_step,
    )


def read_run(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return accumulator.Reload()


def scalars(tb: Path) -> set[tuple[str, str, int, float]]:
    found = set()
    for run in tb.iterdir():
        if run.is_dir():
            accumulator = read_run(run)
            for tag in accumulator.Tags()["scalars"]:
                points = [(p.step, p.value) for p in accumulator.Scalars(tag)]
                assert len(points) == len({step for step, _ in points}), f"{tag} doubles back"
                found |= {(run.name, tag, step, value) for step, value in points}
    return found


def test_scalars_have_the_events_step_and_time(tmp_path: Path, trial: Trial) -> None:
    view = TensorBoardView(tmp_path)
    open_trial(view, "t1")
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
        open_trial(view, t.trial_id)
    for step in (1, 2, 3):
        view.feed([t.loss(1, step, 1.0) for t in trials])
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(scalars(tmp_path)) == 150
    assert all(len(list((tmp_path / f"run-{t.trial_id}").iterdir())) == 1 for t in trials)


def test_a_curve_does_not_double_back_after_a_resume(tmp_path: Path, trial: Trial) -> None:
    view = TensorBoardView(tmp_path)
    open_trial(view, "t1")
    view.feed([trial.loss(1, step, 1.0) for step in range(1, 8)])
    open_trial(view, "t1", attempt=2, resumed_step=4)
    view.feed([trial.loss(2, 5, 2.0), trial.loss(1, 8, 1.0)])  # the last from a replaced attempt
    assert sorted((step, value) for *_, step, value in scalars(tmp_path)) == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 1.0),
        (5, 2.0),
    ]
    assert view.skipped == 1


def test_files_of_one_second_do_not_truncate_each_other(tmp_path: Path, trial: Trial) -> None:
    for step in range(1, 11):  # each time a new process, as far as the files can tell
        view = TensorBoardView(tmp_path)
        open_trial(view, "t1")
        view.feed([trial.loss(1, step, 1.0)])
    assert {step for *_, step, _ in scalars(tmp_path)} == set(range(1, 11))


def test_another_process_goes_on_with_the_same_attempt(tmp_path: Path, trial: Trial) -> None:
    for attempt, resumed_step, step in ((1, 0, 3), (2, 3, 4), (2, 3, 5)):
        view = TensorBoardView(tmp_path)
        open_trial(view, "t1", attempt=attempt, resumed_step=resumed_step)
        view.feed([trial.loss(attempt, step, 1.0)])
    assert {step for *_, step, _ in scalars(tmp_path)} == {3, 4, 5}


def test_the_config_is_a_code_block_that_it_cannot_break(tmp_path: Path) -> None:
    view = TensorBoardView(tmp_path)
    text = 'prompt = "````"\n# no heading'
    view.open_run("t1", "run", hparams={}, config_text=text, attempt=1, resumed_step=0)
    (shown,) = read_run(tmp_path / "run").Tensors("config/text_summary")
    assert tensor_util.make_ndarray(shown.tensor_proto)[0].decode() == f"`````\n{text}\n`````"
    assert shown.step == 0


def test_the_sweeps_charts_are_declared_once(tmp_path: Path) -> None:
    view = TensorBoardView(tmp_path)
    open_trial(view, "a")
    open_trial(view, "b", extra_key=1)
    (declared,) = read_run(tmp_path).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(tensor_util.make_ndarray(declared.tensor_proto).item())
    (chart,) = layout.category[0].chart
    assert list(chart.multiline.tag) == ["train/nll", "eval/nll"]


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
        open_trial(view, t.trial_id, **more)
        view.feed([t.loss(1, 1, 3.0), t.loss(1, 2, 2.0 + index), t.loss(1, 2, 0.5, "eval/nll")])
    view.close_run("t0", ok=True)
    view.close_run("never-opened", ok=True)
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
    open_trial(view, "t1")
    view.feed([trial.loss(1, 1, 1.0)])
    view.close_run("t1", ok=False)
    assert HParams(tmp_path).rows()[0]["status"] == "STATUS_FAILURE"
    open_trial(view, "t1", attempt=2, resumed_step=1)
    assert HParams(tmp_path).rows()[0]["status"] not in ("STATUS_SUCCESS", "STATUS_FAILURE")
    view.feed([trial.loss(2, 2, 2.0)])
    view.close_run("t1", ok=True)
    (row,) = HParams(tmp_path).rows()
    assert (row["status"], row["metrics"]) == ("STATUS_SUCCESS", {"train/nll": 2.0})


def test_a_later_process_keeps_the_columns_of_finished_trials(tmp_path: Path) -> None:
    open_trial(TensorBoardView(tmp_path), "t1", alpha=1.5)
    open_trial(TensorBoardView(tmp_path), "t2", beta="x")
    names, _ = HParams(tmp_path).columns()
    assert {"alpha", "beta"} < names


def test_a_run_that_cannot_be_written_does_not_stop_the_others(tmp_path: Path) -> None:
    view = TensorBoardView(tmp_path)
    broken, sound = Trial("broken"), Trial("sound")
    for t in (broken, sound):
        open_trial(view, t.trial_id)
    (file,) = (tmp_path / "run-broken").iterdir()
    file.unlink()
    file.mkdir()
    with pytest.raises(StorageError, match="run-broken"):
        view.feed([broken.loss(1, 1, 1.0), sound.loss(1, 1, 1.0)])
    file.rmdir()
    view.feed([broken.loss(1, 2, 1.0), sound.loss(1, 2, 1.0)])
    assert {(run, step) for run, _, step, _ in scalars(tmp_path)} == {
        ("run-broken", 2),
        ("run-sound", 1),
        ("run-sound", 2),
    }


def history(index: int) -> Iterator[list[Event]]:
    """A trial that failed at step 5 (trial 0: also at 7) and was resumed from a checkpoint."""
    t = Trial(f"t{index}")
    yield [t.start(1, 0), *(t.loss(1, s, 1 / (s + index)) for s in range(1, 6))]
    yield [t.loss(1, 4, 0.1 + index, "eval/nll"), t.loss(1, 5, math.pi, "eval/nll")]
    yield [t.start(2, 4), *(t.loss(2, s, 2 / (s + index)) for s in range(5, 8))]
    if index == 0:
        yield [t.start(3, 6)]  # and nothing after it: step 7 is gone from the live view too
    yield [t.writer.event("trial_state", trial_id=t.trial_id, name="done")]


def feed_history(view: TensorBoardView, log: EventLog, batches: Sequence[list[Event]]) -> None:
    for batch in batches:
        log.append(batch)
        for event in batch:
            if event.kind == "session_start":
                resumed = event.step
                open_trial(view, event.trial_id, attempt=event.attempt, resumed_step=resumed)
        view.feed(batch)


def test_rebuilt_equals_live(tmp_path: Path, events_folder: Path) -> None:
    live, again = tmp_path / "live", tmp_path / "again"
    view = TensorBoardView(live)
    with EventLog(events_folder) as log:
        for index in range(3):
            feed_history(view, log, list(history(index)))
        view.close_run("t0", ok=True)
        view.close_run("t1", ok=False)
        runs = [
            Run(f"t{i}", f"run-t{i}", hparams=HPARAMS, config_text='name = "x"', ok=ok)
            for i, ok in enumerate((True, False, None))
        ]
        for _ in range(2):  # the second time over an existing folder
            rebuild(events_folder, again, runs)
    assert scalars(again) == scalars(live)
    assert len(scalars(live)) == 8 + 2 * 8 - 1
    order = lambda row: str(row["name"])  # noqa: E731
    assert sorted(HParams(again).rows(), key=order) == sorted(HParams(live).rows(), key=order)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
