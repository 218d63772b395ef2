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
    """Sum of loss weights, at least a tiny amount so that means stay finite."""
    return max(sum(sum(d.loss_fn_inputs["weights"].data) for d in data), 1e-12)
