"""What a batch cost: the metric `loss:sum`, and the negative log-likelihood, which no metric tells.

Services report means, sums, zero for a forward pass, or nothing, so the likelihood of rows is
summed here from the logprobs of their targets. `loss:sum` is the service's, or summed from the
outputs of each row where it reports none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

from crucible_tinkex.client.interface import CROSS_ENTROPY
from crucible_tinkex.errors import ProtocolError
from crucible_tinkex.protocol.wire import Datum, ForwardBackwardOutput, ForwardInput

LOSS = "loss:sum"


def loss_of(output: ForwardBackwardOutput) -> float:
    """The batch's summed loss. Raises `ProtocolError` where nothing tells it."""
    if LOSS not in output.metrics:
        raise ProtocolError(
            f"the service answered a batch without the metric {LOSS}, and without the outputs "
            "from which this loss could be summed"
        )
    return output.metrics[LOSS]


def target_logprobs(output: ForwardBackwardOutput, data: Sequence[Datum]) -> list[Sequence[float]]:
    """Each row's, in nats, one for each target. Raises `ProtocolError` where there are others."""
    rows: list[Sequence[float]] = [
        row["logprobs"].data if "logprobs" in row else () for row in output.loss_fn_outputs
    ]
    for number, (found, datum) in enumerate(zip(rows, data, strict=True), start=1):
        inputs = datum.loss_fn_inputs
        wanted = inputs.get("weights", inputs["target_tokens"])
        if len(found) != len(wanted.data) or wanted.sparse_crow_indices is not None:
            raise ProtocolError(
                f"the service answered row {number} of a batch with {len(found)} logprobs for "
                f"{len(wanted.data)} targets; losses are measured by these, not by its metrics"
            )
    return rows


def cross_entropy(output: ForwardBackwardOutput, data: Sequence[Datum]) -> float:
    """The rows' summed loss, from the logprobs of their targets. Raises `ProtocolError`."""
    rows = zip(target_logprobs(output, data), data, strict=True)
    return math.fsum(_row(logprobs, datum) for logprobs, datum in rows)


def with_loss(output: ForwardBackwardOutput, batch: ForwardInput) -> ForwardBackwardOutput:
    """`output` with the metric, unless it cannot be told."""
    if LOSS not in output.metrics:
        total = _summed(output, batch)
        if total is not None:
            output.metrics[LOSS] = total
    return output


def _summed(output: ForwardBackwardOutput, batch: ForwardInput) -> float | None:
    if batch.loss_fn == CROSS_ENTROPY:
        with suppress(ProtocolError):
            return cross_entropy(output, batch.data)
    parts = [row.get("elementwise_loss") for row in output.loss_fn_outputs]
    if None in parts:
        return None
    return math.fsum(math.fsum(part.data) for part in parts if part is not None)


def _row(logprobs: Sequence[float], datum: Datum) -> float:
    weights = datum.loss_fn_inputs.get("weights")
    if weights is None:
        return -math.fsum(logprobs)
    pairs = zip(weights.data, logprobs, strict=True)
    # A token without weight may have any logprob, minus infinity too.
    return -math.fsum(weight * logprob for weight, logprob in pairs if weight)
