"""Readers: published formats, tables, addresses; and what each says of bad input."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crucible_tinkex.datasets import Chat, DataFile, Row, open_rows, read_rows
from crucible_tinkex.datasets.files.remote import from_objects
from crucible_tinkex.errors import DataError
from crucible_tinkex.storage import Objects

ASSETS = Path(__file__).parents[1] / "assets" / "data"
ROWS = [{"prompt": 'a, "b"\nc', "completion": " é"}, {"prompt": "x", "completion": " y"}]


def contents(rows: list[Row]) -> list[tuple[str, ...]]:
    return [row.content for row in rows]


# --- published formats -------------------------------------------------------------------------


def test_scifact_becomes_claims_and_relations() -> None:
    rows = open_rows([ASSETS / "scifact" / "claims_train.jsonl"])
    supported, refuted = rows
    assert rows.files[0].passed_over == 1  # a claim without evidence
    assert (supported.id, refuted.id, refuted.line) == ("2", "9", 3)
    prompt, completion = supported.content
    assert completion.splitlines() == [
        "CLAIM[c1]: Drinking green tea lowers blood pressure.",
        "CLAIM[c2]: Eighty adults drank green tea or water for twelve weeks. "
        "Systolic pressure fell by 4 mmHg with tea.",
        "RELATION: c2 supports c1",
        "CLAIM[c3]: It did not change with water.",
        "RELATION: c3 supports c1",
    ]
    assert "Green tea and blood pressure: a trial\nWe asked" in prompt
    assert "lowers blood pressure.\n\nWrite" not in prompt  # the claim is not given away
    assert refuted.content[1].endswith("RELATION: c2 refutes c1")


def test_scifact_wants_its_corpus(tmp_path: Path) -> None:
    claims = tmp_path / "claims.jsonl"
    claims.write_bytes((ASSETS / "scifact" / "claims_train.jsonl").read_bytes())
    with pytest.raises(DataError, match=r"there is no .*corpus\.jsonl; put it there or set data"):
        open_rows([claims])
    rows = open_rows([claims], corpus=ASSETS / "scifact" / "corpus.jsonl")
    assert len(rows) == 2
    (tmp_path / "corpus.jsonl").write_text('{"doc_id": 1054, "title": "t", "abstract": ["s"]}')
    with pytest.raises(DataError, match=r"line 1: the sentences of 'evidence'\['1054'\] must be"):
        open_rows([claims])
    (tmp_path / "corpus.jsonl").write_text('{"doc_id": 7, "title": "t", "abstract": ["s"]}')
    with pytest.raises(DataError, match=r"document 1054, which .*corpus\.jsonl does not have"):
        open_rows([claims])
    (tmp_path / "corpus.jsonl").write_text('{"doc_id": 7, "title": "t", "abstract": "s"}')
    with pytest.raises(DataError, match=r"corpus.jsonl, line 1: 'abstract' must be a list"):
        open_rows([claims])
    (tmp_path / "corpus.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"corpus.jsonl, line 1: a row of a SciFact corpus"):
        open_rows([claims])


def test_fever_and_gsm8k_are_questions_with_an_answer() -> None:
    assert contents(read_rows(ASSETS / "fever.jsonl"))[0] == (
        "Claim: The Danube flows through Vienna.\nVerify:",
        " SUPPORTS",
    )
    assert [row.content[1] for row in read_rows(ASSETS / "fever.jsonl")] == [
        " SUPPORTS",
        " REFUTES",
        " NOT ENOUGH INFO",
    ]
    question, answer = read_rows(ASSETS / "gsm8k.jsonl")[1].content
    assert question.startswith("Problem: Tom has") and question.endswith("\nSolution:")
    assert answer.endswith("#### 15")


def test_alpaca_has_two_prompts() -> None:
    plain, given = read_rows(ASSETS / "alpaca.json")
    assert plain.content == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nName the capital of Austria.\n\n"
        "### Response:\n",
        "Vienna.",
    )
    assert "\n\n### Input:\ngood morning\n\n### Response:\n" in given.content[0]
    assert "a task, paired with an input" in given.content[0]


def test_sharegpt_is_a_conversation() -> None:
    first, second = read_rows(ASSETS / "sharegpt.json")
    assert isinstance(first, Chat) and isinstance(second, Chat)
    assert [m.role for m in first.messages] == ["system", "user", "assistant"]
    assert (first.id, second.messages[-1].content) == ("qa_1", "Yes.")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"claim": "c", "label": "TRUE"}, "'label' must be one of SUPPORTS, REFUTES"),
        ({"claim": 1, "label": "REFUTES"}, "'claim' must be a string"),
        ({"question": "q"}, "the key 'answer' of format gsm8k is missing"),
        ({"question": " ", "answer": "a"}, "'question' is empty"),
        ({"instruction": "i", "output": ""}, "'output' is empty"),
        ({"instruction": "i", "output": "o", "input": 3}, "'input' must be a string"),
        ({"instruction": "i", "output": "o", "text": "t"}, "could be text or alpaca; set"),
        ({"conversations": []}, "'conversations' must be a list of at least one turn"),
        ({"conversations": [{"from": "human"}]}, "must have the keys 'from' and 'value'"),
        ({"conversations": [{"from": "bot", "value": "v"}]}, "from 'bot'; use one of human"),
        ({"conversations": [{"from": "human", "value": "v"}]}, "end with the assistant's turn"),
        ({"claim": "c", "evidence": [1], "cited_doc_ids": []}, "'evidence' must be an object"),
    ],
)
def test_a_bad_published_row_is_named(tmp_path: Path, row: object, what: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(row))
    (tmp_path / "corpus.jsonl").write_text('{"doc_id": 7, "title": "t", "abstract": ["s"]}')
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert what in str(caught.value)


# --- tables ------------------------------------------------------------------------------------


def as_csv(path: Path) -> None:
    path.write_bytes(b'\xef\xbb\xbfprompt,completion\r\n"a, ""b""\nc", \xc3\xa9\r\n\r\nx, y\r\n')


def as_tsv(path: Path) -> None:
    path.write_text('prompt\tcompletion\n"a, ""b""\nc"\t é\nx\t y\n')


def as_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def as_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(b'prompt,completion\n"a, ""b""\nc", \xc3\xa9\nx, y\n'))


@pytest.mark.parametrize(
    ("name", "make", "lines"),
    [
        ("rows.csv", as_csv, [2, 5]),
        ("rows.tsv", as_tsv, [2, 4]),
        ("rows.csv.gz", as_gzip, [2, 4]),
        ("rows.parquet", as_parquet, [1, 2]),
    ],
)
def test_a_table_gives_the_same_rows(
    tmp_path: Path, name: str, make: Callable[[Path], None], lines: list[int]
) -> None:
    make(tmp_path / name)
    rows = read_rows(tmp_path / name)
    assert contents(rows) == [tuple(row.values()) for row in ROWS]
    assert [row.line for row in rows] == lines


def test_a_byte_order_mark_and_crlf_are_read(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in ROWS]
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    (tmp_path / "rows.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS).encode())
    for name in ("rows.jsonl", "rows.json"):
        assert contents(read_rows(tmp_path / name)) == [tuple(row.values()) for row in ROWS]


def test_conversations_stand_in_tables_too(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    pq.write_table(pa.Table.from_pylist([{"messages": turns}]), tmp_path / "rows.parquet")
    cell = json.dumps(turns).replace('"', '""')
    (tmp_path / "rows.csv").write_text(f'id,messages\n7,"{cell}"\n')
    [parquet], [csv] = (read_rows(tmp_path / f"rows.{kind}") for kind in ("parquet", "csv"))
    assert parquet.content == csv.content == ("user", "hi", "assistant", "yo")
    assert csv.id == "7"


BAD_TABLES: list[tuple[str, bytes, str]] = [
    ("rows.csv", b"prompt,completion\na\n", "line 2: 1 cells under a header of 2 columns"),
    ("rows.csv", b"prompt,completion\na,b\na,b,c\n", "line 3: 3 cells"),
    ("rows.csv", b'prompt,completion\n"a"x,b\n', "line 2: malformed CSV"),
    ("rows.csv", b'prompt,completion\n"a,b\n', "line 2: malformed CSV"),
    ("rows.csv", b"prompt,prompt\na,b\n", "line 1: the column 'prompt' stands twice"),
    ("rows.csv", b"prompt;completion\na;b\n", "is one column, separated by ';'"),
    ("rows.tsv", b"prompt,completion\na,b\n", "is one column, separated by ','"),
    ("rows.csv", b"prompt,completion\n", "the file has no rows"),
    ("rows.csv", b"prompt,completion\na,\n", "line 2: 'completion' is empty"),
    ("rows.csv", b"prompt,completion\n\na,\xff\n", "line 3: not UTF-8"),
    ("rows.csv", b"messages\n[1\n", "line 2: 'messages': malformed JSON"),
    ("rows.csv", b"messages\nhi\n", "line 2: 'messages' must be a list"),
    ("rows.parquet", b"PAR1 no", "cannot be read as Parquet"),
]


@pytest.mark.parametrize(("name", "raw", "what"), BAD_TABLES)
def test_a_bad_table_is_named(tmp_path: Path, name: str, raw: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert what in str(caught.value)


def test_a_bad_row_of_a_parquet_file_is_numbered(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a", None]}), path)
    with pytest.raises(DataError, match=r"rows.parquet, row 2: 'text' must be a string, found nu"):
        read_rows(path)


# --- several files -----------------------------------------------------------------------------


def write(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_files_follow_one_another_each_in_its_format(tmp_path: Path) -> None:
    texts = write(tmp_path / "a.jsonl", "one", "two")
    rows = open_rows([DataFile(str(texts), 0.5), ASSETS / "gsm8k.jsonl"])
    assert rows.formats == ["text", "gsm8k"]
    assert (len(rows), rows.epoch_rows) == (4, 3)
    assert [row.format for row in rows] == ["text"] * 2 + ["prompt_completion"] * 2
    assert len(list(rows)) == 4  # as often as one likes
    first = next(iter(rows))
    assert first in rows and "one" not in rows


def test_a_file_that_changes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "one", "two")
    rows = open_rows([path])
    write(path, "one", "two", "three")
    with pytest.raises(DataError, match="changed while it was in use; run it again"):
        list(rows)


# --- addresses ---------------------------------------------------------------------------------


def test_an_object_is_fetched_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for store in (Objects.open("memory://"), Objects.open(tmp_path / "bucket")):
        name = f"s3:/{store.url}/rows.jsonl"
        store.put("rows.jsonl", b'{"text": "a"}')
        first = from_objects(store, "rows.jsonl", name)
        assert contents(read_rows(first)) == [("a",)]
        inode = first.stat().st_ino
        assert from_objects(store, "rows.jsonl", name) == first and first.stat().st_ino == inode
        store.put("rows.jsonl", b'{"text": "changed"}')
        second = from_objects(store, "rows.jsonl", name)
        assert contents(read_rows(second)) == [("changed",)] and second != first
        with pytest.raises(DataError, match="missing: could not be fetched"):
            from_objects(store, "none.jsonl", "s3://bucket/missing")
    assert not list((tmp_path / "cache").rglob("tmp*"))


class Bucket(BaseHTTPRequestHandler):
    """As much of S3 as a reader needs."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        found = self.path == "/bucket/folder/rows.jsonl"
        body = b'{"text": "from the bucket"}' if found else b""
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Fri, 01 Aug 2025 00:00:00 GMT")
        self.end_headers()
        return body

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_an_address_reads_the_credentials_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    for key, value in {
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "not-to-be-shown",
    }.items():
        monkeypatch.setenv(key, value)
    try:
        [row] = read_rows("s3://bucket/folder/rows.jsonl")
        assert row.content == ("from the bucket",)
        assert row.where == "s3://bucket/folder/rows.jsonl, line 1"
        with pytest.raises(DataError, match=r"^s3://bucket/none\.jsonl: could not be fet") as e:
            read_rows("s3://bucket/none.jsonl")
        assert "not-to-be-shown" not in str(e.value)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


HUB = "hf://datasets/org/name"


def hub_cache(folder: Path) -> None:
    """What `huggingface_hub` keeps of a data set that it fetched."""
    repository = folder / "datasets--org--name"
    snapshot = repository / "snapshots" / ("a" * 40)
    (snapshot / "data").mkdir(parents=True)
    (repository / "refs").mkdir()
    for ref in ("main", "v1"):
        (repository / "refs" / ref).write_text("a" * 40)
    (snapshot / "data" / "rows.jsonl").write_bytes(b'{"text": "from the hub"}')


def test_the_hub_is_read_from_its_cache_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    hub_cache(tmp_path)
    for address in (f"{HUB}/data/rows.jsonl", f"{HUB}@v1/data/rows.jsonl"):
        [row] = read_rows(address)
        assert row.content == ("from the hub",)
        assert row.where == f"{address}, line 1"
    with pytest.raises(DataError, match=r"none\.jsonl: could not be fetched from the Hugging Face"):
        read_rows(f"{HUB}/none.jsonl")


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("hf://datasets/org/rows.jsonl", "an address on the hub is hf://datasets/ORG/NAME"),
        ("hf://org/name/rows.jsonl", "download it and name the file"),
        ("ftp://host/rows.jsonl", "download it and name the file"),
        ("s3:///rows.jsonl", "an address is s3://BUCKET/FILE"),
        ("s3://bucket/rows.xlsx", "unknown kind of file"),
    ],
)
def test_a_bad_address_is_named(address: str, what: str) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(address)
    assert str(caught.value).startswith(address) and what in str(caught.value)


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    format: Any = "xml"
    with pytest.raises(DataError, match="no data format 'xml'; choose one of prompt_completion"):
        open_rows([write(tmp_path / "a.jsonl", "a")], format=format)
