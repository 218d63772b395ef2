"""The training losses of the protocol: sums over tokens and rows, never means.

p is the learner's probability of a target, q the sampling probability (`logprobs`), A the
`advantages`, w the `weights`. A loss is a function of the targets' log p and of inputs of the same
length; its gradient with respect to log p comes from autograd on those few numbers.
`gspo` is GSPO-token (Zheng et al. 2025, arXiv:2507.18071, section 4.3) as Tinker's documentation
defines it (tinker-docs.thinkingmachines.ai/tinker/losses/gspo): every token carries the value of
its row's ratio exp(mean of log p - log q over the tokens that `sequence_ratio_mask` marks) and the
gradient of its own log p; then PPO's clipping. A row that marks no token has the ratio 1.
Guarantees: a token whose gate input is 0 (see `loss_specs`) carries no gradient; no ratio is
infinite: beyond e^60 it counts as e^60 and has no slope. Inputs and names are checked before they
get here (`checks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from crucible_tinkex.server.engine.loss_specs import (
    CLIP_HIGH,
    CLIP_LOW,
    LOSS_SPECS,
    RATIO_MASK,
    WEIGHTS,
)

Inputs = Mapping[str, Tensor]
Settings = Mapping[str, Tensor | float]
"""The loss's settings: a number, or one value per token."""


MAX_DRIFT = 60.0
"""e^60 times any advantage and weight is still a number in fp32; infinity times 0 is none."""


def _ratio(drift: Tensor) -> Tensor:
    return torch.exp(drift.clamp(max=MAX_DRIFT))


def _cross_entropy(logp: Tensor, x: Inputs, config: Settings, lengths: Sequence[int]) -> Tensor:
    return -x[WEIGHTS] * logp


def _importance_sampling(
    logp: Tensor, x: Inputs, config: Settings, lengths: Sequence[int]
) -> Tensor:
    return -_ratio(logp - x["logprobs"]) * x["advantages"]


def _ppo(logp: Tensor, x: Inputs, config: Settings, lengths: Sequence[int]) -> Tensor:
    return _pessimistic(_ratio(logp - x["logprobs"]), x, config)


def _gspo(logp: Tensor, x: Inputs, config: Settings, lengths: Sequence[int]) -> Tensor:
    own = logp.detach()
    drifts = torch.split(own - x["logprobs"], list(lengths))
    marks = torch.split(x[RATIO_MASK] != 0, list(lengths))
    means = [
        (d.where(m, 0.0).sum() / m.sum().clamp(min=1)).expand(len(d))
        for d, m in zip(drifts, marks, strict=True)
    ]
    return _pessimistic(_ratio(torch.cat(means) + logp - own), x, config)


def _pessimistic(ratio: Tensor, x: Inputs, config: Settings) -> Tensor:
    return -torch.minimum(ratio * x["advantages"], _clipped(ratio, config) * x["advantages"])


def _clipped(ratio: Tensor, config: Settings) -> Tensor:
    low, high = (torch.as_tensor(config[c]).to(ratio) for c in (CLIP_LOW, CLIP_HIGH))
    return torch.clamp(ratio, low, high)


def _cispo(logp: Tensor, x: Inputs, config: Settings, lengths: Sequence[int]) -> Tensor:
    clipped = _clipped(_ratio(logp.detach() - x["logprobs"]), config)
    return -clipped * logp * x["advantages"]


def _dro(logp: Tensor, x: Inputs, config: Settings, lengths: Sequence[int]) -> Tensor:
    drift = (logp - x["logprobs"]).square()
    return -(logp * x["advantages"] - 0.5 * config["beta"] * drift)


_FORMULAS: Mapping[str, Callable[[Tensor, Inputs, Settings, Sequence[int]], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "importance_sampling": _importance_sampling,
    "ppo": _ppo,
    "cispo": _cispo,
    "dro": _dro,
    "gspo": _gspo,
}


def token_losses(
    name: str, logp: Tensor, inputs: Inputs, config: Mapping[str, float], lengths: Sequence[int]
) -> Tensor:
    """The loss of each token of rows of these lengths, differentiable in `logp`; `weights`, if
    given, multiply it."""
    defaults = LOSS_SPECS[name].config
    settings: Settings = {s: inputs.get(s, config.get(s, defaults[s])) for s in defaults}
    out = _FORMULAS[name](logp, inputs, settings, lengths)
    if name == "cross_entropy" or WEIGHTS not in inputs:
        return out
    return out * inputs[WEIGHTS]


def active_tokens(name: str, inputs: Inputs) -> Tensor:
    """Which tokens [n] can carry a gradient."""
    first = next(iter(inputs.values()))
    active = torch.ones(len(first), dtype=torch.bool, device=first.device)
    for gate in (LOSS_SPECS[name].gate, WEIGHTS):
        if gate in inputs:
            active &= (inputs[gate] != 0).view(len(active), -1).any(1)
    return active
