"""The antagonist's flags: rows of an evaluation whose scores speak against what was written.

| issue | raised by the score | where it is | severity |
|---|---|---|---|
| `CITATION_INVALID` | `citation_accuracy` | below 1 | HIGH |
| `POLARITY_CONTRADICTION` | `chirality` | at least 0.55 | MEDIUM |
| | with `evidence_overlap` | at least 0.65 and 0.2 | HIGH |
| `POLARITY_CONFLICT` | `polarity_conflict` | above 0 | HIGH |
| `WEAK_ENTAILMENT` | `mean_entailment` (or `entailment`) | below 0.5 | MEDIUM |

Names and thresholds are those of thinker's antagonist. What was not measured raises nothing: the
original took it for 0, so that every row without an entailment score was flagged. `scoring.claims`
measures all but `chirality` and `evidence_overlap`, which need embeddings: functions of the user.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias

from crucible_tinkex.storage import make_folder, write_atomic

Severity: TypeAlias = Literal["LOW", "MEDIUM", "HIGH"]
_RANK: Final[tuple[Severity, ...]] = ("LOW", "MEDIUM", "HIGH")


@dataclass(frozen=True)
class Thresholds:
    """From which a score raises its issue; of entailment, below which."""

    chirality: float = 0.55
    high_chirality: float = 0.65
    entailment: float = 0.5
    evidence_overlap: float = 0.2


class Row(Protocol):
    """A row of an evaluation."""

    @property
    def example_id(self) -> str: ...

    @property
    def scores(self) -> Mapping[str, float]:
        """By metric; what is before the last `/` does not matter."""
        ...


@dataclass(frozen=True)
class Flag:
    """One row; `issues` with the score that raised each."""

    example_id: str
    severity: Severity
    issues: Mapping[str, float]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Flags:
    """Of an evaluation of `rows` rows."""

    rows: int
    flags: Sequence[Flag]

    @property
    def flag_rate(self) -> float | None:
        """None without rows."""
        return len(self.flags) / self.rows if self.rows else None

    @property
    def severities(self) -> dict[str, int]:
        counts = Counter(flag.severity for flag in self.flags)
        return {name: counts[name] for name in reversed(_RANK)}

    @property
    def issues(self) -> dict[str, int]:
        return dict(Counter(issue for flag in self.flags for issue in flag.issues).most_common())

    def summary(self) -> dict[str, Any]:
        """JSON values; keys are only ever added."""
        return {
            "rows": self.rows,
            "flagged": len(self.flags),
            "flag_rate": self.flag_rate,
            "severities": self.severities,
            "issues": self.issues,
        }

    def write(self, path: str | Path) -> None:
        """`flags.jsonl`: a flag a line. Raises `StorageError`."""
        place = Path(path)
        make_folder(place.parent)
        write_atomic(place, "".join(f"{json.dumps(asdict(f))}\n" for f in self.flags).encode())


def flags(rows: Iterable[Row], thresholds: Thresholds | None = None) -> Flags:
    """Of the rows of `sweep.evaluate(...)`, or the samples of `session.evaluate(...)`."""
    given = list(rows)
    found = [_flag(row, thresholds or Thresholds()) for row in given]
    return Flags(len(given), [flag for flag in found if flag is not None])


def _flag(row: Row, thresholds: Thresholds) -> Flag | None:
    scores = {name.rpartition("/")[2]: float(value) for name, value in row.scores.items()}
    raised = list(_raised(scores, thresholds))
    if not raised:
        return None
    worst = max((severity for _, _, severity in raised), key=_RANK.index)
    return Flag(row.example_id, worst, {issue: value for issue, value, _ in raised}, scores)


def _raised(
    scores: Mapping[str, float], thresholds: Thresholds
) -> Iterator[tuple[str, float, Severity]]:
    if (citation := scores.get("citation_accuracy", 1.0)) < 1:
        yield "CITATION_INVALID", citation, "HIGH"
    if (chirality := scores.get("chirality", 0.0)) >= thresholds.chirality:
        overlaps = scores.get("evidence_overlap", 0.0) >= thresholds.evidence_overlap
        is_high = overlaps and chirality >= thresholds.high_chirality
        yield "POLARITY_CONTRADICTION", chirality, "HIGH" if is_high else "MEDIUM"
    if (conflict := scores.get("polarity_conflict", 0.0)) > 0:
        yield "POLARITY_CONFLICT", conflict, "HIGH"
    entailment = scores.get("mean_entailment", scores.get("entailment"))
    if entailment is not None and entailment < thresholds.entailment:
        yield "WEAK_ENTAILMENT", entailment, "MEDIUM"
