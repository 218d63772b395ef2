"""Tables in which the hub repeats a claim for each piece of its evidence, put together again.

The hub's own tables of SciFact and FEVER have a row for each piece of evidence; published was a row
for each claim. Rows of one `id` that follow each other become that row, on the line of the first.
FEVER's evidence is not learnt, so of its claims the first row is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

_SCIFACT = ("id", "claim", "evidence_doc_id", "evidence_label", "evidence_sentences")
_FEVER = ("id", "claim", "label", "evidence_annotation_id")


def whole_claims(values: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """(line, value) as published; what is of no such table stays as it is."""
    for name, rows in groupby(values, key=_claim):
        if name is None:
            yield from rows
            continue
        found = list(rows)
        line, value = found[0]
        yield line, _scifact([row for _, row in found]) if _has(value, _SCIFACT) else value


def _claim(pair: tuple[int, Any]) -> Any:
    value = pair[1]
    return value["id"] if _has(value, _SCIFACT) or _has(value, _FEVER) else None


def _has(value: Any, keys: tuple[str, ...]) -> bool:
    return isinstance(value, Mapping) and all(key in value for key in keys)


def _scifact(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    evidence: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["evidence_doc_id"]:
            piece = {"label": row["evidence_label"], "sentences": row["evidence_sentences"]}
            evidence.setdefault(str(row["evidence_doc_id"]), []).append(piece)
    first = rows[0]
    cited = first.get("cited_doc_ids") or []
    return {
        "id": first["id"],
        "claim": first["claim"],
        "evidence": evidence,
        "cited_doc_ids": cited,
    }
