"""`[search]`: which configurations are tried, by what they are ranked, when one is stopped early.

Declared and checked here; drawing configurations is `search`, stopping is the controller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from crucible_tinkex.config.axes import NUMBERS, SECTIONS, Axis, AxisRange, AxisValue
from crucible_tinkex.config.expression import Expression
from crucible_tinkex.config.section import Section, as_value_error
from crucible_tinkex.metrics import Direction, objective

DEFAULT_METRIC = "eval/nll"
TRAINING_DATA = "data.train"
"""An axis whose values are names in `data.sets` (`sets`)."""
DRAWN = ("random", "qmc")
"""Strategies that draw points without looking at results."""
LEARNING = ("tpe", "gp", "cmaes", "auto")
"""Strategies that choose the next point by the results so far."""
SAMPLED = (*DRAWN, *LEARNING)
"""Strategies that try `trials` points of the space."""


Rule = Literal[
    "none",
    "halving",
    "topk",
    "hyperband",
    "population",
    "median",
    "behind",
    "plateau",
    "threshold",
    "divergence",
]


class StoppingSection(Section):
    """When a trial that lags behind is ended before its last step."""

    rule: Rule | tuple[Rule, ...] = "none"
    """One rule, or several that all hold. `halving`: at each rung the best `1 / eta` go on (ASHA);
    `topk`: at one rung the best `keep`; `hyperband`: halving in `brackets`; `population`, alone: at
    each rung clones of the best fifth with other learning rates replace the worst fifth;
    `median`: better than the median; `behind`: not far worse than the best; `plateau`, `threshold`,
    `divergence`: by the trial's own curve."""
    eta: int = Field(default=3, ge=2)
    """halving, hyperband: how much rarer trials become, and how much longer they train, from rung
    to rung."""
    first_rung: int | None = Field(default=None, ge=1)
    """Step of the first decision; by default it follows from the trials' steps."""
    keep: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], ...] = 1
    """topk: how many go on; a list for a list of `rungs`."""
    rungs: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """topk: steps of several rungs instead of `first_rung`, one for each of `keep`."""
    brackets: int = Field(default=3, ge=1, le=20)
    """hyperband: how many first rungs there are, each `eta` times later than the one before."""
    every: int | None = Field(default=None, ge=1)
    """population, median, behind, plateau, threshold, divergence: steps between decisions; by
    default a tenth."""
    startup: int = Field(default=5, ge=1)
    """median: rivals that must have been measured at a step before one is stopped there."""
    margin: float = Field(default=0.15, ge=0)
    """behind: how much worse than the best at the same step a trial may be, as a share of that."""
    patience: int = Field(default=3, ge=0)
    """plateau: decisions without an improvement that are borne with."""
    min_delta: float = Field(default=0.0, ge=0)
    """plateau: the least improvement that counts, in the metric's unit."""
    threshold: float | None = None
    """threshold: the worst value with which a trial goes on, in the metric's unit."""
    factor: float = Field(default=2.0, gt=1)
    """divergence: how many times its own best a trial's loss may become."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        given = self.rule if isinstance(self.rule, tuple) else (self.rule,)
        return tuple(dict.fromkeys(rule for rule in given if rule != "none"))

    @model_validator(mode="after")
    def _can_be_done(self) -> StoppingSection:
        ranked = [rule for rule in self.rules if rule in ("halving", "topk", "hyperband")]
        if len(ranked) > 1:
            raise ValueError(f"rules {' and '.join(ranked)} contradict each other: take one")
        if self.rungs or isinstance(self.keep, tuple):
            keeps = self.keep if isinstance(self.keep, tuple) else (self.keep,)
            if list(self.rungs) != sorted(set(self.rungs)) or len(self.rungs) != len(keeps):
                raise ValueError("rungs must rise, and be as many as keep")
        if "population" in self.rules and len(self.rules) > 1:
            raise ValueError("rule 'population' replaces what it stops: take it alone")
        if "threshold" in self.rules and self.threshold is None:
            raise ValueError("rule 'threshold' needs a threshold")
        return self


class SearchSection(Section):
    """Which configurations are tried and by what they are ranked."""

    strategy: Literal["grid", "list", "random", "qmc", "tpe", "gp", "cmaes", "auto"] = "grid"
    """`grid`: all points of the space. `list`: those of `configs`. The others try `trials` points:
    `random` and `qmc` (evenly spread, a scrambled Sobol sequence) draw them beforehand; `tpe`
    (Parzen estimator; a good choice from 20 trials on), `gp` (Gaussian process; for few and
    dear trials: choosing takes up to a second; needs torch) and `cmaes` (evolution strategy; for
    numbers, from 50 trials on) choose the next one by the results so far, the first ten at most as
    `qmc` does. `auto`: what earlier sweeps suggest, then the neighbours of the best, with an early
    rung and confirmed leaders; `space`, `trials`, `enqueue`, `stopping` and `confirm` are chosen
    where they are not given (docs/tune.md)."""
    trials: int | None = Field(default=None, ge=1, le=100_000)
    """How many configurations the sampled strategies try; `auto` ends before where the best has no
    neighbour left."""
    seed: int = Field(default=0, ge=0)
    """Seed of the sampled strategies."""
    metric: str = DEFAULT_METRIC
    """What ranks: `eval/nll`, `eval/accuracy`, `train/nll`, or what `evaluation.metrics` measures.
    """
    direction: Direction | None = None
    """Which way is better; by default the metric's own."""
    at: Literal["final", "best"] = "final"
    """The step that counts: a trial's last, or its best evaluated one that has a checkpoint."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Every configuration runs once per seed (adapter initialisation and data order)."""
    space: dict[str, Axis] = Field(default_factory=dict)
    """Dotted key to a list of values or a range. A list of numbers that rise or fall is an axis
    with an order; another is a choice."""
    zip: tuple[tuple[str, ...], ...] = ()
    """Axes that go together: lists of keys whose axes have as many values each, the first with the
    first and so on."""
    where: tuple[str, ...] = ()
    """Conditions that every configuration meets, such as `"lora.rank * train.batch_size <= 512"`.
    A key that does not vary has its declared value."""
    when: dict[str, str] = Field(default_factory=dict)
    """Dotted key to a condition without which it does not vary and has its declared value, such as
    `"optimizer.warmup_steps" = "optimizer.schedule != 'constant'"`."""
    enqueue: tuple[dict[str, AxisValue], ...] = ()
    """Configurations that are tried first, whatever the strategy: tables of dotted keys."""
    configs: tuple[dict[str, AxisValue], ...] = ()
    """The configurations of strategy `list`: tables of dotted keys."""
    confirm: Annotated[int, Field(ge=0, le=1000)] | Literal["auto"] = 0
    """After the search, train the leaders again with so many fresh seeds; the winner's value is
    then read from these alone. `auto`: with as many as it takes to tell the best, seed by seed."""
    confirm_top: int = Field(default=3, ge=1, le=1000)
    """How many leaders are confirmed."""
    confirm_max_seeds: int = Field(default=20, ge=2, le=1000)
    """`confirm = "auto"`: fresh seeds of a leader, at most; the winner gets two more for itself."""
    indifference: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Differences of the metric up to this do not matter, in its unit: leaders that are proved to
    be so close are a tie, and the cheaper is taken. By default the metric's own."""
    reference: bool = True
    """Also evaluate the untrained base model, as a row to compare with."""
    stopping: StoppingSection = StoppingSection()

    @field_validator("metric")
    @classmethod
    def _is_objective(cls, name: str) -> str:
        with as_value_error():
            return objective(name).name

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds) or any(s < 0 for s in seeds):
            raise ValueError("seeds must be distinct and not negative")
        return seeds

    @field_validator("where")
    @classmethod
    def _are_conditions(cls, where: tuple[str, ...]) -> tuple[str, ...]:
        _check_conditions(where)
        return where

    @field_validator("when")
    @classmethod
    def _have_conditions(cls, when: dict[str, str]) -> dict[str, str]:
        _check_conditions(when.values())
        return when

    @field_validator("space", "when", mode="before")
    @classmethod
    def _dotted_space(cls, space: Any) -> Any:
        return flat(space) if isinstance(space, Mapping) else space

    @field_validator("configs", "enqueue", mode="before")
    @classmethod
    def _dotted_configs(cls, configs: Any) -> Any:
        if not isinstance(configs, list | tuple):
            return configs
        return [flat(c) if isinstance(c, Mapping) else c for c in configs]

    @property
    def training_data(self) -> list[str]:
        """Names of the training data among which the search chooses, each once."""
        axis = self.space.get(TRAINING_DATA, ()) if self.strategy != "list" else ()
        listed = self.configs if self.strategy == "list" else ()
        chosen = [c[TRAINING_DATA] for c in (*self.enqueue, *listed) if TRAINING_DATA in c]
        names = [*(() if isinstance(axis, AxisRange) else axis), *chosen]
        return [str(name) for name in dict.fromkeys(names)]

    @property
    def objective_direction(self) -> Direction:
        """Which way is better: as declared, else as the catalogue has it."""
        return self.direction or objective(self.metric).direction or "min"


def _check_conditions(texts: Iterable[str]) -> None:
    with as_value_error():
        for text in texts:
            Expression.parse(text)


def flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    """TOML reads an unquoted `lora.rank = [8]` as nested tables; so does `--set`. The later wins,
    and a table goes into the table of that key."""
    flat: dict[str, Any] = {}
    for key, value in _axes(tables):
        old = flat.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            flat[key] = {**old, **value}
        else:
            flat[key] = value
    return flat


def _axes(tables: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in tables.items():
        if key in SECTIONS and isinstance(value, Mapping):
            for name, inner in value.items():
                if f"{key}.{name}" == NUMBERS and isinstance(inner, Mapping):
                    yield from ((f"{NUMBERS}.{number}", axis) for number, axis in inner.items())
                else:
                    yield f"{key}.{name}", inner
        else:
            yield key, value
