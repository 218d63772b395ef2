"""From tokenised rows to the protocol's datums, and back from its outputs to the rows' tokens."""

from __future__ import annotations

from collections.abc import Sequence

from crucible_tinkex.datasets import TokenisedDataset
from crucible_tinkex.protocol.wire import Datum, ModelInput, TensorData


def datum(data: TokenisedDataset, row: int) -> Datum:
    """Row `row` as N input tokens, N next-token targets and N loss weights."""
    inputs = data.inputs(row)
    shape = [len(inputs.targets)]
    return Datum(
        model_input=ModelInput.from_tokens(inputs.model_input),
        loss_fn_inputs={
            "target_tokens": TensorData(data=inputs.targets, dtype="int64", shape=shape),
            "weights": TensorData(data=inputs.weights, dtype="float32", shape=shape),
        },
    )


def total_weight(data: Sequence[Datum]) -> float:
    """Sum of loss weights, at least a tiny amount so that means stay finite; 1 for every target of
    a row without."""
    total = 0.0
    for one in data:
        weights = one.loss_fn_inputs.get("weights")
        targets = one.loss_fn_inputs.get("target_tokens")
        if weights is not None:
            total += sum(weights.data)
        elif targets is not None:
            total += len(targets.data)
    return max(total, 1e-12)


def with_weights(given: Datum, weights: Sequence[float]) -> Datum:
    """The row with other loss weights, one for each target."""
    inputs = {**given.loss_fn_inputs, "weights": numbers(weights)}
    return given.model_copy(update={"loss_fn_inputs": inputs})


def numbers(values: Sequence[float]) -> TensorData:
    """One for each target."""
    return TensorData(data=list(values), dtype="float32", shape=[len(values)])
