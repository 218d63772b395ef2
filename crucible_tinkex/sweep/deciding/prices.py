"""What tokens cost: a dated table with its source. An unknown price is said, never assumed."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from crucible_tinkex.config import Experiment
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.registry import Spent

TABLE = Path(__file__).with_name("prices.toml")
OLD_DAYS = 365
KEYS = ("train", "prefill", "sample")


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens."""

    train: float
    prefill: float
    sample: float
    source: str
    dated: date
    storage: float | None = None
    """Dollars per GB of checkpoints and month; None: unknown."""

    @property
    def per_million(self) -> tuple[float, float, float]:
        """For tokens of training, prefill and samples."""
        return self.train, self.prefill, self.sample

    def of(self, spent: Spent) -> float:
        """Dollars."""
        return (
            self.train * spent.train_tokens
            + self.prefill * spent.prefill_tokens
            + self.sample * spent.sample_tokens
        ) / 1e6


def price_of(experiment: Experiment, *, today: date | None = None) -> Price | None:
    """Of the experiment's base, by the user's table, else by ours; None where it is unknown.
    Raises `ConfigError` for a table that is malformed or older than a year."""
    own = experiment.budget.prices
    table = Path(own) if own else TABLE
    found = _read(table)
    dated = found["date"]
    row = found["models"].get(experiment.model.base)
    if row is None and experiment.service.embedded and own is None:
        row = dict.fromkeys(KEYS, 0.0)
    if row is None:
        return None
    if own and ((today or date.today()) - dated).days > OLD_DAYS:
        raise ConfigError(f"{table} is of {dated}, more than a year old; check it and set its date")
    train, prefill, sample = (_amount(table, experiment.model.base, row, key) for key in KEYS)
    storage = found.get("storage")
    if storage is not None:
        storage = _amount(table, "checkpoints", found, "storage")
    elif experiment.service.embedded and own is None:
        storage = 0.0
    return Price(train, prefill, sample, found["source"], dated, storage)


def _read(table: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(table.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"budget.prices: cannot read {table}: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"budget.prices: {table} is not valid TOML: {e}") from e
    for key, kind in (("date", date), ("source", str), ("models", dict)):
        if not isinstance(found.get(key), kind):
            raise ConfigError(
                f'budget.prices: {table} needs date = YYYY-MM-DD, source = "..." and '
                f'[models."NAME"] with {", ".join(KEYS)} in dollars per million tokens; '
                f"{key!r} is missing or wrong"
            )
    return found


def _amount(table: Path, base: str, row: Any, key: str) -> float:
    value = row.get(key) if isinstance(row, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ConfigError(f"budget.prices: {table}: {base!r} needs {key} = dollars per million")
    return float(value)


def checked_price(experiment: Experiment) -> Price | None:
    """As `price_of`. Raises `ConfigError` where dollars are capped and the price is unknown."""
    price = price_of(experiment)
    if price is None and experiment.budget.in_dollars:
        raise ConfigError(
            f"budget.dollars: no price is known for {experiment.model.base!r}; give a table with "
            "budget.prices, or cap tokens, steps or hours"
        )
    return price
