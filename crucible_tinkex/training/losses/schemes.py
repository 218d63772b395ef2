"""Token-weight schemes: how much each learnt token counts, decided from the row's text.

A scheme gets the row as it was given, its completion and its own numbers, and says a factor for the
whole row and factors for spans of characters. Weights multiply: a token's is the row's `weight`
(1 if it has none), times the scheme's factor, times that of every span it touches. What is read
only keeps the weight 0.

The original's `citation_validity` loss was the constant 0, and its weight was read and thrown away.
The training script behind the published numbers multiplied whole rows instead; that is what the
scheme of that name does here. Two things to know: it makes the model learn *more* from rows whose
citations are invalid, and on data without any it changes nothing (which is why the published sweep
over it compared equal objectives). `citation_invalid_rate` is measured with it, so that this shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from crucible_tinkex.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import numpy.typing as npt

CITATION = re.compile(r"\bciting\s+([\w.:-]*\w)", re.IGNORECASE)
"""`CLAIM[c2]: text (citing 4983)`: the published format of extracted claims."""
_CLAIM_LINE = re.compile(r"^[ \t]*CLAIM\[c(\d+)\].*$", re.MULTILINE)


class Span(NamedTuple):
    """Characters `start` to `end` (exclusive) of the completion count `factor` times."""

    start: int
    end: int
    factor: float


class Weighing(NamedTuple):
    """What a scheme says of one row."""

    row: float = 1.0
    spans: tuple[Span, ...] = ()


WeightScheme: TypeAlias = Callable[[Mapping[str, Any], str, Mapping[str, float]], Weighing]
"""Takes the row, its completion (empty where the row has none), and the scheme's numbers."""


def uniform(row: Mapping[str, Any], completion: str, config: Mapping[str, float]) -> Weighing:
    """Every learnt token counts 1."""
    return Weighing()


def claims(row: Mapping[str, Any], completion: str, config: Mapping[str, float]) -> Weighing:
    """Lines `CLAIM[c1]: ...` count `claim_weight` times (5), `CLAIM[c2]` and later, which are its
    evidence, `evidence_weight` times (2): the numbers of the published training script."""
    spans = (
        Span(
            line.start(),
            line.end(),
            config.get("claim_weight", 5.0)
            if line[1] == "1"
            else config.get("evidence_weight", 2.0),
        )
        for line in _CLAIM_LINE.finditer(completion)
    )
    return Weighing(spans=tuple(spans))


def citation_validity(
    row: Mapping[str, Any], completion: str, config: Mapping[str, float]
) -> Weighing:
    """A row that cites what is not among its documents counts `1 + citation_validity_weight` times
    (2, so thrice)."""
    invalid = has_invalid_citation(row, completion)
    return Weighing(row=1.0 + config.get("citation_validity_weight", 2.0) if invalid else 1.0)


def has_invalid_citation(row: Mapping[str, Any], completion: str) -> bool:
    """Whether the completion cites a document that is not in `doc_ids` of the row or its
    `metadata`; False where the row names no documents."""
    given = row.get("doc_ids", (row.get("metadata") or {}).get("doc_ids"))
    if given is None:
        return False
    known = {str(doc) for doc in given}
    return any(cited not in known for cited in CITATION.findall(completion))


SCHEMES: dict[str, WeightScheme] = {
    "uniform": uniform,
    "claims": claims,
    "citation_validity": citation_validity,
}


_NUMBERS: Mapping[WeightScheme, tuple[str, ...]] = {
    claims: ("claim_weight", "evidence_weight"),
    citation_validity: ("citation_validity_weight",),
}


def check_numbers(schemes: Iterable[WeightScheme], given: Iterable[str], *, key: str) -> None:
    """Raises `ConfigError`, that begins with `key`, for a number that none of the schemes reads.
    What a stranger's scheme reads is not known, and `uniform` may stand beside any other."""
    reading = [scheme for scheme in schemes if scheme is not uniform]
    if not reading or any(scheme not in _NUMBERS for scheme in reading):
        return
    known = [name for scheme in dict.fromkeys(reading) for name in _NUMBERS[scheme]]
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"{key}: no number {name!r}; {hint}known: {', '.join(known)}")


def guarded(name: str, function: Callable[..., Any]) -> WeightScheme:
    """A stranger's function, which may also give one number, for the whole row. What it raises, and
    what is no weighing, becomes a `ConfigError` that names it."""

    def scheme(row: Mapping[str, Any], completion: str, config: Mapping[str, float]) -> Weighing:
        try:
            found = function(row, completion, config)
            if isinstance(found, int | float):
                return Weighing(row=float(found))
            return Weighing(float(found[0]), tuple(Span(*span) for span in found[1]))
        except Exception as error:
            raise ConfigError(
                f"token-weight scheme {name!r}: {type(error).__name__}: {error}; it takes the row, "
                "its completion and its numbers, and gives a factor or a Weighing"
            ) from error

    return scheme


def factors(
    weighing: Weighing, spans: npt.NDArray[np.int32], *, base: float, what: str
) -> npt.NDArray[np.float64]:
    """What each target counts: the factors of the row times those of all spans that it touches.

    `spans` of shape (targets, 2): the characters that a target stands for. Raises `ConfigError` for
    a factor that is none, beginning with `what`."""
    row = check_factor(base, what=f"{what}: the row's weight")
    found = np.full(len(spans), row * check_factor(weighing.row, what=f"{what}: the row's factor"))
    for start, end, factor in weighing.spans:
        touched = (spans[:, 0] < end) & (spans[:, 1] > start)
        found[touched] *= check_factor(factor, what=f"{what}: the factor of a span")
    return found


def check_factor(value: float, *, what: str) -> float:
    """A finite factor of at least 0. Raises `ConfigError`."""
    if not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ConfigError(f"{what} must be a finite number of at least 0, not {value!r}")
    return float(value)
