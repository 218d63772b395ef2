"""What is known of a sweep before any service is asked: rows, trials, folder, amendments.

`prepare` refuses bad input and changes nothing on disk. A folder that holds the sweep already is
compared with what is asked now: what only asks for more amends it, what would make its numbers
incomparable is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from crucible_tinkex.client.http.address import Address
from crucible_tinkex.config import EMBEDDED, DataSection, Experiment, ServiceSection
from crucible_tinkex.config.section import set_dotted
from crucible_tinkex.config.sweep.search import TRAINING_DATA
from crucible_tinkex.datasets import (
    DataFile,
    Rows,
    TokenisedDataset,
    Tokenizer,
    load_tokenizer,
    tokenise,
)
from crucible_tinkex.errors import ConfigError, DataError, SweepExistsError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import Spent, SweepState
from crucible_tinkex.registry.resolved import read_resolved
from crucible_tinkex.scoring import Scoring
from crucible_tinkex.search import strategies
from crucible_tinkex.search.auto_settings import chosen, kept, open_settings
from crucible_tinkex.search.learned.records import published
from crucible_tinkex.search.points.space import Values
from crucible_tinkex.search.rules import stopping_rule
from crucible_tinkex.sweep.deciding.budget import Budget
from crucible_tinkex.sweep.deciding.planner import Planner, TrainingData
from crucible_tinkex.sweep.deciding.policy import Policy
from crucible_tinkex.sweep.deciding.prices import Price, checked_price
from crucible_tinkex.sweep.deciding.proposing.asking import trials_of
from crucible_tinkex.sweep.orders.control import Command, Inbox
from crucible_tinkex.sweep.orders.hints import no_sweep, sweep_arguments
from crucible_tinkex.sweep.preparing.clones import cloned
from crucible_tinkex.sweep.preparing.existing import Existing
from crucible_tinkex.sweep.preparing.experience import finished_trials
from crucible_tinkex.sweep.preparing.objectives import Objectives, changed_code
from crucible_tinkex.sweep.preparing.targets import check_targets
from crucible_tinkex.sweep.preparing.training_sets import (
    Training,
    TrainingSet,
    opened,
    sections_of,
    warnings_on,
    with_former,
    with_sets,
)
from crucible_tinkex.sweep.results.leaderboard import Objective
from crucible_tinkex.training.data import SweepData
from crucible_tinkex.training.recipes.answering import check_answerable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedSweep:
    """An experiment that could be run, and where its sweep lives."""

    experiment: Experiment
    paths: SweepPaths
    training: Training
    eval_rows: Rows | None
    service: str
    """`embedded`, or the address that sessions will be given."""
    configurations: Sequence[Values]
    """Those known beforehand: all, or the first of a search that learns."""
    objectives: Objectives
    source: str | None
    """Text of the experiment file, if there was one."""
    existing: Existing | None
    """The sweep that the folder holds already."""
    spent: Spent = field(default_factory=Spent)
    """What the sweep has used already."""
    proofs: Spent = field(default_factory=Spent)
    """Of that, by the proofs of what the service applies; also by those that refused it before it
    was."""
    notes: Sequence[str] = ()
    """What strategy `auto` chose, and why; nothing where all of it was said."""
    price: Price | None = None
    """Of what trials use; None: unknown, and dollars are not capped."""

    @property
    def name(self) -> str:
        return self.paths.root.name

    @property
    def declared(self) -> TrainingSet:
        """The training data of the experiment as declared."""
        return self.training[self.experiment.data.files]

    @property
    def fingerprint(self) -> str:
        """Of the data as declared."""
        return self.declared.fingerprint

    @property
    def data_of(self) -> dict[str, DataSection]:
        """Where trials differ in their training data: `[data]` of those with each, by its name."""
        return sections_of(self.experiment, self.training)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Where trials differ in their training data: that of each, by its name."""
        return {name: self.training[d.files].fingerprint for name, d in self.data_of.items()}

    @property
    def counts(self) -> dict[str, int]:
        """Rows that an epoch shows, by the fingerprint of the training data."""
        return {found.fingerprint: found.epoch_rows for found in self.training.values()}

    @property
    def amendments(self) -> list[str]:
        """Keys by which this run asks for something else than the sweep did; how wide it runs is
        nobody's business but its own."""
        if self.existing is None:
            return []
        changed = self.experiment.amendments(self.existing.experiment)
        changed = [key for key in changed if not key.startswith(("run.", "notify."))]
        return [*changed, *(f"the source of {name}" for name in self._changed_code)]

    @property
    def _changed_code(self) -> list[str]:
        former = self.existing.code if self.existing else {}
        return changed_code(self.objectives.code, former)

    @cached_property
    def planner(self) -> Planner:
        return Planner(
            self.experiment,
            rows=self.declared.epoch_rows,
            fingerprint=self.fingerprint,
            sets={
                files: TrainingData(found.epoch_rows, found.fingerprint)
                for files, found in self.training.items()
            },
            code=self.objectives.code,
            price=self.price,
        )

    @property
    def asked(self) -> int:
        """How many configurations the search asks for in all."""
        trials = trials_of(self.planner, self.configurations).planned - self.planner.has_reference
        return trials // len(self.experiment.search.seeds)

    def policy(self) -> Policy:
        return Policy(
            self.planner,
            trials_of(self.planner, self.configurations),
            stopping_rule(self.experiment.search),
            objective=Objective.asked(self.experiment),
            budget=Budget(self.experiment.budget, self.price),
        )

    def tokenised(self, tokenizer: Tokenizer, name: str) -> SweepData:
        """The rows as tokens. Raises `DataError` for a row that does not fit."""
        trains, keep_text = {}, self.objectives.reads_text
        for files, found in self.training.items():
            train = self._tokenised(found.rows, tokenizer, keep_text=keep_text)
            self.objectives.try_on(train, tokenizer)
            trains[files] = train
        declared = trains[self.experiment.data.files]
        held_out = None
        if self.eval_rows is not None:
            functions = self.experiment.evaluation.has_functions
            held_out = self._tokenised(self.eval_rows, tokenizer, keep_text=functions)
        check_answerable(self.experiment.evaluation, held_out)
        sets = trains if len(trains) > 1 else {}
        return SweepData(declared, held_out, self.fingerprint, name, sets)

    def tokenised_as(self, data: SweepData) -> SweepData:
        """The rows as tokens, by the tokenizer of those."""
        assert data.tokenizer is not None
        return self.tokenised(load_tokenizer(data.tokenizer), data.tokenizer)

    def measured(self, data: SweepData) -> PreparedSweep:
        """Planned for the rows that `tokenised` left of it."""
        known = self._known(data)
        training = {
            files: replace(found, epoch_rows=known[files].epoch_rows)
            for files, found in self.training.items()
        }
        return replace(self, training=training)

    def is_read(self, data: SweepData) -> bool:
        """Whether these are all the rows, with their texts where a trial reads them."""
        has_texts = len(data.train.about_offsets) > 0 or not self.objectives.reads_text
        return has_texts and self.training.keys() <= self._known(data).keys()

    def _known(self, data: SweepData) -> Mapping[tuple[DataFile, ...], TokenisedDataset]:
        return data.sets or {self.experiment.data.files: data.train}

    def _tokenised(
        self, rows: Rows, tokenizer: Tokenizer, *, keep_text: bool = False
    ) -> TokenisedDataset:
        experiment = self.experiment
        data = tokenise(
            rows,
            tokenizer,
            max_length=experiment.train.max_length,
            train_on=experiment.data.train_on,
            too_long=experiment.data.too_long,
            keep_text=keep_text,
        )
        if data.truncated or data.dropped:
            log.warning(
                "of %d rows over train.max_length = %d, %d were cut and %d left out",
                data.truncated + data.dropped,
                experiment.train.max_length,
                data.truncated,
                data.dropped,
            )
        return data

    def warnings(self) -> list[str]:
        """What a careful colleague would mention before the run."""
        found = self.experiment.warnings(rows=self.declared.epoch_rows)
        for name, section in self.data_of.items():
            rows = self.training[section.files].epoch_rows
            more = [w for w in self.experiment.warnings(rows=rows) if w not in found]
            found += [f"data.train = {name!r}: {warning}" for warning in more]
        found += strategies.warnings(self.experiment, self.configurations)
        return [*found, *warnings_on(self.training, self.eval_rows)]


def prepare(
    experiment: Experiment,
    *,
    storage: str | None = None,
    name: str | None = None,
    source: str | None = None,
    orders: Sequence[Command] = (),
) -> PreparedSweep:
    """Check everything that can be checked here. `orders`: clones that are asked for, besides those
    that wait in the sweep's folder. Raises `ConfigError`, `DataError`."""
    paths = SweepPaths.of(storage or experiment.run.storage, name or experiment.name)
    training, eval_rows = opened(experiment)
    rows = training[experiment.data.files].epoch_rows
    if eval_rows is None and experiment.search.metric.startswith("eval/"):
        raise ConfigError(
            f"search.metric is {experiment.search.metric!r} but data.eval names no file; "
            'add held-out rows, set data.eval_fraction, or use metric = "train/nll"'
        )
    check_targets(experiment.quality, experiment.evaluation)
    state = _state(paths)
    existing = None if state is None or _only_refused(state) else Existing.of(state, paths)
    experiment, notes = _decided(experiment, rows, existing, paths)
    if state is not None and existing is not None:
        used = {trial.values.get(TRAINING_DATA) for trial in state.trials.values()}
        used |= {*experiment.search.training_data, existing.experiment.data.name}
        experiment = with_former(experiment, existing.experiment, used)
        names = [name for name in experiment.data.sets if name in used]
        training = with_sets(experiment, training, eval_rows, names)
        training = existing.counted(training, experiment)
    configurations = strategies.configurations(experiment)
    prepared = PreparedSweep(
        experiment=experiment,
        paths=paths,
        training=training,
        eval_rows=eval_rows,
        service=_address(experiment.service),
        configurations=configurations,
        objectives=Objectives(experiment, [*configurations, *cloned(state, paths, orders)]),
        source=source,
        existing=existing,
        spent=state.spent if state else Spent(),
        proofs=state.proofs if state else Spent(),
        notes=notes,
        price=checked_price(experiment),
    )
    Scoring(experiment.evaluation)  # refuses a function or schema that is none
    if experiment.steps.any:
        from crucible_tinkex.training.trial_steps import check_steps

        check_steps(experiment)
    if prepared.existing:
        _refuse_other(prepared, prepared.existing)
    return prepared


def _decided(
    experiment: Experiment, rows: int, existing: Existing | None, paths: SweepPaths
) -> tuple[Experiment, Sequence[str]]:
    """What strategy `auto` leaves open, chosen once: a sweep that exists keeps its choices."""
    if experiment.search.strategy != "auto":
        return experiment, ()
    if existing is not None and existing.experiment.search.strategy == "auto":
        return kept(experiment, existing.experiment), ()
    if not open_settings(experiment.search):
        return experiment, ()
    records, unread = finished_trials(paths.root.parent)
    steps = experiment.train.steps(rows)
    found = chosen(experiment, steps=steps, records=[*published(), *records])
    skipped = [f"the prior passes over sweeps that cannot be read: {', '.join(unread)}"]
    return found.experiment, (*found.notes, *(skipped if unread else ()))


def _address(service: ServiceSection) -> str:
    if service.embedded:
        return EMBEDDED
    return str(Address.parse(service.base_url, allow_http=service.allow_http))


def _only_refused(state: SweepState) -> bool:
    """Whether its service was asked for a proof, and no run ever began: it may become anything."""
    return not state.runs and state.proofs != Spent()


def _state(paths: SweepPaths) -> SweepState | None:
    """The sweep in the folder; raises `SweepExistsError` if it holds something else."""
    root = paths.root
    if paths.resolved.exists() and paths.journal.is_dir():
        return SweepState.read(paths)
    if root.is_dir() and any(root.iterdir()) and not paths.lock.exists():
        raise SweepExistsError(f"{root} exists and is not a sweep; choose another --name")
    return None


def _refuse_other(prepared: PreparedSweep, existing: Existing) -> None:
    """Raise `SweepExistsError` where the numbers could not be compared any more."""
    if existing.sweep_id is None:
        raise SweepExistsError(
            f"sweep {prepared.name!r} was made by version 0.1.0: it can be looked at, not "
            "continued; choose another --name"
        )
    changed = prepared.experiment.contradictions(existing.experiment)
    if existing.service != prepared.service and "service.base_url" not in changed:
        changed.append(f"the service, {existing.service} until now")
    if prepared.fingerprint != existing.fingerprint:
        changed.append("the content of the data files, or how they are read")
    changed += [
        f"the content of data.train = {name!r}, or how it is read"
        for name, found in prepared.fingerprints.items()
        if existing.fingerprints.get(name, found) != found
    ]
    changed += [
        f"the source of {name}"
        for name in changed_code(prepared.objectives.code, existing.code)
        if existing.is_told_by(name, prepared.experiment)
    ]
    if changed:
        raise SweepExistsError(
            f"sweep {prepared.name!r} exists with a different experiment "
            f"(changed: {', '.join(changed)}); its numbers could not be compared with new ones. "
            "Nothing was touched. Choose another --name, or undo the change to continue it"
        )


def reopened(storage: str | Path, name: str, orders: Sequence[Command] = ()) -> PreparedSweep:
    """An existing sweep, prepared as its folder says. Raises as `prepare` and `load_sweep`: what an
    older version took, this one may refuse."""
    experiment = load_sweep(storage, name)
    try:
        return prepare(experiment, storage=str(storage), name=name, orders=orders)
    except (DataError, SweepExistsError):
        raise
    except ConfigError as e:
        paths = SweepPaths.of(storage, name)
        raise ConfigError(
            f"{paths.resolved}: {e.message}; "
            f"correct it: crucible extend {sweep_arguments(paths)} --set KEY=VALUE"
        ) from None


def load_sweep(storage: str | Path, name: str) -> Experiment:
    """The experiment of an existing sweep, to resume it, with the extensions that wait there."""
    paths = SweepPaths.of(storage, name)
    if not paths.resolved.exists():
        raise no_sweep(paths)
    experiment = Experiment.loaded(read_resolved(paths)["experiment"], folder=paths.root)
    for command in Inbox(paths).waiting():
        if command.kind == "extend":
            experiment = extended(experiment, command.settings, paths)
    return experiment


def extended(experiment: Experiment, settings: Mapping[str, Any], paths: SweepPaths) -> Experiment:
    """The experiment of a sweep with dotted keys changed. Raises `ConfigError`."""
    raw = experiment.stored(paths.root)
    for key, value in settings.items():
        set_dotted(raw, key, value)
    return Experiment.loaded(raw, folder=paths.root, source="--set")
