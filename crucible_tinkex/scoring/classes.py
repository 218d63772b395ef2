"""Classification: accuracy, and precision, recall and F1 of each class.

A class that is never predicted has no precision, one that never occurs no recall; such a number is
None, never 0, and its F1 is None only where the class neither occurs nor is predicted. An answer
that is no class at all (None) is wrong and belongs to none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ClassScore:
    """Of one class."""

    support: int
    """Rows that belong to it."""
    predicted: int
    right: int

    @property
    def precision(self) -> float | None:
        return self.right / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        return self.right / self.support if self.support else None

    @property
    def f1(self) -> float | None:
        """2 right / (support + predicted), the harmonic mean of precision and recall."""
        both = self.support + self.predicted
        return 2 * self.right / both if both else None


@dataclass(frozen=True)
class Classification:
    """Of all rows."""

    rows: int
    accuracy: float
    classes: Mapping[str, ClassScore]
    """In alphabetical order."""

    @property
    def macro_f1(self) -> float:
        """The mean over the classes that occur or are predicted."""
        scores = [score.f1 for score in self.classes.values() if score.f1 is not None]
        return math.fsum(scores) / len(scores)


def classification(predicted: Sequence[str | None], expected: Sequence[str]) -> Classification:
    """Score a prediction for each row. `ValueError` if the lengths differ or there are no rows."""
    if not expected or len(predicted) != len(expected):
        raise ValueError(f"{len(predicted)} predictions for {len(expected)} rows")
    support, guessed = Counter(expected), Counter(p for p in predicted if p is not None)
    right = Counter(e for p, e in zip(predicted, expected, strict=True) if p == e)
    classes = {
        name: ClassScore(support[name], guessed[name], right[name])
        for name in sorted({*support, *guessed})
    }
    return Classification(len(expected), right.total() / len(expected), classes)
