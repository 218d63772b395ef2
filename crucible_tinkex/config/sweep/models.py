"""`[models]`: what of a sweep is registered for others when it ends."""

from __future__ import annotations

from pydantic import field_validator

from crucible_tinkex.config.section import Section, as_value_error
from crucible_tinkex.names import check_segment


class ModelsSection(Section):
    """What is registered in the storage's model registry when the sweep ends."""

    auto_register: str | None = None
    """Name of the model of which the best trial becomes a new version; nothing by default."""
    tags: tuple[str, ...] = ()
    """Tags of that version."""

    @field_validator("auto_register")
    @classmethod
    def _safe_name(cls, name: str | None) -> str | None:
        with as_value_error():
            return name and check_segment(name, what="model name")

    @field_validator("tags")
    @classmethod
    def _plain_tags(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        for tag in tags:
            if not tag or any(c.isspace() or c == "," for c in tag):
                raise ValueError(f"tag {tag!r} must have no spaces and no commas")
        return tags
