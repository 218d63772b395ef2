"""How often the seeds that are asked for end with the best, and with how many runs: many sweeps at
once, judged by the real code. `benchmarks/honesty.py` asks the whole rule, sweep by sweep.

Noise of one value is 1 where nothing else is said. The worst case of a selection with a zone is
that all others are worse by just the zone; noise that differs makes it harder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crucible_tinkex.bench.intervals import Bools
from crucible_tinkex.bench.selection.contest import contest

SWEEPS = 2_000
FIRST, PROOF = 3, 2
"""As `next_seeds` has them."""
ALPHA = 0.05


@dataclass(frozen=True)
class Selected:
    right: float
    """The best was the leader in the end, or one within the zone of it."""
    runs: float
    rounds: float
    """Of seeds that had to be waited for."""
    open: float
    """Ended by the limit of seeds: nothing is claimed."""


def selected(
    rng: np.random.Generator,
    sweeps: int,
    means: Sequence[float],
    *,
    zone: float = 1.0,
    noise: Sequence[float] | None = None,
    by_seed: float = 1.0,
    most_seeds: int = 60,
) -> Selected:
    """`means`: higher is better. `by_seed`: what a seed does to all alike; 0: values of one seed
    are independent, 1: correlated by .5."""
    level, k = np.asarray(means, dtype=float), len(means)
    shape = (sweeps, k, most_seeds)
    own = rng.normal(size=shape) * np.asarray(noise or [1.0] * k)[:, None]
    truth = level[:, None] + own + by_seed * rng.normal(size=(sweeps, 1, most_seeds))
    ran = np.zeros(shape, dtype=bool)
    ran[..., :FIRST] = True
    leaders = np.zeros(sweeps, dtype=int)
    unsettled = np.zeros(sweeps, dtype=bool)
    going, waits = np.arange(sweeps), sweeps
    while len(going):
        seeds = int(ran[going].any(axis=1).sum(axis=1).max())
        shown = np.where(ran[going], truth[going], np.nan)[..., :seeds]
        found = contest(shown, zone=zone, alpha=ALPHA)
        leaders[going] = found.leader
        asks = found.open.any(axis=-1)
        full = ran[going, found.leader].sum(axis=-1) >= most_seeds
        unsettled[going] = asks & full
        on = asks & ~full
        wanted = found.pressing.copy()
        np.put_along_axis(wanted, found.leader[:, None], True, axis=-1)
        going, wanted = going[on], wanted[on]
        waits += len(going)
        ran[going] |= _next(ran[going], wanted)
    worse = level.max() - level[leaders]
    right = (worse == 0) | (worse < zone)
    runs = float(ran.sum(axis=(1, 2)).mean()) + PROOF
    return Selected(float(right.mean()), runs, waits / sweeps, float(unsettled.mean()))


def _next(ran: Bools, wanted: Bools) -> Bools:
    """The first seed that one of the wanted lacks, for all of them that do."""
    lacks = ~ran & wanted[..., None]
    seed = lacks.any(axis=1).argmax(axis=-1)[:, None, None]
    return np.asarray(lacks & (np.arange(ran.shape[-1]) == seed))


def two_stages(rng: np.random.Generator, k: int, zone: float, *, sweeps: int = 20_000) -> float:
    """Runs that equal repeats of all need where the spread is not known, in the same worst case:
    after `FIRST` seeds of all it is estimated from all together (as alike, which favours them), and
    all get as many as it says. The constant is the smallest that selects the best in 95 %, so it
    is tighter than in the books (Rinott 1978; Nelson and Matejcik 1995,
    doi 10.1287/mnsc.41.12.1935): they guarantee what is simulated here."""
    df = (k - 1) * (FIRST - 1)
    variance = rng.chisquare(df, size=(sweeps, 1)) / df
    errors = rng.normal(size=(sweeps, k))
    for constant in np.arange(1.0, 20.0, 0.02):
        seeds = np.maximum(FIRST, np.ceil(constant**2 * variance / zone**2))
        means = errors / np.sqrt(seeds)
        means[:, 0] += zone
        if (means.argmax(axis=1) == 0).mean() >= 1 - ALPHA:
            return float(seeds.mean()) * k
    raise ValueError("more than 400 repeats")


def worst(k: int, by: float = 1.0) -> list[float]:
    return [0.0, *[-by] * (k - 1)]


def noises(k: int, times: float, *, best: str) -> list[float]:
    """From one to `times` as much, 1 in the mean square; the best has the least or the most."""
    each = np.geomspace(1, times, k)
    each /= math.sqrt(float((each**2).mean()))
    return list(each if best == "quiet" else each[::-1])


def run(sweeps: int = SWEEPS) -> str:
    rows = ["| | right | runs | rounds | open |", "|---|---|---|---|---|"]
    cases: list[tuple[str, list[float], dict[str, object]]] = [
        *((f"{k}, all others 1 zone worse", worst(k), {}) for k in (2, 5, 12, 30)),
        ("12, values of one seed independent", worst(12), {"by_seed": 0.0}),
        ("12, 1.5 zones worse", worst(12, 1.5), {}),
        ("12, zone .5", worst(12, 0.5), {"zone": 0.5}),
        ("12, zone 2", worst(12, 2), {"zone": 2.0}),
        ("12, zone .5, others 1 worse", worst(12), {"zone": 0.5}),
        ("12, 1 to 4 zones worse", [0.0, *np.linspace(-1, -4, 11)], {}),
        ("12, .5 worse than the one before", list(np.arange(12) * -0.5), {}),
    ]
    for times in (2, 3):
        for best in ("quiet", "noisy"):
            options: dict[str, object] = {"noise": noises(12, times, best=best)}
            cases.append((f"12, noise up to {times} times, the best {best}", worst(12), options))
    for label, means, options in cases:
        found = selected(np.random.default_rng(20_26), sweeps, means, **options)  # type: ignore[arg-type]
        rows.append(
            f"| {label} | {100 * found.right:.1f} % | {found.runs:.0f} | {found.rounds:.1f} | "
            f"{100 * found.open:.1f} % |"
        )
    rng = np.random.default_rng(1)
    stages = ", ".join(f"{k}: {two_stages(rng, k, 1.0):.0f}" for k in (5, 12))
    return "\n".join(
        [*rows, "", f"Equal repeats whose spread is estimated need, of {stages} runs."]
    )
