"""A headless Chromium for the tests of pictures and pages, driven over its DevTools pipe. Tests skip where there is none."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser", "chrome")
SECONDS = 60.0  # for one answer; the machine may be busy
# What makes text of a page or a picture fall outside of what a reader sees.
OUTSIDE = """
(() => {
  const found = [], width = document.documentElement.clientWidth || innerWidth;
  if (document.documentElement.scrollWidth > width) found.push(`page ${document.documentElement.scrollWidth} > ${width}`);
  for (const text of document.querySelectorAll('pre, text')) {
    const box = text.getBoundingClientRect();
    if (box.right > width + 0.5 || box.left < -0.5 || text.scrollWidth > text.clientWidth + 1 && text.tagName == 'PRE')
      found.push(`${Math.round(box.left)}..${Math.round(box.right)}: ${text.textContent.slice(0, 60)}`);
  }
  return found;
})()
"""
# Words of a line in a picture that lie on each other, as a font that is too wide would make them. A cell has 8.4 pixels.
OVERLAPS = """
(() => {
  const found = [], lines = {}, scenes = [...document.querySelectorAll('g')];
  for (const text of document.querySelectorAll('text'))
    (lines[`${scenes.indexOf(text.parentNode)} ${text.getAttribute('y')}`] ??= []).push(text);
  for (const texts of Object.values(lines)) {
    const boxes = texts.map(text => [text.getBoundingClientRect(), text.textContent]).sort((a, b) => a[0].left - b[0].left);
    for (let i = 1; i < boxes.length; i++)
      if (boxes[i - 1][0].right > boxes[i][0].left + 3) found.push(`${boxes[i - 1][1]} | ${boxes[i][1]}`);
  }
  return found;
})()
"""


@dataclass
class Look:
    """What a browser made of a file.

    Args:
        title: the document's title.
        text: the text that a reader sees.
        problems: errors, warnings and lines in the console, dialogs, and requests for anything but the file itself.
        outside: text that lies outside of the window.
        overlaps: words of one line that lie on each other.
        scripts: what a script changed: `window.ran`.
        paper: the colour in the middle of the left edge, as CSS writes it.
        png: the window as an image.
    """

    title: str
    text: str
    problems: list[str]
    outside: list[str]
    overlaps: list[str]
    scripts: Any
    paper: str
    png: bytes


@dataclass
class Browser:
    """A running Chromium with one tab."""

    process: subprocess.Popen[bytes]
    to: int
    back: int
    session: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _rest: bytes = b""

    def ask(self, method: str, **values: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its result."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": values}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            said = self._next(SECONDS)
            assert said is not None, f"{method}: no answer"
            if said.get("id") == number:
                assert "error" not in said, (method, said["error"])
                return dict(said["result"])
            self.events.append(said)

    def value(self, script: str) -> Any:
        """The value of a JavaScript expression in the tab."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def look(self, file: Path, *, dark: bool = False, width: int = 1280, height: int = 900) -> Look:
        """Open a file and look at everything that a test asks about.

        Args:
            file: an SVG or HTML file.
            dark: what the reader prefers.
            width: of the window, in pixels.
            height: of the window, in pixels.
        """
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": height}
        self.ask("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=False)
        self.ask("Page.navigate", url="about:blank")
        self._until("Page.loadEventFired")
        self.events.clear()
        self.ask("Page.navigate", url=file.resolve().as_uri())
        self._until("Page.loadEventFired")
        self.value("new Promise(done => setTimeout(done, 50))")
        root = "document.querySelector('pre, svg')"
        return Look(
            title=self.value("document.title || document.querySelector('title')?.textContent"),
            text=self.value(f"document.body ? {root}.innerText : {root}.textContent"),
            problems=[problem for event in self.events if (problem := _problem(event, file))],
            outside=self.value(OUTSIDE),
            overlaps=self.value(OVERLAPS),
            scripts=self.value("window.ran ?? null"),
            paper=self.value(
                "document.body ? getComputedStyle(document.body).backgroundColor"
                " : getComputedStyle(document.querySelector('.p') ?? document.documentElement).fill"
            ),
            png=base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]),
        )

    def _until(self, method: str) -> None:
        while not any(event.get("method") == method for event in self.events):
            said = self._next(SECONDS)
            assert said is not None, f"no {method}"
            self.events.append(said)

    def _next(self, seconds: float) -> dict[str, Any] | None:
        until = time.monotonic() + seconds
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self.back], [], [], max(0.0, until - time.monotonic()))
            data = os.read(self.back, 1 << 16) if ready else b""
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))


def _problem(event: dict[str, Any], file: Path) -> str:
    """What an event says against the file; empty for one that says nothing."""
    method, values = event.get("method", ""), event.get("params", {})
    if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening"):
        return f"{method} {json.dumps(values)[:300]}"
    if method == "Log.entryAdded":
        return f"{values['entry']['level']}: {values['entry']['text']}"
    if method == "Network.requestWillBeSent" and values["request"]["url"] != file.resolve().as_uri():
        return f"asks for {values['request']['url'][:200]}"
    return ""


@contextmanager
def running(folder: Path) -> Iterator[Browser]:
    """A browser until the end of the block; skips the test where none is installed.

    Args:
        folder: an empty folder for its profile.
    """
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        missing = pytest.fail if os.environ.get("CKPTCONV_BROWSER") == "required" else pytest.skip
        missing("needs Chromium or Chrome")
    read_in, write_in = os.pipe()
    read_out, write_out = os.pipe()
    words = [found, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
             f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank"]  # fmt: skip

    # The browser reads from descriptor 3 and writes to 4.
    line = f'exec 3<&{read_in} 4>&{write_out}; exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", line, "browser", *words],
        pass_fds=(read_in, write_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(read_in)
    os.close(write_out)
    browser = Browser(process, write_in, read_out)
    try:
        target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        browser.session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            browser.ask(f"{domain}.enable")
        yield browser
    finally:
        process.kill()
        process.wait()
        os.close(write_in)
        os.close(read_out)
