"""The batch of one training step, as our client and our server take it: 8 x 64 tokens."""

from __future__ import annotations

from typing import Any

ROWS, TOKENS = 8, 64


def tokens(row: int) -> list[int]:
    return [(7 * i + row) % 500 for i in range(TOKENS)]


def datums() -> list[Any]:
    # Not above: a process that measures the SDK's memory must not hold our wire format.
    import crucible_tinkex.protocol.wire as wire

    return [
        wire.Datum(
            model_input=wire.ModelInput.from_tokens(tokens(row)),
            loss_fn_inputs={
                "target_tokens": wire.TensorData(
                    data=tokens(row + 1), dtype="int64", shape=[TOKENS]
                ),
                "weights": wire.TensorData(data=[1.0] * TOKENS, dtype="float32", shape=[TOKENS]),
            },
        )
        for row in range(ROWS)
    ]
