"""What cannot be read is set aside, so that it stops nobody and is not lost.

<data_dir>/damaged/<token>-<where it lay>
"""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path

_log = logging.getLogger(__name__)


def set_aside(path: Path, data_dir: Path, why: Exception) -> None:
    """Move a file or folder of `data_dir` away, and say so. Raises OSError if it cannot move."""
    name = "-".join(path.relative_to(data_dir).parts)
    target = data_dir / "damaged" / f"{uuid.uuid4().hex[:8]}-{name}"
    target.parent.mkdir(exist_ok=True)
    os.rename(path, target)
    _log.warning("%s cannot be read (%s); it was moved to %s", path, why, target)
