"""What the trials of an experiment learn by, checked before anything is spent.

Every loss, token-weight scheme and adapter that a trial may have is loaded, so that a name that is
wrong is refused; a custom loss is called on the first rows, a scheme and an adapter on all of them.
The source of the user's code is a part of what a sweep answers: one that has changed is another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any

from crucible_tinkex.config import Experiment, TrainSection
from crucible_tinkex.config.axes import NUMBERS, AxisRange
from crucible_tinkex.datasets import TokenisedDataset, Tokenizer
from crucible_tinkex.scoring.scorers import FUNCTION
from crucible_tinkex.search.points.space import Values
from crucible_tinkex.search.strategies import learns
from crucible_tinkex.training.losses.objective import Objective, try_on
from crucible_tinkex.training.losses.registry import learning_functions
from crucible_tinkex.training.losses.schemes import check_numbers
from crucible_tinkex.user_code import code_hash

TRIED_ROWS = 20_000
"""Rows on which each scheme is tried; those behind them are weighed when their step comes."""
_AT_ONCE, _A_FEW = 256, 4
_NAMED = ("train.loss", "train.token_weights", "train.adapter")


class Objectives:
    """Of an experiment, whose known `configurations` are these. Raises `ConfigError`."""

    def __init__(self, experiment: Experiment, configurations: Sequence[Values]) -> None:
        self._variants = list(_variants(experiment, configurations))
        self._made = [Objective.of(variant) for variant in self._variants]
        schemes = [made.scheme for made in self._made if made.scheme is not None]
        numbers = [name for made in self._made for name in made.numbers or {}]
        check_numbers(schemes, numbers, key="train.weight_config")
        self._adapters = [v for v in self._variants if v.adapter is not None]
        for variant in self._adapters:
            adapted().adapter_of(variant)
        learnt_by = [name for v in self._variants for name in learning_functions(v)]
        scored_by = [t.function for t in experiment.evaluation.scores if t.function is not None]
        whats = {**dict.fromkeys(scored_by, FUNCTION), **dict.fromkeys(learnt_by, "function")}
        whats |= experiment.steps.functions
        self.code: Mapping[str, str] = {n: code_hash(n, what=what) for n, what in whats.items()}
        """The user's functions, with the hashes of their source."""

    @property
    def reads_text(self) -> bool:
        """Whether any trial weighs tokens or has an adapter, so that the texts must be kept."""
        return bool(self._adapters) or any(made.scheme is not None for made in self._made)

    def try_on(self, data: TokenisedDataset, tokenizer: Tokenizer) -> None:
        """Raises `ConfigError` for what fails on the rows, naming the function and the row."""
        schemes = set[str | None]()
        for made, variant in zip(self._made, self._variants, strict=True):
            # Of one scheme with many numbers, the first is tried on all rows.
            is_new = made.scheme is not None and variant.token_weights not in schemes
            schemes.add(variant.token_weights)
            rows = min(TRIED_ROWS if is_new else _A_FEW, len(data))
            datums = (made.datum(data, i) for i in range(rows))
            try_on(made.loss, list(islice(datums, 2)), key="train.loss")
            deque(datums, maxlen=0)  # all of them, and none is kept
        for variant in self._adapters:
            formatter, end = adapted().Formatter(variant, tokenizer), min(TRIED_ROWS, len(data))
            for start in range(0, end, _AT_ONCE):
                formatter.datums(data, range(start, min(start + _AT_ONCE, end)))


def adapted() -> Any:
    """Imported where there is an adapter: it brings the adapter's sessions along."""
    from crucible_tinkex.training.recipes import adapted as module

    return module


def changed_code(now: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    """Functions whose source is another than that of the sweep until now."""
    return [name for name, source in now.items() if before.get(name, source) != source]


def _variants(
    experiment: Experiment, configurations: Iterable[Mapping[str, Any]]
) -> Iterator[TrainSection]:
    """`[train]` of every kind of trial, each once, as far as learning goes."""
    points = list(_points(experiment)) if learns(experiment) else []
    kinds: dict[object, Mapping[str, Any]] = {}
    for values in (*configurations, *experiment.search.enqueue, *points):
        own = {k: v for k, v in values.items() if is_learning(k)}
        kinds.setdefault(tuple(sorted(own.items())), own)
    found: dict[object, TrainSection] = {}
    for kind in kinds.values():
        train = experiment.configured(kind).train
        numbers = tuple(sorted(train.weight_config.items()))
        found.setdefault((train.loss, train.token_weights, train.adapter, numbers), train)
    yield from found.values()


def _points(experiment: Experiment) -> Iterator[dict[str, Any]]:
    """What a search may come to that chooses as it goes: every name with every other, and the first
    of each number."""
    axes = {
        key: (axis.low,) if isinstance(axis, AxisRange) else axis if key in _NAMED else axis[:1]
        for key, axis in experiment.search.space.items()
        if is_learning(key)
    }
    for point in product(*axes.values()):
        yield dict(zip(axes, point, strict=True))


def is_learning(key: str) -> bool:
    """Whether a setting decides what a trial learns by."""
    return key in _NAMED or key.startswith(f"{NUMBERS}.")
