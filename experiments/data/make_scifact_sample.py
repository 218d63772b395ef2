"""Writes the SciFact-shaped sample: `python3 experiments/data/make_scifact_sample.py`.

Invented abstracts in the form in which claims are extracted from SciFact (claims that cite a
document, and their relation). Not SciFact's own text: that is read from its published files. One
row in ten cites a document that is not among its own, so that citation validity has something to
measure. The output is the same bytes each time.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
AGENTS = ("Vitamin D", "Metformin", "Aspirin", "Zinc", "Caffeine", "Statins", "Iron", "Folate")
EFFECTS = (("lowers", "fell"), ("raises", "rose"))
MARKERS = ("blood pressure", "insulin", "LDL", "bone mass", "heart rate", "ferritin")
TRAIN, EVAL = 60, 16


def rows() -> list[dict[str, Any]]:
    """All of both files; no claim occurs twice."""
    chance = random.Random(1)
    pairs = [(a, e, m) for a in AGENTS for e in EFFECTS for m in MARKERS]
    chosen = chance.sample(pairs, TRAIN + EVAL)
    return [_row(n, 100 + n, *pair, chance) for n, pair in enumerate(chosen)]


def _row(
    number: int, document: int, agent: str, effect: tuple[str, str], marker: str, chance: Any
) -> dict[str, Any]:
    verb, past = effect
    people = chance.randrange(40, 400)
    cited = document + 1000 if number % 10 == 9 else document
    claim = f"CLAIM[c1]: {agent} {verb} {marker} (citing {cited})"
    evidence = f"CLAIM[c2]: {marker} {past} in {people} adults (citing {document})"
    return {
        "id": f"claim-{document}",
        "prompt": f"[{document}] {agent} was given to {people} adults. {marker} {past}.\nClaims:",
        "completion": f" {claim}\n{evidence}\nRELATION: c2 supports c1",
        "metadata": {"source": "synthetic", "doc_ids": [document]},
    }


def main() -> None:
    made = rows()
    for name, part in (("train", made[:TRAIN]), ("eval", made[TRAIN:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (FOLDER / f"scifact_sample_{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
