"""A real browser without a window: Chromium, asked over its DevTools pipe."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

NAMES = "chromium", "chromium-browser", "google-chrome"
# The browser reads descriptor 3 and writes 4.
PLACE = """
import fcntl, os, sys
apart = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
os.dup2(apart[0], 3), os.dup2(apart[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page.

    The pipe (--remote-debugging-pipe) is two file descriptors and JSON that ends with a
    zero byte: https://chromedevtools.github.io/devtools-protocol/.
    """

    def __init__(self, folder: Path):
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        command = [find(), "--headless=new", "--remote-debugging-pipe", "--no-sandbox"]
        command += ["--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        command += ["--hide-scrollbars", f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", PLACE, str(to_read), str(to_write), *command],
            pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read), os.close(to_write)
        self._held, self._number, self._session = b"", 0, None
        self.problems = []  # what the page's console and its security policy say
        for _ in range(100):
            targets = self.send("Target.getTargets")["targetInfos"]
            pages = [one["targetId"] for one in targets if one["type"] == "page"]
            if pages:
                break
            time.sleep(0.1)
        attached = self.send("Target.attachToTarget", targetId=pages[0], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            kind, about = answer.get("method"), answer.get("params", {})
            refused = about.get("entry", {}).get("source") == "network"  # by the server
            if kind in ("Log.entryAdded", "Runtime.exceptionThrown") and not refused:
                self.problems.append(about)

    def _read(self) -> dict:
        while b"\0" not in self._held:
            assert select.select([self._from], [], [], 60)[0], "the browser is silent"
            part = os.read(self._from, 2**16)
            assert part, "the browser is gone"
            self._held += part
        text, self._held = self._held.split(b"\0", 1)
        return json.loads(text)

    def run(self, script: str):
        """The value of an expression in the page."""
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = 20):
        """The value of an expression, once it is true."""
        until = time.monotonic() + seconds
        while not (value := self.run(condition)):
            assert time.monotonic() < until, f"never true: {condition}"
            time.sleep(0.03)
        return value

    def type(self, text: str):
        self.send("Input.insertText", text=text)

    def press(self, key: str, code: int):
        for kind in ("rawKeyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind, key=key, code=key, windowsVirtualKeyCode=code,
            )  # fmt: skip
        if key == "Enter":  # of a button, the click comes with the character
            self.send("Input.dispatchKeyEvent", type="char", key=key, text="\r")

    def click(self, selector: str):
        """With the mouse, where the element is."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        look = "block: 'center', behavior: 'instant'"
        element = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{element}.scrollIntoView({{{look}}})")
        x, y = self.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})")
        for kind in ("mousePressed", "mouseReleased"):
            self.send(
                "Input.dispatchMouseEvent",
                type=kind, x=x, y=y, button="left", clickCount=1,
            )  # fmt: skip

    def resize(self, width: int, height: int, *, scale: float = 1, phone: bool = False):
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=phone,
        )  # fmt: skip

    def dark(self, on: bool):
        scheme = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self) -> bytes:
        """PNG of what is seen."""
        found = self.send("Page.captureScreenshot", format="png")
        return base64.b64decode(found["data"])

    def close(self):
        self._process.terminate()
        self._process.wait(20)
        os.close(self._to), os.close(self._from)
