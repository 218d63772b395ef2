"""What is learnt of a row, what becomes of long ones, how long rows are, and how much memory."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from byte_tokenizer import CHATML, save_tokenizer

from crucible_tinkex.datasets import (
    Chat,
    DataFile,
    LengthStatistics,
    Message,
    PromptCompletion,
    Row,
    Segment,
    Text,
    TokenisedDataset,
    Tokenizer,
    TrainOn,
    load_tokenizer,
    open_rows,
    shown,
    tokenise,
    typical,
)
from crucible_tinkex.datasets.column import Column
from crucible_tinkex.errors import DataError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def chat(*contents: str) -> Chat:
    roles = ("user", "assistant")
    return Chat("f", 3, tuple(Message(roles[i % 2], text) for i, text in enumerate(contents)))


def learnt(data: TokenisedDataset, tokenizer: Tokenizer) -> list[str]:
    return [text for text, is_learnt in shown(data, tokenizer, 0).parts if is_learnt]


def prompt(data: TokenisedDataset, tokenizer: Tokenizer) -> str:
    return tokenizer.spelled(data.prompt(0))


# --- train_on ----------------------------------------------------------------------------------

TALK = chat("hi", "yo", "more", "no")


@pytest.mark.parametrize(
    ("train_on", "parts"),
    [
        ("all_assistant", ["yo<|im_end|>", "no<|im_end|>"]),
        ("last_assistant", ["no<|im_end|>"]),
        (
            "everything",
            [  # all but the first token, which nothing predicts, and the break after the end
                "user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n<|im_start|>user\nmore"
                "<|im_end|>\n<|im_start|>assistant\nno<|im_end|>"
            ],
        ),
    ],
)
def test_the_turns_asked_for_are_learnt(
    tokenizer: Tokenizer, train_on: TrainOn, parts: list[str]
) -> None:
    data = tokenise([TALK], tokenizer, train_on=train_on)
    assert learnt(data, tokenizer) == parts
    # What is generated in an evaluation is the last turn, whatever was learnt.
    assert prompt(data, tokenizer).endswith("more<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(data.completion(0)) == "no"
    assert data.tokens.tolist() == tokenise([TALK], tokenizer).tokens.tolist()


def test_everything_of_a_prompt_is_learnt_too(tokenizer: Tokenizer) -> None:
    row = PromptCompletion("", 1, "abc", "de")
    data = tokenise([row], tokenizer, train_on="everything")
    assert learnt(data, tokenizer) == ["bcde<|im_end|>"]
    assert (prompt(data, tokenizer), tokenizer.decode(data.completion(0))) == ("abc", "de")
    for same in ("all_assistant", "last_assistant"):
        assert learnt(tokenise([row], tokenizer, train_on=same), tokenizer) == ["de<|im_end|>"]


def test_a_template_that_forgets_serves_where_only_the_last_turn_is_learnt(tmp_path: Path) -> None:
    forgetful = (
        "{% for m in messages %}{{ m.role + ':' }}"
        "{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}"
        "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, template=forgetful))
    with pytest.raises(DataError, match=r"rewrites turn 2 .* set data.train_on"):
        tokenise([TALK], tokenizer)
    data = tokenise([TALK], tokenizer, train_on="last_assistant")
    assert learnt(data, tokenizer) == ["no<|im_end|>"]


# The shapes of templates in use: ChatML with a default system prompt, Llama 3's headers with bos,
# and one that marks what is generated, refuses roles and trims.
TEMPLATES = {
    "chatml": CHATML,
    "smollm2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        " + message['content'] | trim + '<|im_end|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
        "{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "marked": (
        "{%- for m in messages %}\n"
        "    {%- if m.role not in ['user', 'assistant', 'system'] %}\n"
        "        {{- raise_exception('role') }}\n    {%- endif %}\n"
        "    {%- if m.role == 'assistant' %}\n"
        "        {{- 'A: ' }}{% generation %}{{ m.content | trim }}{{ eos_token }}"
        "{% endgeneration %}\n"
        "    {%- else %}\n        {{- m.role | upper ~ ': ' ~ (m.content | tojson) ~ '\n' }}\n"
        "    {%- endif %}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{- 'A: ' }}{%- endif %}"
    ),
}
TALKS = [
    chat("hi", "yo"),
    chat(" <b>né 好</b>\n", "  spaces \n", "'quote'", "{{ not a template }}"),
    Chat("f", 1, (Message("system", "Be brief."), *chat("a", "b", "c", "d").messages)),
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_conversations_are_rendered_as_transformers_renders_them(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = save_tokenizer(tmp_path, template=TEMPLATES[name])
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for talk in TALKS:
        turns = [message._asdict() for message in talk.messages]
        text = theirs.apply_chat_template(turns, tokenize=False)
        assert "".join(part for part, _ in ours.chat_parts(talk.messages)) == text
        ids = theirs.apply_chat_template(turns, tokenize=True, return_dict=False)
        data = tokenise([talk], ours)
        assert data.tokens.tolist() == ids
        asked = theirs.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
        assert prompt(data, ours) == asked


# --- too_long ----------------------------------------------------------------------------------

LONG: list[Row] = [
    PromptCompletion("f.jsonl", 1, "ab", "c"),
    PromptCompletion("f.jsonl", 2, "abc", "defg"),
    PromptCompletion("f.jsonl", 3, "abcdefgh", "i"),
    Text("f.jsonl", 4, "abcdefgh"),
]


def test_long_rows_are_refused_cut_or_left_out(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"line 2: .* 8 tokens, over max_length = 5 \(2 of 4 rows"):
        tokenise(LONG, tokenizer, max_length=5)
    with pytest.raises(DataError, match=r"\(3 of 4 rows .* set data.too_long to drop or trunca"):
        tokenise(LONG, tokenizer, max_length=5, too_long="refuse")

    cut = tokenise(LONG, tokenizer, max_length=5, too_long="truncate")
    assert (len(cut), cut.truncated, cut.dropped) == (3, 2, 1)  # of row 3 nothing would be learnt
    assert [tokenizer.decode(cut.completion(i)) for i in range(3)] == ["c", "de", "abcde"]
    assert [cut.example_id(i) for i in range(3)] == ["00001", "00002", "00004"]
    assert cut.learnt_bytes.tolist() == [1, 2, 5]

    left = tokenise(LONG, tokenizer, max_length=5, too_long="drop")
    assert (len(left), left.truncated, left.dropped) == (1, 0, 3)
    with pytest.raises(DataError, match=r"all 3 rows are over max_length = 5 and were dropped"):
        tokenise(LONG[1:], tokenizer, max_length=5, too_long="drop")


def test_a_cut_row_keeps_something_to_complete(tokenizer: Tokenizer) -> None:
    data = tokenise(LONG[:3], tokenizer, max_length=5, too_long="truncate", train_on="everything")
    assert (len(data), data.dropped) == (2, 1)
    assert all(data.completion(i) for i in range(2))


def test_bytes_are_those_of_the_text_that_is_learnt(tokenizer: Tokenizer) -> None:
    rows: list[Row] = [
        PromptCompletion("", 1, "prompt", "né"),
        Text("", 2, "好"),
        chat("hi", "yo", "more", "né"),
    ]
    assert tokenise(rows, tokenizer).learnt_bytes.tolist() == [3, 3, 5]
    last = tokenise(rows, tokenizer, train_on="last_assistant")
    assert last.learnt_bytes.tolist() == [3, 3, 3]
    assert tokenise(rows[:1], tokenizer, train_on="everything").learnt_bytes.tolist() == [9]


# --- several files -----------------------------------------------------------------------------


def write(path: Path, *texts: str) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_weights_decide_how_often_an_epoch_shows_a_row(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    files = [
        DataFile(write(tmp_path / "a.jsonl", "a", "bb", "cccccc"), 1.0),
        DataFile(write(tmp_path / "b.jsonl", *(f"{i:02d}" for i in range(10))), 0.3),
    ]
    rows = open_rows(files)
    data = tokenise(rows, tokenizer)
    assert data.segments == (Segment(3, 3), Segment(10, 3))
    assert data.epoch_rows == rows.epoch_rows == 6
    assert data.epoch_positions == (1 + 2 + 6) + 3 * 2
    assert tokenise(list(rows), tokenizer).epoch_positions == (1 + 2 + 6) + 10 * 2
    short = tokenise(rows, tokenizer, max_length=4, too_long="drop")
    assert short.segments == (Segment(2, 2), Segment(10, 3))  # of the rows that are left


def test_names_stay_distinct_over_files(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "a", "b")
    data = tokenise(open_rows([path, path, path]), tokenizer)
    names = [data.example_id(i) for i in range(6)]
    assert len(set(names)) == 6 and names[:3] == ["00001", "00002", "00001#00001"]


# --- what plan shows ---------------------------------------------------------------------------


def test_rows_are_shown_with_what_is_learnt(tokenizer: Tokenizer) -> None:
    rows = [PromptCompletion("", i, "p" * i, "né" * (i % 3 + 1)) for i in range(1, 10)]
    data = tokenise(rows, tokenizer)
    assert typical(data) == [0, 1, 7]  # of 8, 12 and 18 tokens; the median is 12
    row = shown(data, tokenizer, 1)
    assert (row.id, row.tokens) == ("00002", 12)
    assert row.parts == [("pp", False), ("nénéné<|im_end|>", True)]
    assert typical(tokenise(rows[:1], tokenizer)) == [0]


def test_length_statistics_count_the_padding(tokenizer: Tokenizer) -> None:
    rows = [Text("", i, "x" * (9 if i % 2 else 19)) for i in range(100)]
    data = tokenise(rows, tokenizer)
    found = LengthStatistics.of(data, batch_size=4)
    assert (found.rows, found.tokens, found.learnt) == (100, 1500, 1500)
    assert (found.p50, found.p90, found.longest) == (10, 20, 20)
    drawn = [data.batch(seed=0, step=step, batch_size=4) for step in range(1, 26)]
    padded = sum(4 * max(int(data.lengths[i]) for i in batch) for batch in drawn)
    assert found.padding == pytest.approx(1 - 1500 / padded)
    assert LengthStatistics.of(data, batch_size=1).padding == 0
    assert 0 < LengthStatistics.of(data, batch_size=1000).padding < 0.5
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        LengthStatistics.of(data, batch_size=0)


# --- memory ------------------------------------------------------------------------------------


def test_a_column_spills_into_a_file_and_reads_the_same() -> None:
    for in_memory in (1 << 20, 100):
        column = Column(np.int32, in_memory=in_memory)
        for start in range(0, 1000, 10):
            column.extend(range(start, start + 10))
        numbers = column.finish()
        column.close()
        assert numbers.tolist() == list(range(1000))
        with pytest.raises(ValueError, match="read-only"):
            numbers[0] = 1
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(numbers, protocol=5, buffer_callback=buffers.append)
        assert len(head) < 500
        assert pickle.loads(head, buffers=buffers)[999] == 999  # noqa: S301
    empty = Column(np.uint8)
    assert empty.finish().tolist() == []
    empty.close()


def test_memory_does_not_grow_with_the_texts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows, size = 4000, 500
    path = tmp_path / "many.jsonl"
    with path.open("w") as file:
        for i in range(rows):
            file.write(json.dumps({"text": f"{i:06d}" + "x" * (size - 6)}) + "\n")
    tracemalloc.start()
    try:
        data = tokenise(open_rows([path]), tokenizer)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    kept = data.tokens.nbytes + data.mask.nbytes
    assert kept == rows * (size + 1) * 5
    # The columns twice while they are small enough for memory, and one chunk of rows.
    assert peak < 2 * kept + 12_000_000
