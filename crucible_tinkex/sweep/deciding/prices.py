"""What tokens cost: a dated table with its source. An unknown price is said, never assumed."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from crucible_tinkex.client.http.address import PUBLIC_BASE_URL, Address
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
    """Of the experiment's base, by the user's table, else by ours for hosted Tinker; None where it
    is unknown, also because ours is older than a year. Raises `ConfigError` for a table of the
    user's that is malformed or that old."""
    section, base = experiment.service, experiment.model.base
    today = today or date.today()
    if (own := experiment.budget.prices) is None:
        if section.embedded:
            return Price(0.0, 0.0, 0.0, "the embedded server is your own machine", today, 0.0)
        address = Address.parse(section.base_url, allow_http=section.allow_http)
        if address.host != Address.parse(PUBLIC_BASE_URL).host:
            return None
    table = Path(own) if own else TABLE
    found = _read(table)
    if (row := found["models"].get(base)) is None:
        return None
    if not 0 <= (age := (today - found["date"]).days) <= OLD_DAYS:
        if own is None:
            return None
        why = "more than a year old" if age > 0 else "which is yet to come"
        raise ConfigError(
            f"budget.prices: {table} is of {found['date']}, {why}; check it and set its date"
        )
    train, prefill, sample = (_amount(table, base, row, key) for key in KEYS)
    storage = _amount(table, "checkpoints", found, "storage") if "storage" in found else None
    return Price(train, prefill, sample, found["source"], found["date"], storage)


def _read(table: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(table.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"budget.prices: cannot read {table}: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"budget.prices: {table} is not valid TOML: {e}") from e
    for key, kind in (("date", date), ("source", str), ("models", dict)):
        # A time is a date, too, but no day can be subtracted from it.
        if not isinstance(found.get(key), kind) or isinstance(found[key], datetime):
            raise ConfigError(
                f'budget.prices: {table} needs date = YYYY-MM-DD, source = "..." and '
                f'[models."NAME"] with {", ".join(KEYS)} in dollars per million tokens; '
                f"{key!r} is missing or wrong"
            )
    return found


def _amount(table: Path, base: str, row: Any, key: str) -> float:
    value = row.get(key) if isinstance(row, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
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
