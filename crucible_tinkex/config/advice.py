"""What a careful colleague would say about an experiment that is valid and may still be a mistake.

Nothing here refuses. Each warning is one sentence that begins with the key it is about.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from crucible_tinkex.config.axes import AXIS_SECTIONS, AxisRange
from crucible_tinkex.config.sweep.search import SAMPLED, SearchSection
from crucible_tinkex.config.trial.train import TrainSection
from crucible_tinkex.metrics import objective

if TYPE_CHECKING:
    from crucible_tinkex.config.experiment import Experiment

_FOR_A_SHELL = frozenset({">", ">>", "<", "|", "||", "&&", "&", ";"})


def advise(
    experiment: Experiment, *, rows: int | None = None, tokens: int | None = None
) -> Iterator[str]:
    """All warnings; those on sizes need `rows` of training, with `tokens` in all of them."""
    for key in experiment.not_applied():
        yield f"{key} is not applied by the Tinker API"
    service = experiment.service
    if service.allow_http and not (service.base_url or "http://").startswith("https://"):
        yield "service.allow_http: the API key may cross the network in clear text"
    words = shlex.split(experiment.notify.command or "")
    if meant := next((word for word in words if word in _FOR_A_SHELL), None):
        yield f"notify.command: {meant!r} is for a shell, and it runs without one; use sh -c '...'"
    yield from _on_search(experiment.search)
    yield from _on_overruled(experiment)
    if rows is not None:
        for train in _train_variants(experiment):
            yield from _on_size(train, rows, tokens)
        yield from _on_warmup(experiment, rows)


def _on_search(search: SearchSection) -> Iterator[str]:
    best = objective(search.metric).direction
    if search.direction not in (None, best):
        yield (
            f"search.direction = {search.direction!r} calls the worst {search.metric} the best; "
            f"leave it out for {best!r}"
        )
    if search.training_data and search.metric.startswith("train/"):
        yield (
            f"search.metric: {search.metric} is measured on each trial's own rows, and data.train "
            "varies; eval/nll compares on the same rows (data.eval)"
        )
    if search.strategy not in SAMPLED and search.trials is not None:
        yield f"search.trials has no effect on strategy {search.strategy!r}"
    if search.configs and search.strategy != "list":
        yield f"search.configs has no effect on strategy {search.strategy!r}; 'list' runs them"
    if search.strategy == "list":
        for key in ("space", "zip", "where", "when"):
            if getattr(search, key):
                yield f"search.{key} has no effect on strategy 'list', which runs search.configs"


def _on_overruled(experiment: Experiment) -> Iterator[str]:
    """Settings that no trial has, because each has a value of the search instead."""
    search = experiment.search
    if search.strategy == "list":
        return
    for key in search.space:
        sometimes = key in search.when or any(key not in guess for guess in search.enqueue)
        section, _, name = key.partition(".")
        if sometimes or section not in AXIS_SECTIONS or section == "data":  # it has no defaults
            continue
        declared = experiment.setting(key)
        default = getattr(AXIS_SECTIONS[section](), name, None)
        if declared not in (None, default):
            yield f"{key} = {declared!r} has no effect: search.space gives each trial its own"


def _train_variants(experiment: Experiment) -> Iterator[TrainSection]:
    """The train section with every batch size of the search; of a range, its ends."""
    varied = dict.fromkeys(_values(experiment.search, "train.batch_size"))
    # Others are refused when the points are drawn.
    sizes = [int(v) for v in varied if isinstance(v, int | float) and v >= 1]
    for size in sizes if varied else [experiment.train.batch_size]:
        yield experiment.train.model_copy(update={"batch_size": size})


def _values(search: SearchSection, key: str) -> list[Any]:
    if search.strategy == "list":
        return [config[key] for config in search.configs if key in config]
    axis = search.space.get(key, ())
    return [axis.low, axis.high] if isinstance(axis, AxisRange) else list(axis)


def _on_size(train: TrainSection, rows: int, tokens: int | None) -> Iterator[str]:
    size = train.step_rows
    if size > rows:
        each = f" of about {tokens * size // rows:,} tokens" if tokens else ""
        yield (
            f"train.batch_size = {size} is more than the {rows} training rows: "
            f"one step{each} sees each row {size / rows:.1f} times"
        )
    if train.steps(rows) == 1:
        yield (
            f"train.batch_size = {size} makes a single step of {rows} training rows; "
            "a smaller batch, more epochs or max_steps give more"
        )


def _on_warmup(experiment: Experiment, rows: int) -> Iterator[str]:
    steps, warmup = experiment.train.steps(rows), experiment.optimizer.warmup_steps
    if warmup >= steps:
        yield (
            f"optimizer.warmup_steps = {warmup} is not less than the {steps} steps of a trial: "
            "the learning rate never leaves the warm-up"
        )
