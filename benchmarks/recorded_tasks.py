"""The two data sets of the recorded benchmark: made up, seeded, hard enough to be learnt slowly.

`classify`: three words, two of one kind and one of another, in any order; the answer is the letter
of the kind, and one answer in ten is drawn blindly, so that the loss has a floor as real data has.
`copy`: four letters and the instruction to copy or to flip them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

ROWS = {"train": 2048, "eval": 48}
SEEDS = {"train": 1, "eval": 2}
BLIND = 0.1
KINDS = {
    "a": ("sun", "rain", "snow", "wind", "cloud", "storm"),
    "b": ("cat", "dog", "fox", "owl", "bee", "ant"),
    "c": ("bread", "rice", "soup", "cake", "milk", "tea"),
    "d": ("red", "blue", "green", "pink", "grey", "gold"),
}
LETTERS = "abcdefgh"
Row = dict[str, str]


def classify(draw: random.Random) -> Row:
    kind = draw.choice(list(KINDS))
    others = [word for other, words in KINDS.items() if other != kind for word in words]
    words = [*draw.sample(KINDS[kind], 2), draw.choice(others)]
    draw.shuffle(words)
    answer = kind if draw.random() >= BLIND else draw.choice(list(KINDS))
    return {"prompt": f"{' '.join(words)} >", "completion": answer}


def copy(draw: random.Random) -> Row:
    text = "".join(draw.choice(LETTERS) for _ in range(4))
    verb = draw.choice(("copy", "flip"))
    return {"prompt": f"{verb} {text}>", "completion": text if verb == "copy" else text[::-1]}


TASKS: Mapping[str, Callable[[random.Random], Row]] = {"classify": classify, "copy": copy}


def write(task: str, part: str, folder: Path) -> Path:
    """The rows of one part, as JSONL; the same bytes every time."""
    draw = random.Random(SEEDS[part])
    rows = [TASKS[task](draw) for _ in range(ROWS[part])]
    path = folder / f"{task}_{part}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
