"""The metric `loss:sum` where a service reports none: summed from the outputs of each row.

From `elementwise_loss` where there is one, else, for cross-entropy, from the targets' logprobs.
"""

from __future__ import annotations

import math

from crucible_tinkex.client.wire import Datum, ForwardBackwardOutput, ForwardInput, TensorData

LOSS = "loss:sum"


def with_loss(output: ForwardBackwardOutput, batch: ForwardInput) -> ForwardBackwardOutput:
    """`output` with the metric, unless it cannot be told."""
    if LOSS in output.metrics:
        return output
    is_cross_entropy = batch.loss_fn == "cross_entropy"
    losses = []
    for row, datum in zip(output.loss_fn_outputs, batch.data, strict=True):
        if "elementwise_loss" in row:
            losses.append(math.fsum(row["elementwise_loss"].data))
        elif is_cross_entropy and "logprobs" in row:
            losses.append(_cross_entropy(row["logprobs"], datum))
        else:
            return output
    if not math.isnan(total := math.fsum(losses)):
        output.metrics[LOSS] = total
    return output


def _cross_entropy(logprobs: TensorData, datum: Datum) -> float:
    """NaN where the weights do not fit."""
    weights = datum.loss_fn_inputs.get("weights")
    if weights is None:
        return -math.fsum(logprobs.data)
    if len(weights.data) != len(logprobs.data) or weights.sparse_crow_indices is not None:
        return math.nan
    pairs = zip(weights.data, logprobs.data, strict=True)
    # A token without weight may have any logprob, minus infinity too.
    return -math.fsum(weight * logprob for weight, logprob in pairs if weight)
