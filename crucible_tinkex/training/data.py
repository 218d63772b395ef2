"""The tokenised rows that all trials of a sweep share, and the way back to text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import crucible_tinkex.datasets as datasets
from crucible_tinkex.errors import ConfigError, CrucibleError

if TYPE_CHECKING:
    from crucible_tinkex.config import DataSection
    from crucible_tinkex.datasets import DataFile, TokenisedDataset, Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepData:
    """Picklable; the arrays are shared without a copy where the process allows it."""

    train: TokenisedDataset
    eval: TokenisedDataset | None
    fingerprint: str
    """Of the content and of how it was read."""
    tokenizer: str | None
    """What `load_tokenizer` takes; loaded only when text must be decoded."""
    sets: Mapping[tuple[DataFile, ...], TokenisedDataset] = field(default_factory=dict)
    """Where the search varies `data.train`: the rows of each of its values."""

    def of(self, data: DataSection) -> SweepData:
        """What one trial is trained on, whose `[data]` this is."""
        return replace(self, train=self.sets[data.files], sets={}) if self.sets else self


def decoded(tokenizer: str, sequences: Sequence[Sequence[int]]) -> list[str | None]:
    """The text of tokens, for people to read; loads the tokenizer at the first use (0.1 s).

    Nothing depends on the text: where the tokenizer cannot be had (its folder lies on another
    node, the hub is out of reach), there is none.
    """
    loaded = loaded_tokenizer(tokenizer)
    return [None if loaded is None else loaded.decode(tokens) for tokens in sequences]


def text_of(tokenizer: str | None) -> Callable[[Sequence[int]], str]:
    """From tokens to their text, where metrics depend on it. Raises `ConfigError` where the
    tokenizer cannot be had."""
    loaded = None if tokenizer is None else loaded_tokenizer(tokenizer)
    if loaded is None:
        raise ConfigError(
            f"evaluation.metrics need the tokenizer {tokenizer!r}, which cannot be loaded where "
            "the trial is evaluated"
        )
    return loaded.decode


@lru_cache(maxsize=4)
def loaded_tokenizer(name: str) -> Tokenizer | None:
    """None where it cannot be had; loaded once per process."""
    try:
        return datasets.load_tokenizer(name)
    except CrucibleError as error:
        log.info("texts of evaluations are not kept: %s", error)
        return None
