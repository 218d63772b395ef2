"""One HTML file that holds its data, styles and scripts, so that it can be mailed and archived.

Scripts and data sit in the page itself under a content security policy that lets nothing else run
and nothing be fetched; of a live page, only what its own server answers.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

_ASSETS = files("crucible_tinkex.report") / "assets"


def page(sweeps: Sequence[Mapping[str, Any]], *, live: bool = False) -> str:
    """The page on one sweep or several (`report_data`). `live`: it asks its server for `data.json`
    again and again."""
    template = Environment(autoescape=True).from_string(_asset("page.html.jinja"))
    return template.render(
        title=", ".join(sweep["name"] for sweep in sweeps),
        data=Markup(script_json({"sweeps": [_drawn(s) for s in sweeps], "live": live})),
        nonce=secrets.token_urlsafe(12),
        connect="'self'" if live else "'none'",
        styles=Markup(_asset("uplot.min.css") + _asset("report.css")),
        scripts=[Markup(_asset(name)) for name in ("uplot.min.js", "plots.js", "report.js")],
    )


def _drawn(sweep: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without what the page has of each configuration already."""
    concluded = {k: v for k, v in sweep["conclusion"].items() if k not in ("rivals", "left_out")}
    return {**sweep, "conclusion": {**concluded, "not_separable": []}}


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
