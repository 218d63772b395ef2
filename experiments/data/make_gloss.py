"""Make the quickstart's data from WordNet 3.0: a noun's definition -> the kind of thing it defines.

Needs only the standard library and WordNet's `data.noun` (Debian package `wordnet-base`):

    python3 experiments/data/make_gloss.py            # rewrites gloss_train.jsonl, gloss_eval.jsonl
    python3 experiments/data/make_gloss.py --check    # exit 1 if the files on disk differ

The output is a function of `data.noun` and `--seed` alone (ordered by SHA-256, not by `random`), is
balanced by category, and no definition and no noun appears twice, within or across the two files.
It is not a benchmark: 720 short rows, chosen so that a 135M-parameter model trains in minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

WORDNET = Path("/usr/share/wordnet/data.noun")
HERE = Path(__file__).resolve().parent
# WordNet's lexicographer file number -> the word to answer (one SmolLM2 token with its space).
CATEGORIES = {
    "05": "animal",
    "06": "artifact",
    "08": "body",
    "13": "food",
    "18": "person",
    "20": "plant",
}
TRAIN_PER_CATEGORY = 80
EVAL_PER_CATEGORY = 34
WORDS = range(4, 13)
MAX_CHARS = 68
PLAIN = re.compile(r"[A-Za-z][A-Za-z' ,;-]*")
UNFIT = re.compile(
    r"offensive|slur|derogatory|disparag|contempt|vulgar|obscene|sexual|\bsex|genital|penis|vagina"
    r"|prostitut|homosexual|slave|negro|ethnic|\brac(e|ial)|\bkill|suicid|excre|feces|urin|breast",
    re.IGNORECASE,
)
TAXONOMY = re.compile(r"\b(genus|genera|family|suborder|order|phylum|protoctist)\b")


class Synset(NamedTuple):
    offset: str
    category: str
    lemmas: frozenset[str]
    gloss: str


def synsets(path: Path) -> Iterator[Synset]:
    """The common nouns of the chosen categories that have a short, plain definition."""
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith("  "):  # the licence at the head of the file
            continue
        fields, _, note = line.partition(" | ")
        offset, file_number, _, word_count, *rest = fields.split()
        if file_number not in CATEGORIES or "@i" in rest:  # "@i": a proper name, such as a poet's
            continue
        count = int(word_count, 16)
        lemmas = frozenset(word.lower() for word in rest[: 2 * count : 2])
        gloss = note.split('"')[0].strip(" ;")  # what follows in quotes are examples
        if fit(gloss, lemmas, CATEGORIES[file_number]):
            yield Synset(offset, CATEGORIES[file_number], lemmas, gloss)


def fit(gloss: str, lemmas: frozenset[str], category: str) -> bool:
    return (
        len(gloss) <= MAX_CHARS
        and len(gloss.split()) in WORDS
        and PLAIN.fullmatch(gloss) is not None
        and category not in gloss.lower()
        and not TAXONOMY.search(gloss)
        and not UNFIT.search(gloss)
        and not any(UNFIT.search(lemma) for lemma in lemmas)
    )


def choose(candidates: Iterator[Synset], *, seed: int) -> tuple[list[Synset], list[Synset]]:
    """Training and evaluation synsets that share neither a definition nor a noun."""

    def rank(synset: Synset) -> str:
        return hashlib.sha256(f"{seed}:{synset.offset}".encode()).hexdigest()

    taken: set[str] = set()
    counts: Counter[str] = Counter()
    train: list[Synset] = []
    evaluation: list[Synset] = []
    for synset in sorted(candidates, key=rank):
        words = synset.lemmas | {synset.gloss.lower()}
        if counts[synset.category] == TRAIN_PER_CATEGORY + EVAL_PER_CATEGORY or taken & words:
            continue
        taken |= words
        counts[synset.category] += 1
        # Evaluation first, so that a larger training file would keep the same evaluation rows.
        held_out = counts[synset.category] <= EVAL_PER_CATEGORY
        (evaluation if held_out else train).append(synset)
    return train, evaluation


def jsonl(rows: list[Synset]) -> str:
    return "".join(
        json.dumps({"prompt": f"{row.gloss}\nCategory:", "completion": f" {row.category}"}) + "\n"
        for row in rows
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wordnet", type=Path, default=WORDNET, help="WordNet 3.0's data.noun")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args()
    if not options.wordnet.is_file():
        print(f"{options.wordnet} not found: apt-get install wordnet-base", file=sys.stderr)
        return 2
    train, evaluation = choose(synsets(options.wordnet), seed=options.seed)
    same = True
    for name, rows in (("gloss_train.jsonl", train), ("gloss_eval.jsonl", evaluation)):
        path, text = options.out / name, jsonl(rows)
        if options.check:
            same = same and path.is_file() and path.read_text(encoding="utf-8") == text
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{path}: {len(rows)} rows, {dict(Counter(row.category for row in rows))}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
