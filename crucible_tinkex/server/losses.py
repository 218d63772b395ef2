"""The training losses of the protocol: sums over tokens and rows, never means.

p is the learner's probability of a target, q the sampling probability (`logprobs`), A the
`advantages`, w the `weights`. A loss is a function of the targets' log p and of inputs of the same
length; its gradient with respect to log p comes from autograd on those few numbers.
Guarantee: a token whose gate input is 0 (see `loss_specs`) carries no gradient. Inputs and names
are checked before they get here (`checks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from crucible_tinkex.server.loss_specs import LOSS_SPECS, WEIGHTS

Inputs = Mapping[str, Tensor]
Config = Mapping[str, float]


def _cross_entropy(logp: Tensor, x: Inputs, config: Config) -> Tensor:
    return -x[WEIGHTS] * logp


def _importance_sampling(logp: Tensor, x: Inputs, config: Config) -> Tensor:
    return -torch.exp(logp - x["logprobs"]) * x["advantages"]


def _ppo(logp: Tensor, x: Inputs, config: Config) -> Tensor:
    ratio = torch.exp(logp - x["logprobs"])
    clipped = ratio.clamp(config["clip_low_threshold"], config["clip_high_threshold"])
    return -torch.minimum(ratio * x["advantages"], clipped * x["advantages"])


def _cispo(logp: Tensor, x: Inputs, config: Config) -> Tensor:
    ratio = torch.exp(logp - x["logprobs"])
    clipped = ratio.clamp(config["clip_low_threshold"], config["clip_high_threshold"])
    return -clipped.detach() * logp * x["advantages"]


def _dro(logp: Tensor, x: Inputs, config: Config) -> Tensor:
    drift = (logp - x["logprobs"]).square()
    return -(logp * x["advantages"] - 0.5 * config["beta"] * drift)


_FORMULAS: Mapping[str, Callable[[Tensor, Inputs, Config], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "importance_sampling": _importance_sampling,
    "ppo": _ppo,
    "cispo": _cispo,
    "dro": _dro,
}


def token_losses(name: str, logp: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """The loss of each token, differentiable in `logp`; `weights`, if given, multiply it."""
    out = _FORMULAS[name](logp, inputs, {**LOSS_SPECS[name].config, **config})
    if name == "cross_entropy" or WEIGHTS not in inputs:
        return out
    return out * inputs[WEIGHTS]


def active_tokens(name: str, inputs: Inputs) -> Tensor:
    """Which tokens can carry a gradient."""
    active = torch.ones_like(next(iter(inputs.values())), dtype=torch.bool)
    for gate in (LOSS_SPECS[name].gate, WEIGHTS):
        if gate in inputs:
            active &= inputs[gate] != 0
    return active
