"""A byte tokenizer, and a desk on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from desk import Desk
from tokenizers import decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from crucible_tinkex.datasets import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}
    made = tokenizers.Tokenizer(BPE(vocab={**vocabulary, "<end>": 256}, merges=[]))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


@pytest.fixture
def desk(tokenizer: Tokenizer) -> Desk:
    return Desk(tokenizer)
