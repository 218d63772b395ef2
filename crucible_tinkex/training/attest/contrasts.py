"""Which pairs of short-lived models prove that a service applies a setting: pure.

The two models of a contrast differ in one setting only. The values are not always those that are
asked for: in two steps of AdamW a weight decay of 0.01 moves nothing that could be seen, so what is
proved is that the service reads the field, with values whose effect is large. Steps of unequal size
make the two gradients differ, without which neither moment's decay would show.

What is computed here reaches the service as something else, and that is contrasted: losses and
token weights as the loss weights of `cross_entropy`, schedules as the rate of a step. So two
losses that are the same in numbers (`cross_entropy` and `nll`) accuse nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crucible_tinkex.config import Experiment
from crucible_tinkex.config.axes import NUMBERS, AxisRange
from crucible_tinkex.training.attest.settings import STRONG, Settings

RANK, SEED = "lora.rank", "lora.seed"
MOVES = "two steps"
"""No setting, and no axis: whether two steps move a model at all."""
SWITCHES = ("lora.train_attn", "lora.train_mlp", "lora.train_unembed")
CLIP = "optimizer.grad_clip_norm"
CLIP_EPS = 1e-4
"""AdamW does not see a gradient's scale; with an eps above the clipped gradient it does."""
SIZES = ((1.0,), (1.0, 4.0))
SIGNS = ((1.0, -0.5), (1.0, -2.0))
"""The gradient of a loss with respect to a logprob may have either sign. A service that takes
weights for a mask, or negative ones for 0, does the same with both."""
RATES = (1.0, 0.125)
PAIRS: Mapping[str, tuple[str, tuple[Any, Any]]] = {
    **{f"optimizer.{name}": (name, values) for name, values in STRONG.items()},
    **{key: (key.partition(".")[2], (True, False)) for key in SWITCHES},
    "optimizer.schedule": ("last_share", RATES),
    "optimizer.warmup_steps": ("last_share", RATES),
    "train.accumulate": ("accumulate", (1, 2)),
    "train.loss": ("weights", SIGNS),
    "train.token_weights": ("weights", SIZES),
    "train.adapter": ("weights", SIZES),
    NUMBERS: ("weights", SIZES),
}
"""By key of an experiment: which setting of two models is contrasted, and its values."""
CONTRASTED = (RANK, SEED, *PAIRS)
BY_SESSIONS = ("train.epochs", "train.max_steps", "train.batch_size", "data.train")
"""Axes that only say which rows are sent, and how often."""


@dataclass(frozen=True)
class Contrast:
    """Two models that differ in `field`. `a` equals `b` where one model says it all (`MOVES`)."""

    key: str
    asked: tuple[Any, ...]
    """The values of the experiment, as declared."""
    field: str
    """Of `Settings`."""
    a: Settings
    b: Settings
    varies: bool = True
    """Whether trials of the sweep differ in it."""

    @property
    def probed(self) -> tuple[Any, Any]:
        return getattr(self.a, self.field), getattr(self.b, self.field)


def contrasts_of(experiment: Experiment) -> list[Contrast]:
    """Those of every setting that the search varies, and of those that are declared with another
    value than the default; the rest of an experiment is done by sessions, not by the service. The
    last one says whether steps move a model."""
    tried = _tried_values(experiment)
    seeds = experiment.search.seeds
    varied = {key: values for key, values in tried.items() if len(values) > 1}
    experiment = experiment.configured({k: v[0] for k, v in tried.items() if k not in varied})
    base = _base(experiment, varied, seeds)
    fixed = _declared(experiment)
    if len(seeds) > 1 and experiment.lora.seed is None:
        # They order the rows, too, so trials differ whatever the service does.
        fixed = {SEED: seeds, **fixed}
    found = [_contrast(key, values, base, varies=True) for key, values in varied.items()]
    rest = {key: values for key, values in fixed.items() if key not in varied}
    found += [_contrast(key, values, base, varies=False) for key, values in rest.items()]
    return [*found, Contrast(MOVES, (base.loss,), "loss", base, base, varies=False)]


def settings_of(contrasts: Sequence[Contrast]) -> list[Settings]:
    """Every model that is needed, each once."""
    return list(dict.fromkeys(s for c in contrasts for s in (c.a, c.b)))


def base_of(contrasts: Sequence[Contrast]) -> Settings:
    """The model that most contrasts share."""
    return contrasts[-1].a


def is_contrasted(key: str) -> bool:
    """Whether the effect of a key goes through the service, so that it may be lost there."""
    return _kind(key) in CONTRASTED


def _kind(key: str) -> str:
    """The numbers of a scheme are one kind, whatever their names."""
    return NUMBERS if key.startswith(f"{NUMBERS}.") else key


def _tried_values(experiment: Experiment) -> dict[str, tuple[Any, ...]]:
    """Keys that the search sets and the service applies, with all values that trials have."""
    search, found = experiment.search, dict[str, dict[Any, None]]()
    for key, value in _tried(experiment):
        found.setdefault(key, {})[value] = None
    if search.strategy == "list" or search.enqueue:
        for key, values in found.items():  # where a configuration leaves it out, it is as declared
            values.setdefault(experiment.setting(key), None)
    return {key: tuple(values) for key, values in found.items() if is_contrasted(key)}


def _tried(experiment: Experiment) -> Iterator[tuple[str, Any]]:
    search = experiment.search
    for key, axis in search.space.items() if search.strategy != "list" else ():
        values = (axis.low, axis.high) if isinstance(axis, AxisRange) else axis
        yield from ((key, value) for value in values)
    listed = search.configs if search.strategy == "list" else ()
    for configuration in (*search.enqueue, *listed):
        yield from configuration.items()


def _declared(experiment: Experiment) -> dict[str, tuple[Any, ...]]:
    """What the experiment sets to something that no service would do by itself."""
    found = {}
    for key in CONTRASTED:
        if key == NUMBERS:  # they do nothing without a scheme, which is declared, too
            continue
        section, _, name = key.partition(".")
        default = type(getattr(experiment, section)).model_fields[name].default
        if (value := experiment.setting(key)) != default:
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
    field, (a, b) = PAIRS.get(_kind(key)) or _numbers(key, asked, base)
    if key == CLIP:
        base = base.having(eps=CLIP_EPS)
    return Contrast(key, asked, field, base.having(**{field: a}), base.having(**{field: b}), varies)


def _numbers(key: str, asked: tuple[Any, ...], base: Settings) -> tuple[str, tuple[int, int]]:
    """The rank or the seed: two of those that are asked for."""
    if key == RANK:
        most = int(max(asked))
        return "rank", (base.rank, most if most > base.rank else (base.rank // 2 or 2))
    others = [int(s) for s in asked if s is not None and int(s) != base.seed]
    return "seed", (base.seed, others[0] if others else base.seed + 1)
