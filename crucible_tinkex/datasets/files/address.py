"""What `data.train` and `data.eval` name: a path, an address or a short name, and which of its rows.

After the last `?` come options, `key=value` joined by `&`:

| option | of | takes |
|---|---|---|
| `limit` | all | the first so many rows |
| `sample` | all | so many rows, drawn by `seed` (0) and always the same; with `stratify`, which names a key of the rows, such that each of its values keeps its share |
| `split`, `config`, `subject`, `revision` | short names | which file of the data set (`catalogue`) |

`mmlu?subject=anatomy&split=test` and `rows.jsonl?sample=200&stratify=label` are such names. A file
that is called so, question mark and all, is that file.
"""  # noqa: E501  (a table)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crucible_tinkex.datasets.files.catalogue import CATALOGUE, PLACES
from crucible_tinkex.datasets.sampling import stratified
from crucible_tinkex.errors import DataError

_CHOOSING = ("limit", "sample", "stratify", "seed")


@dataclass(frozen=True)
class Choice:
    """Which rows of a file are taken; by default all."""

    limit: int | None = None
    sample: int | None = None
    stratify: str | None = None
    seed: int = 0

    def taken(self, rows: int, labels: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Of `rows` rows, those of the sample; `labels`: of each, where it is stratified."""
        if self.sample is None:
            return np.ones(rows, np.bool_)
        taken = np.zeros(rows, np.bool_)
        taken[stratified(labels or [""] * rows, self.sample, seed=self.seed)] = True
        return taken

    def identity(self) -> dict[str, Any]:
        """What differs from taking all rows."""
        return {key: value for key, value in asdict(self).items() if value}


@dataclass(frozen=True)
class Address:
    """Where rows lie, and which of them are taken."""

    place: str
    """A path, or an address such as `hf://datasets/ORG/NAME/FILE`."""
    choice: Choice = Choice()
    corpus: str | None = None
    """Of SciFact's claims, where the short name knows it."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises `DataError` that names the option and the legal ones."""
        name, asks, query = text.rpartition("?")
        if not asks or Path(text).exists():
            options: Mapping[str, str] = {}
            name = text
        else:
            options = _options(query, text)
        known = CATALOGUE.get(name)
        legal = (*(PLACES if known else ()), *_CHOOSING)
        other = next((key for key in options if key not in legal), None)
        if other is not None:
            hint = " (it belongs to a short name)" if other in PLACES else ""
            raise DataError(f"{text}: there is no option {other!r}{hint}; {', '.join(legal)}")
        choice = _choice(options, text)
        if known is None:
            return cls(name, choice)
        place = known.place(name, {k: v for k, v in options.items() if k in PLACES})
        return cls(place, choice, known.corpus_address)


def is_short_name(text: str) -> bool:
    """Whether it names a published data set and no path."""
    return text.partition("?")[0] in CATALOGUE


def _options(query: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in query.split("&"):
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise DataError(f"{text}: {part!r} is no option; write ?key=value&key=value")
        if key in found:
            raise DataError(f"{text}: the option {key!r} is given twice")
        found[key] = value
    return found


def _choice(options: Mapping[str, str], text: str) -> Choice:
    numbers = {key: _number(key, options[key], text) for key in _CHOOSING if key in options}
    if "limit" in options and "sample" in options:
        raise DataError(f"{text}: give one of limit, the first rows, and sample, drawn ones")
    idle = next((key for key in ("stratify", "seed") if key in options), None)
    if idle is not None and "sample" not in options:
        raise DataError(f"{text}: {idle!r} is of a sample; add sample=ROWS")
    return Choice(**numbers)


def _number(key: str, value: str, text: str) -> Any:
    if key == "stratify":
        return value
    least = 0 if key == "seed" else 1
    if not value.isascii() or not value.isdecimal() or int(value) < least:
        raise DataError(f"{text}: {key} must be a whole number from {least}, not {value!r}")
    return int(value)
