"""Contrasts of the losses on samples that a service computes itself, by name: pure.

No sweep asks for them: rows of a file have no advantages. Sessions of your own do
(`TinkexAdapter.train(loss_fn="ppo")`). A service that always computes another loss is found by
rows that are off policy, on which all of them differ from the first step on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.training.attest.contrasts import Contrast
from crucible_tinkex.training.attest.settings import Settings

LOSSES = "loss "
"""What the keys of these contrasts begin with."""
PLAIN = "importance_sampling"
"""With which the others are compared."""
_CLIPPING = {"clip_low_threshold": (0.8, 0.2), "clip_high_threshold": (1.2, 5.0)}
NUMBERS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    PLAIN: {},
    "ppo": _CLIPPING,
    "cispo": _CLIPPING,
    "dro": {"beta": (0.05, 5.0)},
}
"""Of each loss: its numbers, and two values of each."""
OTHER_ADVANTAGES = (1.0, 1.0, -1.0, -1.0)


def loss_contrasts(names: Sequence[str], base: Settings) -> list[Contrast]:
    """`loss NAME`: it is the loss of that name; `loss NAME: INPUT`: it takes that into account.
    Raises `ConfigError` for a name that is none of them."""
    unknown = [name for name in names if name not in NUMBERS]
    if unknown:
        raise ConfigError(
            f"unknown loss {unknown[0]!r} of a service; there are {', '.join(NUMBERS)}"
        )
    return [contrast for name in dict.fromkeys(names) for contrast in _of(name, base)]


def _of(name: str, base: Settings) -> Iterator[Contrast]:
    model = base.having(loss=name)
    if name == PLAIN:
        yield _contrast(name, "advantages", model, advantages=OTHER_ADVANTAGES)
        yield _contrast(f"{name}: logprobs", "drifts", model, drifts=(0.0,))
    else:
        yield Contrast(f"{LOSSES}{name}", (name,), "loss", base.having(loss=PLAIN), model)
    for number, (a, b) in NUMBERS[name].items():
        given = model.having(loss_config=((number, a),))
        yield _contrast(f"{name}: {number}", "loss_config", given, loss_config=((number, b),))


def _contrast(what: str, field: str, a: Settings, **changed: Any) -> Contrast:
    b = a.having(**changed)
    return Contrast(f"{LOSSES}{what}", (getattr(a, field), getattr(b, field)), field, a, b)
