"""Gradient hooks under the seed's names, over what a service returns.

A Tinker service never returns a model's gradients, so the original's hooks saw nothing. What can be
known: the global norm, where the service reports it with the optimizer step; and for every learnt
token the derivative of its loss with respect to its own logit, `-w (1 - p)`, from the logprobs of
the forward pass (softmax cross-entropy). `distribution` and `health` are over these. `flow` needs
gradients per layer and says that there are none.

A hook that raises is taken off and named in `faults`; training goes on.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.protocol.wire import Datum, ForwardBackwardOutput, OptimStepResponse

log = logging.getLogger(__name__)

VANISHING, EXPLODING = 1e-7, 1e3
_SPARSE = 1e-6
NOT_AVAILABLE = "a Tinker service returns no gradients per layer"


@dataclass(frozen=True)
class Seen:
    """One step as a hook sees it."""

    step: int
    grad_norm: float | None
    """Of the summed losses, before clipping; None where the service does not tell."""
    token_gradients: Sequence[float]
    """Derivative of each learnt token's loss with respect to its logit; empty without logprobs."""
    metrics: Mapping[str, float]


Hook: TypeAlias = Callable[[Seen], Mapping[str, Any]]


def seen(
    step: int, batch: Sequence[Datum], output: ForwardBackwardOutput, optim: OptimStepResponse
) -> Seen:
    gradients: list[float] = []
    for datum, row in zip(batch, output.loss_fn_outputs, strict=True):
        weights, logprobs = datum.loss_fn_inputs.get("weights"), row.get("logprobs")
        if weights is not None and logprobs is not None:
            pairs = zip(weights.data, logprobs.data, strict=False)
            gradients += [-w * (1.0 - math.exp(min(p, 0.0))) for w, p in pairs if w]
    return Seen(step, grad_norm(optim), gradients, dict(output.metrics))


def grad_norm(optim: OptimStepResponse) -> float | None:
    """The gradient's global norm among the metrics of an optimizer step, if it is there."""
    for name, value in (optim.metrics or {}).items():
        if name.partition(":")[0].rpartition("/")[2] == "grad_norm":
            return value
    return None


def norm_hook(seen: Seen) -> Mapping[str, Any]:
    """`grad_norm` as the service tells it, and the norm of the tokens' gradients."""
    tokens = math.hypot(*seen.token_gradients) if seen.token_gradients else None
    return {"grad_norm": seen.grad_norm, "token_grad_norm": tokens}


def distribution_hook(seen: Seen) -> Mapping[str, Any]:
    """Of the tokens' gradients: mean, std (n - 1), min, max, and the share that is nearly 0."""
    values = seen.token_gradients
    if not values:
        return {"available": False, "reason": "the service told no logprobs"}
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "max": max(values),
        "sparsity": sum(abs(v) < _SPARSE for v in values) / len(values),
    }


def flow_hook(seen: Seen) -> Mapping[str, Any]:
    """Gradients from layer to layer: not to be had."""
    return {"available": False, "reason": NOT_AVAILABLE}


def health_hook(seen: Seen) -> Mapping[str, Any]:
    """`gradient_health` is `healthy`, `vanishing`, `exploding`, `not_finite` or `unknown`, by the
    norm per learnt token: losses are sums, and the bounds are the seed's, of a mean."""
    norm = seen.grad_norm if seen.grad_norm is not None else norm_hook(seen)["token_grad_norm"]
    if norm is not None:
        norm /= max(len(seen.token_gradients), 1)
    issue = _issue(norm)
    told = f"gradient norm {norm:.3g} per token at step {seen.step}" if norm else None
    issues = [told] if told and issue != "healthy" else []
    return {"gradient_health": issue, "gradient_issues": issues}


def _issue(norm: float | None) -> str:
    if norm is None:
        return "unknown"
    if not math.isfinite(norm):
        return "not_finite"
    if norm < VANISHING:
        return "vanishing"
    return "exploding" if norm > EXPLODING else "healthy"


BUILT_IN: Mapping[str, Hook] = {
    "norm": norm_hook,
    "distribution": distribution_hook,
    "flow": flow_hook,
    "health": health_hook,
}


class GradientHooks:
    """Hooks in the order in which they were registered."""

    def __init__(self, hooks: Sequence[str | tuple[str, Hook]] = ()) -> None:
        self._hooks: dict[str, Hook] = {}
        self.faults: dict[str, str] = {}
        """Hooks that raised and were taken off, with what they raised."""
        for hook in hooks:
            if isinstance(hook, str):
                self.register(hook, _built_in(hook))
            else:
                self.register(*hook)

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def register(self, name: str, hook: Hook) -> None:
        self._hooks[name] = hook

    def unregister(self, name: str) -> None:
        self._hooks.pop(name, None)

    def run(self, seen: Seen) -> dict[str, Mapping[str, Any]]:
        """What every hook found, by its name."""
        found: dict[str, Mapping[str, Any]] = {}
        for name, hook in list(self._hooks.items()):
            try:
                found[name] = dict(hook(seen))
            except Exception as error:  # a hook is a stranger's: it must not end the training
                self.unregister(name)
                self.faults[name] = f"{type(error).__name__}: {error}"
                log.exception("gradient hook %r is taken off", name)
        return found


def _built_in(name: str) -> Hook:
    if name not in BUILT_IN:
        raise ConfigError(
            f"unknown gradient hook {name!r}; known: {', '.join(BUILT_IN)}, or (name, function)"
        )
    return BUILT_IN[name]
