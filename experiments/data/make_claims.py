"""Writes the invented claims of the experiments: `python3 experiments/data/make_claims.py`.

`scifact_*` has the shape of the rows that the original trained on: a passage, a claim that cites
it, evidence, and how they relate; 505 of them (63 * 8 + 1, so that with batches of 8 the last of an
epoch held one row, which is what its loss of "98.7 % less" was made of).
`scifact_negatives` are 50 more rows whose claim cites a document that is not theirs; in the rows
that were published there is none. `fever_*` has claims with FEVER's three labels. No text of
SciFact or FEVER is in them: those are read by their names, `scifact` and `fever`. The output is the
same bytes each time.
"""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
AGENTS = (
    *("Vitamin D", "Metformin", "Aspirin", "Zinc", "Caffeine", "Iron", "Folate", "Insulin"),
    *("Ibuprofen", "Selenium", "Biotin", "Lithium", "Codeine", "Nicotine", "Ginseng", "Garlic"),
)
MARKERS = (
    *("blood pressure", "insulin", "LDL", "bone mass", "heart rate", "ferritin", "cortisol"),
    *("body weight", "glucose", "sleep time", "pain", "lung volume", "muscle mass", "appetite"),
    *("reaction time", "body heat", "platelets", "calcium", "sodium", "urea"),
)
EFFECTS = (("lowers", "fell"), ("raises", "rose"))
TRAIN, NEGATIVES, EVAL = 505, 50, 50

CAPITALS = {
    "Vienna": "Austria",
    "Paris": "France",
    "Rome": "Italy",
    "Madrid": "Spain",
    "Lisbon": "Portugal",
    "Athens": "Greece",
    "Oslo": "Norway",
    "Stockholm": "Sweden",
    "Helsinki": "Finland",
    "Dublin": "Ireland",
    "Cairo": "Egypt",
    "Nairobi": "Kenya",
    "Lima": "Peru",
    "Santiago": "Chile",
    "Tokyo": "Japan",
    "Seoul": "Korea",
    "Hanoi": "Vietnam",
    "Delhi": "India",
}
FEVER_TRAIN, FEVER_EVAL = 280, 60


def scifact() -> dict[str, list[dict[str, Any]]]:
    """The rows of each file; no claim occurs twice."""
    chance = random.Random(505)
    claims = chance.sample([*product(AGENTS, EFFECTS, MARKERS)], TRAIN + NEGATIVES + EVAL)
    rows = [_extraction(1000 + i, *claim, chance) for i, claim in enumerate(claims)]
    negatives = [_invalid(row) for row in rows[TRAIN : TRAIN + NEGATIVES]]
    return {"train": rows[:TRAIN], "negatives": negatives, "eval": rows[TRAIN + NEGATIVES :]}


def _extraction(
    document: int, agent: str, effect: tuple[str, str], marker: str, chance: random.Random
) -> dict[str, Any]:
    verb, expected = effect
    refuted = chance.random() < 0.3
    past = next(p for _, p in EFFECTS if (p == expected) != refuted)
    people = chance.randrange(20, 99)
    relation = "refutes" if refuted else "supports"
    return {
        "id": f"claim-{document}",
        "prompt": f"[{document}] {agent} {verb} {marker}? In {people} adults {marker} {past}.\n",
        "completion": (
            f"CLAIM[c1]: {agent} {verb} {marker} (citing {document})\n"
            f"CLAIM[c2]: {marker} {past} in {people} adults (citing {document})\n"
            f"RELATION: c2 {relation} c1"
        ),
        "metadata": {"source": "synthetic", "doc_ids": [document]},
    }


def _invalid(row: dict[str, Any]) -> dict[str, Any]:
    [document] = row["metadata"]["doc_ids"]
    wrong = row["completion"].replace(f"(citing {document})", f"(citing {document + 1000})", 1)
    return {**row, "completion": wrong}


def fever() -> dict[str, list[dict[str, Any]]]:
    """Capitals, right and wrong, and what nobody can know; about as many of each label."""
    chance = random.Random(3)
    rows = []
    for city, country in CAPITALS.items():
        others = [c for c in CAPITALS.values() if c != country]
        for text in ("{} is the capital of {}.", "{} lies in {}.", "{} is a city of {}."):
            rows.append((text.format(city, country), "SUPPORTS"))
            rows += [(text.format(city, c), "REFUTES") for c in chance.sample(others, 3)]
        for thing in ("bridge", "bakery", "clock", "library", "tram", "market", "fountain"):
            year = chance.randrange(1700, 1990)
            rows.append((f"The oldest {thing} of {city} is from {year}.", "NOT ENOUGH INFO"))
    chance.shuffle(rows)
    whole = [
        {"id": i, "verifiable": _verifiable(label), "label": label, "claim": claim, "evidence": []}
        for i, (claim, label) in enumerate(rows, 1)
    ]
    return {"train": whole[:FEVER_TRAIN], "eval": whole[-FEVER_EVAL:]}


def _verifiable(label: str) -> str:
    return "NOT VERIFIABLE" if label == "NOT ENOUGH INFO" else "VERIFIABLE"


def main() -> None:
    for name, files in (("scifact", scifact()), ("fever", fever())):
        for part, rows in files.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (FOLDER / f"{name}_{part}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
