"""What the log of a model registry says happened, as `Fact`s."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from crucible_tinkex.registry.facts import model_fact
from crucible_tinkex.registry.models.book import Book, Record
from crucible_tinkex.telemetry.facts.fact import Fact


def model_facts(records: Iterable[Record]) -> Iterator[Fact]:
    """Of the whole log, which alone knows the number of each registered version."""
    book = Book()
    for record in records:
        yield from told(book, record)


def told(book: Book, record: Record) -> list[Fact]:
    """Of the next record, which the book is folded by."""
    fact = model_fact(record, book.number(record))
    book.fold([record])
    return [] if fact is None else [fact]
