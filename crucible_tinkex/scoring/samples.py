"""Several answers to one prompt: whether one of them is right, and which most of them say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from fractions import Fraction
from math import comb
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The probability that one of `k` answers is right, estimated from `samples` answers of which
    `right` are: 1 - C(n - c, k) / C(n, k), without bias (Chen et al., "Evaluating Large Language
    Models Trained on Code", 2021, equation 1). `ValueError` unless 0 <= right <= samples and
    1 <= k <= samples: from fewer than k answers it cannot be estimated."""
    if not 0 <= right <= samples:
        raise ValueError(f"{right} of {samples} answers cannot be right")
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} cannot be estimated from {samples} answers")
    return float(1 - Fraction(comb(samples - right, k), comb(samples, k)))


def majority(answers: Iterable[T | None]) -> T | None:
    """What most answers say; of those that are said equally often, the first. None, which is no
    answer, does not count; None where nothing counts."""
    counts = Counter(answer for answer in answers if answer is not None)
    return counts.most_common(1)[0][0] if counts else None  # in order of the first occurrence
