"""Chromium as a person has it, with nothing listening in: times by the page's own clock.

Playwright follows every request and message with its stack, for which the browser reads its scripts a second time: the
first view took 2.9 to 3.3 s with it attached, and 1.7 to 2.1 s without, in the same minutes.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.app.browsing import CHROMIUM, FLAGS

_MARK = """
(() => {
  const marks = (window.__marks = {});
  const started = performance.now();
  const look = () => {
    for (const [name, met] of Object.entries({%s})) {
      if (!(name in marks) && met()) marks[name] = (performance.now() - (%s)) / 1000;
    }
  };
  window.__observer?.disconnect();
  window.__observer = new MutationObserver(look);
  window.__observer.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
})()
"""


class BareTab:
    """A tab of a fresh profile. Conditions are JavaScript, true or false."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, itertools.count()
        context = self._call("Target.createBrowserContext")["browserContextId"]
        self._context = context
        target = self._call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session: str | None = session

    def open(self, url: str, **marks: str) -> None:
        """marks: seconds from the beginning of the load until each condition is met, for `marks`."""
        self._call("Page.enable")
        script = self._call("Page.addScriptToEvaluateOnNewDocument", source=_marking(marks, "0"))
        self._call("Page.navigate", url=url)
        self._call("Page.removeScriptToEvaluateOnNewDocument", **script)

    def begin(self, **marks: str) -> None:
        """The same from now on, and nothing more of what was begun before."""
        self.value(_marking(marks, "started"))

    def click(self, selector: str) -> None:
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def mouse(self, kind: str, x: float, y: float) -> None:
        """kind: "mousePressed", "mouseMoved" or "mouseReleased", of the left button."""
        self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def marks(self, *names: str, within: float, every: float = 1.0) -> list[float]:
        """Seconds until each was met; `every` so many seconds they are asked for."""
        wanted = f"{json.dumps(names)}.every((name) => name in (window.__marks ?? {{}}))"
        self.wait(wanted, within=within, every=every)
        found = self.value("JSON.stringify(window.__marks)")
        return [json.loads(found)[name] for name in names]

    def wait(self, condition: str, *, within: float, every: float = 1.0) -> None:
        until = time.monotonic() + within
        while not self.value(f"Boolean({condition})"):
            assert time.monotonic() < until, f"not within {within:g} s: {condition}"
            time.sleep(every)

    def value(self, expression: str) -> Any:
        return self._call("Runtime.evaluate", expression=expression)["result"].get("value")

    def close(self) -> None:
        self._session = None
        self._call("Target.disposeBrowserContext", browserContextId=self._context)

    def _call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        session = getattr(self, "_session", None)
        self._socket.send(json.dumps(message if session is None else {**message, "sessionId": session}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]


def _marking(marks: dict[str, str], since: str) -> str:
    met = ", ".join(f"{json.dumps(name)}: () => {condition}" for name, condition in marks.items())
    return _MARK % (met, since)


@contextmanager
def bare_browser(folder: Path) -> Iterator[ClientConnection]:
    """A headless Chromium with its profile in a folder, up to the socket that commands it."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install the system's chromium package")
    flags = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={folder}", *FLAGS]
    process = subprocess.Popen(
        [CHROMIUM, *flags, "--window-size=1280,720", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        said = next(found for line in process.stderr if (found := re.search(r"ws://\S+", line)))
        # Or the pipe fills up, and the browser waits.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        with connect(said.group(), max_size=None) as socket:
            yield socket
    finally:
        process.terminate()
        process.wait(timeout=20)
