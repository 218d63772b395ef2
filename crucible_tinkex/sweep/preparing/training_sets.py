"""The rows of an experiment: those held out, and those of every training data that a trial may
have, each read once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crucible_tinkex.config import DataSection, Experiment
from crucible_tinkex.config.sweep.search import TRAINING_DATA
from crucible_tinkex.datasets import (
    DataFile,
    Rows,
    files_hash,
    fingerprint,
    open_rows,
    reading,
    split,
)
from crucible_tinkex.errors import DataError, nearest
from crucible_tinkex.training.recipes.answering import check_judged

MANY_COPIES = 0.02
"""Share of a file's rows that repeat others from which on it is said."""


@dataclass(frozen=True)
class TrainingSet:
    """What some trials of a sweep are trained on."""

    rows: Rows
    epoch_rows: int
    """Rows that an epoch shows; without those too long for it once they are measured."""
    fingerprint: str
    """Of the data: its content and that of the held-out rows, and how they are read."""


Training = Mapping[tuple[DataFile, ...], TrainingSet]
"""By `data.files`: that of the experiment as declared and, where the search varies `data.train`,
that of each of its values."""


def opened(experiment: Experiment) -> tuple[Training, Rows | None]:
    """The training data, and the held-out rows if there are any. Raises `DataError`, which names
    the value of the axis."""
    data = experiment.data
    train = _opened(data, data.name)
    evaluation = None
    if data.splits:
        train, evaluation = split(
            train, fraction=data.eval_fraction, count=data.eval_rows, seed=data.eval_seed
        )
    elif data.eval is not None:
        evaluation = open_rows([data.eval], format=data.format, corpus=data.corpus)
    asked = experiment.evaluation
    formats = evaluation.formats if evaluation else ()
    check_judged(asked, formats, said=asked.model_fields_set)
    declared = _set(experiment, train, evaluation)
    names = experiment.search.training_data
    return with_sets(experiment, {data.files: declared}, evaluation, names), evaluation


def with_sets(
    experiment: Experiment, training: Training, evaluation: Rows | None, names: Iterable[str]
) -> Training:
    """With the rows of those named, where they are not there yet."""
    found = dict(training)
    for name in names:
        data = experiment.configured({TRAINING_DATA: name}).data
        if data.files not in found:
            found[data.files] = _set(experiment, _opened(data, name), evaluation)
    return found


def with_former(
    experiment: Experiment, earlier: Experiment, used: Collection[object]
) -> Experiment:
    """Knowing also the training data of trials that the sweep has already, by their names. Where
    `data.train` is but the first of those that the search chooses among, it stays what it was."""
    known = earlier.data.sets.items()
    former = {name: files for name, files in known if name in used}
    data, names = experiment.data, experiment.search.training_data
    changes: dict[str, Any] = {"sets": {**former, **data.sets}}
    if names and earlier.data.name and data.train == changes["sets"][names[0]]:
        changes["train"] = changes["sets"][earlier.data.name]
    return experiment.model_copy(update={"data": data.model_copy(update=changes)})


def sections_of(experiment: Experiment, training: Training) -> dict[str, DataSection]:
    """`[data]` with each of `training`, by its name; nothing where trials do not differ in it."""
    if len(training) == 1:
        return {}
    names = experiment.data.sets
    found = {name: experiment.configured({TRAINING_DATA: name}).data for name in names}
    return {name: data for name, data in found.items() if data.files in training}


def _opened(data: DataSection, name: str | None) -> Rows:
    try:
        return open_rows(data.files, format=data.format, corpus=data.corpus)
    except DataError as error:
        if name is None:
            raise
        hint = _nearest_set(name, data)
        raise DataError(f"{TRAINING_DATA} = {name!r}: {error.message}{hint}") from error


def _nearest_set(name: str, data: DataSection) -> str:
    """What a name without a suffix may have meant: a file has one."""
    known = [other for other in data.sets if not Path(other).suffix and other != name]
    meant = None if Path(name).suffix else nearest(name, known)
    return f"; did you mean {meant!r} of data.sets?" if meant else ""


def _set(experiment: Experiment, train: Rows, evaluation: Rows | None) -> TrainingSet:
    return TrainingSet(train, train.epoch_rows, _fingerprint(experiment, train, evaluation))


def _fingerprint(experiment: Experiment, train: Rows, evaluation: Rows | None) -> str:
    data = experiment.data
    formats = train.formats
    held_out = {"fraction": data.eval_fraction, "rows": data.eval_rows, "seed": data.eval_seed}
    read = reading(
        format=formats[0] if len(formats) == 1 else formats,
        max_length=experiment.train.max_length,
        tokenizer=experiment.model.tokenizer,
        train_on=None if data.train_on == "all_assistant" else data.train_on,
        too_long=data.too_long,
        held_out=held_out if data.splits else None,
    )
    own_file = evaluation if data.eval is not None else None
    return fingerprint(files_hash(train), own_file and files_hash(own_file), read)


def warnings_on(training: Training, evaluation: Rows | None) -> Iterator[str]:
    """Rows that are both learnt and measured, that repeat others, and that are passed over."""
    for files, found in training.items():
        shared = found.rows.shared_with(evaluation) if evaluation else 0
        if shared:
            which = f" {', '.join(file.path for file in files)}" if len(training) > 1 else ""
            yield f"{shared} eval rows also stand in the training file{which}"
    for file in dict.fromkeys(file for found in training.values() for file in found.rows.files):
        asked = file.keys[file.taken]
        copies = len(asked) - len(np.unique(asked))
        if copies > MANY_COPIES * len(asked):
            yield (
                f"{file.declared.path}: {copies:,} of {len(asked):,} rows repeat others (white "
                "space and case aside), which counts them more often"
            )
        if file.passed_over:
            yield (
                f"{file.declared.path}: {file.passed_over} claims have no evidence and are "
                "passed over"
            )
