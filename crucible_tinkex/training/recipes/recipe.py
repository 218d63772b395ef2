"""A recipe: how a step learns and what is measured, as the session sees it.

A recipe is a batch source (the rows of step k are a pure function of the seed and k), an update
(what is submitted for a step), and its measurements (after a step, and at evaluations). The session
drives it and knows nothing of datasets or losses; `sft` is the first one. A recipe keeps no state
that a resumed trial would miss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from crucible_tinkex.client.interface import TrainingClient
from crucible_tinkex.protocol.wire import AdamParams, Datum, ForwardBackwardOutput
from crucible_tinkex.registry import Spent
from crucible_tinkex.training.data import SweepData
from crucible_tinkex.training.plan import TrialPlan

if TYPE_CHECKING:
    from crucible_tinkex.client.model.custom_loss import CustomLoss

CustomLossMaker: TypeAlias = Callable[[Sequence[Datum]], "CustomLoss"]
"""Makes the loss of some rows; what it takes is their logprobs only."""

Tell: TypeAlias = Callable[[int, int], None]
"""Takes how many requests of an evaluation are answered, and of how many."""


@dataclass(frozen=True)
class Update:
    """One step: a forward and backward pass on `batch`, then an optimizer step."""

    batch: Sequence[Datum]
    adam: AdamParams
    weight: float
    """What this step counts in a mean over several steps: the sum of its loss weights."""
    loss_fn: str
    loss_config: Mapping[str, float] | None = None
    accumulate: int = 1
    """Portions in which the batch is sent; the service adds their gradients up."""
    custom: CustomLossMaker | None = None
    """A loss of the caller's own in place of `loss_fn`, made for each portion."""

    @property
    def tokens(self) -> int:
        """Input tokens, which is what a service bills."""
        return sum(d.model_input.length for d in self.batch)


@dataclass(frozen=True)
class Example:
    """What an evaluation found on one row."""

    example_id: str
    nll: float | None
    """Mean, in nats per token that is learnt; None where none is."""
    tokens: int
    """Tokens that are learnt."""
    correct: bool | None = None
    text: str | None = None
    """What the model wrote, where it was asked to."""
    group: str | None = None
    """The document or prompt group of the row."""
    expected: str | None = None
    answers: Sequence[str] = ()
    """Every sample, where `evaluation.metrics` ask for answers."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """By metric, as `eval/exact_match`."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics by tag, and the rows behind them."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    examples: Sequence[Example] = ()


class Updates(Protocol):
    """What is submitted, step by step."""

    async def update(self, step: int, client: TrainingClient) -> Update:
        """Step `step`, from 1. Equal for equal weights; may sample from `client` first."""
        ...


class Recipe(Updates, Protocol):
    """One trial's way to learn."""

    async def measure(self, update: Update, output: ForwardBackwardOutput) -> Mapping[str, float]:
        """Metrics of a step by tag; each must be finite, or the trial fails."""
        ...

    async def evaluate(self, client: TrainingClient, tell: Tell) -> Evaluation:
        """Measure the weights as they are now; changes nothing on the service."""
        ...

    def evaluation_cost(self) -> Spent:
        """The tokens that `evaluate` uses: those that are read, and the most that are written."""
        ...

    async def fingerprint(self, client: TrainingClient) -> float:
        """A number by which the weights are known again: the loss of a few rows that are always the
        same. Changes nothing on the service."""
        ...

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that step `step` belongs to."""
        ...


RecipeMaker: TypeAlias = Callable[[TrialPlan, SweepData], Recipe]
