"""Published data sets by their short names, from the hub's cache; options; what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from byte_tokenizer import save_tokenizer

from crucible_tinkex.config import EvaluationSection, Experiment
from crucible_tinkex.datasets import files_hash, load_tokenizer, open_rows, read_rows, tokenise
from crucible_tinkex.datasets.files.address import Address, Choice
from crucible_tinkex.errors import ConfigError, DataError
from crucible_tinkex.scoring import Question
from crucible_tinkex.scoring.scorers import Scoring
from crucible_tinkex.sweep.preparing.preparation import prepare
from crucible_tinkex.training.adapter.tinkex import TinkexCallbacks

ASSETS = Path(__file__).parents[1] / "assets" / "data"
SHA = "0123456789abcdef0123456789abcdef01234567"
Row = Mapping[str, Any]
Cached = Callable[[str, str, Sequence[Row]], None]


def asset(name: str) -> list[Row]:
    return [json.loads(line) for line in (ASSETS / name).read_text().splitlines()]


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cached:
    """Puts a table into the hub's cache as its own tools do; the hub is out of reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(repository: str, file: str, rows: Sequence[Row], revision: str = "main") -> None:
        root = tmp_path / "hub" / f"datasets--{repository.replace('/', '--')}"
        table = root / "snapshots" / SHA / file
        table.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(list(rows)), table)
        (root / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
        (root / "refs" / revision).write_text(SHA)

    return put


def scifact_tables(put: Any) -> None:
    """The hub's tables: a row for each piece of evidence."""

    def row(claim: int, document: str, label: str, sentences: list[int]) -> Row:
        return {
            "id": claim,
            "claim": f"Claim {claim}.",
            "evidence_doc_id": document,
            "evidence_label": label,
            "evidence_sentences": sentences,
            "cited_doc_ids": [7],
        }

    claims = [
        row(1, "7", "SUPPORT", [0]),
        row(1, "7", "SUPPORT", [2]),
        row(2, "", "", []),
        row(3, "8", "CONTRADICT", [1]),
    ]
    corpus = [
        {"doc_id": 7, "title": "Seven", "abstract": ["A.", "B.", "C."], "structured": False},
        {"doc_id": 8, "title": "Eight", "abstract": ["D.", "E."], "structured": False},
    ]
    put("allenai/scifact", "claims/train/0000.parquet", claims, "refs/convert/parquet")
    put("allenai/scifact", "corpus/train/0000.parquet", corpus, "refs/convert/parquet")


# --- what each name reads -------------------------------------------------------------------------


def test_mmlu_is_a_choice_of_letters(cached: Cached) -> None:
    rows = [row for row in asset("mmlu.jsonl") if row["subject"] == "anatomy"]
    cached("cais/mmlu", "anatomy/test-00000-of-00001.parquet", rows)
    first, second = read_rows("mmlu?subject=anatomy&split=test")
    assert first.content == (
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
        "Which organ filters the blood?\nA. The kidney\nB. The lung\nC. The skin\nD. The ear\n"
        "Answer:",
        " A",
    )
    assert (second.content[1], second.notes) == (" C", {"subject": "anatomy"})
    assert first.where == ("hf://datasets/cais/mmlu/anatomy/test-00000-of-00001.parquet, row 1")


def test_humaneval_is_a_prompt_and_its_solution_with_tests_beside_it(cached: Cached) -> None:
    cached(
        "openai/openai_humaneval",
        "openai_humaneval/test-00000-of-00001.parquet",
        asset("humaneval.jsonl"),
    )
    first, second = read_rows("humaneval")
    assert first.content[0].startswith("def double(") and first.content[1] == "    return 2 * x\n"
    assert (first.id, second.id) == ("Invented/0", "Invented/1")
    assert second.notes["entry_point"] == "last" and "def check(" in second.notes["test"]


def test_gsm8k_has_its_own_split(cached: Cached) -> None:
    cached("openai/gsm8k", "main/train-00000-of-00001.parquet", asset("gsm8k.jsonl"))
    cached("openai/gsm8k", "main/test-00000-of-00001.parquet", asset("gsm8k.jsonl")[:1])
    assert open_rows(["gsm8k"]).formats == ["gsm8k"]
    assert (len(read_rows("gsm8k")), len(read_rows("gsm8k?split=test"))) == (2, 1)


def test_scifact_is_put_together_again(cached: Cached) -> None:
    scifact_tables(cached)
    rows = open_rows(["scifact"])
    first, second = rows
    assert rows.files[0].passed_over == 1 and rows.formats == ["scifact"]
    assert first.content[1].splitlines() == [
        "CLAIM[c1]: Claim 1.",
        "CLAIM[c2]: A.",
        "RELATION: c2 supports c1",
        "CLAIM[c3]: C.",
        "RELATION: c3 supports c1",
    ]
    assert second.content[1].endswith("CLAIM[c2]: E.\nRELATION: c2 refutes c1")
    assert (first.line, second.line, second.id) == (1, 4, "3")


def test_fever_has_each_claim_once(cached: Any) -> None:
    rows = [
        {**row, "id": n, "evidence_annotation_id": piece, "evidence_wiki_url": "Page"}
        for n, row in enumerate(asset("fever.jsonl"))
        for piece in (1, 2, 3)
    ]
    for row in rows:
        row.pop("evidence", None)
    cached("fever/fever", "v1.0/labelled_dev/0000.parquet", rows, "refs/convert/parquet")
    assert [row.content[1] for row in read_rows("fever?split=labelled_dev")] == [
        " SUPPORTS",
        " REFUTES",
        " NOT ENOUGH INFO",
    ]


def test_downloaded_files_of_the_same_formats_need_no_name() -> None:
    assert open_rows([ASSETS / "mmlu.jsonl"]).formats == ["mmlu"]
    assert open_rows([ASSETS / "humaneval.jsonl"]).formats == ["humaneval"]


def test_without_a_network_the_remedy_is_named(cached: Cached) -> None:
    with pytest.raises(DataError) as caught:
        read_rows("fever")
    assert "could not be fetched from the Hugging Face hub (LocalEntryNotFound" in str(caught.value)
    assert (
        "`hf download fever/fever v1.0/train/0000.parquet --repo-type dataset "
        "--revision refs/convert/parquet`, and name the file"
    ) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("mmlu?split=train", "there is no split 'train'; one of auxiliary_train, dev"),
        ("mmlu?subject=anatomy", "auxiliary_train is of all subjects; add split="),
        ("mmlu?subject=../x&split=test", "there is no config '../x'"),
        ("mmlu?subject=anatomy&config=all", "give one of subject and config"),
        ("gsm8k?config=hard", "there is no config 'hard'; one of main, socratic"),
        ("gsm8k?subject=sums", "it has no subjects"),
        ("gsm8k?spilt=test", "there is no option 'spilt'; split, config, subject, revision, limit"),
        ("gsm8k?limit", "'limit' is no option; write ?key=value"),
        ("gsm8k?limit=3&limit=4", "the option 'limit' is given twice"),
        ("gsm8k?limit=0", "limit must be a whole number from 1, not '0'"),
        ("gsm8k?sample=1e3", "sample must be a whole number from 1, not '1e3'"),
        ("gsm8k?limit=2&sample=2", "give one of limit"),
        ("gsm8k?stratify=answer", "'stratify' is of a sample; add sample=ROWS"),
        ("a.jsonl?split=test", "no option 'split' (it belongs to a short name); limit, sample"),
    ],
)
def test_a_bad_name_is_refused(name: str, what: str) -> None:
    with pytest.raises(DataError) as caught:
        open_rows([name])
    assert what in str(caught.value)


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file.*short names are gsm8k, mmlu, humaneval"):
        open_rows([tmp_path / "mlmu"])


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"question": "q", "choices": ["a"], "answer": 0}, "must be a list of 2 to 26 texts"),
        ({"question": "q", "choices": "ab", "answer": 0}, "2 to 26 texts, found a string"),
        ({"question": "q", "choices": ["a", 1], "answer": 0}, "'choices'[1] must be a string"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "a choice, 0 to 1, or its letter"),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, "or its letter, not True"),
        ({"question": "q", "choices": ["a", "b"], "answer": "C"}, "or its letter, not 'C'"),
        (
            {"prompt": "def f():", "canonical_solution": "x", "test": "t", "entry_point": "g"},
            "'prompt' must hold the head of the function 'g'",
        ),
        (
            {"prompt": "def f():", "canonical_solution": "x", "test": "", "entry_point": "f"},
            "'test' is empty",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: Row, what: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}, line 1: ") and what in str(caught.value)


def test_answers_may_be_letters_and_cells_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('question,choices,answer\nq,"[""x"", ""y""]",1\nq,"[""x"", ""y""]",b\n')
    assert [row.content[1] for row in read_rows(path)] == [" B", " B"]


# --- which rows -----------------------------------------------------------------------------------


def labelled(path: Path) -> Path:
    rows = [{"text": f"row {i}", "label": "ab"[i % 4 == 0]} for i in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_first_rows_of_any_file(tmp_path: Path) -> None:
    path = labelled(tmp_path / "rows.jsonl")
    path.write_text(path.read_text() + "not JSON")  # beyond them nothing is read
    rows = open_rows([f"{path}?limit=7"])
    assert [row.line for row in rows] == [1, 2, 3, 4, 5, 6, 7] and len(rows.keys) == 7


def test_a_sample_keeps_shares_and_is_always_the_same(tmp_path: Path) -> None:
    path = labelled(tmp_path / "rows.jsonl")
    name = f"{path}?sample=20&stratify=label"
    rows = list(open_rows([name]))
    assert Counter(row.notes["label"] for row in rows) == {"a": 15, "b": 5}
    assert [r.line for r in rows] == [r.line for r in open_rows([name])]
    assert [r.line for r in rows] != [r.line for r in open_rows([f"{name}&seed=1"])]
    assert len(open_rows([f"{path}?sample=30"])) == 30
    assert len(open_rows([f"{path}?sample=300"])) == 100
    with pytest.raises(DataError, match=r"line 1: stratify names the key 'kind'.*'text', 'label'"):
        open_rows([f"{path}?sample=20&stratify=kind"])


def test_the_choice_is_part_of_the_identity(tmp_path: Path) -> None:
    path = labelled(tmp_path / "rows.jsonl")
    plain = files_hash(open_rows([path]))
    assert isinstance(plain, str)  # as it was before there were choices
    hashes = [files_hash(open_rows([f"{path}?{q}"])) for q in ("limit=7", "limit=8", "sample=7")]
    assert len({json.dumps(h) for h in (plain, *hashes)}) == 4


def test_a_file_that_is_called_so_is_that_file(tmp_path: Path) -> None:
    path = labelled(tmp_path / "what?limit=3.jsonl")
    assert Address.parse(str(path)) == Address(str(path), Choice())
    assert len(open_rows([path])) == 100
    assert len(open_rows([f"{path}?limit=2"])) == 2


# --- in an experiment -----------------------------------------------------------------------------


def experiment(folder: Path, **data: Any) -> Experiment:
    raw = {
        "name": "named",
        "service": {"base_url": "embedded"},
        "model": {"base": "nano"},
        "data": data,
        "search": {"metric": "train/nll"},
        "run": {"storage": str(folder / "runs")},
    }
    return Experiment.build(raw, folder=folder)


def test_names_are_no_paths_of_the_experiment(tmp_path: Path) -> None:
    name = "mmlu?subject=anatomy&split=test"
    found = experiment(tmp_path, train=[name, {"path": "gsm8k", "weight": 0.5}, "own.jsonl"])
    assert [file.path for file in found.data.files] == [
        name,
        "gsm8k",
        str(tmp_path / "own.jsonl"),
    ]
    again = Experiment.loaded(found.stored(tmp_path / "runs/s"), folder=tmp_path / "runs/s")
    assert again.data.files == found.data.files


def test_an_experiment_is_prepared_on_names(cached: Cached, tmp_path: Path) -> None:
    rows = asset("mmlu.jsonl")
    cached("cais/mmlu", "all/auxiliary_train-00000-of-00001.parquet", rows[:3])
    cached("cais/mmlu", "all/test-00000-of-00001.parquet", rows[2:])
    prepared = prepare(experiment(tmp_path, train="mmlu", eval="mmlu?split=test"))
    assert prepared.declared.epoch_rows == 3
    assert "1 eval rows also stand in the training file" in prepared.warnings()


# --- programs -------------------------------------------------------------------------------------


def passes(answer: str, row: Question) -> float:
    """What a user would do in a sandbox: here the answer is only looked at."""
    return float(answer == row.expected and f"def {row.notes['entry_point']}" in row.prompt)


def test_pass_at_k_of_programs_is_not_their_spelling(tmp_path: Path) -> None:
    file = str(ASSETS / "humaneval.jsonl")
    base = experiment(tmp_path, train=file, eval=file)
    asked: dict[str, Any] = {"metrics": ("pass@1",)}

    def with_evaluation(**more: Any) -> Experiment:
        section = EvaluationSection.model_validate({**asked, **more})
        return base.model_copy(update={"evaluation": section})

    with pytest.raises(ConfigError, match=r"pass@1 of HumanEval.*crucible runs no program"):
        prepare(with_evaluation())
    prepare(with_evaluation(right_by="exact_match"))
    scorer = f"{__name__}:passes"
    prepare(with_evaluation(metrics=("pass@1", scorer), right_by="passes"))


def test_a_function_sees_the_tests_of_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    rows = open_rows([ASSETS / "humaneval.jsonl"])
    tokenizer = load_tokenizer(save_tokenizer(tmp_path))
    data = tokenise(rows, tokenizer, max_length=None, keep_text=True)
    section = EvaluationSection.model_validate(
        {"metrics": ("pass@1", "test_named:passes"), "right_by": "passes"}
    )
    scoring = Scoring(section)
    found = []
    for i, row in enumerate(rows):
        prompt, expected = row.content
        question = Question(row.example_id, prompt, expected, None, data.notes(i))
        found.append(scoring.scored(question, [expected if i else "    pass\n"]))
    assert scoring.metrics(found)["eval/pass@1"] == 0.5
    assert tokenise(rows, tokenizer, max_length=None).notes(0) == {}


def test_the_adapter_takes_rows_of_a_published_set(tmp_path: Path) -> None:
    rows = read_rows(ASSETS / "humaneval.jsonl")
    callbacks = TinkexCallbacks(tokenizer=load_tokenizer(save_tokenizer(tmp_path)))
    made = callbacks.format_training_data(rows, max_length=1000)
    learnt = [sum(datum.loss_fn_inputs["weights"].data) for datum in made]
    assert learnt == [len(row.completion_text) + 1 for row in rows]  # bytes, and the end
