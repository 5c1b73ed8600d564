"""A headless chromium that tests talk to over its DevTools protocol, on a pipe: no port, no driver, no package.

Messages are JSON and end with a zero byte; the browser reads them from descriptor 3 and answers on descriptor 4.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ABSENT = None if PROGRAM else "no chromium; scripts/install-chromium.sh installs one"

# From the shell's descriptors to the two that the browser wants.
_PLUMBING = 'exec 3<&"$IN" 4>&"$OUT"; exec "$@"'


@dataclass
class Page:
    """A tab. complaints: what its console said and what it threw; requests: every address it asked for."""

    to: BinaryIO
    back: BinaryIO
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    session: str | None = None
    _number: int = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.to.write(json.dumps(message).encode() + b"\0")
        self.to.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, waited for where it is a promise."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def open(self, path: Path, width: int, height: int = 900, *, dark: bool = False, scale: float = 1) -> None:
        """Load a file in a window of this size and wait until its charts are drawn."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        self.call("Page.navigate", url=path.absolute().as_uri())
        self.evaluate(
            "new Promise((done) => { const wait = () =>"
            " document.body?.dataset.drawn || !document.querySelector('.chart') && document.readyState == 'complete'"
            " ? done() : setTimeout(wait, 50); wait(); setTimeout(done, 20000); })"
        )

    def picture(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def paper(self) -> bytes:
        """The page printed, as PDF."""
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"])

    def _read(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self.back.read(1)) not in (b"\0", b""):
            data += byte
        assert data, "the browser has gone"
        message = json.loads(data)
        method, details = message.get("method"), message.get("params", {})
        if method == "Runtime.consoleAPICalled":
            self.complaints.append(" ".join(str(a.get("value", a.get("description"))) for a in details["args"]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(details["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.complaints.append(details["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        return message


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A browser with its profile in `folder`, and one tab of it."""
    (read_in, write_in), (read_out, write_out) = os.pipe(), os.pipe()
    arguments = [PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
    process = subprocess.Popen(
        ["bash", "-c", _PLUMBING, "bash", *map(str, arguments), f"--user-data-dir={folder / 'profile'}"],
        env={**os.environ, "IN": str(read_in), "OUT": str(write_out)},
        pass_fds=(read_in, write_out),
        stderr=subprocess.DEVNULL,
    )
    os.close(read_in)
    os.close(write_out)
    try:
        with os.fdopen(write_in, "wb") as to, os.fdopen(read_out, "rb") as back:
            page = Page(to, back)
            target = page.call("Target.createTarget", url="about:blank")["targetId"]
            page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            yield page
    finally:
        process.terminate()
        process.wait(20)
