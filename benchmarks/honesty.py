"""Are the conclusions honest? Simulated sweeps whose truth is known, judged by the real code.

Seeds' effects are shared by all configurations of a sweep (sd 1), and each value has noise of its
own (sd 1, the unit of everything here). Tests run a tenth of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from benchmarks.lives import LIVES, WHOLE, lived
from benchmarks.rates import PROCESSES, Rate, in_processes
from crucible_tinkex import bench
from crucible_tinkex.bench.comparison import standard_error
from crucible_tinkex.bench.intervals import Floats
from crucible_tinkex.bench.power import paired_power
from crucible_tinkex.bench.selection.configurations import table
from crucible_tinkex.bench.selection.contest import contest
from crucible_tinkex.bench.selection.winner import chosen_value

SWEEPS = 10_000
RUNGS = 3
ALPHA = 0.05


def drawn(
    rng: np.random.Generator, sweeps: int, means: Sequence[float], seeds: int, *, spread: float = 1
) -> Floats:
    """(sweeps, configurations, seeds); the last is `spread` times as noisy as the first."""
    k = len(means)
    noise = rng.normal(size=(sweeps, k, seeds)) * np.geomspace(1, spread, k)[:, None]
    return np.asarray(np.array(means)[:, None] + noise + rng.normal(size=(sweeps, 1, seeds)))


def false_winners(
    rng: np.random.Generator, sweeps: int, *, k: int, seeds: int, spread: float = 1
) -> Rate:
    """All configurations are equal. A third survives each of three rungs, whose values are
    correlated; after every seed of every rung somebody looks. How often is a winner declared?"""
    alive = np.ones((sweeps, k), dtype=bool)
    declared = np.zeros(sweeps, dtype=bool)
    values = drawn(rng, sweeps, [0.0] * k, seeds, spread=spread)
    for rung in range(RUNGS):
        if rung:
            values = 0.8 * values + 0.6 * drawn(rng, sweeps, [0.0] * k, seeds, spread=spread)
        shown = np.where(alive[..., None], values, np.nan)
        for n in range(2, seeds + 1):
            declared |= _declared(shown[..., :n])
        means = np.where(alive, values.mean(axis=-1), -np.inf)
        survivors = max(2, int(alive[0].sum()) // 3)
        alive &= np.argsort(np.argsort(-means, axis=-1), axis=-1) < survivors
    return Rate(int(declared.sum()), sweeps)


def grown_false_winners(
    rng: np.random.Generator,
    sweeps: int,
    *,
    sizes: Sequence[int],
    seeds: int,
    climb: float = 0,
    spends: bool = True,
) -> Rate:
    """More is added again and again: `sizes` are those of the batches, each of which runs all seeds
    while somebody looks after every one. Those of a batch are equal, and better than the batch
    before by `climb`. How often is a winner ever declared, which there never is? Unless it
    `spends` alpha on what is added, each look takes those that are there for all there ever were.
    """
    batches = np.repeat(np.arange(len(sizes)), sizes)
    values = drawn(rng, sweeps, list(climb * batches), seeds)
    declared = np.zeros(sweeps, dtype=bool)
    for batch in range(len(sizes)):
        there = batches <= batch
        for n in range(2, seeds + 1):
            shown = np.where((batches < batch)[:, None] | (np.arange(seeds) < n), values, np.nan)
            shares = _shares(batches[there]) if spends else None
            declared |= _declared(shown[:, there], alpha=ALPHA, shares=shares)
    return Rate(int(declared.sum()), sweeps)


def _shares(batches: Floats) -> Floats:
    """As `conclude` gives them."""
    rows = [bench.Configuration(str(i), {0: 0.0, 1: 0.0}, batch=b) for i, b in enumerate(batches)]
    return table(rows, direction="max").shares


def _declared(
    values: Floats, *, alpha: float = ALPHA / RUNGS, shares: Floats | None = None
) -> Floats:
    found = contest(values, zone=0.0, alpha=alpha, shares=shares)
    competing = np.isfinite(values).any(axis=-1).sum(axis=-1)
    return np.asarray(found.duels.beaten.sum(axis=-1) == competing - 1)


def chosen_values(
    rng: np.random.Generator, sweeps: int, means: Sequence[float], seeds: int
) -> tuple[float, float, Rate]:
    """A fixed number of seeds: optimism of the corrected value and of the plain mean, in standard
    deviations of one value, and how often the interval covers."""
    values = drawn(rng, sweeps, means, seeds)
    found = contest(values, zone=0.0, alpha=ALPHA)
    among = (~found.duels.beaten).sum(axis=-1)
    value = chosen_value(values, found.leader, among=among, alpha=ALPHA, known=found.spread)
    true = np.array(means)[found.leader]
    covered = (value.low <= true) & (true <= value.high)
    sd = math.sqrt(2)
    bias, naive = (float((v - true).mean()) / sd for v in (value.value, value.mean))
    return bias, naive, Rate(int(covered.sum()), sweeps)


@dataclass(frozen=True)
class Confirmed:
    """What came of sweeps in which `next_seeds` was obeyed."""

    right: Rate
    """The best was named, or one within the zone of it."""
    winners: Rate
    """A winner was declared."""
    runs: float
    bias: float
    """Of the leader's value, in standard deviations of one value."""
    covered: Rate


def confirmed(
    rng: np.random.Generator,
    sweeps: int,
    means: Mapping[str, float],
    agreed: bench.Terms,
    *,
    processes: int = 1,
) -> Confirmed:
    """`means`: lower is better. Every seed that the rule asks for is run, until it asks no more."""
    found = in_processes(
        processes, _confirmed, rng.spawn(sweeps), [means] * sweeps, [agreed] * sweeps
    )
    right, winners, runs, errors, covered = zip(*found, strict=True)
    return Confirmed(
        Rate(sum(right), sweeps),
        Rate(sum(winners), sweeps),
        float(np.mean(runs)),
        float(np.mean(errors)) / math.sqrt(2),
        Rate(sum(covered), sweeps),
    )


def _confirmed(
    rng: np.random.Generator, means: Mapping[str, float], agreed: bench.Terms
) -> tuple[bool, bool, int, float, bool]:
    """Of one sweep: right, a winner declared, runs, the value's error, covered."""
    best = min(means.values())
    values = _obeyed(rng, means, agreed)
    found = bench.conclude([bench.Configuration(n, v) for n, v in values.items()], agreed)
    assert found.leader is not None and found.value is not None
    true = means[found.leader]
    return (
        true == best or true - best < agreed.zone,
        found.kind == "winner",
        sum(map(len, values.values())),
        true - found.value.value,
        found.value.low <= true <= found.value.high,
    )


def _obeyed(
    rng: np.random.Generator, means: Mapping[str, float], agreed: bench.Terms
) -> dict[str, dict[int, float]]:
    values: dict[str, dict[int, float]] = {name: {} for name in means}
    common: dict[int, float] = {}
    while True:
        configurations = [bench.Configuration(n, v) for n, v in values.items()]
        asked = bench.next_seeds(configurations, agreed).runs
        if not asked:
            return values
        for name, seed in asked:
            shared = common.setdefault(seed, float(rng.normal()))
            values[name][seed] = means[name] + shared + float(rng.normal())


def fixed_repeats(rng: np.random.Generator, k: int, zone: float, *, sweeps: int = 4000) -> int:
    """Runs that equal repeats of all need so that the best mean is the best configuration's in 95 %
    where it is better by `zone` than all others, which are equal (Bechhofer 1954). The researcher
    who repeats so many times knows the spread, which the seeds that are asked for do not: who has
    to estimate it needs more (`selection.two_stages`). Both pair by seed."""
    for n in range(1, 1000):
        values = rng.normal(scale=1 / math.sqrt(n), size=(sweeps, k))
        values[:, 0] += zone
        if (values.argmax(axis=1) == 0).mean() >= 0.95:
            return n * k
    raise ValueError("more than 1000 repeats")


def coverage(
    rng: np.random.Generator,
    sweeps: int,
    *,
    clusters: int,
    size: int,
    seeds: int = 1,
    by_seed: float = 0,
) -> tuple[Rate, Rate]:
    """Of 95 % intervals of a difference over examples in clusters: ours, and the naive ones that
    take all scores for independent."""
    cluster = np.repeat(np.arange(clusters), size * seeds)
    seed = np.tile(np.arange(seeds), clusters * size)
    ours = naive = 0
    for _ in range(sweeps):
        scores = rng.normal(size=clusters)[cluster] + rng.normal(size=len(cluster))
        scores = scores + by_seed * rng.normal(size=seeds)[seed]
        error, df = standard_error(scores, cluster, seed)
        mean = abs(float(scores.mean()))
        ours += mean <= special.stdtrit(df, 0.975) * error
        naive += mean <= 1.96 * float(scores.std()) / math.sqrt(len(scores))
    return Rate(int(ours), sweeps), Rate(int(naive), sweeps)


def power(rng: np.random.Generator, sweeps: int, *, n: int, effect: float) -> tuple[Rate, float]:
    """How often `compare` sees a difference of `effect` standard deviations, and the theory."""
    seen = 0
    for _ in range(sweeps):
        a = rng.normal(effect, 1, size=n)
        seen += bench.compare(a, np.zeros(n)).p < ALPHA
    return Rate(int(seen), sweeps), paired_power(effect, n, alpha=ALPHA)


SPREAD_OUT = {f"c{i}": mean for i, mean in enumerate([0.0, *np.linspace(1, 4, 11)])}
"""One is better than all others by 1; these lie as in a sweep, from near to far."""
ALIKE = {f"c{i}": float(i > 0) for i in range(12)}
"""The same with all others equally near: the worst case."""
GROWING = (((2, 1, 1, 1, 1, 1), 0), ((3, 3, 6, 12), 0), ((2,) * 6, 9))
"""Sizes of batches, and by how much each is better than the one before: where it is, only its own
two are left to be confused, again and again."""
EQUAL = {f"c{i}": 0.0 for i in range(5)}


def run(sweeps: int = SWEEPS) -> str:
    rng = np.random.default_rng(20_26)
    rows = ["| equal configurations | winner declared |", "|---|---|"]
    for k, seeds, spread in ((2, 5, 1), (2, 20, 1), (12, 3, 1), (12, 5, 5), (60, 5, 1)):
        few = sweeps if k < 60 else sweeps // 10
        rate = false_winners(rng, few, k=k, seeds=seeds, spread=spread)
        noisy = f", noise up to {spread} times" if spread > 1 else ""
        rows.append(f"| {k} x {seeds} seeds, {RUNGS} rungs{noisy}, a look at each | {rate} |")
    rows += [
        "",
        "| equal ones, more added again and again | ever declared | unspent |",
        "|---|---|---|",
    ]
    for sizes, climb in GROWING:
        few = sweeps if sum(sizes) < 30 else sweeps // 10
        ours, bare = (
            grown_false_winners(rng, few, sizes=sizes, seeds=6, climb=climb, spends=spends)
            for spends in (True, False)
        )
        better = ", each batch far better" if climb else ""
        rows.append(f"| {' + '.join(map(str, sizes))}{better} | {ours} | {bare} |")
    rows += [
        "",
        "| winner's value | bias, sd | plain mean's | interval covers |",
        "|---|---|---|---|",
    ]
    for means, seeds in (([0.0] * 12, 5), ([0.0] * 12, 10), ([0.0, 0.0, -0.5, -2.0], 5)):
        bias, naive, covered = chosen_values(rng, sweeps, means, seeds)
        share = f"{100 * covered.share:.1f} %"
        rows.append(f"| {len(means)} x {seeds} seeds | {bias:+.3f} | {naive:+.3f} | {share} |")
    rows += ["", "| 95 % interval of a difference | ours | naive |", "|---|---|---|"]
    for seeds, by_seed in ((1, 0.0), (2, 0.3), (3, 0.3)):
        ours, naive_rate = coverage(rng, sweeps, clusters=50, size=4, seeds=seeds, by_seed=by_seed)
        shares = f"{100 * ours.share:.1f} % | {100 * naive_rate.share:.1f} %"
        rows.append(f"| 50 clusters of 4, {seeds} seeds | {shares} |")
    seen, theory = power(rng, sweeps // 5, n=40, effect=0.4)
    rows += ["", f"Power of `compare`: {100 * seen.share:.1f} %, theory {100 * theory:.1f} %."]
    fixed = fixed_repeats(rng, 12, 1.0)
    rows += ["", "| confirmed seed by seed | right | winner | runs | bias, sd | covers |"]
    rows += ["|---|---|---|---|---|---|"]
    for label, means in (("spread out", SPREAD_OUT), ("alike", ALIKE), ("equal", EQUAL)):
        found = confirmed(rng, sweeps, means, bench.terms(zone=1.0), processes=PROCESSES)
        rows.append(
            f"| {len(means)}, {label} | {100 * found.right.share:.1f} % | "
            f"{100 * found.winners.share:.1f} % | {found.runs:.0f} | {found.bias:+.3f} | "
            f"{100 * found.covered.share:.1f} % |"
        )
    rows += ["", f"Equal repeats of 12 need {fixed} runs for 95 % right."]
    rows += ["", "| whole lives of equal ones | ever a winner | trials | bias, sd | covers |"]
    rows += ["|---|---|---|---|---|"]
    for life in LIVES:
        few = sweeps if life == WHOLE else sweeps // 5
        ended = lived(life, few, processes=PROCESSES)
        share = f"{100 * ended.covered.share:.1f} %"
        rows.append(
            f"| {life} | {ended.winners} | {ended.trials:.0f} | {ended.bias:+.3f} | {share} |"
        )
    return "\n".join(rows)
