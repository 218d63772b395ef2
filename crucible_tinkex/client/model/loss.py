"""The metric `loss:sum`, also where a service reports none: summed from the outputs of each row.

For cross-entropy from the targets' logprobs, else from `elementwise_loss` where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from crucible_tinkex.errors import ProtocolError
from crucible_tinkex.protocol.wire import Datum, ForwardBackwardOutput, ForwardInput, TensorData

LOSS = "loss:sum"


def loss_of(output: ForwardBackwardOutput) -> float:
    """The batch's summed loss. Raises `ProtocolError` where nothing tells it."""
    if LOSS not in output.metrics:
        raise ProtocolError(
            f"the service answered a batch without the metric {LOSS}, and without the outputs "
            "from which this loss could be summed"
        )
    return output.metrics[LOSS]


def cross_entropy(output: ForwardBackwardOutput, data: Sequence[Datum]) -> float:
    """The rows' summed loss, from the logprobs themselves where they are whole.

    A service may report a metric for backward passes only, and zero for the others.
    """
    total = _summed(output, data, is_cross_entropy=True)
    return loss_of(output) if math.isnan(total) else total


def with_loss(output: ForwardBackwardOutput, batch: ForwardInput) -> ForwardBackwardOutput:
    """`output` with the metric, unless it cannot be told."""
    if LOSS not in output.metrics:
        total = _summed(output, batch.data, is_cross_entropy=batch.loss_fn == "cross_entropy")
        if not math.isnan(total):
            output.metrics[LOSS] = total
    return output


def _summed(
    output: ForwardBackwardOutput, data: Sequence[Datum], *, is_cross_entropy: bool
) -> float:
    """NaN where the outputs do not tell."""
    losses = []
    for row, datum in zip(output.loss_fn_outputs, data, strict=True):
        if is_cross_entropy and "logprobs" in row:
            losses.append(_row(row["logprobs"], datum))
        elif "elementwise_loss" in row:
            losses.append(math.fsum(row["elementwise_loss"].data))
        else:
            return math.nan
    return math.fsum(losses)


def _row(logprobs: TensorData, datum: Datum) -> float:
    """NaN where the weights do not fit."""
    weights = datum.loss_fn_inputs.get("weights")
    if weights is None:
        return -math.fsum(logprobs.data)
    if len(weights.data) != len(logprobs.data) or weights.sparse_crow_indices is not None:
        return math.nan
    pairs = zip(weights.data, logprobs.data, strict=True)
    # A token without weight may have any logprob, minus infinity too.
    return -math.fsum(weight * logprob for weight, logprob in pairs if weight)
