"""The recipe of a trial that learns through a user's `LoraAdapter`: `sft` on what it makes of rows.

Of the eight callbacks a sweep calls two. `format_training_data` makes the datums of every step, and
`calculate_metrics`, where the user wrote it, measures each step from its own row. The others have
an owner in a sweep already: the order of rows and the names of checkpoints decide what a resumed
trial does, `[evaluation]` says how answers are sampled, and `[quality]` what is good enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crucible_tinkex.config import TrainSection
from crucible_tinkex.datasets import TokenisedDataset, Tokenizer
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.protocol.wire import Datum, ForwardBackwardOutput
from crucible_tinkex.training.adapter.protocol import LoraAdapter, load_adapter
from crucible_tinkex.training.adapter.tinkex import TinkexCallbacks
from crucible_tinkex.training.data import SweepData, loaded_tokenizer
from crucible_tinkex.training.losses.objective import NO_TEXTS, measured
from crucible_tinkex.training.plan import TrialPlan
from crucible_tinkex.training.recipes.recipe import Update
from crucible_tinkex.training.recipes.sft import SupervisedRecipe

MEASURED = "train/adapter/"


class AdaptedRecipe(SupervisedRecipe):
    """A `Recipe`."""

    def __init__(self, plan: TrialPlan, data: SweepData) -> None:
        """Raises as `SupervisedRecipe`, and `ConfigError` where the tokenizer cannot be had."""
        super().__init__(plan, data)
        if data.tokenizer is None or (tokenizer := loaded_tokenizer(data.tokenizer)) is None:
            raise ConfigError(
                f"train.adapter needs the tokenizer {data.tokenizer!r}, which cannot be loaded "
                "where the trial is trained"
            )
        self._formatter = Formatter(plan.experiment.train, tokenizer)

    def _datums(self, rows: Sequence[int]) -> list[Datum]:
        return self._formatter.datums(self._data.train, rows)

    async def measure(self, update: Update, output: ForwardBackwardOutput) -> Mapping[str, float]:
        found = measured(update, output, is_plain=False)
        if not self._formatter.measures:
            return found  # no thread for nothing, at every step
        return {**found, **await self._strange(self._formatter.measured, update, found)}


class Formatter:
    """The adapter of a trial. Raises `ConfigError` for one that cannot be loaded, and one that
    names it, whatever it raises or gives."""

    def __init__(self, train: TrainSection, tokenizer: Tokenizer) -> None:
        self._train = train
        self._tokenizer = tokenizer
        self._adapter = adapter_of(train)
        own = getattr(type(self._adapter), "calculate_metrics", None)
        self.measures = own is not TinkexCallbacks.calculate_metrics
        """The seed's own means say nothing of a single step."""

    def datums(self, data: TokenisedDataset, rows: Sequence[int]) -> list[Datum]:
        """A datum per row."""
        if not len(data.about_offsets):
            raise ConfigError(f"train.adapter: {NO_TEXTS}")
        given = [data.text(row).row for row in rows]
        try:
            made = list(
                self._adapter.format_training_data(
                    given,
                    tokenizer=self._tokenizer,
                    max_length=self._train.max_length,
                    token_weights=self._train.token_weights,
                    weight_config=dict(self._train.weight_config),
                )
            )
            problem = _problem(made, given)
        except Exception as error:
            raise self._failed("format_training_data", error) from error
        if problem:
            raise ConfigError(
                f"adapter {self._train.adapter!r}: format_training_data gave {problem}"
            )
        return made

    def measured(self, update: Update, found: Mapping[str, float]) -> dict[str, float]:
        """What the adapter says of one step, by tag, where it `measures`."""
        row = {"loss": found["train/loss"], "tokens": update.tokens, "metrics": dict(found)}
        try:
            told = dict(self._adapter.calculate_metrics([row]))
        except Exception as error:
            raise self._failed("calculate_metrics", error) from error
        return {
            f"{MEASURED}{name}": float(value)
            for name, value in told.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }

    def _failed(self, callback: str, error: Exception) -> ConfigError:
        return ConfigError(
            f"adapter {self._train.adapter!r}: {callback}: {type(error).__name__}: {error}"
        )


def adapter_of(train: TrainSection) -> LoraAdapter:
    """Raises `ConfigError` that names the key."""
    try:
        return load_adapter(str(train.adapter))
    except ConfigError as error:
        raise ConfigError(f"train.adapter: {error.message}") from error


def _problem(made: Sequence[Datum], rows: Sequence[Any]) -> str | None:
    if len(made) != len(rows):
        return f"{len(made)} datums for {len(rows)} rows"
    for number, datum in enumerate(made, 1):
        lengths = {name: len(t.data) for name, t in datum.loss_fn_inputs.items()}
        tokens = datum.model_input.length
        if lengths != {"target_tokens": tokens, "weights": tokens}:
            return f"a row {number} with {tokens} tokens and {lengths}; give both, of that length"
        if not any(datum.loss_fn_inputs["weights"].data):
            return f"a row {number} of which nothing is learnt"
    return None
