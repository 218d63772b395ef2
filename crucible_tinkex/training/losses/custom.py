"""Losses that are computed here from the service's logprobs, and sums of them.

A maker is given the rows of a portion and returns a `CustomLoss`: from each row's logprobs the
loss, its gradient and metrics. Losses are sums over tokens, as the service's own; `loss:sum` is the
whole, and a composite logs each part, weighted, as `NAME:sum`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.protocol.wire import Datum
from crucible_tinkex.training.recipes.recipe import CustomLossMaker

if TYPE_CHECKING:
    import numpy.typing as npt

    from crucible_tinkex.client.model.custom_loss import CustomLoss, FloatArray

    Gradients = Sequence[npt.NDArray[Any]]

Token = Callable[["FloatArray"], tuple["npt.NDArray[Any]", "npt.NDArray[Any]"]]
"""From logprobs the loss of each token, and its derivative."""


def per_token(loss: Token) -> CustomLossMaker:
    """A loss that is a sum over tokens, weighted as the rows are."""

    def make(batch: Sequence[Datum]) -> CustomLoss:
        weights = [np.asarray(d.loss_fn_inputs["weights"].data, np.float64) for d in batch]

        def called(logprobs: list[FloatArray]) -> tuple[float, Gradients, Mapping[str, float]]:
            total, gradients = 0.0, []
            for row, weight in zip(logprobs, weights, strict=True):
                # A token without weight may have any logprob, minus infinity too.
                counts = weight != 0
                values, slopes = loss(np.where(counts, row, 0.0).astype(np.float64))
                total += float(np.sum(np.where(counts, weight * values, 0.0)))
                gradients.append(np.where(counts, weight * slopes, 0.0))
            return total, gradients, {}

        return called

    return make


def nll() -> CustomLossMaker:
    """Negative log-likelihood: what `cross_entropy` on the service is, computed here."""
    return per_token(lambda logprobs: (-logprobs, np.full_like(logprobs, -1.0)))


def focal(gamma: float = 2.0) -> CustomLossMaker:
    """`-(1 - p)^gamma log p`, which cares less for tokens that are certain already (Lin et al.,
    "Focal Loss for Dense Object Detection", 2017, arXiv:1708.02002)."""
    if gamma < 0:
        raise ConfigError(f"gamma of the focal loss must be at least 0, not {gamma!r}")

    def loss(logprobs: FloatArray) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        p = np.exp(logprobs)
        rest = np.clip(1.0 - p, 1e-12, 1.0)
        values = -(rest**gamma) * logprobs
        # d/dlogp: dp/dlogp = p.
        slopes = gamma * rest ** (gamma - 1) * p * logprobs - rest**gamma
        return values, slopes

    return per_token(loss)


def composite(parts: Mapping[str, tuple[float, CustomLossMaker]]) -> CustomLossMaker:
    """The weighted sum of named losses; each part is logged, weighted, as `NAME:sum`."""
    if not parts:
        raise ConfigError("a composite loss needs at least one part")

    def make(batch: Sequence[Datum]) -> CustomLoss:
        made = {name: (weight, maker(batch)) for name, (weight, maker) in parts.items()}

        def called(logprobs: list[FloatArray]) -> tuple[float, Gradients, Mapping[str, float]]:
            total, metrics = 0.0, dict[str, float]()
            sums: list[npt.NDArray[Any]] = [np.zeros(row.shape) for row in logprobs]
            for name, (weight, loss) in made.items():
                value, gradients, told = loss([row.copy() for row in logprobs])
                total += weight * value
                sums = [s + weight * np.asarray(g) for s, g in zip(sums, gradients, strict=True)]
                metrics |= {**told, f"{name}:sum": weight * value}
            return total, sums, metrics

        return called

    return make


def guarded(name: str, maker: Callable[[Sequence[Datum]], Any]) -> CustomLossMaker:
    """A stranger's maker: what it or its loss raises becomes a `ConfigError` that names it. The
    maker is called with its loss, in the thread in which losses are."""

    def make(batch: Sequence[Datum]) -> CustomLoss:
        def called(logprobs: list[FloatArray]) -> tuple[float, Gradients, Mapping[str, float]]:
            try:
                loss, gradients, metrics = maker(batch)(logprobs)
            except Exception as error:
                raise ConfigError(f"loss {name!r}: {type(error).__name__}: {error}") from error
            return loss, gradients, metrics

        return called

    return make
