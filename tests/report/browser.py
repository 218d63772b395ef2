"""A page as a browser draws it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def drawn(page: Path, folder: Path, *, width: int = 1200) -> str:
    """The document after its scripts have run; `folder` holds the browser's profile."""
    done = subprocess.run(
        [
            *(str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu"),
            *(f"--window-size={width},900", "--virtual-time-budget=2000", "--dump-dom"),
            *(f"--user-data-dir={folder / 'profile'}", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=90,
    )
    return done.stdout
