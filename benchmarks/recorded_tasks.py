"""The data sets of the recorded benchmark: made up, seeded, hard enough to be learnt slowly.

`classify`: two words of one kind; the answer is the votes of six people on the kind, of which one
in five is drawn blindly. `copy`: an instruction and a word; the answer is the word, as it is or in
capitals, with one letter in ten drawn blindly. What is blind gives the loss a floor, as real data
has, and many answered tokens a row keep seeds from deciding what the settings should.

`pattern` was recorded when the numbers of `auto` stood, to judge them on what they had not seen: a
word; the answer is which of its letters are vowels, one in ten drawn blindly.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

ROWS = {"train": 2048, "eval": 40}
SEEDS = {"train": 1, "eval": 2}
VOTES = 6
KINDS = {
    "a": ("sun", "rain", "snow", "wind", "cloud", "storm"),
    "b": ("cat", "dog", "fox", "owl", "bee", "ant"),
    "c": ("bread", "rice", "soup", "cake", "milk", "tea"),
    "d": ("red", "blue", "green", "pink", "grey", "gold"),
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
Row = dict[str, str]


def classify(draw: random.Random) -> Row:
    kind = draw.choice(list(KINDS))
    votes = [kind if draw.random() >= 0.2 else draw.choice(list(KINDS)) for _ in range(VOTES)]
    return {"prompt": f"{' '.join(draw.sample(KINDS[kind], 2))} >", "completion": "".join(votes)}


def copy(draw: random.Random) -> Row:
    word = draw.choice([word for words in KINDS.values() for word in words])
    verb = draw.choice(("copy", "caps"))
    said = "".join(c if draw.random() >= 0.1 else draw.choice(LETTERS) for c in word)
    return {"prompt": f"{verb} {word}>", "completion": said if verb == "copy" else said.upper()}


def pattern(draw: random.Random) -> Row:
    word = draw.choice([word for words in KINDS.values() for word in words])
    kinds = ["v" if letter in "aeiou" else "c" for letter in word]
    said = "".join(k if draw.random() >= 0.1 else draw.choice("vc") for k in kinds)
    return {"prompt": f"vowels {word}>", "completion": said}


TASKS: Mapping[str, Callable[[random.Random], Row]] = {
    "classify": classify,
    "copy": copy,
    "pattern": pattern,
}
HELD_OUT = ("pattern",)


def write(task: str, part: str, folder: Path) -> Path:
    """The rows of one part, as JSONL; the same bytes every time."""
    draw = random.Random(SEEDS[part])
    rows = [TASKS[task](draw) for _ in range(ROWS[part])]
    path = folder / f"{task}_{part}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
