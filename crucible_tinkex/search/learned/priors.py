"""Which learning rate and rank to try first, learned from sweeps that are over.

A recorded sweep is cut into curves: base, rank, batch size and number of steps fixed, what is lost
against the best of the curve as a function of the learning rate. The first guess is the rate with
the smallest mean loss over all curves, those of similar bases, ranks, batches and lengths weighing
more; the second is the rate that helps most where the first one is wrong; and so on. So the guesses
are an answer to "which n trials should I run", not n versions of one answer. Nothing is fitted: a
few round widths say what "similar" means (`_WIDTH`, `_SAME_BASE`, `_SAME_FAMILY`).

Where the storage holds finished sweeps of this very base, of like batch and length and trained in
the same way, they alone are asked, whatever their ranks: a curve is then the best loss that a rate
had, and a rate that a rule stopped (`Record.outdone`) is known to be no better than the best. Other
curves have finished trials only, as theirs say how much is lost. A toy (`BaseFacts.is_toy`) and a
real model are never asked about each other.

Batch size: rates are carried from one batch size to another by the square root of their ratio, the
rule for Adam of Malladi et al. 2022 (arXiv 2205.10287). Number of steps: no rule has a good source
(1.5 times below 100 steps is hearsay), so a length only weighs, and far ones are named.

Guarantees: pure; a rate is only suggested where most of the similar curves were measured; what is
outside the records is said in words, never silently extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from crucible_tinkex.search.learned.bases import BaseFacts, facts
from crucible_tinkex.search.learned.records import RANK, RATE, Record

USUAL_RATES = tuple(float(f"{m}e{e}") for e in (-5, -4, -3, -2) for m in (1, 3))
"""Guessed from where the question offers no rates; finer steps gain less than seeds differ by."""
DIVERGED = 0.5
"""A loss against the best above this counts as this: how badly a run diverges teaches nothing."""

_WIDTH = {"rank": 1.0, "billions": 4.0, "batch_size": 2.0, "steps": 2.0}
"""Doublings at which a curve of another rank, size, ... weighs half. A rate depends on the rank
more than on the size: among the published grids the best one moves with the rank within a base."""
_SAME_BASE, _SAME_FAMILY = 4.0, 1.5
_SAME_RATE = math.log2(10) / 4
"""Doublings within which two rates are one guess: half a step of the search."""
_FAR = 2.0
"""Doublings beyond the records from which on a question is called out of range."""


@dataclass(frozen=True)
class Question:
    """What is going to be trained. Empty `ranks` and `rates`: any."""

    base: str
    batch_size: int
    steps: int
    ranks: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    way: str = ""
    """As in `Record`."""


@dataclass(frozen=True)
class Suggestion:
    """`values`: dotted keys, ready to be a configuration. `loss`: what it is expected to lose
    against the best rate, as a share of the metric."""

    values: Mapping[str, float | int]
    loss: float
    reason: str


@dataclass(frozen=True)
class Prior:
    """The guesses, the best first, and in words why they may be wrong (`doubts`, empty if the
    question lies inside the records)."""

    suggestions: tuple[Suggestion, ...]
    doubts: tuple[str, ...]

    @property
    def in_range(self) -> bool:
        return not self.doubts


@dataclass(frozen=True)
class _Curve:
    base: str
    facts: BaseFacts
    rank: int
    batch_size: int
    steps: int
    points: tuple[tuple[float, float], ...]
    """log2 of the rate, ascending, and the loss there."""
    own: str | None = None
    """The storage's own sweep of this base that it is of; None: it is of any."""

    @property
    def best_rate(self) -> float:
        return 2 ** min(self.points, key=lambda point: point[1])[0]

    def loss(self, log_rate: float) -> float | None:
        """Between two measured rates on a line; None outside them, within a rounding."""
        for (left, low), (right, high) in pairwise(self.points):
            if left - 1e-6 <= log_rate <= right + 1e-6:
                return max(0.0, low + (high - low) * (log_rate - left) / (right - left))
        return None


def suggest(records: Iterable[Record], question: Question, *, count: int = 2) -> Prior:
    """At most `count` guesses, fewer where fewer rates were ever measured, or others were all as
    bad as can be; none, and in `doubts` why, where the records say nothing."""
    asked = facts(question.base)
    finite = [r for r in records if math.isfinite(r.metric)]
    found = [r for r in finite if facts(r.base).is_toy == asked.is_toy]
    if not found and finite:
        return Prior((), (_of_another_kind(question, asked),))
    if own := _own_curves(found, question):
        return _prior(found, own, question, _own_rank(own, question), count)
    found = [r for r in found if not r.outdone]
    found = [r for r in found if r.way == question.way] or found
    curves = _curves(found)
    if not curves:
        return Prior((), ("no finished sweep has tried more than one learning rate",))
    return _prior(found, curves, question, _best_rank(found, question, asked), count)


def _prior(
    found: Sequence[Record], curves: Sequence[_Curve], question: Question, rank: int, count: int
) -> Prior:
    asked = facts(question.base)
    weights = [_weight(curve, question, asked, rank) for curve in curves]
    losses = _losses(curves, weights, question)
    if not losses:
        return Prior((), ("no finished sweep has measured a learning rate that is on offer",))
    first, *others = _greedy(losses, weights, count)
    picks = [first, *(pick for pick in others if pick[1] < DIVERGED)]
    reason = _reason(curves, weights, rank)
    return Prior(
        tuple(Suggestion({RATE: rate, RANK: rank}, loss, reason) for rate, loss in picks),
        tuple(_doubts(found, question, asked, rank)),
    )


# --- curves -----------------------------------------------------------------------------------


def _curves(records: Sequence[Record]) -> list[_Curve]:
    cells: dict[tuple[str, str, int, int, int], dict[float, list[float]]] = {}
    for r in records:
        key = r.sweep, r.base, r.rank, r.batch_size, r.steps
        cells.setdefault(key, {}).setdefault(r.learning_rate, []).append(r.metric)
    curves = []
    for (_, base, rank, batch_size, steps), found in cells.items():
        means = {rate: fmean(values) for rate, values in found.items()}
        curves += _curve(base, rank, batch_size, steps, means)
    return curves


def _curve(
    base: str,
    rank: int,
    size: int,
    steps: int,
    losses: Mapping[float, float],
    *,
    own: str | None = None,
) -> list[_Curve]:
    """None where it says nothing. `losses`: by rate. `size`: of a batch."""
    best = min(losses.values())
    if len(losses) < 2 or best <= 0:
        return []
    points = [(math.log2(r), min(DIVERGED, x / best - 1)) for r, x in sorted(losses.items())]
    return [_Curve(base, facts(base), rank, size, steps, tuple(points), own)]


def _own_curves(records: Sequence[Record], question: Question) -> list[_Curve]:
    """Of the storage's finished sweeps of this base, if they are near in batch size and length and
    learn in the same way: one for each sweep, the least loss that a rate had at any rank; `rank`
    is that of the best."""
    sweeps: dict[tuple[str, int, int], dict[tuple[float, int], list[float]]] = {}
    for r in records:
        is_own = r.base == question.base and not r.published and r.way == question.way
        apart = (
            _doublings(r.batch_size, question.batch_size),
            _doublings(r.steps, question.steps),
        )
        if is_own and max(apart) <= _FAR:
            cells = sweeps.setdefault((r.sweep, r.batch_size, r.steps), {})
            cells.setdefault((r.learning_rate, r.rank), []).append(r.metric)
    curves = []
    for (sweep, batch_size, steps), cells in sweeps.items():
        of = sweep.partition(" ")[0]
        means = {cell: fmean(losses) for cell, losses in cells.items()}
        _, rank = min(means, key=lambda cell: means[cell])
        least: dict[float, float] = {}
        for (rate, _), loss in means.items():
            least[rate] = min(least.get(rate, loss), loss)
        curves += _curve(question.base, rank, batch_size, steps, least, own=of)
    return curves


def _own_rank(curves: Sequence[_Curve], question: Question) -> int:
    """The one on offer that is nearest to the best of those sweeps (a median)."""
    wished = _median([(1.0, math.log2(curve.rank)) for curve in curves])
    offered = question.ranks or (round(2**wished),)
    return min(offered, key=lambda rank: abs(math.log2(rank) - wished))


def _weight(curve: _Curve, question: Question, asked: BaseFacts, rank: int) -> float:
    """Falls with the square of the distance, so that far curves still count where none is near."""
    distances = (
        _doublings(curve.rank, rank) / _WIDTH["rank"],
        _doublings(curve.facts.billions, asked.billions) / _WIDTH["billions"],
        _doublings(curve.batch_size, question.batch_size) / _WIDTH["batch_size"],
        _doublings(curve.steps, question.steps) / _WIDTH["steps"],
    )
    weight = 1 / (1 + sum(d * d for d in distances))
    if curve.base == question.base:
        return weight * _SAME_BASE
    return weight * (_SAME_FAMILY if asked.family and curve.facts.family == asked.family else 1)


def _doublings(one: float | None, other: float | None) -> float:
    """Unknown is as far as `_FAR`."""
    return abs(math.log2(one / other)) if one and other else _FAR


# --- the choice -------------------------------------------------------------------------------


def _best_rank(records: Sequence[Record], question: Question, asked: BaseFacts) -> int:
    """The largest rank on offer, scaled by where between the ranks of similar sweeps their best one
    lay (a median, so mostly: the largest)."""
    sweeps: dict[tuple[str, str, int, int], dict[int, float]] = {}
    for r in records:
        ranks = sweeps.setdefault((r.sweep, r.base, r.batch_size, r.steps), {})
        ranks[r.rank] = min(ranks.get(r.rank, math.inf), r.metric)
    weighted = []
    for (_, base, batch_size, steps), ranks in sweeps.items():
        largest, best = max(ranks), min(ranks, key=lambda rank: ranks[rank])
        curve = _Curve(base, facts(base), largest, batch_size, steps, ())
        weight = _weight(curve, question, asked, largest)
        weighted.append((weight, math.log2(best / largest), math.log2(largest)))
    shift = _median([(w, s) for w, s, _ in weighted])
    if question.ranks:
        wished = math.log2(max(question.ranks)) + shift
        return min(question.ranks, key=lambda rank: abs(math.log2(rank) - wished))
    return round(2 ** (_median([(w, size) for w, _, size in weighted]) + shift))


def _median(weighted: Sequence[tuple[float, float]]) -> float:
    half = sum(w for w, _ in weighted) / 2
    for weight, value in sorted(weighted, key=lambda pair: pair[1]):
        half -= weight
        if half <= 0:
            return value
    return weighted[-1][1]


def _losses(
    curves: Sequence[_Curve], weights: Sequence[float], question: Question
) -> dict[float, list[float | None]]:
    """Rate to its loss on every curve; only rates that most of the weight has measured, or, if
    there is none, those that any has."""
    found: dict[float, list[float | None]] = {}
    covered: dict[float, float] = {}
    for rate in question.rates or _usual_rates(curves, question):
        row = [c.loss(math.log2(rate) + _carried(c, question)) for c in curves]
        found[rate] = row
        covered[rate] = sum(w for w, loss in zip(weights, row, strict=True) if loss is not None)
    half = sum(weights) / 2
    most = {rate: row for rate, row in found.items() if covered[rate] >= half}
    return most or {rate: row for rate, row in found.items() if covered[rate] > 0}


def _usual_rates(curves: Sequence[_Curve], question: Question) -> list[float]:
    """Also those that were best in own sweeps, and then nothing that is nearly the same."""
    carried = {c.best_rate / 2 ** _carried(c, question) for c in curves if c.own is not None}
    best = {float(f"{rate:.3g}") for rate in carried}
    others = [r for r in USUAL_RATES if all(_doublings(r, b) > _SAME_RATE for b in best)]
    return sorted([*best, *others])


def _carried(curve: _Curve, question: Question) -> float:
    """What to add to log2 of a rate, to ask a curve of another batch size."""
    return math.log2(curve.batch_size / question.batch_size) / 2


def _greedy(
    losses: Mapping[float, Sequence[float | None]], weights: Sequence[float], count: int
) -> list[tuple[float, float]]:
    """Rates in the order of what each adds, with the mean loss of each alone."""
    alone = {rate: _mean(row, weights) for rate, row in losses.items()}
    picks: list[float] = []
    best: list[float | None] = [None] * len(weights)
    while len(picks) < min(count, len(losses)):
        left = [rate for rate in losses if rate not in picks]
        joined = {rate: _better(best, losses[rate]) for rate in left}
        pick = min(left, key=lambda rate: (_mean(joined[rate], weights), alone[rate]))
        best = joined[pick]
        picks.append(pick)
    return [(rate, alone[rate]) for rate in picks]


def _better(one: Sequence[float | None], other: Sequence[float | None]) -> list[float | None]:
    return [
        b if a is None else a if b is None else min(a, b) for a, b in zip(one, other, strict=True)
    ]


def _mean(row: Sequence[float | None], weights: Sequence[float]) -> float:
    known = [(w, loss) for w, loss in zip(weights, row, strict=True) if loss is not None]
    return sum(w * loss for w, loss in known) / sum(w for w, _ in known)


# --- words ------------------------------------------------------------------------------------


def _reason(curves: Sequence[_Curve], weights: Sequence[float], rank: int) -> str:
    if curves[0].own is not None:
        count = len({c.own for c in curves})
        sweeps = "a finished sweep" if count == 1 else f"{count} finished sweeps"
        return f"the best of {sweeps} of {curves[0].base} in this storage, at rank {rank}"
    of_base = {c.base for c in curves}
    nearest = max(zip(weights, curves, strict=True), key=lambda pair: pair[0])[1]
    return (
        f"smallest mean loss at rank {rank} over {len(curves)} recorded curves of "
        f"{len(of_base)} bases, the nearest {nearest.base} at rank {nearest.rank}"
    )


def _doubts(
    records: Sequence[Record], question: Question, asked: BaseFacts, rank: int
) -> Iterable[str]:
    if all(r.way != question.way for r in records):
        yield f"no recorded sweep learns with {question.way or 'what is usual'}"
    own = [r for r in records if r.base == question.base]  # they say more than family and size
    if not own:
        yield from _stranger([facts(r.base) for r in records], question, asked)
    nearest = own or records
    yield from _outside("rank", rank, [r.rank for r in nearest], "")
    yield from _outside("batch size", question.batch_size, [r.batch_size for r in nearest], "rows")
    yield from _outside("length", question.steps, [r.steps for r in nearest], "steps")


def _of_another_kind(question: Question, asked: BaseFacts) -> str:
    if asked.is_toy:
        return f"{question.base!r} is a toy, and no finished sweep of a toy is in this storage"
    return f"only sweeps of toys are known, which say nothing of {question.base!r}"


def _stranger(known: Sequence[BaseFacts], question: Question, asked: BaseFacts) -> Iterable[str]:
    if asked.family is None:
        yield f"the name {question.base!r} says no family that is known"
    elif asked.family not in {k.family for k in known}:
        yield f"no recorded sweep is of the family {asked.family!r}"
    sizes = [k.billions for k in known if k.billions]
    if asked.billions is None:
        yield f"the name {question.base!r} says no size"
    else:
        yield from _outside("size", asked.billions, sizes, "billion weights")


def _outside(what: str, value: float, known: Sequence[float], unit: str) -> Iterable[str]:
    low, high = min(known, default=value), max(known, default=value)
    if value < low / 2**_FAR or value > high * 2**_FAR:
        span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        yield f"{what} {value:g} is far from those recorded ({f'{span} {unit}'.strip()})"
