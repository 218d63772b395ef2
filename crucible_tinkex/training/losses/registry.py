"""The losses and token-weight schemes that training knows by name.

Three kinds: a loss of the *service* (its name and numbers go over the wire), a *custom* loss on
logprobs that is computed here, and a *weights* scheme, which leaves the loss as it is and says how
much each token counts. The original kept functions that were never sent anywhere, so that training
always used the service's loss whatever was registered; what is named here is what is learnt by.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from crucible_tinkex.config import TrainSection
from crucible_tinkex.errors import ConfigError, did_you_mean
from crucible_tinkex.protocol.wire import Datum
from crucible_tinkex.training.losses.custom import composite, focal, nll
from crucible_tinkex.training.losses.custom import guarded as guarded_loss
from crucible_tinkex.training.losses.schemes import SCHEMES, WeightScheme, guarded
from crucible_tinkex.training.recipes.recipe import CustomLossMaker
from crucible_tinkex.user_code import FUNCTION, load_function

SERVICE_LOSSES = ("cross_entropy", "importance_sampling", "ppo", "cispo", "dro")
"""Those of the Tinker protocol; which of them a service has, it says itself."""
_SAMPLED = ("logprobs", "advantages")
"""What all but `cross_entropy` need of a datum, from who sampled it."""
_REFUSED = {
    name: (
        f"the loss {name!r} has no published definition: in the original it was the constant 0. "
        "Define what it should be and register it with `losses.register_custom`"
    )
    for name in ("topological", "chirality")
}


LOSS, SCHEME = "loss", "token-weight scheme"
"""What messages call a function of the user's."""
_TERM = re.compile(r"(?:([\d.]+(?:[eE]-?\d+)?)\s*\*\s*)?([A-Za-z_][\w.]*(?::[A-Za-z_]\w*)?)")


@dataclass(frozen=True)
class Loss:
    """What a name stands for: `service` or `custom`, and the weights of the tokens."""

    name: str
    service: str = "cross_entropy"
    custom: CustomLossMaker | None = None
    weights: WeightScheme | None = None


def check_inputs(loss: Loss, datum: Datum) -> None:
    """Raises `ConfigError` where the service's loss needs what a row of a file does not have."""
    missing = [name for name in _SAMPLED if name not in datum.loss_fn_inputs]
    if loss.service != "cross_entropy" and missing:
        raise ConfigError(
            f"the loss {loss.name!r} needs {' and '.join(missing)} of a sampler, which rows of a "
            "file do not have; give datums that an adapter's format_training_data made with them, "
            "or another loss"
        )


def learning_functions(train: TrainSection) -> list[str]:
    """The user's functions and adapters (`module:name`) that a trial learns by."""
    named = f"{train.loss} {train.token_weights or ''} {train.adapter or ''}"
    return list(dict.fromkeys(FUNCTION.findall(named)))


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
        called = [name.rpartition(":")[2] for name in parts]
        twice = next((name for name in called if called.count(name) > 1), None)
        if twice:
            raise ConfigError(f"two parts of a composite loss are called {twice!r}")
        made = ((weight, self._custom(name)) for name, weight in parts.items())
        return composite(dict(zip(called, made, strict=True)))

    def get(self, name: str) -> Loss:
        """What `name` stands for: also `module:function`, and a sum such as `nll + 0.5 * focal`.
        Raises `ConfigError` with the nearest name, or for a function that cannot be loaded."""
        if "+" in name or "*" in name:
            return Loss(name, custom=self.composite(_terms(name)))
        if ":" in name:
            return Loss(name, custom=guarded_loss(name, load_function(name, what=LOSS)))
        if name in _REFUSED and name not in self.names():
            raise ConfigError(_REFUSED[name])
        if name in SERVICE_LOSSES:
            return Loss(name, service=name)
        if name in self.custom:
            return Loss(name, custom=self.custom[name])
        if name not in self.weights:
            raise _unknown(LOSS, name, self.names())
        return Loss(name, weights=self.weights[name])

    def scheme(self, name: str) -> WeightScheme:
        """A token-weight scheme by name, or a `module:function`. Raises as `get`."""
        if ":" in name:
            return guarded(name, load_function(name, what=SCHEME))
        if name in self.weights:
            return self.weights[name]
        raise _unknown(SCHEME, name, list(self.weights))

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


def _unknown(what: str, name: str, known: Sequence[str]) -> ConfigError:
    hint = did_you_mean(name, known, cutoff=0.5)
    return ConfigError(f"unknown {what} {name!r}; {hint}known: {', '.join(known)}, module:function")


def _terms(text: str) -> dict[str, float]:
    """The parts of a sum, and what each counts."""
    found: dict[str, float] = {}
    for part in text.split("+"):
        term = _TERM.fullmatch(part.strip())
        try:
            weight = float(term[1] or 1) if term else math.nan
        except ValueError:
            weight = math.nan
        if term is None or not math.isfinite(weight):
            raise ConfigError(
                f"the loss {text!r}: {part.strip()!r} is no term; a sum is written as "
                "'nll + 0.5 * focal'"
            )
        if term[2] in found:
            raise ConfigError(f"the loss {text!r} has the term {term[2]!r} twice")
        found[term[2]] = weight
    return found


def default_losses() -> LossRegistry:
    """The service's losses, `nll` and `focal` computed here, and the token-weight schemes."""
    return LossRegistry({"nll": nll(), "focal": focal()}, dict(SCHEMES))
