"""Statistics: what a sweep's numbers support, and what would settle the rest.

Pure functions on numbers: they know nothing of sweeps, files or services. `conclude` and
`next_seeds` are about configurations over seeds, `compare` about two sets of per-example scores,
`analyze` about a series. What they claim and why: `docs/statistics.md`.
"""

from __future__ import annotations

from crucible_tinkex.bench.analysis import Analysis, analyze
from crucible_tinkex.bench.comparison import Comparison, Scores, compare
from crucible_tinkex.bench.selection.conclusion import conclude, terms
from crucible_tinkex.bench.selection.configurations import Configuration, Status
from crucible_tinkex.bench.selection.results import Conclusion, Terms
from crucible_tinkex.bench.selection.seeds import NextSeeds, next_seeds

__all__ = [
    "Analysis",
    "Comparison",
    "Conclusion",
    "Configuration",
    "NextSeeds",
    "Scores",
    "Status",
    "Terms",
    "analyze",
    "compare",
    "conclude",
    "next_seeds",
    "terms",
]
