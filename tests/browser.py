"""A headless Chromium, driven over a pipe (Chrome DevTools Protocol): pages, keys, and what a page logs."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-dev-shm-usage", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip
SECONDS = 60.0
KEY_TEXTS = {"Enter": "\r", "Space": " "}


class Browser:
    """One tab of a browser with an empty profile. `errors` holds what pages logged as an error, or threw."""

    def __init__(self, profile: Path, *, width: int = 1280, height: int = 800, is_dark: bool = False):
        assert CHROMIUM
        # NOTE: Chromium reads commands from descriptor 3 and answers on 4; numbers above 10 keep those two free.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (*os.pipe(), *os.pipe())]
        read_end, self._commands, self._answers, write_end = ends

        def connect() -> None:
            os.dup2(read_end, 3)
            os.dup2(write_end, 4)

        flags = [*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        flags += ["--blink-settings=preferredColorScheme=0"] if is_dark else []
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            [CHROMIUM, *flags], pass_fds=(3, 4), preexec_fn=connect, stdin=quiet, stdout=quiet, stderr=quiet
        )
        os.close(read_end)
        os.close(write_end)
        self._buffer, self._number, self._session = b"", 0, ""
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._commands)
        os.close(self._answers)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        request: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        request |= {"sessionId": self._session} if self._session else {}
        os.write(self._commands, json.dumps(request).encode() + b"\0")
        end = time.monotonic() + SECONDS
        while True:
            message = self._next(end)
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return message["result"]
            self._note(message)

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._answers, 2**20)
            assert part, "the browser has ended"
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown" or (
            method == "Log.entryAdded" and params["entry"]["level"] == "error"
        ) or (method == "Runtime.consoleAPICalled" and params["type"] == "error"):  # fmt: skip
            self.errors.append(json.dumps(params))

    def open(self, url: str) -> None:
        """Go to an address."""
        self.call("Page.navigate", url=url)

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + SECONDS
        while not self.run(condition):
            assert time.monotonic() < end, f"never true: {condition}\n{self.text()}\n{self.errors}"
            time.sleep(0.02)

    def text(self) -> str:
        """Return the text that a person sees."""
        return self.run("document.body.innerText")

    def press(self, key: str, **event: Any) -> None:
        """Press and release a key, such as "ArrowLeft", "s" or "Enter"; `event` adds fields such as autoRepeat."""
        text = KEY_TEXTS.get(key, key if len(key) == 1 else "")
        name = " " if key == "Space" else key
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "Space": 32, "Backspace": 8}
        kind = "keyDown" if text else "rawKeyDown"
        code = codes.get(key, 0)
        self.call("Input.dispatchKeyEvent", type=kind, key=name, text=text, windowsVirtualKeyCode=code, **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path, *, is_whole: bool = False) -> None:
        """Save the visible part of the page, or the whole page, as PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=is_whole)
        path.write_bytes(base64.b64decode(answer["data"]))
