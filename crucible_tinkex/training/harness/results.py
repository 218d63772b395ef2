"""What came of an experiment, cell by cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.training.tinkex.results import Checkpoint, best

CellState = Literal["done", "aborted", "open"]
"""`open`: interrupted, or not begun; the same call goes on with it."""


@dataclass(frozen=True)
class CellResult:
    """One condition in one repeat."""

    condition: str
    repeat: int
    seed: int
    state: CellState
    steps: Mapping[str, Any]
    """What every step found, by name."""
    skipped: Sequence[str] = ()
    error: str | None = None


@dataclass(frozen=True)
class HarnessResults:
    """All cells in the plan's order, those that were aborted or not begun too: none is left out
    silently."""

    name: str
    trace_id: str
    cells: Sequence[CellResult] = field(default_factory=list)

    @property
    def failed(self) -> list[CellResult]:
        return [cell for cell in self.cells if cell.state == "aborted"]

    @property
    def open(self) -> list[CellResult]:
        return [cell for cell in self.cells if cell.state == "open"]

    def of(self, condition: str) -> list[CellResult]:
        return [cell for cell in self.cells if cell.condition == condition]

    # --- of an experiment that is one training, as the seed's example is -----------------------

    @property
    def training(self) -> Mapping[str, Any]:
        """What the training step of the only cell found. Raises `ConfigError` where there are
        several cells, or none trained."""
        found = [
            step
            for cell in self.cells
            for step in cell.steps.values()
            if isinstance(step, Mapping) and "rows" in step
        ]
        if len(found) != 1:
            raise ConfigError(f"the experiment has {len(found)} trainings; look at `cells` instead")
        return found[0]

    @property
    def metrics(self) -> Mapping[str, Any]:
        return self.training["metrics"]  # type: ignore[no-any-return]

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """One per step of the training."""
        return self.training["rows"]  # type: ignore[no-any-return]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return [Checkpoint(**saved) for saved in self.training["checkpoints"]]

    @property
    def final_metrics(self) -> Mapping[str, float]:
        return self.training["final_metrics"]  # type: ignore[no-any-return]

    @property
    def best_checkpoint(self) -> Checkpoint | None:
        return best(self.checkpoints, self.training["best_metric"])
