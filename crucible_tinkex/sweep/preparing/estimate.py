"""What a sweep will use: steps, tokens, time, dollars, room for checkpoints, each as a range.

From the number of trials, what their stopping rule leaves of them, and the caps of the budget; time
and room from the finished sweeps of the same storage, dollars from the price table. Where no sweep
tells the time, a probe does, roughly: no step is faster than its small ones, and no token slower
than theirs, one trial after the other. What there is no ground for is None, never guessed.
Failures, repeated steps and what `[steps]` ask for are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, NamedTuple

from crucible_tinkex.config import (
    EvaluationSection,
    Experiment,
    SearchSection,
    StoppingSection,
    TrainSection,
)
from crucible_tinkex.registry import Spent
from crucible_tinkex.search.rules import stopping_rule
from crucible_tinkex.search.stopping import Halving, NoStopping, StoppingRule, TopK
from crucible_tinkex.sweep.deciding.prices import Price, price_of
from crucible_tinkex.sweep.deciding.proposing.confirming import planned_confirmations
from crucible_tinkex.sweep.preparing.experience import Pace
from crucible_tinkex.training.attest.probing import Attestation
from crucible_tinkex.training.data import SweepData
from crucible_tinkex.training.plan import TrialPlan


class Range(NamedTuple):
    """From the least to the most."""

    low: float
    high: float

    def times(self, factor: float) -> Range:
        return Range(self.low * factor, self.high * factor)

    def product(self, other: Range) -> Range:
        return Range(self.low * other.low, self.high * other.high)

    def plus(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)

    def capped(self, cap: float | None) -> Range:
        return self if cap is None else Range(min(self.low, cap), min(self.high, cap))


class Rows(NamedTuple):
    """Tokens: of a training row on average, and those that one evaluation reads and writes."""

    tokens: float
    read: Range
    written: Range

    @classmethod
    def of(cls, data: SweepData, section: EvaluationSection, plans: Sequence[TrialPlan]) -> Rows:
        """Of trials like `plans`. Each held-out row is read once. Where `generate` asks for it,
        some prompts are read again and their completions written, at most all; where `metrics` do,
        every prompt is, and each answer has `max_tokens` at most."""
        held_out = data.eval
        read = written = Range(0, 0)
        if held_out is not None:
            count = min(len(held_out), section.max_rows or len(held_out))
            whole = int(held_out.lengths[:count].sum())
            prompts = int(held_out.prompt_lengths[:count].sum())
            read = Range(whole - count, whole - count)
            if section.generate and held_out.has_prompts:
                read = read.plus(Range(0, prompts))
                written = Range(0, whole - prompts)
            if section.metrics:
                read = read.plus(Range(prompts, prompts))
                written = written.plus(Range(0, count * section.samples * section.max_tokens))
        return cls(row_tokens(data, plans), read, written)


def row_tokens(data: SweepData, plans: Sequence[TrialPlan]) -> float:
    """Of a training row on average; where `plans` differ in their rows, over all of their steps."""
    if not data.sets:
        return data.train.epoch_positions / data.train.epoch_rows
    shown = tokens = 0.0
    for plan in plans:
        train, count = data.of(plan.experiment.data).train, _shown(plan)
        shown += count
        tokens += count * train.epoch_positions / train.epoch_rows
    return tokens / shown


def _shown(plan: TrialPlan) -> int:
    return plan.total_steps * plan.experiment.train.step_rows


@dataclass(frozen=True)
class Estimate:
    """None: unknown. `sweeps`: the finished ones that time and room are taken from."""

    steps: Range
    tokens: Range
    """Trained on, read and written."""
    sample_tokens: Range
    """Those of them that are written."""
    seconds: Range | None
    dollars: Range | None
    checkpoint_bytes: Range | None
    """With everything kept."""
    sweeps: int
    kept_bytes: Range | None = None
    """What `[checkpoints]` leaves when the sweep has ended; None where it deletes nothing."""
    storage_dollars: Range | None = None
    """A month of what is left."""
    prices: str | None = None
    """Date and source of the prices, where anything is charged."""
    proof_tokens: int = 0
    """Of `tokens`, those that prove what the service applies."""
    probed: bool = False
    """Whether `seconds` are rough: of a probe, not of sweeps."""

    def summary(self) -> dict[str, Any]:
        """JSON values: ranges as [low, high]. Keys are only ever added."""
        return {k: list(v) if isinstance(v, Range) else v for k, v in asdict(self).items()}


def estimate(
    experiment: Experiment,
    plans: Sequence[TrialPlan],
    *,
    trials: int,
    rows: Rows,
    paces: Sequence[Pace],
    proof: Spent | None = None,
    probe: Attestation | None = None,
) -> Estimate:
    """`plans`: those that are known, one seed of each; others are taken to be like them. `trials`:
    of the search, without the base and the confirmation. `proof`: what it takes to prove what the
    service applies; `probe`: such a proof that was made."""
    proof, price = proof or Spent(), price_of(experiment)
    search, budget = experiment.search, experiment.budget
    trials = trials if budget.trials is None else min(trials, budget.trials)
    whole = round(fmean(plan.total_steps for plan in plans))
    reached = _reached(search, trials, max(1, whole))
    confirmed = _confirmed(search, trials // len(search.seeds))
    steps = reached.steps.plus(confirmed.times(whole)).capped(budget.steps)
    step_tokens = rows.tokens * fmean(_step_rows(plan.experiment.train) for plan in plans)
    evaluations = reached.rungs.plus(confirmed).plus(Range(1, 1))
    if every := experiment.train.eval_every:
        evaluations = evaluations.plus(steps.times(1 / every))
    training = steps.times(step_tokens)
    training = training.plus(Range(proof.train_tokens, proof.train_tokens))
    read, written = evaluations.product(rows.read), evaluations.product(rows.written)
    read = read.plus(Range(proof.prefill_tokens, proof.prefill_tokens))
    tokens = training.plus(read).plus(written).capped(budget.tokens)
    saving = confirmed.plus(Range(trials, trials))
    room = kept = None
    if (one := _checkpoint_bytes(plans, paces)) is not None:
        room = _room(experiment, saving, whole, one)
        kept = _kept(experiment, saving, whole, one, room)
    seconds, is_probed = _seconds(tokens, paces, budget.hours), False
    if seconds is None and probe is not None and probe.spent.tokens:
        at_once = min(experiment.run.most_concurrent, max(1, trials))
        seconds = _probed_seconds(steps, tokens, probe, at_once).capped(_in_seconds(budget.hours))
        is_probed = True
    return Estimate(
        steps=Range(*map(round, steps)),
        tokens=Range(*map(round, tokens)),
        sample_tokens=Range(*map(round, written.capped(budget.tokens))),
        seconds=seconds,
        dollars=_dollars(price, budget.dollars, training, read, written, tokens),
        checkpoint_bytes=room,
        sweeps=len(paces),
        kept_bytes=kept,
        storage_dollars=_monthly(price, kept or room),
        prices=_source(price),
        proof_tokens=proof.tokens,
        probed=is_probed,
    )


def _step_rows(train: TrainSection) -> int:
    """A loss that is computed here needs a forward pass first."""
    return train.step_rows * (1 if train.loss == "cross_entropy" else 2)


# --- steps ----------------------------------------------------------------------------------------


def _confirmed(search: SearchSection, configurations: int) -> Range:
    """Trials of the confirmation; where it asks until it is sure, up to all that it may ask for."""
    least = planned_confirmations(search, max(1, configurations))
    if search.confirm != "auto":
        return Range(least, least)
    most = search.confirm_max_seeds * min(search.confirm_top, max(1, configurations)) + 2
    return Range(least, max(least, most))


class _Reached(NamedTuple):
    """Steps of all trials together, and how often one of them comes to a rung or to its end."""

    steps: Range
    rungs: Range


def _reached(search: SearchSection, trials: int, whole: int) -> _Reached:
    rule = stopping_rule(search)
    if search.strategy == "auto" and "topk" in search.stopping.rules:
        return _climbed(search.stopping, trials, rule.rungs(whole))
    brackets = [(b, len(range(b, trials, rule.brackets))) for b in range(rule.brackets)]
    fewest = [_fewest(rule, count, rule.rungs(whole, b)) for b, count in brackets]
    low = sum(steps for steps, _ in fewest)
    arrivals = sum(count for _, count in fewest)
    if isinstance(rule, TopK | NoStopping):
        besides = _besides(rule, search, trials)
        return _Reached(
            Range(low, min(trials * whole, low + besides * whole)),
            Range(arrivals, arrivals + besides * (len(rule.rungs(whole)) - 1)),
        )
    most = sum(count * len(rule.rungs(whole, b)) for b, count in brackets)
    return _Reached(Range(low, trials * whole), Range(arrivals, most))


def _besides(rule: StoppingRule, search: SearchSection, trials: int) -> int:
    """Seeds that were stopped and are trained to the end, at most, as no configuration has all."""
    return 0 if isinstance(rule, NoStopping) else min(trials, len(search.seeds)) - 1


def _climbed(stopping: StoppingSection, trials: int, rungs: Sequence[int]) -> _Reached:
    """Mostly less than half of the trials are tried; of the neighbours of the best as many may pass
    the first rung as before."""
    keep = stopping.keep if isinstance(stopping.keep, int) else stopping.keep[0]
    first, rest = rungs[0], rungs[-1] - rungs[0]
    few, many = min(trials, max(keep, trials // 3)), min(trials, 2 * keep)
    return _Reached(
        Range(few * first + rest, trials * first + many * rest),
        Range(few + 1, trials + many * (len(rungs) - 1)),
    )


def _fewest(rule: StoppingRule, trials: int, rungs: Sequence[int]) -> tuple[int, int]:
    """Steps and arrivals where a rule stops as many as it may."""
    steps, arrivals, before = 0, 0, 0
    for i, rung in enumerate(rungs):
        steps += trials * (rung - before)
        arrivals += trials
        trials, before = min(trials, _passing(rule, trials, i)), rung
    return steps, arrivals


def _passing(rule: StoppingRule, arrived: int, rung: int) -> int:
    match rule:
        case NoStopping():
            return arrived
        case TopK(keep=int() as keep):
            return keep
        case TopK(keep=tuple() as keeps):
            return int(keeps[min(rung, len(keeps) - 1)])
        case Halving():
            return max(1, arrived // rule.eta)
    return 1 if rule.crowns else 0


# --- what steps cost ------------------------------------------------------------------------------


def _seconds(tokens: Range, paces: Sequence[Pace], hours: float | None) -> Range | None:
    speeds = [pace.tokens_per_s for pace in paces]
    if not speeds:
        return None
    found = Range(tokens.low / max(speeds), tokens.high / min(speeds)).capped(_in_seconds(hours))
    return Range(round(found.low, 1), round(found.high, 1))


def _in_seconds(hours: float | None) -> float | None:
    return None if hours is None else hours * 3600


def _probed_seconds(steps: Range, tokens: Range, probe: Attestation, at_once: int) -> Range:
    least, most = probe.step_s
    low = steps.low * least / at_once
    high = max(steps.high * most, tokens.high * probe.spent.seconds / probe.spent.tokens)
    return Range(round(low, 1), round(high, 1))


def _dollars(
    price: Price | None,
    cap: float | None,
    training: Range,
    read: Range,
    written: Range,
    tokens: Range,
) -> Range | None:
    if price is None:
        return None
    costs = []
    for t, r, w, capped in zip(training, read, written, tokens, strict=True):
        share = capped / (t + r + w) if t + r + w else 1.0
        costs.append(price.of(Spent(round(t * share), round(r * share), round(w * share))))
    return Range(*costs).capped(cap)


def _source(price: Price | None) -> str | None:
    if price is None or not any(price.per_million):
        return None
    return f"{price.dated}, {price.source}"


def _monthly(price: Price | None, room: Range | None) -> Range | None:
    if price is None or price.storage is None or room is None:
        return None
    return room.times(price.storage / 1e9)


def _checkpoint_bytes(plans: Sequence[TrialPlan], paces: Sequence[Pace]) -> Range | None:
    """Of one."""
    sizes = [pace.checkpoint_bytes for pace in paces if pace.checkpoint_bytes]
    rank = fmean(plan.experiment.lora.rank for plan in plans)
    return Range(min(sizes), max(sizes)).times(rank) if sizes else None


def _kept(
    experiment: Experiment, trials: Range, whole: int, one: Range, room: Range
) -> Range | None:
    """From the winner alone to all that the rules may keep, and the winner's two."""
    rules, train = experiment.checkpoints, experiment.train
    if not rules.prunes:
        return None
    kinds = 1 + train.sampler_checkpoint
    every = whole // rules.keep_every if rules.keep_every else 0
    each = min(rules.last, whole) * kinds + every * kinds
    most = rules.keep_best + trials.high * each + 2
    low = min(math.floor(one.low), room.low)
    return Range(low, min(math.ceil(most * one.high), room.high))


def _room(experiment: Experiment, trials: Range, whole: int, one: Range) -> Range:
    """From one checkpoint of every trial to all that are ever saved."""
    train = experiment.train
    rungs = len(stopping_rule(experiment.search).rungs(max(1, whole)))
    every = whole // train.checkpoint_every if train.checkpoint_every else 0
    most = every + rungs + train.sampler_checkpoint
    return Range(
        math.floor(trials.low * one.low),
        math.ceil(trials.high * most * one.high),
    )
