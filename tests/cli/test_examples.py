"""How rows are shown: what is learnt is marked, long rows lose their middle."""

from __future__ import annotations

import pytest

from crucible_tinkex.cli.terminal.examples import print_examples, print_lengths, shortened

EXAMPLES = [
    {"id": "00001", "tokens": 9, "parts": [("Is [red] a colour?\n", False), (" yes<eos>", True)]},
    {"id": "q:7", "tokens": 3, "parts": [("all", True)]},
]


def test_learnt_parts_stand_in_brackets_where_there_is_no_colour(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_examples(EXAMPLES)
    assert capsys.readouterr().out == (
        "\nrows as the model sees them, with what is learnt marked\n"
        "\n00001, 9 tokens\nIs [red] a colour?\n[[ yes<eos>]]\n\nq:7, 3 tokens\n[[all]]\n"
    )


def test_a_terminal_gets_colour_and_no_brackets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_examples(EXAMPLES)
    out = capsys.readouterr().out
    assert "[[" not in out and "\x1b[1;32m yes<eos>\x1b[0m" in out and "[red]" in out


def test_a_long_part_loses_its_middle() -> None:
    assert shortened("a" * 600) == "a" * 600
    assert shortened("a" * 500 + "b" * 500) == "a" * 300 + " ... 400 characters ... " + "b" * 300


def test_lengths_say_what_was_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {"p50": 5, "p90": 8, "p99": 9, "longest": 9, "learnt": 25, "tokens": 100}
    print_lengths({**numbers, "padding": 0.125, "truncated": 0, "dropped": 3})
    assert capsys.readouterr().out == (
        "row tokens      p50 5, p90 8, p99 9, longest 9; 25% learnt; padding of a batch 12%\n"
        "dropped         3\n"
    )
