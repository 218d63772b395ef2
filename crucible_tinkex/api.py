"""The Python interface: run an experiment, follow it, and look at what came out.

`run` blocks; `start` gives a handle at once. Both work from a script, a thread, and where an event
loop runs already (a notebook): the sweep has a loop of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from crucible_tinkex.config import Experiment
from crucible_tinkex.config.sweep.run import DEFAULT_STORAGE
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import SweepState
from crucible_tinkex.runtime.cluster import Runtime
from crucible_tinkex.sweep.launch import Launch
from crucible_tinkex.sweep.orders.control import Command
from crucible_tinkex.sweep.orders.steering import steer
from crucible_tinkex.sweep.preparing.preparation import prepare
from crucible_tinkex.sweep.results.leaderboard import Objective, best, ranked
from crucible_tinkex.sweep.results.views.summary import (
    existing_sweep,
    read_state,
    summary,
    trial_summary,
)
from crucible_tinkex.sweep.results.views.view import Observer, SweepView, ignore
from crucible_tinkex.sweep.signals import INTERRUPTED_CODE
from crucible_tinkex.telemetry.query import read_evaluations, read_events

if TYPE_CHECKING:
    from crucible_tinkex.bench import Comparison, Conclusion
    from crucible_tinkex.telemetry.subscription import Subscription
    from crucible_tinkex.weights.checkpoints import CheckpointManager
    from crucible_tinkex.weights.evaluations import AfterEvaluation
    from crucible_tinkex.weights.export import Exported


class TrainedTrial(dict[str, Any]):
    """A trial as `crucible status --json` prints it, and what can be done with its weights."""

    def __init__(self, summary: dict[str, Any], paths: SweepPaths) -> None:
        super().__init__(summary)
        self._paths = paths

    def export(
        self,
        to: str | Path,
        *,
        merged: bool = False,
        base: str | None = None,
        force: bool = False,
    ) -> Exported:
        """Write the adapter as a folder for `peft`, or merged into its base as a Hugging Face
        model; see `weights.export`. A folder that is not empty is refused without `force`."""
        from crucible_tinkex.weights.export import export_trial

        return export_trial(self._paths, self["id"], to, merged=merged, base=base, force=force)


@dataclass(frozen=True)
class Sweep:
    """A sweep on disk, running or ended. Every call reads it afresh."""

    paths: SweepPaths
    exit_code: int | None = None
    """How the run in this process ended; None for a sweep that was only opened."""

    @property
    def name(self) -> str:
        return self.paths.root.name

    @property
    def _state(self) -> SweepState:
        return read_state(self.paths)

    def status(self) -> dict[str, Any]:
        """What `crucible status --json` prints."""
        return summary(self._state, self.paths)

    def best(self) -> TrainedTrial | None:
        """The best trial of the best configuration, or None while none is complete."""
        state = self._state
        winner = best(state)
        if winner is None:
            return None
        return TrainedTrial(trial_summary(winner.best_trial, Objective.of(state)), self.paths)

    @property
    def checkpoints(self) -> CheckpointManager:
        """What the sweep left on its service."""
        from crucible_tinkex.weights.checkpoints import CheckpointManager

        return CheckpointManager(self.paths)

    def clone(
        self,
        trial: str,
        settings: Mapping[str, Any],
        *,
        fresh: bool = False,
        at: int | None = None,
    ) -> str:
        """Add a trial like `trial` (id, name or number) with dotted keys changed: from its newest
        checkpoint at or before step `at`, or `fresh`. A running sweep begins it at once, another
        when it is run again. What became of it, in words. Raises `ConfigError`."""
        return steer(self.paths, Command("clone", (trial,), settings, fresh, at))

    def extend(self, settings: Mapping[str, Any]) -> str:
        """Ask for more: dotted keys, as `--set` takes them. Raises `ConfigError`."""
        return steer(self.paths, Command("extend", settings=settings))

    def stop(self, *trials: str) -> str:
        """End trials of a running sweep; without trials, save and end its run. Raises
        `ConfigError` if it does not run."""
        return steer(self.paths, Command("stop", trials))

    def pause(self, *trials: str) -> str:
        """Have trials, or the whole running sweep, save and wait. Raises `ConfigError`."""
        return steer(self.paths, Command("pause", trials))

    def unpause(self, *trials: str) -> str:
        """Let what was paused go on. Raises `ConfigError`."""
        return steer(self.paths, Command("unpause", trials))

    def leaderboard(self) -> pa.Table:
        """One row per trial, the best first: id, what varied, seed, state, step, metrics."""
        state = self._state
        objective = Objective.of(state)
        rows = []
        for trial in ranked(state):
            fixed = {"trial_id": trial.trial_id, "trial": trial.run_name, "seed": trial.seed}
            where = {"phase": trial.phase, "reference": trial.reference}
            now = {"state": trial.state, "step": trial.step}
            rows.append({**fixed, **trial.values, **where, **now, **objective.metrics(trial)})
        columns = list(dict.fromkeys(k for row in rows for k in row))
        return pa.table({c: [row.get(c) for row in rows] for c in columns})

    def events(
        self,
        *,
        kind: str | None = None,
        trial_id: str | None = None,
        name: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> pa.Table:
        """Telemetry rows of the current attempts."""
        return read_events(
            self.paths.events, kind=kind, trial_id=trial_id, name=name, since=since, until=until
        )

    def subscribe(self, **options: Any) -> Subscription:
        """The events as they come, until the sweep ends: `Telemetry.subscribe` of this sweep."""
        return _subscribe(self.paths, **options)

    def evaluations(self, *, trial_id: str | None = None, step: int | None = None) -> pa.Table:
        """What every held-out row got: example, nll, tokens, whether it was right, its text."""
        return read_evaluations(self.paths.events, trial_id=trial_id, step=step)

    def conclusion(self) -> Conclusion:
        """Which configuration is best, how sure that is, and what would settle it."""
        from crucible_tinkex.sweep.results.conclusion import conclusion

        return conclusion(self._state)

    def conclusion_table(self) -> pa.Table:
        """The same, a row per configuration, for pandas and Polars."""
        from crucible_tinkex.sweep.results.views.tables import conclusion_table

        return conclusion_table(self.conclusion())

    def compare(self, a: str, b: str) -> Comparison:
        """The configurations of two trials (id, name or number), held-out row by row, over all
        their seeds. Raises `ConfigError` for a trial that is not there."""
        from crucible_tinkex.sweep.results.conclusion import comparison

        return comparison(self._state, self.evaluations(), a, b)

    def comparison_table(self, a: str, b: str) -> pa.Table:
        """The same as one row, to be put under that of other pairs."""
        from crucible_tinkex.sweep.results.views.tables import comparison_table

        return comparison_table(self.compare(a, b))

    def query(self, sql: str) -> pa.Table:
        """DuckDB SQL over `events`, `steps`, `evaluations`, `trials`, `checkpoints`, `requests`."""
        from crucible_tinkex.weights.evaluations import query_sweeps

        return query_sweeps([self.paths], sql)

    def evaluate(
        self, data: str | Path, trial: str | None = None, *, again: bool = False, **settings: Any
    ) -> AfterEvaluation:
        """Measure a trial's weights (by default the best one's) on a file of rows; blocks.

        `settings` are keys of `[evaluation]` in place of the experiment's, such as `metrics` and
        `samples`. What was measured before is given at once, unless `again`; the rows are also in
        the table `evaluations_after` of `query`. Raises `ConfigError`, `DataError`,
        `ServiceError`."""
        from crucible_tinkex.weights.evaluating import evaluate_trial

        return evaluate_trial(self.paths, trial, data, settings=settings, again=again)


class RunningSweep:
    """A sweep that trains in the background of this process."""

    def __init__(self, launch: Launch, paths: SweepPaths) -> None:
        self._launch = launch
        self._paths = paths
        worker = ThreadPoolExecutor(1, thread_name_prefix=f"sweep {paths.root.name}")
        self._result = worker.submit(launch.run)
        worker.shutdown(wait=False)

    @property
    def view(self) -> SweepView:
        """As it was at the last refresh, twice a second."""
        return self._launch.view

    @property
    def running(self) -> bool:
        return not self._result.done()

    def status(self) -> dict[str, Any]:
        """What `crucible status --json` prints."""
        return Sweep(self._paths).status()

    def subscribe(self, **options: Any) -> Subscription:
        """The events as they come, until this run ends: `Telemetry.subscribe` of its sweep."""
        return _subscribe(self._paths, lives=lambda: self.running, **options)

    def stop(self) -> None:
        """Finish the running steps, save, and end; `wait` tells when. Running it again goes on."""
        self._launch.stop()

    def wait(self, timeout_s: float | None = None) -> Sweep:
        """Block until it ends; raise what ended it. Raises `TimeoutError`. Ctrl-C stops the sweep
        in order, then raises `KeyboardInterrupt`."""
        try:
            return Sweep(self._paths, self._result.result(timeout_s).exit_code)
        except KeyboardInterrupt:
            self.stop()
            wait([self._result])
            raise


def start(
    experiment: Experiment,
    *,
    storage: str | None = None,
    name: str | None = None,
    address: str | None = None,
    runtime: Runtime | None = None,
    executor: Literal["ray", "local"] | None = None,
    observer: Observer = ignore,
) -> RunningSweep:
    """Run an experiment, or continue its sweep, in the background. What is wrong with it is raised
    here, before anything starts. `observer` is called from the sweep's thread."""
    launch, paths = _launch(experiment, storage, name, address, runtime, executor, observer)
    return RunningSweep(launch, paths)


def run(
    experiment: Experiment,
    *,
    storage: str | None = None,
    name: str | None = None,
    address: str | None = None,
    runtime: Runtime | None = None,
    executor: Literal["ray", "local"] | None = None,
    observer: Observer = ignore,
) -> Sweep:
    """Run an experiment, or continue its sweep; blocks until it ends or is interrupted.

    `executor` "local" trains in this process, without Ray. A `Runtime` that is passed in keeps its
    actors warm from sweep to sweep.
    """
    launch, paths = _launch(experiment, storage, name, address, runtime, executor, observer)
    if _has_loop():
        return RunningSweep(launch, paths).wait()
    return Sweep(paths, launch.run().exit_code)


def tune(
    data: str | Path,
    *,
    eval: str | Path | None = None,
    base: str | None = None,
    service: str | None = None,
    budget: str | None = None,
    prices: str | Path | None = None,
    trials: int | None = None,
    out: str | Path | None = None,
    name: str | None = None,
    storage: str | Path = DEFAULT_STORAGE,
    executor: Literal["ray", "local"] | None = None,
    observer: Observer = ignore,
    explain: Callable[[str], object] = lambda line: None,
) -> Sweep:
    """Tune a base on a data file without an experiment file; blocks, and called again goes on.

    What is not given is chosen from the data (`docs/tune.md`); `explain` hears each choice before
    anything is spent. `budget` as "5usd", "2h", "1e6tok". The best adapter is exported to `out`, by
    default the folder `adapter` of the sweep, and the experiment file `NAME.toml` that does the
    same is written beside the sweep. Raises what `run` raises.
    """
    from crucible_tinkex.tuning.tuning import Wish, propose

    wish = Wish(
        str(data),
        None if eval is None else str(eval),
        base,
        service,
        budget,
        None if prices is None else str(prices),
        trials,
        None if out is None else str(out),
        name,
        str(storage),
        executor,
    )

    def work() -> Sweep:
        tuning = propose(wish, explain)
        for line in tuning.reasons:
            explain(line)
        launch = Launch(tuning.prepared, executor=executor, observer=observer)
        sweep = Sweep(tuning.prepared.paths, launch.run().exit_code)
        if sweep.exit_code != INTERRUPTED_CODE:
            tuning.export()
        return sweep

    if not _has_loop():
        return work()
    with ThreadPoolExecutor(1, thread_name_prefix="tune") as worker:
        return worker.submit(work).result()


def _launch(
    experiment: Experiment,
    storage: str | None,
    name: str | None,
    address: str | None,
    runtime: Runtime | None,
    executor: Literal["ray", "local"] | None,
    observer: Observer,
) -> tuple[Launch, SweepPaths]:
    prepared = prepare(experiment, storage=storage, name=name)
    launch = Launch(
        prepared, address=address, runtime=runtime, executor=executor, observer=observer
    )
    return launch, prepared.paths


def _subscribe(paths: SweepPaths, **options: Any) -> Subscription:
    from crucible_tinkex.telemetry.history import Telemetry

    return Telemetry(paths.root.parent).subscribe(paths.root.name, **options)


def _has_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def open_sweep(name: str, *, storage: str = "runs") -> Sweep:
    """An existing sweep. Raises `ConfigError` if there is none."""
    return Sweep(existing_sweep(storage, name))


def query(sql: str, *sweeps: str, storage: str = DEFAULT_STORAGE) -> pa.Table:
    """As `Sweep.query`, over several sweeps; `sweep_id` tells their rows apart. Raises
    `ConfigError`."""
    from crucible_tinkex.weights.evaluations import query_sweeps

    return query_sweeps([existing_sweep(storage, name) for name in sweeps], sql)
