"""`crucible evaluate`: a trial's weights measured on a file, after the fact."""

from __future__ import annotations

import json as json_module
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crucible_tinkex.cli.commands.options import DEFAULT_STORAGE, Folder, Json, Sweep
from crucible_tinkex.cli.weights.numbers import number_text
from crucible_tinkex.errors import ConfigError

if TYPE_CHECKING:
    from crucible_tinkex.scoring.antagonist import Flags
    from crucible_tinkex.weights.evaluations import AfterEvaluation


def evaluate(
    sweep: Sweep,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="[TRIAL] DATA",
            help="A trial: id, name or number (default: the best). The file of held-out rows.",
            show_default=False,
        ),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            "-m",
            help="exact_match, classification, majority, pass@k, module:function, regex=PATTERN, "
            "json_schema=FILE; NAME= in front names it (default: those of the experiment).",
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Answers to each prompt.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Of the answers.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None,
    answer: Annotated[
        str | None, typer.Option(help="Regular expression: what counts of an answer.")
    ] = None,
    right_by: Annotated[str | None, typer.Option(help="Which score says right.")] = None,
    flags: Annotated[
        str | None, typer.Option(help="Write the antagonist's flags to this file (JSONL).")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also if measured before.")] = False,
    storage: Folder = DEFAULT_STORAGE,
    json: Json = False,
) -> None:
    """Measure a trial's weights on a file of rows; what was measured before is shown at once."""
    from crucible_tinkex.sweep.results.views.summary import existing_sweep
    from crucible_tinkex.weights.evaluating import evaluate_trial

    if len(what) > 2:
        raise ConfigError(f"evaluate takes a trial and a file; what is {what[2]!r}?")
    given: dict[str, Any] = {
        "samples": samples,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "max_rows": max_rows,
        "answer": answer,
        "right_by": right_by,
        "metrics": [_asked(text) for text in metric] if metric else None,
    }
    found = evaluate_trial(
        existing_sweep(storage, sweep),
        what[0] if len(what) == 2 else None,
        what[-1],
        settings={name: value for name, value in given.items() if value is not None},
        again=again,
        tell=_progress,
    )
    raised = _flagged(found, flags) if flags is not None else None
    if json:
        told = {} if raised is None else {"flags": raised.summary()}
        print(json_module.dumps({**found.summary(), **told}))
        return
    _print(found, what[-1])
    if raised is not None:
        counts = ", ".join(f"{n} {name}" for name, n in raised.severities.items() if n)
        print(f"{len(raised.flags)} of {raised.rows} rows flagged ({counts or 'none'}): {flags}")


def _flagged(found: AfterEvaluation, file: str) -> Flags:
    from crucible_tinkex.scoring.antagonist import flags

    raised = flags(found.rows)
    raised.write(file)
    return raised


def _asked(text: str, name: str | None = None) -> str | dict[str, str]:
    """`regex=..` and the like as a table; a name may stand in front."""
    word, separator, rest = text.partition("=")
    if separator and word in ("regex", "json_schema", "function"):
        return {word: rest, **({"name": name} if name else {})}
    if separator and name is None:
        return _asked(rest, word)
    return {"function": text, "name": name} if name else text


def _progress(done: int, of: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {of} answered", end="\n" if done == of else "", file=sys.stderr)


def _print(found: AfterEvaluation, data: str) -> None:
    from crucible_tinkex.cli.terminal.tables import plain_table, print_table

    table = plain_table(title=f"{found.trial}, step {found.step}, on {data}")
    for column in ("metric", "value", "at least", "at most", "rows"):
        table.add_column(column, justify="left" if column == "metric" else "right", no_wrap=True)
    for tag, value in found.metrics.items():
        rows = str(value.n) if value.n else "-"
        table.add_row(tag, *(number_text(x) for x in (value.value, value.low, value.high)), rows)
    print_table(table)
    other = f" as {found.data}" if found.data != data else ""
    note = f", measured before{other}" if found.cached else ""
    rows = f"{len(found.rows)} {'row' if len(found.rows) == 1 else 'rows'}"
    print(f"{rows}, 95 % intervals{note}; rows: evaluation {found.key}")
