"""Which pairs of short-lived models prove that a service applies a setting: pure.

The two models of a contrast differ in one setting only. The values are not always those that are
asked for: in two steps of AdamW a weight decay of 0.01 moves nothing that could be seen, so what is
proved is that the service reads the field, with values whose effect is large. Steps of unequal size
make the two gradients differ, without which neither moment's decay would show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from crucible_tinkex.config import Experiment
from crucible_tinkex.config.axes import AxisRange
from crucible_tinkex.protocol.wire import AdamParams, LoraConfig

RANK, SEED, LOSS = "lora.rank", "lora.seed", "train.loss"
SWITCHES = ("lora.train_attn", "lora.train_mlp", "lora.train_unembed")
CLIP_EPS = 1e-4
"""AdamW does not see a gradient's scale; with an eps above the clipped gradient it does."""
STRONG: Mapping[str, tuple[float, float]] = {
    "optimizer.learning_rate": (2e-3, 2.5e-4),
    "optimizer.beta1": (0.9, 0.1),
    "optimizer.beta2": (0.95, 0.1),
    "optimizer.eps": (1e-12, 1.0),
    "optimizer.weight_decay": (0.0, 50.0),
    "optimizer.grad_clip_norm": (0.0, 1e-8),
}
"""The values of a contrast; the first is that of all other models."""


@dataclass(frozen=True)
class Settings:
    """All that a service is asked to apply to a short-lived model."""

    rank: int
    seed: int = 0
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = False
    learning_rate: float = STRONG["optimizer.learning_rate"][0]
    beta1: float = STRONG["optimizer.beta1"][0]
    beta2: float = STRONG["optimizer.beta2"][0]
    eps: float = STRONG["optimizer.eps"][0]
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0
    loss: str = "cross_entropy"

    @property
    def lora(self) -> LoraConfig:
        return LoraConfig(**{name: getattr(self, name) for name in LoraConfig.model_fields})

    @property
    def adam(self) -> AdamParams:
        return AdamParams(**{name: getattr(self, name) for name in AdamParams.model_fields})

    def having(self, key: str, value: Any) -> Settings:
        """With the dotted key of an experiment changed."""
        return replace(self, **{key.partition(".")[2]: value})


@dataclass(frozen=True)
class Contrast:
    """Two models that differ in `key`. `a` equals `b` where one model says it all: the loss."""

    key: str
    asked: tuple[Any, ...]
    """The values of the experiment, as declared."""
    a: Settings
    b: Settings
    varies: bool = True
    """Whether trials of the sweep differ in it."""

    @property
    def probed(self) -> tuple[Any, Any]:
        name = self.key.partition(".")[2]
        return getattr(self.a, name), getattr(self.b, name)

    @property
    def is_asked(self) -> bool:
        """Whether the probed values are among those asked for."""
        return set(self.probed) <= set(self.asked)


def contrasts_of(experiment: Experiment) -> list[Contrast]:
    """Those of every setting that the search varies, and of those that are declared with another
    value than the default; the rest of an experiment is done by sessions, not by the service."""
    tried = _tried_values(experiment)
    seeds = experiment.search.seeds
    varied = {key: values for key, values in tried.items() if len(values) > 1}
    experiment = experiment.configured({k: v[0] for k, v in tried.items() if k not in varied})
    base = _base(experiment, varied, seeds)
    fixed = {**_declared(experiment), LOSS: ("cross_entropy",)}
    if len(seeds) > 1 and experiment.lora.seed is None:
        # They order the rows, too, so trials differ whatever the service does.
        fixed = {SEED: seeds, **fixed}
    found = [_contrast(key, values, base, varies=True) for key, values in varied.items()]
    rest = {key: values for key, values in fixed.items() if key not in varied}
    return [*found, *(_contrast(key, v, base, varies=False) for key, v in rest.items())]


def settings_of(contrasts: Sequence[Contrast]) -> list[Settings]:
    """Every model that is needed, each once."""
    return list(dict.fromkeys(s for c in contrasts for s in (c.a, c.b)))


def base_of(contrasts: Sequence[Contrast]) -> Settings:
    """The model that most contrasts share."""
    return contrasts[-1].a


def _tried_values(experiment: Experiment) -> dict[str, tuple[Any, ...]]:
    """Keys that the search sets and the service applies, with all values that trials have."""
    search, found = experiment.search, dict[str, dict[Any, None]]()
    for key, value in _tried(experiment):
        found.setdefault(key, {})[value] = None
    if search.strategy == "list" or search.enqueue:
        for key, values in found.items():  # where a configuration leaves it out, it is as declared
            values.setdefault(_value(experiment, key), None)
    return {key: tuple(values) for key, values in found.items() if _is_applied(key)}


def _tried(experiment: Experiment) -> Iterator[tuple[str, Any]]:
    search = experiment.search
    for key, axis in search.space.items() if search.strategy != "list" else ():
        values = (axis.low, axis.high) if isinstance(axis, AxisRange) else axis
        yield from ((key, value) for value in values)
    listed = search.configs if search.strategy == "list" else ()
    for configuration in (*search.enqueue, *listed):
        yield from configuration.items()


def _is_applied(key: str) -> bool:
    """Whether it is for the service to apply: losses other than `cross_entropy` are computed here,
    from what it answers to that one."""
    return key in (RANK, SEED, *SWITCHES, *STRONG)


def _value(experiment: Experiment, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(experiment, section), name, None)


def _declared(experiment: Experiment) -> dict[str, tuple[Any, ...]]:
    """What the experiment sets to something that no service would do by itself."""
    found = {}
    for key in (RANK, SEED, *SWITCHES, *STRONG):
        section, _, name = key.partition(".")
        default = type(getattr(experiment, section)).model_fields[name].default
        if (value := _value(experiment, key)) != default:
            found[key] = (value,)
    return found


def _base(
    experiment: Experiment, varied: Mapping[str, Sequence[Any]], trial_seeds: Sequence[int]
) -> Settings:
    ranks = varied.get(RANK, (experiment.lora.rank,))
    seeds = varied.get(SEED, (experiment.lora.seed, *trial_seeds))
    seed = next(int(s) for s in seeds if s is not None)
    return Settings(rank=int(min(ranks)), seed=seed)


def _contrast(key: str, asked: tuple[Any, ...], base: Settings, *, varies: bool) -> Contrast:
    a, b = _values(key, asked, base)
    if key == "optimizer.grad_clip_norm":
        base = replace(base, eps=CLIP_EPS)
    return Contrast(key, asked, base.having(key, a), base.having(key, b), varies)


def _values(key: str, asked: tuple[Any, ...], base: Settings) -> tuple[Any, Any]:
    if key in STRONG:
        return STRONG[key]
    if key in SWITCHES:
        return True, False
    if key == LOSS:
        return asked[0], asked[0]
    if key == RANK:
        most = int(max(asked))
        return base.rank, most if most > base.rank else (base.rank // 2 or 2)
    others = [int(s) for s in asked if s is not None and int(s) != base.seed]
    return base.seed, others[0] if others else base.seed + 1
