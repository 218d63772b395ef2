"""`[optimizer]` and `[train]`: how a step learns, and how many there are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from crucible_tinkex.config.section import Section
from crucible_tinkex.datasets.order import total_steps

DEFAULT_EPOCHS = 1.0


class OptimizerSection(Section):
    """AdamW as the Tinker API defines it; defaults are the official SDK's."""

    learning_rate: float = Field(default=1e-4, gt=0, le=10)
    """Peak rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the second moment."""
    eps: float = Field(default=1e-12, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay per step, times the learning rate."""
    grad_clip_norm: float = Field(default=0.0, ge=0)
    """Largest global gradient norm; 0 switches clipping off. Losses are sums over tokens, so norms
    of hundreds are usual."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate goes on after the warm-up; the other two decay to 0 at the trial's end."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises linearly to its peak."""


def asked_steps(rows: int, epochs: float | None, max_steps: int | None, *, batch_size: int) -> int:
    """Optimizer steps over `rows` rows. `max_steps` alone is that many; beside epochs, a bound."""
    if epochs is None and max_steps is not None:
        return max_steps
    passes = total_steps(
        rows, epochs=DEFAULT_EPOCHS if epochs is None else epochs, batch_size=batch_size
    )
    return passes if max_steps is None else min(passes, max_steps)


class TrainSection(Section):
    """How long and in which portions. `epochs` and `max_steps`: the smaller of those given; 1 epoch
    if neither is."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training rows; not more than `max_steps`."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; alone, exactly so many."""
    batch_size: int = Field(default=8, ge=1, le=65536)
    """Rows per forward and backward pass."""
    accumulate: int = Field(default=1, ge=1, le=1024)
    """Passes whose gradients are added up before the optimizer steps: a step learns from
    `batch_size` times so many rows. For batches that do not fit the service's memory."""
    max_length: int = Field(default=512, ge=2)
    """Longest row in tokens."""
    loss: str = Field(default="cross_entropy", min_length=1)
    """What is minimised, summed over the learnt tokens of a batch: `cross_entropy`, computed by the
    service; or, computed here from the service's logprobs, `nll`, `focal`, `module:function` of
    your own, or a sum such as `"nll + 0.5 * focal"` (docs/losses.md)."""
    token_weights: str | None = None
    """How much each learnt token counts: `uniform`, `claims`, `citation_validity`, or
    `module:function` of your own. With a scheme a row's `weight` counts, too."""
    weight_config: dict[str, float] = Field(default_factory=dict)
    """Numbers of the scheme, such as `{ citation_validity_weight = 5 }`; each may vary."""
    adapter: str | None = None
    """`module:Class` of a `LoraAdapter` of your own, whose `format_training_data` makes what is
    learnt of the rows (docs/losses.md)."""
    checkpoint_every: int = Field(default=50, ge=0)
    """Steps between resumable checkpoints; the final step is always saved. 0: only the final."""
    eval_every: int = Field(default=0, ge=0)
    """Steps between evaluations; the final step is always evaluated. 0: only the final."""
    sampler_checkpoint: bool = True
    """Save the weights for sampling at a trial's end, so that its adapter can be used at once."""
    submit_ahead: int = Field(default=1, ge=0, le=8)
    """Steps that are sent before the result of an earlier one is awaited."""

    @property
    def step_rows(self) -> int:
        """Rows that a step learns from."""
        return self.batch_size * self.accumulate

    def steps(self, rows: int) -> int:
        """Optimizer steps of a trial over `rows` training rows."""
        return asked_steps(rows, self.epochs, self.max_steps, batch_size=self.step_rows)
