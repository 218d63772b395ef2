"""How long rows are, and what that costs a batch that is padded to its longest row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crucible_tinkex.datasets.tokens.tokenised import TokenisedDataset


@dataclass(frozen=True)
class LengthStatistics:
    """Of the rows of a data set, in tokens."""

    rows: int
    tokens: int
    learnt: int
    """Tokens that are learnt."""
    p50: int
    p90: int
    p99: int
    longest: int
    padding: float
    """Share of a padded batch that is padding, over the first epoch of seed 0."""
    truncated: int
    dropped: int

    @classmethod
    def of(cls, data: TokenisedDataset, *, batch_size: int) -> LengthStatistics:
        """`ValueError` where `batch_size` is below 1."""
        lengths = data.lengths
        p50, p90, p99 = np.percentile(lengths, [50, 90, 99], method="inverted_cdf").tolist()
        return cls(
            rows=len(data),
            tokens=len(data.tokens),
            learnt=int(data.mask.sum(dtype=np.int64)),
            p50=int(p50),
            p90=int(p90),
            p99=int(p99),
            longest=int(lengths.max()),
            padding=_padding(data, batch_size),
            truncated=data.truncated,
            dropped=data.dropped,
        )


def _padding(data: TokenisedDataset, batch_size: int) -> float:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    steps = max(1, data.epoch_rows // batch_size)
    drawn = data.batch(seed=0, step=1, batch_size=steps * batch_size)
    batches = data.lengths[drawn].reshape(steps, batch_size)
    padded = int(batches.max(axis=1).sum()) * batch_size
    return 1 - int(batches.sum()) / padded
