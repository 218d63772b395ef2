"""Scores of extracted claims, under the names of the seed's quality targets.

```
CLAIM[c1]: Iron lowers blood pressure (citing 101)
CLAIM[c2]: blood pressure fell in 399 adults (citing 101)
RELATION: c2 supports c1
```

is the published format. Each score looks at the whole answer and is independent of the others; the
original wrote 0 into every score behind one that failed, looked for wrong lines among the right
ones only (so that its schema compliance was always 1), and did not mind made-up citations.
No model is needed: `mean_entailment` counts words, which is near to entailment only where claims
repeat their passage; with an entailment model at hand, give a function of your own that name.

Imports nothing of this package, so that a sweep's identity depends on these lines alone.
"""

from __future__ import annotations

import re
from statistics import fmean
from typing import NamedTuple, Protocol

ENTAILED = 0.6
"""From which `mean_entailment` on a passage entails the claims, in the original's heuristic."""
_CLAIM = re.compile(r"CLAIM\[(c\d+)\]:\s*(\S.*)")
_RELATION = re.compile(r"RELATION:\s*(c\d+)\s+(supports|refutes)\s+(c\d+)")
_CITING = re.compile(r"\bciting\s+([\w.:-]*\w)", re.IGNORECASE)
_DOCUMENT = re.compile(r"(?<!CLAIM)\[([\w.:-]+)\]|\b[Dd]ocument\s+([\w.:-]*\w)")
"""How a prompt names a document: `[101]`, or `Document 101`."""


class Row(Protocol):
    """A held-out row, as evaluation functions see it."""

    @property
    def prompt(self) -> str: ...

    @property
    def expected(self) -> str: ...


class Extracted(NamedTuple):
    """What was read of an answer. `strange`: lines that are neither a claim nor a relation."""

    claims: list[tuple[str, str]]
    """Number and text, with its citation."""
    relations: list[tuple[str, str, str]]
    strange: list[str]


def extracted(text: str) -> Extracted:
    found = Extracted([], [], [])
    for line in filter(None, (line.strip() for line in text.splitlines())):
        if claim := _CLAIM.fullmatch(line):
            found.claims.append((claim[1], claim[2]))
        elif relation := _RELATION.fullmatch(line):
            found.relations.append((relation[1], relation[2], relation[3]))
        else:
            found.strange.append(line)
    return found


def schema_compliance(answer: str, row: Row) -> float:
    """1 where every line is a claim or a relation, there is a `c1`, no number occurs twice, and
    relations tie claims that are there; else 0."""
    found = extracted(answer)
    numbers = [number for number, _ in found.claims]
    tied = {end for source, _, target in found.relations for end in (source, target)}
    is_whole = "c1" in numbers and len(set(numbers)) == len(numbers) and tied <= set(numbers)
    return float(is_whole and not found.strange)


def citation_accuracy(answer: str, row: Row) -> float:
    """1 where everything that is cited is a document that the prompt names (or where it names none,
    the expected text), and something is cited if the expected text cites; else 0."""
    cited, expected = _cited(answer), _cited(row.expected)
    shown = {name for pair in _DOCUMENT.findall(row.prompt) for name in pair if name}
    return float(cited <= (shown or expected) and (bool(cited) or not expected))


def mean_entailment(answer: str, row: Row) -> float:
    """The mean over the claims of 0.7 times the share of the claim's words that are in the prompt,
    plus 0.3 times the share of the prompt's words that are in the claim (the heuristic of the
    Crucible framework's thinker, 448b09e); 0 without claims."""
    passage = _words(row.prompt)
    shares = []
    for _, text in extracted(answer).claims:
        claim = _words(_CITING.sub("", text))
        both = len(claim & passage)
        shares.append(0.7 * both / max(len(claim), 1) + 0.3 * both / max(len(passage), 1))
    return fmean(shares) if shares else 0.0


def overall_pass_rate(answer: str, row: Row) -> float:
    """1 where the answer has the format, cites well and is entailed (`ENTAILED`); else 0."""
    whole = schema_compliance(answer, row) and citation_accuracy(answer, row)
    return float(bool(whole) and mean_entailment(answer, row) >= ENTAILED)


def polarity_conflict(answer: str, row: Row) -> float:
    """1 where some claim is both supported and refuted; else 0. Lower is better."""
    kinds: dict[str, set[str]] = {}
    for _, kind, target in extracted(answer).relations:
        kinds.setdefault(target, set()).add(kind)
    return float(any(len(found) > 1 for found in kinds.values()))


def _cited(text: str) -> set[str]:
    return set(_CITING.findall(text))


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))
