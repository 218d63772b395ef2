"""The losses and token-weight schemes that training knows by name.

Three kinds: a loss of the *service* (its name and numbers go over the wire), a *custom* loss on
logprobs that is computed here, and a *weights* scheme, which leaves the loss as it is and says how
much each token counts. The original kept functions that were never sent anywhere, so that training
always used the service's loss whatever was registered; what is named here is what is learnt by.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.training.losses.custom import composite, focal, nll
from crucible_tinkex.training.losses.schemes import SCHEMES, WeightScheme
from crucible_tinkex.training.recipes.recipe import CustomLossMaker

SERVICE_LOSSES = ("cross_entropy", "importance_sampling", "ppo", "cispo", "dro")
"""Those of the Tinker protocol; which of them a service has, it says itself."""
_REFUSED = {
    name: (
        f"the loss {name!r} has no published definition: in the original it was the constant 0. "
        "Define what it should be and register it with `losses.register_custom`"
    )
    for name in ("topological", "chirality")
}


@dataclass(frozen=True)
class Loss:
    """What a name stands for: `service` or `custom`, and the weights of the tokens."""

    name: str
    service: str = "cross_entropy"
    custom: CustomLossMaker | None = None
    weights: WeightScheme | None = None


@dataclass
class LossRegistry:
    """Names and what they stand for. Make your own, or start from `default_losses()`."""

    custom: dict[str, CustomLossMaker] = field(default_factory=dict)
    weights: dict[str, WeightScheme] = field(default_factory=dict)

    def register_custom(self, name: str, maker: CustomLossMaker) -> None:
        """A loss on logprobs. Raises `ConfigError` for a name that is taken."""
        self._check_free(name)
        self.custom[name] = maker

    def register_weights(self, name: str, scheme: WeightScheme) -> None:
        """A token-weight scheme. Raises `ConfigError` for a name that is taken."""
        self._check_free(name)
        self.weights[name] = scheme

    def composite(self, parts: Mapping[str, float]) -> CustomLossMaker:
        """The weighted sum of custom losses by name, each logged."""
        return composite({name: (weight, self._custom(name)) for name, weight in parts.items()})

    def get(self, name: str) -> Loss:
        """What `name` stands for. Raises `ConfigError` with the nearest name."""
        if name in _REFUSED and name not in self.names():
            raise ConfigError(_REFUSED[name])
        if name in SERVICE_LOSSES:
            return Loss(name, service=name)
        if name in self.custom:
            return Loss(name, custom=self.custom[name])
        return Loss(name, weights=self.scheme(name))

    def scheme(self, name: str) -> WeightScheme:
        """A token-weight scheme by name. Raises `ConfigError` with the nearest name."""
        if name in self.weights:
            return self.weights[name]
        known = self.names()
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"unknown loss {name!r}; {hint}known: {', '.join(known)}")

    def names(self) -> list[str]:
        return [*SERVICE_LOSSES, *self.custom, *self.weights]

    def _custom(self, name: str) -> CustomLossMaker:
        loss = self.get(name)
        if loss.custom is None:
            raise ConfigError(
                f"{name!r} is computed by the service and cannot be a part of a composite; "
                f"parts can be: {', '.join(self.custom)}"
            )
        return loss.custom

    def _check_free(self, name: str) -> None:
        if name in self.names():
            raise ConfigError(f"the loss {name!r} exists already; choose another name")


def default_losses() -> LossRegistry:
    """The service's losses, `nll` and `focal` computed here, and the token-weight schemes."""
    return LossRegistry({"nll": nll(), "focal": focal()}, dict(SCHEMES))
