"""What a trial learns by: sums of losses, weights of tokens, what a step then measures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible_tinkex.config import TrainSection
from crucible_tinkex.datasets import TokenisedDataset, Tokenizer, open_rows, tokenise
from crucible_tinkex.errors import ConfigError, DataError
from crucible_tinkex.protocol.wire import AdamParams, Datum, ForwardBackwardOutput, TensorData
from crucible_tinkex.training.losses.objective import Objective, measured, try_on
from crucible_tinkex.training.losses.registry import default_losses
from crucible_tinkex.training.recipes.datums import total_weight
from crucible_tinkex.training.recipes.recipe import Update

CODE = """
import numpy as np

def vowels(row, completion, config):
    return 1.0, tuple(
        (i, i + 1, config.get("vowel", 3.0)) for i, c in enumerate(completion) if c in "ae"
    )

def half(row, completion, config):
    return 0.5 if row.get("notes") == "dull" else 1

def nothing(row, completion, config):
    return 0.0

def text(row, completion, config):
    return "many"

def breaks(row, completion, config):
    return row["no such key"]

def flat(batch):
    return lambda logprobs: (0.0, [np.zeros_like(row) for row in logprobs], {})

def shapeless(batch):
    return lambda logprobs: (0.0, [np.zeros(9)], {})

def endless(batch):
    return lambda logprobs: (float("nan"), [np.zeros_like(row) for row in logprobs], {})

def plain(logprobs):
    return 0.0

number = 3
"""


@pytest.fixture(autouse=True)
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "obj_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "obj_code", raising=False)


TEMPLATE = (
    "{% for m in messages %}{{ m.role }}\n{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
)
Rows = Callable[..., TokenisedDataset]


@pytest.fixture
def rows(tmp_path: Path, tokenizer: Tokenizer) -> Rows:
    """Makes the data set of rows in a file."""
    talking = replace(tokenizer, chat_template=TEMPLATE)

    def made(*given: dict[str, Any], keep_text: bool = True, **options: Any) -> TokenisedDataset:
        file = tmp_path / "rows.jsonl"
        file.write_text("\n".join(json.dumps(row) for row in given))
        return tokenise(open_rows([file]), talking, keep_text=keep_text, **options)

    return made


def weights(objective: Objective, data: TokenisedDataset, row: int = 0) -> list[float]:
    return objective.datum(data, row).loss_fn_inputs["weights"].data


def asked(**train: Any) -> Objective:
    return Objective.of(TrainSection(**train))


# --- token weights --------------------------------------------------------------------------------


def test_spans_weigh_the_tokens_of_their_characters(rows: Rows) -> None:
    data = rows({"prompt": "p>", "completion": "bake"})
    found = weights(asked(token_weights="obj_code:vowels", weight_config={"vowel": 5}), data)
    assert found == [0, 1, 5, 1, 5, 1]  # p is only read; the end counts as the text does
    assert weights(asked(token_weights="uniform"), data) == [0, 1, 1, 1, 1, 1]


def test_a_cut_row_keeps_its_spans_in_place(rows: Rows) -> None:
    data = rows({"prompt": "p>", "completion": "bake"}, max_length=4, too_long="truncate")
    assert weights(asked(token_weights="obj_code:vowels"), data) == [0, 1, 3]


def test_a_conversation_is_weighed_in_its_last_turn(rows: Rows) -> None:
    turns = [{"role": "user", "content": "aa"}, {"role": "assistant", "content": "ba"}]
    data = rows({"messages": turns})
    found = weights(asked(token_weights="obj_code:vowels"), data)
    assert [w for w in found if w] == [1, 3, 1]


def test_notes_and_the_rows_own_weight_count(rows: Rows) -> None:
    row = {"prompt": "p", "completion": "xy"}
    given = [{**row, "notes": "dull"}, {**row, "weight": 3}, row]
    data = rows(*given)
    objective = asked(token_weights="obj_code:half")
    assert [weights(objective, data, i)[-1] for i in range(3)] == [0.5, 3, 1]
    assert weights(asked(), data, 1)[-1] == 1  # only a scheme looks at it


def test_invalid_citations_in_a_file_are_seen(rows: Rows) -> None:
    row = {"prompt": "p", "completion": "CLAIM[c1]: x (citing 2)"}
    data = rows({**row, "doc_ids": [2]}, {**row, "doc_ids": [1]})
    objective = asked(
        token_weights="citation_validity", weight_config={"citation_validity_weight": 5}
    )
    assert [weights(objective, data, i)[-1] for i in range(2)] == [1, 6]


@pytest.mark.parametrize(
    ("scheme", "error", "message"),
    [
        ("nothing", DataError, "training row 00001: every token has the weight 0"),
        ("text", ConfigError, "training row 00001: token-weight scheme 'obj_code:text': "),
        ("breaks", ConfigError, "'obj_code:breaks': KeyError: 'no such key'"),
    ],
)
def test_a_scheme_that_fails_is_named_with_the_row(
    rows: Rows, scheme: str, error: type[Exception], message: str
) -> None:
    data = rows({"prompt": "p", "completion": "xy"})
    with pytest.raises(error, match=message):
        weights(asked(token_weights=f"obj_code:{scheme}"), data)


def test_rows_whose_texts_were_not_kept_cannot_be_weighed(rows: Rows) -> None:
    bare = rows({"prompt": "p", "completion": "xy"}, keep_text=False)
    with pytest.raises(ConfigError, match="has not kept the texts"):
        weights(asked(token_weights="claims"), bare)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"loss": "focl"}, "train.loss: unknown loss 'focl'; did you mean 'focal'"),
        ({"loss": "ppo"}, "train.loss: 'ppo' needs advantages"),
        ({"loss": "claims"}, "is a token-weight scheme: set train.token_weights"),
        ({"loss": "topological"}, "no published definition"),
        ({"loss": "obj_code:gone"}, "train.loss: loss 'obj_code:gone': obj_code has no gone"),
        ({"loss": "obj_code:number"}, "cannot be called"),
        ({"loss": "nll + "}, "'' is no term"),
        ({"loss": "nll + x*focal"}, "is no term"),
        ({"loss": "nll + 2*nll"}, "has the term 'nll' twice"),
        ({"loss": "nll + ppo"}, "'ppo' is computed by the service"),
        (
            {"token_weights": "claim"},
            "train.token_weights: unknown token-weight scheme 'claim'",
        ),
        ({"token_weights": "nowhere:f"}, "train.token_weights: .*No module named 'nowhere'"),
        ({"weight_config": {"x": 1}}, "no effect without train.token_weights"),
    ],
)
def test_what_there_is_not_is_refused_by_its_key(train: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        asked(**train)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("obj_code:shapeless", "must be of shape"),
        ("obj_code:plain", "on the first rows loss 'obj_code:plain': TypeError"),
        ("obj_code:endless", "gave nan on the first rows"),
    ],
)
def test_a_loss_that_gives_something_else_is_found_on_the_first_rows(
    rows: Rows, loss: str, message: str
) -> None:
    data = rows({"prompt": "p", "completion": "xy"})
    objective = asked(loss=loss)
    with pytest.raises(ConfigError, match=message):
        try_on(objective.loss, [objective.datum(data, 0)], key="train.loss")


# --- what a step measures -------------------------------------------------------------------------


def output(batch: list[Datum], logprob: float, **metrics: float) -> ForwardBackwardOutput:
    lengths = [len(d.loss_fn_inputs["weights"].data) for d in batch]
    found = [TensorData(data=[logprob] * n, dtype="float32", shape=[n]) for n in lengths]
    told = {name.replace("_", ":"): value for name, value in metrics.items()}
    return ForwardBackwardOutput(loss_fn_outputs=[{"logprobs": t} for t in found], metrics=told)


def test_nll_counts_every_learnt_token_once_whatever_its_weight(rows: Rows) -> None:
    data = rows({"prompt": "p>", "completion": "bake"}, {"prompt": "p", "completion": "x"})
    objective = asked(token_weights="obj_code:vowels")
    batch = [objective.datum(data, i) for i in range(2)]
    batch[1].loss_fn_inputs["weights"].data[:] = [7.0, 7.0]
    update = Update(batch, AdamParams(), total_weight(batch), "cross_entropy")
    given = output(batch, -2.0)
    given.loss_fn_outputs[1]["logprobs"].data[:] = [-1.0, -1.0]
    found = measured(update, given, is_plain=False)
    assert found["train/nll"] == pytest.approx((5 * 2 + 2 * 1) / 7)
    assert found["train/loss"] == pytest.approx((9 * 2 + 14 * 1) / 23)


def test_parts_of_a_sum_are_logged_by_name_and_per_weight(rows: Rows) -> None:
    data = rows({"prompt": "p>", "completion": "bake"})
    objective = asked(loss="nll + 0.5 * obj_code:flat")
    batch = [objective.datum(data, 0)]
    maker = objective.loss.custom
    assert maker
    loss, gradients, told = maker(batch)([np.full(6, -2.0, np.float32)])
    assert (loss, told) == (10.0, {"nll:sum": 10.0, "flat:sum": 0.0})
    assert np.asarray(gradients[0]).tolist() == [0, -1, -1, -1, -1, -1]
    update = Update(batch, AdamParams(), 5.0, "cross_entropy", custom=maker)
    given = output(batch, -2.0, loss_sum=loss, nll_sum=10.0, flat_sum=0.0)
    assert measured(update, given, is_plain=False) == {
        "train/nll": 2.0,
        "train/loss": 2.0,
        "train/loss/nll": 2.0,
        "train/loss/flat": 0.0,
    }


def test_the_adapter_knows_the_same_names() -> None:
    losses = default_losses()
    assert losses.get("0.25*nll + focal").custom
    assert losses.scheme("obj_code:half")({"notes": "dull"}, "", {}).row == 0.5
