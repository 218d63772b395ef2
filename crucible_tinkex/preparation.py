"""What is known of a sweep before any service is asked: rows, trials, folder, identity.

`prepare` refuses bad input and changes nothing on disk.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crucible_tinkex.config import Experiment
from crucible_tinkex.datasets import (
    Row,
    Tokenizer,
    file_hash,
    fingerprint,
    overlap,
    read_rows,
    reading,
    tokenise,
)
from crucible_tinkex.errors import ConfigError, SweepExistsError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.session import SweepData
from crucible_tinkex.trial import TrialPlan, plan_trials


@dataclass(frozen=True)
class PreparedSweep:
    """An experiment that could be run, and where its sweep lives."""

    experiment: Experiment
    paths: SweepPaths
    train_rows: Sequence[Row]
    eval_rows: Sequence[Row] | None
    fingerprint: str
    """Of the data files and how they are read."""
    identity: str
    """Equal for equal work; a folder belongs to one identity for ever."""
    trials: Sequence[TrialPlan]
    source: str | None
    """Text of the experiment file, if there was one."""

    @property
    def name(self) -> str:
        return self.paths.root.name

    @property
    def started(self) -> bool:
        """Whether the folder already holds this sweep's journal."""
        return self.paths.resolved.exists() and self.paths.journal.is_dir()

    def tokenised(self, tokenizer: Tokenizer) -> SweepData:
        """The rows as tokens. Raises `DataError` for a row that does not fit."""
        length = self.experiment.train.max_length
        train = tokenise(self.train_rows, tokenizer, max_length=length)
        if self.eval_rows is None:
            return SweepData(train, None)
        return SweepData(train, tokenise(self.eval_rows, tokenizer, max_length=length))

    def warnings(self) -> list[str]:
        """What a careful colleague would mention before the run."""
        found = self.experiment.warnings(rows=len(self.train_rows))
        shared = overlap(self.train_rows, self.eval_rows) if self.eval_rows else 0
        if shared:
            found.append(f"{shared} eval rows also stand in the training file")
        return found


def prepare(
    experiment: Experiment,
    *,
    storage: str | None = None,
    name: str | None = None,
    source: str | None = None,
) -> PreparedSweep:
    """Check everything that can be checked here. Raises `ConfigError`, `DataError`."""
    paths = SweepPaths.of(storage or experiment.run.storage, name or experiment.name)
    data = experiment.data
    train_rows = read_rows(data.train, format=data.format)
    eval_rows = read_rows(data.eval, format=data.format) if data.eval else None
    if eval_rows is None and experiment.search.metric.startswith("eval/"):
        raise ConfigError(
            f"search.metric is {experiment.search.metric!r} but data.eval names no file; "
            'add held-out rows or use metric = "train/nll"'
        )
    data_fingerprint = _fingerprint(experiment, train_rows)
    prepared = PreparedSweep(
        experiment=experiment,
        paths=paths,
        train_rows=train_rows,
        eval_rows=eval_rows,
        fingerprint=data_fingerprint,
        identity=experiment.identity(data_fingerprint),
        trials=plan_trials(experiment, fingerprint=data_fingerprint, rows=len(train_rows)),
        source=source,
    )
    _refuse_other(prepared)
    return prepared


def _fingerprint(experiment: Experiment, rows: Sequence[Row]) -> str:
    data = experiment.data
    read = reading(
        format=rows[0].format,
        max_length=experiment.train.max_length,
        tokenizer=experiment.model.tokenizer,
    )
    return fingerprint(file_hash(data.train), file_hash(data.eval) if data.eval else None, read)


def _refuse_other(prepared: PreparedSweep) -> None:
    """Raise `SweepExistsError` if the folder belongs to another experiment."""
    if not prepared.started:
        root = prepared.paths.root
        if root.exists() and any(root.iterdir()) and not prepared.paths.lock.exists():
            raise SweepExistsError(
                f"{prepared.paths.root} exists and is not a sweep; choose another --name"
            )
        return
    old = json.loads(prepared.paths.resolved.read_text())
    if old["identity"] == prepared.identity:
        return
    before = Experiment.loaded(old["experiment"], prepared.paths.root)
    new = prepared.experiment
    changed = [*new.contradictions(before), *new.amendments(before)]
    if old["fingerprint"] != prepared.fingerprint:
        changed.append("the content of the data files")
    raise SweepExistsError(
        f"sweep {prepared.name!r} exists with a different experiment "
        f"(changed: {', '.join(changed) or 'unknown'}); nothing was touched. "
        "Choose another --name, or undo the change to continue it"
    )


def load_sweep(storage: str | Path, name: str) -> Experiment:
    """The experiment of an existing sweep, to resume it."""
    paths = SweepPaths.of(storage, name)
    if not paths.resolved.exists():
        raise ConfigError(f"no sweep {name!r} in {paths.root.parent}")
    return Experiment.loaded(
        json.loads(paths.resolved.read_text())["experiment"],
        paths.root,
        source=str(paths.resolved),
    )
