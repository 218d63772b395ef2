"""The reference of the configuration is current, and says something about every key."""

from __future__ import annotations

from pathlib import Path

from crucible_tinkex.config.reference import reference

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == reference(), (
        "python -m crucible_tinkex.config.reference > docs/configuration.md"
    )


def test_it_shows_types_bounds_and_defaults() -> None:
    page = reference()
    for row in (
        "| `rank` | integer, >= 1, <= 1024 | `8` |",
        '| `executor` | `"ray"` or `"local"` | `"ray"` |',
        "| `train` | path or list of paths or tables | required |",
        "| `zip` | list of lists of strings | `[]` |",
        "| `allow_http` | boolean or list of strings | `false` |",
        "## `[search.stopping]`",
        "| `eval/accuracy` | share of rows | max | yes |",
    ):
        assert row in page
