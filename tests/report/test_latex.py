"""The report in LaTeX: nothing that a sweep says is taken for a command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from states import folded

from crucible_tinkex.report.data import report_data
from crucible_tinkex.report.formats.latex import escaped, latex
from crucible_tinkex.scoring.quality import assess


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("eval_nll & 5%", r"eval\_nll \& 5\%"),
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("a~b^c #1 $x$", r"a\textasciitilde{}b\textasciicircum{}c \#1 \$x\$"),
        ("1.2 ± 0.1", r"1.2 $\pm$ 0.1"),
        ("--set a='b'", r"{-}{-}set a=\textquotesingle{}b\textquotesingle{}"),
        ("two\nlines\x00", "two lines "),
        ("naïve", "naïve"),
    ],
)
def test_special_characters_are_printed(text: str, printed: str) -> None:
    assert escaped(text) == printed


def test_a_sweep_as_a_document(tmp_path: Path) -> None:
    data = report_data(*folded(tmp_path))
    data["verdict"] = r"rank_8 \end{document} 100% sure"
    target = assess("eval/pass_rate", 0.45, "max", value=0.5, low=0.4, high=0.6, n=90)
    data["quality"] = {"status": target.status, "targets": [target.to_dict()]}
    text = latex([data, data])
    assert text.count(r"\begin{document}") == text.count(r"\end{document}") == 1
    assert text.count(r"\begin{tabular}") == text.count(r"\bottomrule") == 2
    assert r"rank\_8 \textbackslash{}end\{document\} 100\% sure." in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    columns = {line.count(" & ") for line in rows}
    assert columns == {1 + len(data["axes"]) + 3}, "every row has the columns of the head"
    (spec,) = set(re.findall(r"begin\{tabular\}\{(\w+)\}", text))
    assert len(spec) == columns.pop() + 1
    assert r"\item eval/pass\_rate: at least 0.45: not settled (0.5, 0.4 to 0.6, 90 rows)" in text
    assert r"run \textless{}/script\textgreater{} 11 at step" in text
    for begun in re.findall(r"\\begin\{(\w+)\}", text):
        assert text.count(rf"\begin{{{begun}}}") == text.count(rf"\end{{{begun}}}")
