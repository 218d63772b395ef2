"""Which registered models should vote together: those that are best by a metric, and differ.

A model without the metric, or with NaN or infinity for it, never wins and never passes a threshold
on it. Ties go to the older model, so the answer is the same at every call.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Literal

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.metrics import Direction, better
from crucible_tinkex.names import base_name
from crucible_tinkex.registry.models.records import ModelVersion

Distinct = Literal["checkpoint", "trial", "name"]
_SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_THRESHOLD = re.compile(r"^\s*(?P<sign>>=|<=|>|<)\s*(?P<value>\S+)\s*$")


def find(
    models: Iterable[ModelVersion],
    *,
    metric: str,
    direction: Direction | None = None,
    top_n: int = 5,
    tags: Collection[str] = (),
    base: str | None = None,
    thresholds: Mapping[str, float | str] | None = None,
    distinct: Distinct = "trial",
) -> list[ModelVersion]:
    """At most `top_n` models, the best first; see `ModelRegistry.find_for_ensemble`."""
    if top_n < 1:
        raise ConfigError(f"top_n is {top_n}; ask for at least 1 model")
    sign = 1.0 if better(metric, direction) == "min" else -1.0
    tests = [(name, parse_threshold(name, t)) for name, t in (thresholds or {}).items()]
    fitting = [
        m
        for m in models
        if m.stage != "archived"
        and set(tags) <= set(m.tags)
        and (base is None or (m.base_model and base_name(m.base_model) == base_name(base)))
        and _measured(m, metric) is not None
        and all((v := _measured(m, name)) is not None and test(v) for name, test in tests)
    ]
    fitting.sort(key=lambda m: (sign * m.metrics[metric], m.created, m.id))
    return list(_different(fitting, distinct))[:top_n]


def parse_threshold(metric: str, threshold: float | str) -> Callable[[float], bool]:
    """`">=0.8"`, or a number: at least as good as that, which way the catalogue says."""
    match = _THRESHOLD.match(threshold) if isinstance(threshold, str) else None
    try:
        value = float(match["value"] if match else threshold)
    except ValueError:
        raise ConfigError(f"threshold {metric}{threshold!r} must be like '>=0.8'") from None
    sign = match["sign"] if match else {"min": "<=", "max": ">="}[better(metric, None)]
    return lambda found: _SIGNS[sign](found, value)


def _measured(model: ModelVersion, metric: str) -> float | None:
    value = model.metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None


def _different(models: Iterable[ModelVersion], distinct: Distinct) -> Iterator[ModelVersion]:
    seen: set[object] = set()
    for model in models:
        key: object = model.checkpoint_path
        if distinct == "name":
            key = model.name
        elif distinct == "trial" and model.entry.trial_id:
            key = (model.entry.sweep_id, model.entry.trial_id)
        if key not in seen:
            seen.add(key)
            yield model
