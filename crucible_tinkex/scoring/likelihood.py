"""What a likelihood means in units that people compare.

Nats per token depend on the tokenizer; bits per byte do not, so that base models with different
tokenizers can be compared on one text (Gao et al., "The Pile", 2020, section 3.1).
"""

from __future__ import annotations

import math


def perplexity(nll: float) -> float:
    """exp of a mean negative log-likelihood in nats per token; infinite where that is too large."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def bits_per_byte(nats: float, size: int) -> float:
    """`nats` is the summed negative log-likelihood of a text of `size` bytes of UTF-8.
    `ValueError` where `size` is below 1."""
    if size < 1:
        raise ValueError(f"a text of {size} bytes has no bits per byte")
    return nats / (math.log(2) * size)
