"""Whether the targets of `[quality]` can be judged at all.

A target that nothing measures is neither met nor missed, so a misspelt one would let a sweep pass
that `quality.required` was to stop.
"""

from __future__ import annotations

from crucible_tinkex.config import EvaluationSection, QualitySection
from crucible_tinkex.config.sweep.quality import KNOWN_TARGETS
from crucible_tinkex.errors import ConfigError, nearest
from crucible_tinkex.metrics import CATALOGUE, known
from crucible_tinkex.sweep.results.quality import tags_of


def check_targets(quality: QualitySection, evaluation: EvaluationSection) -> None:
    """Raises `ConfigError` that names a target which nothing measures, with the nearest. Those that
    are known by name may wait for a function of that name."""
    for name in quality.targets:
        if name.rpartition("/")[2] in KNOWN_TARGETS:
            continue
        if any(known(tag) and evaluation.measures(tag) for tag in tags_of(name)):
            continue
        short = {tag.rpartition("/")[2]: tag for tag in (*CATALOGUE, *evaluation.tags)}
        close = nearest(name.rpartition("/")[2], [*KNOWN_TARGETS, *short]) or ""
        meant = short.get(close, close)
        hint = f"did you mean {meant!r}? If not, ask" if meant and meant != name else "ask"
        raise ConfigError(
            f"quality.targets: nothing measures {name!r}; {hint} for it in evaluation.metrics"
        )
