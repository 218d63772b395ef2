"""`[checkpoints]`: what the service keeps of a sweep; nothing here decides a number."""

from __future__ import annotations

from pydantic import Field

from crucible_tinkex.config.section import Section

MOST_DAYS = 3650


class CheckpointsSection(Section):
    """Which checkpoints stay on the service while the sweep runs and after it; all by default. What
    a trial, a clone, a model or the winner needs stays in any case (`docs/weights.md`)."""

    keep_best: int = Field(default=0, ge=0)
    """So many of the whole sweep, by its metric."""
    keep_last: int | None = Field(default=None, ge=0)
    """So many of each trial and kind, the newest; by default 1 where another rule is given, so that
    every trial can be trained further."""
    keep_every: int = Field(default=0, ge=0)
    """Those at a multiple of so many steps."""
    ttl_days: float | None = Field(default=None, gt=0, le=MOST_DAYS)
    """Once the sweep has ended, the service deletes by itself what nobody needs after so many
    days; nothing by default."""

    @property
    def last(self) -> int:
        """`keep_last`, or what it is by default."""
        if self.keep_last is not None:
            return self.keep_last
        return int(max(self.keep_best, self.keep_every) > 0)

    @property
    def prunes(self) -> bool:
        """Whether any rule deletes."""
        return max(self.keep_best, self.last, self.keep_every) > 0
