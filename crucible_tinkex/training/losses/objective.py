"""What a trial learns by: a loss and a token-weight scheme, over rows whose texts were kept.

The sweep's recipe and the adapter's session weigh and measure with the functions here.
`train/nll` is always the mean negative log-likelihood of the learnt tokens, each counted once, so
that trials with different losses and weights can be compared by it; what is minimised is
`train/loss`, per weight, and its parts are `train/loss/NAME`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crucible_tinkex.client.model.loss import cross_entropy, loss_of
from crucible_tinkex.config import TrainSection
from crucible_tinkex.datasets import TokenisedDataset
from crucible_tinkex.datasets.tokens.tokenised import RowText
from crucible_tinkex.errors import ConfigError, DataError
from crucible_tinkex.protocol.wire import Datum, ForwardBackwardOutput
from crucible_tinkex.training.losses.registry import Loss, LossRegistry, default_losses
from crucible_tinkex.training.losses.schemes import WeightScheme, factors
from crucible_tinkex.training.recipes.datums import datum, total_weight, with_weights
from crucible_tinkex.training.recipes.recipe import Update

NO_TEXTS = (
    "this run has not kept the texts of the rows, because nothing in it read them; stop the sweep "
    "and resume it"
)
_OF_THE_LOSS_ITSELF = ("loss", "surrogate_loss")


@dataclass(frozen=True)
class Objective:
    """Of one trial."""

    loss: Loss
    scheme: WeightScheme | None = None
    numbers: Mapping[str, float] | None = None

    @classmethod
    def of(cls, train: TrainSection, losses: LossRegistry | None = None) -> Objective:
        """Raises `ConfigError` that names the key."""
        losses = losses or default_losses()
        try:
            loss = losses.get(train.loss)
        except ConfigError as error:
            raise ConfigError(f"train.loss: {error.message}") from error
        if loss.weights is not None:
            raise ConfigError(
                f"train.loss: {train.loss!r} is a token-weight scheme: set train.token_weights"
            )
        if loss.service != "cross_entropy":
            raise ConfigError(
                f"train.loss: {train.loss!r} needs advantages and the logprobs of a sampler, which "
                f"rows of a file do not have; there are cross_entropy, {', '.join(losses.custom)}, "
                "module:function, and sums of those computed here"
            )
        if train.token_weights is None:
            if train.weight_config:
                raise ConfigError("train.weight_config has no effect without train.token_weights")
            return cls(loss)
        try:
            scheme = losses.scheme(train.token_weights)
        except ConfigError as error:
            raise ConfigError(f"train.token_weights: {error.message}") from error
        return cls(loss, scheme, dict(train.weight_config))

    @property
    def is_plain(self) -> bool:
        """Whether it is `train/nll` itself that is minimised."""
        return self.scheme is None and self.loss.custom is None

    def datum(self, data: TokenisedDataset, row: int) -> Datum:
        """Row `row` with its weights. Raises `ConfigError`, `DataError` that name it."""
        plain = datum(data, row)
        if self.scheme is None:
            return plain
        if not len(data.about_offsets):
            raise ConfigError(f"train.token_weights: {NO_TEXTS}")
        where = f"training row {data.example_id(row)}"
        return weighed(plain, data.text(row), self.scheme, self.numbers or {}, where=where)


def weighed(
    plain: Datum,
    text: RowText,
    scheme: WeightScheme,
    numbers: Mapping[str, float],
    *,
    where: str,
) -> Datum:
    """The row with the weights that the scheme, and the row's own `weight`, give its targets."""
    try:
        weighing = scheme(text.row, text.completion, numbers)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}") from error
    factor = factors(weighing, text.spans, base=text.row.get("weight", 1.0), what=where)
    weights = factor * plain.loss_fn_inputs["weights"].data
    if not weights.any():
        raise DataError(f"{where}: every token has the weight 0; remove the row")
    return with_weights(plain, weights.tolist())


def measured(update: Update, output: ForwardBackwardOutput, *, is_plain: bool) -> dict[str, float]:
    """Metrics of a step by tag. `is_plain`: the weights are 0 and 1, and the loss the service's
    `cross_entropy`."""
    if is_plain:
        # From the logprobs: some services report a mean, or nothing, as the sum.
        return {"train/nll": cross_entropy(output, update.batch) / update.weight}
    counted = [_counted_once(row) for row in update.batch]
    nll = cross_entropy(output, counted) / total_weight(counted)
    return {"train/nll": nll, "train/loss": mean_loss(update, output), **_parts(update, output)}


def mean_loss(update: Update, output: ForwardBackwardOutput) -> float:
    """What is minimised, per weight."""
    if update.custom is None and update.loss_fn == "cross_entropy":
        return cross_entropy(output, update.batch) / update.weight
    return loss_of(output) / update.weight


def _counted_once(row: Datum) -> Datum:
    weights = row.loss_fn_inputs.get("weights")
    return row if weights is None else with_weights(row, [float(w != 0) for w in weights.data])


def _parts(update: Update, output: ForwardBackwardOutput) -> dict[str, float]:
    """Sums that a custom loss tells, such as the parts of a composite."""
    if update.custom is None:
        return {}
    told = {n.removesuffix(":sum"): v for n, v in output.metrics.items() if n.endswith(":sum")}
    return {
        f"train/loss/{name}": value / update.weight
        for name, value in told.items()
        if name not in _OF_THE_LOSS_ITSELF
    }


def try_on(loss: Loss, rows: Sequence[Datum], *, key: str) -> None:
    """Call a custom loss on rows with logprobs of -1, so that one that takes or gives something
    else is found before anything is spent. Raises `ConfigError` that begins with `key`."""
    if loss.custom is None:
        return
    import numpy as np

    from crucible_tinkex.client.model.custom_loss import evaluate

    targets = [len(row.loss_fn_inputs["target_tokens"].data) for row in rows]
    logprobs = [np.full(length, -1.0, np.float32) for length in targets]
    try:
        found, _, _ = evaluate(loss.custom(rows), logprobs)
    except (ConfigError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{key}: on the first rows {error}; a loss takes the rows and gives a function "
            "that takes their logprobs and gives (loss, gradients, metrics) (docs/losses.md)"
        ) from error
    if not np.isfinite(found):
        raise ConfigError(f"{key}: {loss.name!r} gave {found} on the first rows")
