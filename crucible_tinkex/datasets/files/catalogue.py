"""Published data sets by a short name: where the Hugging Face hub keeps each of their files.

| name | on the hub | splits, the first by default | `config`, or of mmlu `subject` |
|---|---|---|---|
| `gsm8k` | openai/gsm8k | train, test | main, socratic |
| `mmlu` | cais/mmlu | auxiliary_train, dev, validation, test | all, or one of 57 subjects |
| `humaneval` | openai/openai_humaneval | test | |
| `scifact` | allenai/scifact | train, validation | |
| `fever` | fever/fever | train, labelled_dev, paper_dev, paper_test | |

SciFact and FEVER are published as programs; read are the tables that the hub itself makes of them
(`refs/convert/parquet`, `flattened`). SciFact's test split and FEVER's unlabelled ones have no
answers to learn, and are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from crucible_tinkex.errors import DataError

HUB = "hf://datasets/"
PLACES = ("split", "config", "subject", "revision")
"""Options that choose the file."""
_ONE_FILE = "{config}/{split}-00000-of-00001.parquet"
_CONVERTED = "{config}/{split}/0000.parquet"
_TABLES = "refs/convert/parquet"
_WORD = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Published:
    """A data set on the hub, one file for each configuration and split."""

    repository: str
    splits: tuple[str, ...]
    """The first by default."""
    configs: tuple[str, ...]
    """The first by default; legal are these, or any where `subjects`."""
    file: str = _ONE_FILE
    revision: str | None = None
    corpus: str | None = None
    """The file with the abstracts that SciFact's claims quote."""
    subjects: bool = False
    """Whether other configurations than the first are subjects, which have no training split."""

    def place(self, name: str, options: Mapping[str, str]) -> str:
        """The address of one file. Raises `DataError` for options that the data set has not."""
        if "subject" in options and "config" in options:
            raise DataError(f"{name}: give one of subject and config")
        if "subject" in options and not self.subjects:
            raise DataError(f"{name}: it has no subjects; leave subject out")
        config = options.get("subject") or options.get("config", self.configs[0])
        split = options.get("split", self.splits[0])
        if split not in self.splits:
            raise DataError(f"{name}: there is no split {split!r}; one of {_words(self.splits)}")
        if not _WORD.fullmatch(config) or not (self.subjects or config in self.configs):
            raise DataError(f"{name}: there is no config {config!r}; one of {_words(self.configs)}")
        if config != self.configs[0] and self.subjects and split == self.splits[0]:
            raise DataError(
                f"{name}: {split} is of all subjects; add split=, one of {_words(self.splits[1:])}"
            )
        file = self.file.format(config=config, split=split)
        return self._address(file, options.get("revision", self.revision))

    @property
    def corpus_address(self) -> str | None:
        return self.corpus and self._address(self.corpus, self.revision)

    def _address(self, file: str, revision: str | None) -> str:
        return f"{HUB}{self.repository}{f'@{revision}' if revision else ''}/{file}"


CATALOGUE: Mapping[str, Published] = {
    "gsm8k": Published("openai/gsm8k", ("train", "test"), ("main", "socratic")),
    "mmlu": Published(
        "cais/mmlu", ("auxiliary_train", "dev", "validation", "test"), ("all",), subjects=True
    ),
    "humaneval": Published("openai/openai_humaneval", ("test",), ("openai_humaneval",)),
    "scifact": Published(
        "allenai/scifact",
        ("train", "validation"),
        ("claims",),
        _CONVERTED,
        _TABLES,
        corpus="corpus/train/0000.parquet",
    ),
    "fever": Published(
        "fever/fever",
        ("train", "labelled_dev", "paper_dev", "paper_test"),
        ("v1.0",),
        _CONVERTED,
        _TABLES,
    ),
}


def _words(names: tuple[str, ...]) -> str:
    return ", ".join(names)
