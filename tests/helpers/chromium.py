"""Chromium, driven through its DevTools protocol over a pipe: real keys, emulated screens, no other package.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "ArrowLeft": 37, "ArrowUp": 38, "ArrowDown": 40}


class Tab:
    """A tab of a running Chromium."""

    def __init__(self, reads: BinaryIO, writes: BinaryIO) -> None:
        self._input, self._output = reads, writes
        self._session: str | None = None
        self._number = 0
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that arrive before it are kept."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._number, "method": method, "params": params} | session
        self._output.write(json.dumps(message).encode() + b"\0")
        self._output.flush()
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> dict[str, Any]:
        content = bytearray()
        while (byte := self._input.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            content += byte
        message: dict[str, Any] = json.loads(content)
        return message

    def open(
        self, file: Path, *, width: int = 1280, height: int = 900, dark: bool = False, scripts: bool = True
    ) -> None:
        """Open a file on a screen of this size, and wait until it is loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.events.clear()
        self.call("Page.navigate", url=file.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript; a promise is awaited."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press keys: names such as ``Tab``, or text."""
        for key in keys:
            code = KEYS.get(key)
            text = {"Enter": "\r"}.get(key, "" if code else key)
            facts = {
                "key": key,
                "windowsVirtualKeyCode": code or (ord(key.upper()) if key.isalnum() else 0),
                "text": text,
            }
            for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, **(facts if kind != "keyUp" else facts | {"text": ""}))

    def pdf(self) -> bytes:
        """Print the page as it would be printed on paper (A4)."""
        return base64.b64decode(self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])

    def screenshot(self, file: Path) -> None:
        """Write what is on the screen as a PNG image."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def faults(self) -> list[str]:
        """Return errors and warnings on the console, and requests that leave the file, since it was opened."""
        faults = []
        for event in self.events:
            kind, facts = event["method"], event["params"]
            if kind == "Network.requestWillBeSent" and not facts["request"]["url"].startswith(("data:", "file:")):
                faults.append(facts["request"]["url"])
            if kind in {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"}:
                faults.append(json.dumps(facts))
        return faults


@contextmanager
def chromium_tab(folder: Path) -> Iterator[Tab]:
    """Start Chromium with its profile in a folder."""
    to_chromium, from_chromium = os.pipe(), os.pipe()
    # Chromium reads commands from descriptor 3 and writes to 4; descriptors below 10 can be redirected by any shell.
    ends = [os.dup(to_chromium[0]), os.dup(from_chromium[1])]
    command = ['exec "$0" "$@" 3<&{} 4>&{}'.format(*ends), str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu"]
    process = subprocess.Popen(
        ["bash", "-c", *command, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"],
        pass_fds=ends, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for end in (*ends, to_chromium[0], from_chromium[1]):
        os.close(end)
    try:
        with os.fdopen(from_chromium[0], "rb") as reads, os.fdopen(to_chromium[1], "wb") as writes:
            yield Tab(reads, writes)
    finally:
        process.terminate()
        process.wait(60)
