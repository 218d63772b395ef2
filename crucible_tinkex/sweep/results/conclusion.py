"""What a sweep's journal and evaluations support: its numbers handed to `bench`.

Read-only. A configuration competes with the seeds that are done; one of which a trial was stopped
early does not, because the seeds that went on were chosen for their values. The reference (the
untrained base) is one measurement and does not compete. The cost of a seed is its training tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import pyarrow as pa

import crucible_tinkex.bench as bench
from crucible_tinkex.bench import Comparison, Conclusion, Scores
from crucible_tinkex.config.trial.evaluation import asked_for
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import short_keys
from crucible_tinkex.registry import (
    CONFIRM,
    FAILED,
    LOST,
    STOPPED,
    TERMINAL,
    SweepState,
    TrialRecord,
)
from crucible_tinkex.sweep.results.batches import Batch, batches
from crucible_tinkex.sweep.results.judgements import judgement_share
from crucible_tinkex.sweep.results.leaderboard import (
    Configuration,
    Objective,
    configurations,
    confirming_seeds,
)

_COLUMNS = {"eval/nll": "nll", "eval/accuracy": "correct"}
"""The metric's value for one held-out row."""
_OF_ALL_ROWS = (
    "eval/class_accuracy",
    "eval/f1_macro",
    "eval/f1/",
    "eval/precision/",
    "eval/recall/",
)
"""Metrics that no row has alone."""


def conclusion(state: SweepState) -> Conclusion:
    """Of what is done by now. Holds at every look."""
    asked = state.meta["experiment"]["search"]["seeds"]
    found = [c for c in configurations(state) if not c.reference]
    fresh = {t.seed for c in found for t in c.trials} - set(asked)
    pruned = any(t.state == STOPPED for c in found for t in c.trials)
    chosen_by = asked if pruned or fresh else ()
    names = configuration_names(found)
    numbers = [
        _numbers(c, name, batch)
        for c, name, batch in zip(found, names, batches(state, found, aside=chosen_by), strict=True)
    ]
    said = bench.conclude(numbers, terms(state), chosen_by=chosen_by)
    return replace(said, notes=(*_confirming(state, found), *said.notes))


def _confirming(state: SweepState, found: Sequence[Configuration]) -> list[str]:
    """How far a confirmation is that is not over, and whether it ranks already."""
    fresh = [t for t in state.trials.values() if t.phase == CONFIRM]
    ended = sum(t.state in TERMINAL for t in fresh)
    if ended == len(fresh):
        return []
    told = f"the confirmation is not over: {ended} of its {len(fresh)} trials have ended"
    if any(c.phase == CONFIRM for c in found):
        return [told]
    least = confirming_seeds(state.meta["experiment"]["search"])
    return [f"{told}; the search's seeds rank until every leader has {least} fresh ones"]


def terms(state: SweepState) -> bench.Terms:
    """The sweep's metric, its direction and the differences in it that do not matter."""
    objective = Objective.of(state)
    search = state.meta["experiment"]["search"]
    return bench.terms(
        objective.metric,
        objective.direction,
        search.get("indifference"),
        cost_unit="training tokens",
        share=judgement_share(state),
    )


def configuration_names(found: Sequence[Configuration]) -> list[str]:
    """What varied, in words and in one order; told apart by the number of the first trial where
    that is the same. The base that was not trained is `untrained`."""
    short = short_keys(dict.fromkeys(k for c in found for k in c.values))
    varied = {k: v for k, v in short.items() if len({str(c.values.get(k)) for c in found}) > 1}
    names = [
        "untrained"
        if c.reference
        else ", ".join(f"{varied[k]} = {_text(c.values[k])}" for k in varied if k in c.values)
        for c in found
    ]
    count = Counter(names)
    return [
        name if name and count[name] == 1 else f"{name} (trial {c.trials[0].index})".strip()
        for name, c in zip(names, found, strict=True)
    ]


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _numbers(configuration: Configuration, name: str, batch: Batch) -> bench.Configuration:
    done = configuration.done
    measured = {t.seed: configuration.objective.value(t) for t in done}
    status, reason = _status(configuration)
    return bench.Configuration(
        name,
        {seed: value for seed, value in measured.items() if value is not None},
        cost=fmean(t.spent.train_tokens for t in done) if done else None,
        status=status,
        missing_seeds=tuple(t.seed for t in configuration.trials if t.state == FAILED),
        reason=reason,
        **batch._asdict(),
    )


def _status(configuration: Configuration) -> tuple[bench.Status, str]:
    for state in (STOPPED, FAILED, LOST):
        trials = [t for t in configuration.trials if t.state == state]
        if trials and (state == STOPPED or not configuration.done):
            return state, trials[0].error or ""  # type: ignore[return-value]
    return ("complete" if configuration.done else "unfinished"), ""


def comparison(state: SweepState, evaluations: pa.Table, a: str, b: str) -> Comparison:
    """The configurations of trials `a` and `b`, on the rows behind the value that ranks them.
    Raises `ConfigError` for a trial that is not there, or a metric that no row has."""
    objective = Objective.of(state)
    if not (objective.metric in _COLUMNS or _has_scores(objective.metric)):
        raise ConfigError(
            f"{objective.metric} has no value per held-out row; a sweep ranked by "
            f"{' or '.join(_COLUMNS)}, or by what is measured of each answer, can be compared"
        )
    found = {t.trial_id: c for c in configurations(state) for t in c.trials}
    first, second = (found[trial.trial_id] for trial in state.named([a, b]))
    if first is second:
        raise ConfigError(f"trials {a} and {b} are seeds of one configuration")
    ours, theirs = (_scores(c, evaluations) for c in (first, second))
    if first.reference:
        ours = _with_seeds_of(theirs, ours)
    if second.reference:
        theirs = _with_seeds_of(ours, theirs)
    labels = configuration_names([first, second])
    return bench.compare(ours, theirs, direction=objective.direction, names=(labels[0], labels[1]))


def _with_seeds_of(trained: Scores, untrained: Scores) -> Scores:
    """The untrained base has the same value with every seed of the other."""
    seeds = sorted(set(trained.seeds or ()), key=str)
    if not seeds:
        return untrained
    return Scores(
        [*untrained.values] * len(seeds),
        [*untrained.examples] * len(seeds),
        clusters=[*(untrained.clusters or ())] * len(seeds),
        seeds=[seed for seed in seeds for _ in untrained.values],
    )


def _scores(configuration: Configuration, evaluations: pa.Table) -> Scores:
    objective = configuration.objective
    trials: dict[tuple[str, int | None], TrialRecord] = {
        (t.trial_id, objective.step(t)): t for t in configuration.done or configuration.trials
    }
    columns = ("trial_id", "step", "example_id", "group")
    rows = zip(*(evaluations[name].to_pylist() for name in columns), strict=True)
    kept = [
        (float(value), example, group or f"row {example}", trials[trial, step].seed)
        for (trial, step, example, group), value in zip(
            rows, _values(evaluations, objective.metric), strict=True
        )
        if (trial, step) in trials and value is not None
    ]
    values, examples, groups, seeds = zip(*kept, strict=True) if kept else ((), (), (), ())
    return Scores(values, examples, clusters=groups, seeds=seeds)


def _has_scores(metric: str) -> bool:
    """Whether every answer has a score of it."""
    return asked_for(metric) and not metric.startswith(_OF_ALL_ROWS)


def _values(evaluations: pa.Table, metric: str) -> list[float | None]:
    """Of every row; None where it was not measured."""
    if metric in _COLUMNS:
        found: list[float | None] = evaluations[_COLUMNS[metric]].to_pylist()
        return found
    return [dict(scores or ()).get(metric) for scores in evaluations["scores"].to_pylist()]
