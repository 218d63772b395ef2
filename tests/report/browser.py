"""A page as a browser draws it, and as keys and pointers move in it."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run")
_KEYS = {" ": ("Space", 32), "Enter": ("Enter", 13), "Tab": ("Tab", 9), "Escape": ("Escape", 27)}
_ARROWS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "End": 35, "Home": 36}


def drawn(page: Path, folder: Path, *, width: int = 1200) -> str:
    """The document after its scripts have run; `folder` holds the browser's profile."""
    done = subprocess.run(
        [
            *(str(BROWSER), *_OPTIONS),
            *(f"--window-size={width},900", "--virtual-time-budget=2000", "--dump-dom"),
            *(f"--user-data-dir={folder / 'profile'}", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=90,
    )
    return done.stdout


_AT_3_AND_4 = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """Driven over its debugging pipe: JSON messages that end in a zero byte, on its descriptors 3
    and 4. Needs no port, no driver and no package."""

    def __init__(self, folder: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        options = (*_OPTIONS, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", _AT_3_AND_4, str(theirs_in), str(theirs_out)),
                *(str(BROWSER), *options, "about:blank"),
            ],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._ids = itertools.count(1)
        self._unread = b""

    def call(self, method: str, session: Mapping[str, str], **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params, **session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        answer = self.until(lambda told: told.get("id") == number)
        assert "error" not in answer, answer
        found: dict[str, Any] = answer["result"]
        return found

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while not wanted(message := self._read()):
            pass
        return message

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            new = os.read(self._in, 1 << 20)
            assert new, "the browser has ended"
            self._unread += new
        message, _, self._unread = self._unread.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        os.close(self._out)  # at which it ends by itself
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)


class Tab:
    """A page that is loaded, has the focus, and is of this size."""

    def __init__(
        self,
        browser: Browser,
        page: str,
        *,
        width: int = 1200,
        height: int = 900,
        dark: bool = False,
        mobile: bool | None = None,
    ) -> None:
        """`mobile`: scroll bars lie over the page and take no room; by default where it is
        narrow."""
        self._browser = browser
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **size,
            mobile=width < 600 if mobile is None else mobile,
        )
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.enable")
        self.call("Page.navigate", url=page)
        browser.until(
            lambda told: (
                told.get("method") == "Page.loadEventFired"
                and told["sessionId"] == attached["sessionId"]
            )
        )

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def value(self, expression: str) -> Any:
        """Of JavaScript; a promise is awaited."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, *keys: str, shift: bool = False) -> None:
        for key in keys:
            code, number = _KEYS.get(key) or (key, _ARROWS[key])
            about = {"key": key, "code": code, "windowsVirtualKeyCode": number}
            about |= {"modifiers": 8 if shift else 0}
            text = {"Enter": "\r", " ": " "}.get(key)
            down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
            self.call("Input.dispatchKeyEvent", **about, **down)
            self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    @property
    def focused(self) -> str:
        """What has the focus, in its own words."""
        return str(
            self.value(
                "(e => e.dataset.key || e.getAttribute('aria-label') || e.textContent || e.tagName)"
                "(document.activeElement)"
            )
        )

    def picture(self, path: Path, *, whole: bool = True) -> None:
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))
