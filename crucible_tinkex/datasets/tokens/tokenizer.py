"""The tokenizer of a model: text to token ids and back, its special ids, its chat template.

A thin class over `tokenizers.Tokenizer`, loaded from a local folder or from the Hugging Face hub.
It never adds special tokens by itself, never truncates and never pads, whatever its file says: the
caller decides what stands in a row. It is picklable and runs no code that comes with a model; a
chat template runs in jinja2's immutable sandbox.

Special tokens that a text spells out (`<|im_end|>`) are read as such, as everywhere in this field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from crucible_tinkex.datasets.rows import Message, TrainOn
from crucible_tinkex.errors import ConfigError

_FILE = "tokenizer.json"
_FILES = (_FILE, "tokenizer_config.json", "chat_template.jinja", "config.json")


@dataclass(frozen=True, eq=False, repr=False)
class Tokenizer:
    """Encodes and decodes; `special` has the texts of bos, eos, pad and unk where they exist."""

    name: str
    inner: tokenizers.Tokenizer
    eos_id: int
    bos_id: int | None
    prefix: tuple[int, ...]
    """What the model expects before any text: bos, where its own tokenizer puts it, or nothing."""
    special: Mapping[str, str]
    chat_template: str | None

    def encode(self, text: str) -> list[int]:
        """The ids of the text alone."""
        ids: list[int] = self.inner.encode(text, add_special_tokens=False).ids
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a text that begins a sequence: `prefix`, then the text."""
        return [*self.prefix, *self.encode(text)]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text alone, on all cores."""
        encoded = self.inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens left out."""
        text: str = self.inner.decode(list(ids), skip_special_tokens=True)
        return text

    def spelled(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens spelled out."""
        text: str = self.inner.decode(list(ids), skip_special_tokens=False)
        return text

    @property
    def vocab_size(self) -> int:
        size: int = self.inner.get_vocab_size(with_added_tokens=True)
        return size

    def chat_parts(
        self, messages: Sequence[Message], *, train_on: TrainOn = "all_assistant"
    ) -> list[tuple[str, bool]]:
        """A conversation as (text, learnt) parts in order; needs the `jinja2` package."""
        if self.chat_template is None:
            raise ConfigError(
                f"tokenizer {self.name!r} has no chat template, so rows of format chat cannot be "
                "used; use format prompt_completion, or an instruction-tuned model"
            )
        try:
            # Only chat rows pay for jinja2 (70 ms).
            from crucible_tinkex.datasets.tokens.chat import render_parts
        except ModuleNotFoundError as error:
            raise ConfigError("rows of format chat need jinja2: pip install jinja2") from error
        return render_parts(self.chat_template, messages, special=self.special, train_on=train_on)

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, vocab_size={self.vocab_size}, eos_id={self.eos_id})"


def load_tokenizer(tokenizer_id: str | Path) -> Tokenizer:
    """Load a folder that holds `tokenizer.json`, or that of a model on the hub by its name."""
    name = str(tokenizer_id)
    folder = _local_folder(name) or _download(name)
    if not (folder / _FILE).is_file():
        raise ConfigError(
            f"tokenizer {name!r}: there is no {_FILE} in {folder}; set model.tokenizer to a "
            "folder that `save_pretrained` of a fast tokenizer wrote"
        )
    try:
        inner = tokenizers.Tokenizer.from_file(str(folder / _FILE))
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"tokenizer {name!r}: {folder / _FILE} is damaged: {error}") from error
    inner.no_truncation()
    inner.no_padding()
    settings = _read_json(folder / "tokenizer_config.json")
    special = {
        key: text
        for key in ("bos_token", "eos_token", "pad_token", "unk_token")
        if (text := _content(settings.get(key))) is not None
    }
    eos_id = _id_of(inner, special.get("eos_token"))
    if eos_id is None:
        eos_id = _eos_of_model(_read_json(folder / "config.json"))
    if eos_id is None:
        raise ConfigError(
            f"tokenizer {name!r} names no end-of-sequence token; "
            f'add "eos_token" to {folder / "tokenizer_config.json"}'
        )
    bos_id = _id_of(inner, special.get("bos_token"))
    first = inner.encode("a").ids[:1]
    return Tokenizer(
        name=name,
        inner=inner,
        eos_id=eos_id,
        bos_id=bos_id,
        prefix=tuple(first) if first == [bos_id] else (),
        special=special,
        chat_template=_chat_template(folder, settings),
    )


def _local_folder(name: str) -> Path | None:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.name == _FILE and path.is_file():
        return path.parent
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigError(f"tokenizer {name!r}: there is no such folder")
    return None


def _download(name: str) -> Path:
    # Costs 0.2 s and is not needed where the tokenizer is local.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:  # the hub's own errors derive from these
        raise ConfigError(
            f"tokenizer {name!r} is no local folder, and could not be fetched from the Hugging "
            f"Face hub ({type(error).__name__}); check the name and the network (HF_TOKEN for a "
            f"gated model), or set model.tokenizer to a folder that holds {_FILE}"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is damaged: it is not a JSON object")
    return value


def _content(token: Any) -> str | None:
    """A special token is written as its text or as an object with `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _id_of(inner: tokenizers.Tokenizer, text: str | None) -> int | None:
    found: int | None = None if text is None else inner.token_to_id(text)
    return found


def _eos_of_model(config: dict[str, Any]) -> int | None:
    value = config.get("eos_token_id")
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, int) else None


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {item["name"]: item["template"] for item in template}
        template = named.get("default")
    return template if isinstance(template, str) else None
