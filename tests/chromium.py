"""Headless Chromium, driven over a pipe by its DevTools protocol: keys and clicks in, page contents and problems out.

Source: https://chromedevtools.github.io/devtools-protocol/; each message is JSON, ended by a NUL.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip
SECONDS = 60.0  # the longest wait for an answer, and for a condition
ALT, SHIFT = 1, 8
KEY_CODES = {"Backspace": 8, "Tab": 9, "Enter": 13, "Escape": 27}


class Page:
    """One tab: `requests` holds the requested addresses, `problems` the exceptions, errors and policy violations."""

    def __init__(self, commands: int, answers: int):
        self.requests: list[str] = []
        self.problems: list[str] = []
        self._commands, self._answers = commands, answers
        self._unread, self._num_sent, self._session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Audits"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._num_sent += 1
        command: dict[str, Any] = {"id": self._num_sent, "method": method, "params": params}
        command |= {"sessionId": self._session} if self._session else {}
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while (message := self._next(deadline)).get("id") != self._num_sent:
            self._note(message)
        assert "error" not in message, message
        return message["result"]

    def open(self, url: str) -> None:
        """Load a page, and wait until its scripts have run."""
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def read(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; of a promise, the value that it resolves to."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self) -> str:
        """Return the visible text of the page."""
        return self.read("document.body.innerText")

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self.read(condition):
            assert time.monotonic() < deadline, (condition, self.problems, self.text())
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse."""
        box = f"JSON.stringify(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        place = json.loads(self.read(box))
        assert place["width"] and place["height"], f"{selector} is not shown"
        x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Insert text into the focused element."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, modifiers: int = 0, is_repeat: bool = False) -> None:
        """Press and release a key, such as "ArrowLeft", "s" or "Enter"."""
        event = {"key": key, "windowsVirtualKeyCode": KEY_CODES.get(key, 0), "modifiers": modifiers}
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        kind = "keyDown" if text else "rawKeyDown"
        self.call("Input.dispatchKeyEvent", type=kind, text=text, autoRepeat=is_repeat, **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def resize(self, width: int, height: int, *, scheme: str = "light") -> None:
        """Set the size of the window in pixels, and the preferred color scheme: light or dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def photograph(self, path: Path) -> None:
        """Write the visible part of the page as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "Chromium does not answer"
            more = os.read(self._answers, 1 << 20)
            assert more, "Chromium has ended"
            self._unread += more
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
                return
            case "Runtime.exceptionThrown":
                is_problem = True
            case "Runtime.consoleAPICalled":
                is_problem = params["type"] == "error"
            case "Log.entryAdded":
                is_problem = params["entry"]["level"] == "error" or params["entry"]["source"] == "security"
            case "Audits.issueAdded":
                is_problem = "ContentSecurityPolicy" in params["issue"]["code"]
            case _:
                is_problem = False
        if is_problem:
            self.problems.append(json.dumps(params))


@contextmanager
def chromium(profile: Path, *, width: int = 1280, height: int = 800, scheme: str = "light") -> Iterator[Page]:
    """Start Chromium with an empty profile, and end it with all its processes. Skips the test without Chromium."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()

    def connect() -> None:
        # Chromium reads commands from descriptor 3 and writes answers to 4; copies above 10 survive both dup2 calls.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (command_read, answer_write)]
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
        stdin=quiet, stdout=quiet, stderr=quiet, preexec_fn=connect, pass_fds=(3, 4), start_new_session=True,
    )  # fmt: skip
    os.close(command_read)
    os.close(answer_write)
    try:
        page = Page(command_write, answer_read)
        page.resize(width, height, scheme=scheme)
        yield page
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(command_write)
        os.close(answer_read)
