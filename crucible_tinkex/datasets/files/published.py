"""Data sets in the form in which they are published, as rows that can be learnt.

| format | one row of the file | becomes |
|---|---|---|
| `alpaca` | `instruction`, `input` (may be empty), `output` | the prompt of Stanford's Alpaca |
| `sharegpt` | `conversations` of `from` (human, gpt, system), `value` | a conversation |
| `gsm8k` | `question`, `answer` (ends in `#### 42`) | `Problem: .. Solution:` -> the answer |
| `mmlu` | `question`, `choices`, `answer` (a position), `subject` | choices -> a letter |
| `humaneval` | `prompt`, `canonical_solution`, `test`, `entry_point` | the prompt -> the solution |
| `fever` | `claim`, `label`, `evidence` (pages of Wikipedia) | `Claim: .. Verify:` -> the label |
| `scifact` | `claim`, `evidence`, `cited_doc_ids`, a corpus | abstracts -> CLAIM, RELATION |

The prompts of `fever` and `gsm8k` are those of the Crucible framework's formatters, and `scifact`
is the claim extractor of its experiments: `CLAIM[c1]` restates the claim, each further claim quotes
the sentences of one piece of evidence, and `RELATION: c2 supports c1` (or `refutes`) ties it to the
first. A claim without evidence has nothing to extract and is passed over. The prompt of `mmlu` is
that of its authors' evaluation (Hendrycks et al., "Measuring Massive Multitask Language
Understanding", 2021). HumanEval's tests are kept beside the row, and never run here.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from crucible_tinkex.datasets.files.containers import type_name, values
from crucible_tinkex.datasets.files.formats import (
    OWN,
    Origin,
    Reader,
    Value,
    conversation,
    pair,
    text,
    turn,
    turns_of,
)
from crucible_tinkex.datasets.rows import Format, Row, place
from crucible_tinkex.errors import DataError

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
_ALPACA = (
    "Below is an instruction that describes a task{also}. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n"
)
_VERDICTS = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")
_RELATIONS = {"SUPPORT": "supports", "CONTRADICT": "refutes"}
_EXTRACT = (
    "Extract the claims of this passage and how they relate.\n\nPassage:\n{passage}\n\n"
    "Write the central hypothesis as CLAIM[c1]: <text>, each piece of evidence as "
    "CLAIM[c#]: <text>, and RELATION: <source> <supports|refutes> <target> between them.\n\n"
)

Corpus = Mapping[str, tuple[str, tuple[str, ...]]]
"""Title and sentences of each abstract, by `doc_id`."""


def _alpaca(value: Value, origin: Origin) -> Row:
    given = value.get("input") or ""
    if given != "":
        given = text(given, "'input'", origin, fix='use "" where there is none')
    prompt = _ALPACA.format(
        also=", paired with an input that provides further context" if given else "",
        instruction=text(value["instruction"], "'instruction'", origin),
        input=f"### Input:\n{given}\n\n" if given else "",
    )
    return pair(prompt, text(value["output"], "'output'", origin), origin)


def _sharegpt(value: Value, origin: Origin) -> Row:
    messages = []
    for i, item in enumerate(turns_of(value, "conversations", origin)):
        name = f"'conversations'[{i}]"
        if not isinstance(item, dict) or "from" not in item or "value" not in item:
            raise DataError(f"{origin.where}: {name} must have the keys 'from' and 'value'")
        speaker = item["from"]
        role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise DataError(
                f"{origin.where}: {name} is from {speaker!r}; use one of {', '.join(_SPEAKERS)}"
            )
        messages.append(turn(role, item["value"], f"the value of {name}", origin))
    return conversation(messages, origin)


def _gsm8k(value: Value, origin: Origin) -> Row:
    question = text(value["question"], "'question'", origin)
    answer = text(value["answer"], "'answer'", origin)
    return pair(f"Problem: {question}\nSolution:", f" {answer}", origin)


def _fever(value: Value, origin: Origin) -> Row:
    label = value["label"]
    if label not in _VERDICTS:
        raise DataError(
            f"{origin.where}: 'label' must be one of {', '.join(_VERDICTS)}, not {label!r}"
        )
    claim = text(value["claim"], "'claim'", origin)
    return pair(f"Claim: {claim}\nVerify:", f" {label}", origin)


_LETTERS = string.ascii_uppercase


def _mmlu(value: Value, origin: Origin) -> Row:
    choices = value["choices"]
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(_LETTERS):
        raise DataError(
            f"{origin.where}: 'choices' must be a list of 2 to {len(_LETTERS)} texts, found "
            + (f"{len(choices)}" if isinstance(choices, list) else type_name(choices))
        )
    subject = str(value.get("subject") or "").replace("_", " ").strip()
    about = f" about {subject}" if subject else ""
    given = [text(choice, f"'choices'[{i}]", origin).strip() for i, choice in enumerate(choices)]
    lines = [
        f"The following are multiple choice questions (with answers){about}.\n",
        text(value["question"], "'question'", origin).strip(),
        *(f"{letter}. {choice}" for letter, choice in zip(_LETTERS, given, strict=False)),
        "Answer:",
    ]
    return pair("\n".join(lines), f" {_letter(value['answer'], len(choices), origin)}", origin)


def _letter(answer: Any, choices: int, origin: Origin) -> str:
    """Of an answer that is a position, or a letter."""
    legal = _LETTERS[:choices]
    if isinstance(answer, str) and answer.strip().upper() in tuple(legal):
        return answer.strip().upper()
    # A table without types writes the position as text.
    number = int(answer) if isinstance(answer, str) and answer.strip().isdecimal() else answer
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < choices:
        return legal[number]
    raise DataError(
        f"{origin.where}: 'answer' must be the position of a choice, 0 to {choices - 1}, or its "
        f"letter, not {answer!r}"
    )


def _humaneval(value: Value, origin: Origin) -> Row:
    prompt = text(value["prompt"], "'prompt'", origin)
    solution = text(value["canonical_solution"], "'canonical_solution'", origin)
    entry_point = text(value["entry_point"], "'entry_point'", origin)
    text(value["test"], "'test'", origin)
    if f"def {entry_point}" not in prompt:
        raise DataError(
            f"{origin.where}: 'prompt' must hold the head of the function {entry_point!r}, which "
            "'entry_point' names"
        )
    task = value.get("task_id")
    named = origin if origin.id or not isinstance(task, str) else replace(origin, id=task)
    return pair(prompt, solution, named)


PUBLISHED: Mapping[Format, Reader] = {
    **OWN,
    "alpaca": Reader(("instruction", "output"), _alpaca),
    "sharegpt": Reader(("conversations",), _sharegpt, json_keys=("conversations",)),
    "gsm8k": Reader(("question", "answer"), _gsm8k),
    "mmlu": Reader(("question", "choices", "answer"), _mmlu, json_keys=("choices",)),
    "humaneval": Reader(
        ("prompt", "canonical_solution", "test", "entry_point"),
        _humaneval,
        noted=("test", "entry_point"),
    ),
    "fever": Reader(("claim", "label"), _fever),
}
"""All formats whose rows stand alone; `scifact` needs a corpus (`with_corpus`)."""


# --- SciFact -----------------------------------------------------------------------------------

SCIFACT_KEYS = ("claim", "evidence", "cited_doc_ids")


def with_corpus(corpus: Corpus, name: str) -> Mapping[Format, Reader]:
    """The readers, with one of SciFact that quotes `corpus`, a file called `name`."""
    json_keys = ("evidence", "cited_doc_ids")
    scifact = Reader(SCIFACT_KEYS, lambda v, o: _scifact(v, o, corpus, name), json_keys)
    return {**PUBLISHED, "scifact": scifact}


def read_corpus(file: Path, name: str) -> Corpus:
    """SciFact's `corpus.jsonl`: {"doc_id": .., "title": .., "abstract": [sentence, ..]}."""
    corpus: dict[str, tuple[str, tuple[str, ...]]] = {}
    for line, value in values(file, name):
        origin = Origin(name, line, None)
        if not isinstance(value, dict) or not {"doc_id", "title", "abstract"} <= set(value):
            raise DataError(
                f"{place(name, line)}: a row of a SciFact corpus has the keys 'doc_id', 'title' "
                "and 'abstract'"
            )
        abstract = value["abstract"]
        if not isinstance(abstract, list):
            raise DataError(
                f"{origin.where}: 'abstract' must be a list of sentences, found "
                + type_name(abstract)
            )
        sentences = tuple(
            text(sentence, f"'abstract'[{i}]", origin).strip()
            for i, sentence in enumerate(abstract)
        )
        title = text(value["title"], "'title'", origin).strip()
        corpus[str(value["doc_id"])] = (title, sentences)
    return corpus


def has_evidence(value: Any) -> bool:
    """Whether a SciFact claim has something to extract."""
    return not isinstance(value, dict) or value.get("evidence") not in ({}, [], None, "{}")


def _scifact(value: Value, origin: Origin, corpus: Corpus, name: str) -> Row:
    claim = text(value["claim"], "'claim'", origin).strip()
    evidence = value["evidence"]
    if not isinstance(evidence, dict):
        raise DataError(
            f"{origin.where}: 'evidence' must be an object of documents, found "
            + type_name(evidence)
        )
    passages, lines = [], [f"CLAIM[c1]: {claim}"]
    for doc_id, pieces in evidence.items():
        if doc_id not in corpus:
            raise DataError(
                f"{origin.where}: 'evidence' cites document {doc_id}, which {name} does not have; "
                "give the corpus that was published with the claims"
            )
        title, sentences = corpus[doc_id]
        passages.append(f"{title}\n{' '.join(sentences)}")
        for quoted, relation in _pieces(pieces, sentences, f"'evidence'[{doc_id!r}]", origin):
            number = (len(lines) + 3) // 2
            lines.append(f"CLAIM[c{number}]: {quoted}")
            lines.append(f"RELATION: c{number} {relation} c1")
    return pair(_EXTRACT.format(passage="\n\n".join(passages)), "\n".join(lines), origin)


def _pieces(
    pieces: Any, sentences: tuple[str, ...], name: str, origin: Origin
) -> Iterator[tuple[str, str]]:
    """What each piece of evidence in a document quotes, and how it relates to the claim."""
    if not isinstance(pieces, list):
        raise DataError(f"{origin.where}: {name} must be a list, found {type_name(pieces)}")
    for piece in pieces:
        label = piece.get("label") if isinstance(piece, dict) else None
        if label not in _RELATIONS:
            raise DataError(
                f"{origin.where}: the label of {name} must be one of {', '.join(_RELATIONS)}, "
                f"not {label!r}"
            )
        chosen = piece.get("sentences")
        if not isinstance(chosen, list) or not all(
            isinstance(i, int) and 0 <= i < len(sentences) for i in chosen
        ):
            raise DataError(
                f"{origin.where}: the sentences of {name} must be positions, 0 to "
                f"{len(sentences) - 1}, not {chosen!r}"
            )
        yield " ".join(sentences[i] for i in chosen), _RELATIONS[label]
