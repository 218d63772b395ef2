"""A row of a dataset: what it says, where it came from, and the key by which rows are compared.

It reads nothing (`files`) and knows no tokens (`tokenised`).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

Format = Literal[
    "prompt_completion",
    "text",
    "chat",
    "alpaca",
    "sharegpt",
    "scifact",
    "fever",
    "gsm8k",
    "mmlu",
    "humaneval",
]
"""How a file writes its rows; whatever it is, a row is one of the three classes below."""

TrainOn = Literal["all_assistant", "last_assistant", "everything"]
"""What of a row is learnt: the assistant's turns (or the completion), the last of them, or also
what comes before."""

MAX_ID_LENGTH = 128


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Row(ABC):
    """One row and where it came from: `line` counts lines, or the items of a `.json` array, or the
    rows of a Parquet file."""

    format: ClassVar[Format]
    path: str
    line: int
    id: str | None = field(default=None, kw_only=True)
    """As the file gives it, if it is fit for one: text or a whole number, printable, not long."""
    group: str | None = field(default=None, kw_only=True)
    """The document or prompt group that it belongs to, as the file gives it: rows of one group are
    not independent."""
    notes: Mapping[str, Any] = field(default_factory=dict, kw_only=True, compare=False)
    """Its other keys, which no format reads: token-weight schemes and evaluation
    functions do."""

    @property
    def example_id(self) -> str:
        """What the row is called in per-example results: its id, else its line (`00012`)."""
        return self.id or f"{self.line:05d}"

    @property
    def where(self) -> str:
        return place(self.path, self.line)

    @property
    @abstractmethod
    def completion_text(self) -> str:
        """The text that is learnt last."""

    @property
    @abstractmethod
    def fields(self) -> Mapping[str, Any]:
        """The row as JSON values, under the keys of our own formats, without its notes."""

    @property
    @abstractmethod
    def content(self) -> tuple[str, ...]:
        """The text of the row, whatever its format."""

    @property
    def key(self) -> int:
        """64 bits that are equal for rows of the same content, white space and case aside."""
        digest = hashlib.blake2b(digest_size=8)
        for part in self.content:
            # A NUL keeps ("a", "b") from ("a b",).
            digest.update(" ".join(part.casefold().split()).encode() + b"\0")
        return int.from_bytes(digest.digest(), "little")


@dataclass(frozen=True, slots=True)
class PromptCompletion(Row):
    """A prompt, which is given, and a completion, which is learnt."""

    format = "prompt_completion"
    prompt: str
    completion: str

    @property
    def completion_text(self) -> str:
        return self.completion

    @property
    def fields(self) -> Mapping[str, Any]:
        return {"prompt": self.prompt, "completion": self.completion}

    @property
    def content(self) -> tuple[str, ...]:
        return (self.prompt, self.completion)


@dataclass(frozen=True, slots=True)
class Text(Row):
    """A text, all of which is learnt."""

    format = "text"
    text: str

    @property
    def completion_text(self) -> str:
        return self.text

    @property
    def fields(self) -> Mapping[str, Any]:
        return {"text": self.text}

    @property
    def content(self) -> tuple[str, ...]:
        return (self.text,)


@dataclass(frozen=True, slots=True)
class Chat(Row):
    """A conversation that ends with an assistant's turn; the assistant's turns are learnt."""

    format = "chat"
    messages: tuple[Message, ...]

    @property
    def completion_text(self) -> str:
        return self.messages[-1].content

    @property
    def fields(self) -> Mapping[str, Any]:
        return {"messages": [message._asdict() for message in self.messages]}

    @property
    def content(self) -> tuple[str, ...]:
        return tuple(part for message in self.messages for part in message)


def overlap(train: Iterable[Row], evaluation: Iterable[Row]) -> int:
    """How many evaluation rows also occur in the training rows, white space and case aside."""
    seen = {row.key for row in train}
    return sum(row.key in seen for row in evaluation)


def place(path: str, line: int) -> str:
    """A row as error messages name it."""
    name = path.lower().removesuffix(".gz")
    kinds = {".json": "item", ".parquet": "row"}
    kind = next((kind for suffix, kind in kinds.items() if name.endswith(suffix)), "line")
    return f"{path}, {kind} {line}"
