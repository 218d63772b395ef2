"""TensorBoard files as a view of the event stream; the event log stays the truth.

Layout: `tb/<run>/` holds one trial's scalars, hyper-parameters and config text; files directly in
`tb/` describe the sweep (HParams experiment, custom charts). Each attempt of a trial writes files
of its own whose names cannot collide, and begins with the mark at which TensorBoard drops the steps
that are done again. Guarantees: no thread, no queue and no open file between calls, so thousands of
runs need no file handles; what `feed` wrote is in the operating system's hands when it returns, and
a `kill -9` loses nothing of it. No fsync: after a power cut, `rebuild`. One view writes a folder at
a time. Texts and hyper-parameters are written as given: the caller has removed all secrets.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import socket
import struct
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crucible_tinkex.errors import StorageError
from crucible_tinkex.events import Event
from crucible_tinkex.storage import storage_errors
from crucible_tinkex.telemetry.attempts import resumed_step as announced_step
from crucible_tinkex.telemetry.parquet import table_to_events
from crucible_tinkex.telemetry.query import scan_events
from crucible_tinkex.telemetry.without_torch import without_torch

with without_torch():
    from tensorboardX import summary
    from tensorboardX.proto.api_pb2 import DataType, Experiment, HParamInfo, MetricInfo, MetricName
    from tensorboardX.proto.api_pb2 import Status as SessionStatus
    from tensorboardX.proto.event_pb2 import Event as Record
    from tensorboardX.proto.event_pb2 import SessionLog
    from tensorboardX.proto.plugin_hparams_pb2 import (
        HParamsPluginData,
        SessionEndInfo,
        SessionStartInfo,
    )
    from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboardX.record_writer import RecordWriter, register_writer_factory

HParam = bool | int | float | str

METRICS = ("eval/nll", "eval/accuracy", "train/nll")
"""The columns of the HParams table; each is the tag of a scalar."""

CHARTS = {"Loss": {"train vs eval": ["Multiline", ["train/nll", "eval/nll"]]}}
"""The custom scalars page: category, chart, kind of chart, tags."""

_ROOT_FILE = "events.out.tfevents.0000000000.crucible"
_NUMBER, _TEXT, _FLAG = "DATA_TYPE_FLOAT64", "DATA_TYPE_STRING", "DATA_TYPE_BOOL"


@dataclass(frozen=True)
class Run:
    """One trial for `rebuild`; `ok` is None while it is not finished."""

    trial_id: str
    run_name: str
    hparams: Mapping[str, HParam]
    config_text: str
    ok: bool | None = None


@dataclass
class _OpenRun:
    folder: Path
    attempt: int
    path: Path | None = None
    """The file being written; None means that the next write begins a new one."""
    pending: list[Any] = field(default_factory=list)


class TensorBoardView:
    """Writes events that carry a number as scalars of their trial's run."""

    def __init__(
        self,
        folder: Path,
        *,
        metrics: Sequence[str] = METRICS,
        charts: Mapping[str, Mapping[str, Sequence[Any]]] = CHARTS,
    ) -> None:
        self._folder = folder
        self._metrics = tuple(metrics)
        self._charts = charts
        self._runs: dict[str, _OpenRun] = {}
        self._hparam_types = _declared_hparams(folder / _ROOT_FILE)
        self._root_written = False
        self.skipped = 0
        """Scalars of trials that have no open run, or of an attempt that has been replaced."""

    def open_run(
        self,
        trial_id: str,
        run_name: str,
        hparams: Mapping[str, HParam],
        config_text: str,
        attempt: int,
        resumed_step: int,
    ) -> None:
        """Begin an attempt of a trial; its scalars go to `<folder>/<run_name>/`.

        A later attempt hides what older ones wrote after `resumed_step`, and that they had ended.
        The same attempt again, because this process replaced another, goes on where that was.
        """
        values = _with_log_rate(_plain(hparams))
        self._declare(values)
        run = _OpenRun(self._folder / run_name, attempt)
        with storage_errors(run.folder):
            earlier = {_attempt_of(p) for p in run.folder.glob("*tfevents*") if p.suffix != ".end"}
            for path in run.folder.glob("*.end"):
                path.unlink()
        now = time.time()
        if earlier and attempt not in earlier:
            start = SessionLog(status=SessionLog.START)
            run.pending.append(Record(wall_time=now, step=resumed_step + 1, session_log=start))
        if not earlier:
            text = summary.text("config", _code_block(config_text))
            run.pending.append(Record(wall_time=now, summary=text))
        info = SessionStartInfo(start_time_secs=now)
        for key, value in values.items():
            _set_hparam(info.hparams[key], value)
        written = _hparams_summary("session_start_info", HParamsPluginData(session_start_info=info))
        run.pending.append(Record(wall_time=now, summary=written))
        self._runs[trial_id] = run
        self._write(run)

    def feed(self, batch: Iterable[Event]) -> None:
        """Write the batch's scalars. Events without a name or a value are none of this view's.

        Raises the first `StorageError` after all runs were tried; what could not be written is
        left to `rebuild`.
        """
        touched: dict[str, _OpenRun] = {}
        for event in batch:
            if event.value is None or not event.name:
                continue
            run = self._runs.get(event.trial_id)
            if run is None or event.attempt < run.attempt:
                self.skipped += 1
                continue
            scalar = Summary.Value(tag=event.name, simple_value=event.value)
            run.pending.append(
                Record(
                    wall_time=event.time_us / 1e6, step=event.step, summary=Summary(value=[scalar])
                )
            )
            touched[event.trial_id] = run
        failures = []
        for run in touched.values():
            try:
                self._write(run)
            except StorageError as e:
                failures.append(e)
        if failures:
            raise failures[0]

    def close_run(self, trial_id: str, ok: bool) -> None:
        """Write how the trial ended. Unknown trials are ignored: their view was never begun."""
        run = self._runs.pop(trial_id, None)
        if run is None:
            return
        status = SessionStatus.Value("STATUS_SUCCESS" if ok else "STATUS_FAILURE")
        info = SessionEndInfo(status=status, end_time_secs=time.time())
        content = HParamsPluginData(session_end_info=info)
        # In a file of its own: TensorBoard keeps the first status it meets, so when the trial is
        # taken up again the old one must go.
        run.path = _new_file(run, ".end")
        run.pending = [
            _header(),
            Record(wall_time=time.time(), summary=_hparams_summary("session_end_info", content)),
        ]
        self._write(run)

    def close(self) -> None:
        """Forget all runs; they stay unfinished in TensorBoard. There is nothing to flush."""
        self._runs.clear()

    def _write(self, run: _OpenRun) -> None:
        """Append what is pending; after a failure it is dropped and a new file begins."""
        records, run.pending = run.pending, []
        with storage_errors(run.folder):
            try:
                if run.path is None:
                    run.folder.mkdir(parents=True, exist_ok=True)
                    run.path = _new_file(run, "")
                    records.insert(0, _header())
                _append_records(run.path, records)
            except OSError:
                run.path = None  # its last record may be torn, which would hide all that follows
                raise

    def _declare(self, values: Mapping[str, HParam]) -> None:
        """Make the sweep's own file name every hyper-parameter seen so far."""
        new = {k: _type_name(v) for k, v in values.items() if k not in self._hparam_types}
        if self._root_written and not new:
            return
        self._hparam_types |= new
        experiment = Experiment(
            hparam_infos=[
                HParamInfo(name=name, type=DataType.Value(kind))
                for name, kind in sorted(self._hparam_types.items())
            ],
            metric_infos=[MetricInfo(name=MetricName(tag=tag)) for tag in self._metrics],
        )
        content = HParamsPluginData(experiment=experiment)
        now = time.time()
        records = [_header()]
        for written in (
            _hparams_summary("experiment", content),
            summary.custom_scalars(self._charts),
        ):
            records.append(Record(wall_time=now, summary=written))
        temporary = self._folder / f".{uuid.uuid4().hex}.tmp"
        with storage_errors(temporary):
            self._folder.mkdir(parents=True, exist_ok=True)
            _append_records(temporary, records)
            os.replace(temporary, self._folder / _ROOT_FILE)
        self._root_written = True


def rebuild(events_folder: Path, tb_folder: Path, runs: Sequence[Run]) -> None:
    """Write the view anew from the event log, then put it in place of the old one.

    Replays all events through the code that wrote them live, so a reader sees the same numbers. No
    live view may be writing meanwhile.
    """
    beside = tb_folder.with_name(f".{tb_folder.name}.{uuid.uuid4().hex}.tmp")
    with storage_errors(tb_folder):
        beside.mkdir(parents=True)
        try:
            _replay(events_folder, TensorBoardView(beside), {run.trial_id: run for run in runs})
            shutil.rmtree(tb_folder, ignore_errors=True)
            os.replace(beside, tb_folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _replay(events_folder: Path, view: TensorBoardView, runs: Mapping[str, Run]) -> None:
    starts = {
        (event.trial_id, event.attempt): announced_step(event.extra) or 0
        for table in scan_events(events_folder, kind="session_start")
        for event in table_to_events(table)
    }
    announced = {trial_id for trial_id, _ in starts}
    opened: dict[str, int] = {}
    for table in scan_events(events_folder):
        ready: list[Event] = []
        for event in table_to_events(table):
            trial_id, attempt = event.trial_id, event.attempt
            if trial_id not in runs or (
                trial_id in announced and (trial_id, attempt) not in starts
            ):
                continue
            if opened.get(trial_id) != attempt:
                view.feed(ready)
                ready = []
                opened[trial_id] = attempt
                _open(view, runs[trial_id], attempt, starts.get((trial_id, attempt), 0))
            ready.append(event)
        view.feed(ready)
    for trial_id, run in runs.items():
        if trial_id not in opened:
            _open(view, run, 0, 0)
        if run.ok is not None:
            view.close_run(trial_id, run.ok)


def _open(view: TensorBoardView, run: Run, attempt: int, resumed_step: int) -> None:
    view.open_run(run.trial_id, run.run_name, run.hparams, run.config_text, attempt, resumed_step)


def _append_records(path: Path, records: Iterable[Any]) -> None:
    writer = RecordWriter(f"{_Appending.scheme}:{path}")
    try:
        for record in records:
            writer.write(record.SerializeToString())
    finally:
        writer.close()


class _Appending:
    """Lets tensorboardX's `RecordWriter` go on with a file, which by itself it would truncate."""

    scheme = "crucible-append"

    def open(self, path: str) -> Any:
        return open(path.removeprefix(f"{self.scheme}:"), "ab")


register_writer_factory(_Appending.scheme, _Appending())


def _new_file(run: _OpenRun, ending: str) -> Path:
    """A name that sorts after all earlier ones, as TensorBoard reads in the order of names."""
    now = time.time_ns()
    unique = f"{run.attempt:04d}.{now % 10**9:09d}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    host = socket.gethostname()
    return run.folder / f"events.out.tfevents.{now // 10**9:010d}.{host}.{unique}{ending}"


def _attempt_of(path: Path) -> int:
    return int(path.name.split(".")[-4])


def _header() -> Any:
    return Record(wall_time=time.time(), file_version="brain.Event:2")


def _hparams_summary(tag: str, content: Any) -> Any:
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content.SerializeToString())
    metadata = SummaryMetadata(plugin_data=plugin)
    return Summary(value=[Summary.Value(tag=f"_hparams_/{tag}", metadata=metadata)])


def _plain(hparams: Mapping[str, Any]) -> dict[str, HParam]:
    """Only what the plug-in can show: nothing for None, text for lists and the like."""
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in hparams.items()
        if value is not None
    }


def _type_name(value: HParam) -> str:
    if isinstance(value, bool):
        return _FLAG
    return _TEXT if isinstance(value, str) else _NUMBER


def _set_hparam(slot: Any, value: HParam) -> None:
    if isinstance(value, bool):
        slot.bool_value = value
    elif isinstance(value, int | float):
        slot.number_value = float(value)
    else:
        slot.string_value = value


def _with_log_rate(hparams: Mapping[str, HParam]) -> dict[str, HParam]:
    """Add `log10_lr`, because the plug-in's plots have a linear axis by default."""
    values = dict(hparams)
    for key, value in hparams.items():
        if key.rsplit(".", 1)[-1] in ("learning_rate", "lr") and isinstance(value, int | float):
            if value > 0:
                values["log10_lr"] = math.log10(value)
            break
    return values


def _code_block(text: str) -> str:
    """A Markdown code block whose fence is longer than any that `text` contains."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _declared_hparams(path: Path) -> dict[str, str]:
    """What an earlier process declared for the sweep, so that its trials keep their columns."""
    if not path.exists():
        return {}
    with storage_errors(path):
        data = path.read_bytes()
    names: dict[str, str] = {}
    at = 0
    while at + 12 <= len(data):  # length, its checksum, the record, its checksum
        (length,) = struct.unpack_from("<Q", data, at)
        record = Record.FromString(data[at + 12 : at + 12 + length])
        at += 12 + length + 4
        for value in record.summary.value:
            if value.tag == "_hparams_/experiment":
                content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                for info in content.experiment.hparam_infos:
                    names[info.name] = DataType.Name(info.type)
    return names
