"""TensorBoard's log folder, kept equal to the event stream; the event log stays the truth.

Guarantee: after `feed`, the scalars in `tb/<run>/` are, as a set of (tag, step, value), the rows of
the kinds in `SHOWN_KINDS` in the view `events`: a newer attempt of a trial takes out what it
replaced, by the rules of `attempts`, and late events of an older attempt find their place. This
does not depend on the order of events. A process that replaces another loads what the last one
stored (`to_json`) and feeds what came later once more with `again=True`, which adds only what is
missing. A run that cannot be written is left alone, counted in `faults`, and made anew by whoever
calls `forget` and feeds all its events. No thread, no queue and no open file between calls, so
thousands of runs need no file handles. One view writes a folder at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crucible_tinkex.errors import CorruptLogError
from crucible_tinkex.events import Event
from crucible_tinkex.telemetry.attempts import resumed_step
from crucible_tinkex.telemetry.tensorboard.hparams import (
    config_text,
    definitions,
    session_end,
    session_start,
    shown,
    state_text,
    type_name,
)
from crucible_tinkex.telemetry.tensorboard.records import restart_mark, scalar
from crucible_tinkex.telemetry.tensorboard.run import RunFiles

SHOWN_KINDS = ("training_step", "optimizer_step", "evaluation", "sample")
_ENDS = {"done": True, "stopped": True, "failed": False, "lost": False}
"""The states that end a trial, and whether well. After any other it will be taken up again."""


@dataclass
class _Run:
    files: RunFiles
    starts: dict[int, int] = field(default_factory=dict)
    """The step that each announced attempt goes on from."""
    newest: int = 0
    fault: str = ""
    size: int | None = None
    """Bytes of its files; None: to be measured."""

    def limit(self, attempt: int) -> float:
        """The last step of an attempt that still counts."""
        later = [step for number, step in self.starts.items() if number > attempt]
        return min(later, default=float("inf"))


class TensorBoardView:
    """`feed` it events."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: dict[str, _Run] = {}
        self._hparam_types: dict[str, str] = {}
        self._names: set[str] = set()
        self._home = ""
        """The run that holds the definitions."""
        self._defined: dict[str, str] | None = None
        """The types that they name."""

    def feed(self, events: Sequence[Event], *, again: bool = False) -> None:
        """Show events. Never fails: see `faults`. `again`: some may have been shown already."""
        touched: dict[str, _Run] = {}
        for event in events:  # a late event of an older attempt may stand before
            if event.kind == "session_start":
                self._run(event)
        for event in events:
            if event.kind in SHOWN_KINDS:
                if event.value is None or not event.name:
                    continue
                show = self._scalar
            elif event.kind in ("session_start", "session_end"):
                show = self._start if event.kind == "session_start" else self._end
            else:
                continue
            run = touched[event.trial_id] = self._run(event)
            if not run.fault:
                self._guard(run, show, run, event, again)
        for run in touched.values():
            self._guard(run, run.files.write)
            run.files.unload()
            run.size = None

    def faults(self) -> tuple[str, ...]:
        """What the files lack; empty when they show all that was fed."""
        broken = [run for run in self._runs.values() if run.fault]
        if not broken:
            return ()
        return (f"{len(broken)} TensorBoard runs are behind the events: {broken[0].fault}",)

    @property
    def behind(self) -> set[str]:
        """The trials whose runs have a fault."""
        return {trial_id for trial_id, run in self._runs.items() if run.fault}

    def forget(self, trial_ids: Collection[str]) -> None:
        """Empty the runs of these trials, to be fed all their events anew."""
        for trial_id in trial_ids:
            run = self._runs[trial_id]
            fresh = self._runs[trial_id] = _Run(run.files)
            self._guard(fresh, run.files.clear)
            if run.files.folder.name == self._home and not fresh.fault:
                self._guard(fresh, self._define)

    def fail(self, reason: str, trial_ids: Collection[str] | None = None) -> None:
        """Say that the runs of these trials (None: of all) are not as they should be."""
        for trial_id in self._runs if trial_ids is None else trial_ids:
            self._runs[trial_id].fault = reason

    def to_json(self) -> dict[str, Any]:
        for run in self._runs.values():
            if run.size is None:
                self._guard(run, self._measure, run)
        runs = [
            [trial_id, r.files.folder.name, list(r.starts.items()), r.newest, r.fault, r.size or 0]
            for trial_id, r in self._runs.items()
        ]
        defined = self._defined == self._hparam_types
        types = self._hparam_types
        return {"home": self._home, "hparams": types, "defined": defined, "runs": runs}

    def load(self, stored: Mapping[str, Any]) -> None:
        """Go on from what `to_json` gave. A run that has lost a part since is behind."""
        self._home, self._hparam_types = stored["home"], stored["hparams"]
        self._defined = dict(self._hparam_types) if stored["defined"] else None
        for trial_id, name, starts, newest, fault, size in stored["runs"]:
            run = _Run(RunFiles(self.folder / name), dict(starts), newest, fault)
            self._runs[trial_id] = run
            self._names.add(name)
            self._guard(run, self._measure, run)
            if not run.fault and (run.size or 0) < size:
                run.fault = f"{run.files.folder} has {run.size} bytes of {size}"

    def move(self, folder: Path) -> None:
        """The files were moved to `folder`."""
        self.folder = folder
        for run in self._runs.values():
            run.files.folder = folder / run.files.folder.name

    @staticmethod
    def _measure(run: _Run) -> None:
        run.size = run.files.size()

    @staticmethod
    def _guard(run: _Run, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except (OSError, CorruptLogError) as e:
            run.fault = f"{run.files.folder}: {e}"
            run.files.unload()

    def _run(self, event: Event) -> _Run:
        """A trial's run keeps the name of the first attempt; without one it has the trial's id."""
        run = self._runs.get(event.trial_id)
        if run is None:
            name = event.trial_id or "sweep"
            if event.kind == "session_start":
                name = json.loads(event.extra).get("run_name") or name
            if name in self._names:
                name = f"{name}-{event.trial_id}"
            self._names.add(name)
            run = self._runs[event.trial_id] = _Run(RunFiles(self.folder / name))
        return run

    def _start(self, run: _Run, event: Event, again: bool) -> None:
        """Begin an attempt: take out what it will do again, and that the trial had ended."""
        extra = json.loads(event.extra)
        resumed = resumed_step(event.extra) or 0
        attempt, time_s = event.attempt, event.time_us / 1e6
        first = not run.starts
        run.starts[attempt] = resumed
        run.newest = max(run.newest, attempt)
        run.files.drop(attempt, lambda key: key[1] > resumed)
        if attempt == run.newest:
            run.files.reopen()
        values = shown(extra.get("hparams") or {})
        self._declare(run, values)
        if run.files.is_announced(attempt):
            return
        if first:
            text = json.dumps(extra.get("config") or {}, indent=2, sort_keys=True)
            run.files.put(attempt, config_text(time_s, text))
        elif run.files.is_new(attempt):
            run.files.put(attempt, restart_mark(time_s, resumed + 1))
        run.files.put(attempt, session_start(time_s, values))

    def _end(self, run: _Run, event: Event, again: bool) -> None:
        state = json.loads(event.extra).get("state", "")
        ok, time_s = _ENDS.get(state), event.time_us / 1e6
        if ok is not None and event.attempt >= run.newest:
            marks = session_end(time_s, ok), state_text(time_s, state)
            run.files.set_end(event.attempt, *marks)

    def _scalar(self, run: _Run, event: Event, again: bool) -> None:
        assert event.value is not None
        attempt, key = event.attempt, (event.name, event.step)
        record = scalar(event.time_us / 1e6, event.name, event.step, event.value)
        is_plain = attempt == run.newest and event.step > run.starts.get(attempt, event.step)
        if again or not is_plain:
            run.newest = max(run.newest, attempt)
            files = run.files
            if event.step > run.limit(attempt) or files.newer_has(attempt, key):
                return
            files.drop(attempt, lambda other: other == key)
            if again and files.has(attempt, record):
                return
        run.files.put(attempt, record)

    def _declare(self, run: _Run, values: Mapping[str, Any]) -> None:
        """Make the definitions name every hyper-parameter seen so far."""
        for name, value in values.items():
            self._hparam_types.setdefault(name, type_name(value))
        self._home = self._home or run.files.folder.name
        if self._defined != self._hparam_types:
            self._define()

    def _define(self) -> None:
        RunFiles(self.folder / self._home).set_definitions(definitions(self._hparam_types))
        self._defined = dict(self._hparam_types)
