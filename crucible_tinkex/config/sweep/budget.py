"""`[budget]`: what a sweep, and each of its trials, may use at most."""

from __future__ import annotations

import math
import re
from typing import Any

from pydantic import Field

from crucible_tinkex.config.section import AnchoredPath, Section
from crucible_tinkex.errors import ConfigError

_AMOUNT = re.compile(r"^\s*\$?\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([a-z]+)\s*$", re.IGNORECASE)
_UNITS = {
    "usd": ("dollars", 1.0),
    "dollars": ("dollars", 1.0),
    "h": ("hours", 1.0),
    "min": ("hours", 1 / 60),
    "s": ("hours", 1 / 3600),
    "tok": ("tokens", 1.0),
    "tokens": ("tokens", 1.0),
    "steps": ("steps", 1.0),
    "trials": ("trials", 1.0),
}


class TrialBudgetSection(Section):
    """What one trial may use, over all its attempts; more ends it as stopped."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps, those repeated after a loss included."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens trained on, scored, prompted and sampled."""
    hours: float | None = Field(default=None, gt=0)
    """Hours of its sessions."""
    dollars: float | None = Field(default=None, gt=0)
    """By the price table."""


class BudgetSection(Section):
    """What the whole sweep may use, over all its runs; then it saves, ends with exit code 3, and
    goes on when it is given more (`crucible extend`)."""

    trials: int | None = Field(default=None, ge=1)
    """Trials that are started, the untrained base included."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps, those repeated after a loss included."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens trained on, scored, prompted and sampled."""
    hours: float | None = Field(default=None, gt=0)
    """Wall time of its runs."""
    dollars: float | None = Field(default=None, gt=0)
    """By the price table; refused where it has no price for the base."""
    prices: AnchoredPath | None = None
    """A price table of your own (`docs/budgets.md`)."""
    trial: TrialBudgetSection = TrialBudgetSection()

    @property
    def in_dollars(self) -> bool:
        return self.dollars is not None or self.trial.dollars is not None

    @property
    def meters(self) -> bool:
        """Whether every step must tell what it used."""
        caps = (self.steps, self.tokens, self.dollars)
        return any(cap is not None for cap in caps) or self.trial != TrialBudgetSection()


_WHOLE = frozenset({"tokens", "steps", "trials"})


def parse_budget(text: str) -> dict[str, Any]:
    """Settings for `5usd`, `2h`, `90min`, `1e6tok`, `300steps`, `9trials`. Raises `ConfigError`."""
    found = _AMOUNT.match(text)
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise ConfigError(
            f"--budget {text!r} must be a number and one of {', '.join(_UNITS)}, as 5usd or 2h"
        )
    key, factor = unit
    amount = float(found[1]) * factor
    if amount <= 0:
        raise ConfigError(f"--budget {text!r} must be more than 0; without it there is no cap")
    return {f"budget.{key}": round(amount) if key in _WHOLE else amount}


def budget_text(key: str, amount: float) -> str:
    """`parse_budget` turned round: at least `amount` of `dollars`, `hours`, `tokens`, `steps` or
    `trials`, in whole ones or to two places that count."""
    if key in _WHOLE:
        return f"{math.ceil(amount)}{'tok' if key == 'tokens' else key}"
    unit, amount = ("usd", amount) if key == "dollars" else ("h", amount)
    if unit == "h" and amount < 1:
        unit, amount = ("min", amount * 60) if amount * 60 >= 1 else ("s", amount * 3600)
    places = max(0, 1 - math.floor(math.log10(amount)))
    rounded = math.ceil(amount * 10**places - 1e-6) / 10**places
    return f"{rounded:.{places}f}{unit}"
