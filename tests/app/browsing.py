"""The real app and the real worker in the system's Chromium: what browser tests share."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page

ROOT = Path(__file__).resolve().parents[2]
SETTLED_SECONDS = 0.6
CHROMIUM = next(
    filter(
        None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))
    ),
    None,
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install the system's chromium package")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server, and one worker, for the tests that do not time its start and hold nothing against its home."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install the system's chromium package")
    with serving(tmp_path_factory.mktemp("app")) as url:
        yield url


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A fresh `streamlit run app/main.py` with its home in a folder, up to its first answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", "app/main.py", "--server.port", str(port)],
        cwd=ROOT,
        env={**os.environ, "FLASHSVD_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _await_answer(url, process)
        yield url
    finally:
        workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
        log.close()
    left = psutil.wait_procs(workers, timeout=20)[1]
    assert not left, f"the server ended and left {left}"


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """One browser of one user: its tabs fetch and compile the page's scripts once."""
    opened = browser.new_context(viewport={"width": 1280, "height": 720})
    yield opened
    opened.close()


@pytest.fixture
def tab(context: BrowserContext, server: str) -> Iterator[Callable[[str], Page]]:
    """Opens pages in tabs of their own, and closes them."""

    def opened(path: str = "") -> Page:
        page = context.new_page()
        page.goto(f"{server}/{path}")
        return page

    yield opened
    for page in context.pages:
        page.close()


def _await_answer(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, "the server ended before it answered"
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail("the server did not answer within 30 s")


def says(page: Page, selector: str, words: str) -> None:
    """Waits for the words: Streamlit draws the sidebar and the page's blocks one after another, in no fixed order."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_contain_text(words, timeout=15_000, use_inner_text=True)


def drawn(page: Page, within: str) -> Locator:
    """The figure of this run: what stood in its place before stays beside it, marked as stale, until the run ends."""
    return page.locator(f"{within} [data-testid=stElementContainer][data-stale=false] .js-plotly-plot")


def settled(spot: Locator) -> dict[str, float]:
    """The box of something that has come to rest: what stands above it may still be loading, and push it down."""
    spot.wait_for(timeout=30_000)
    seen, since = spot.bounding_box(), time.monotonic()
    for _ in range(300):
        time.sleep(0.1)
        box = spot.bounding_box()
        if box != seen or box is None:
            seen, since = box, time.monotonic()
        elif time.monotonic() - since > SETTLED_SECONDS:
            return {"x": box["x"], "y": box["y"], "width": box["width"], "height": box["height"]}
    pytest.fail("the page did not come to rest within 30 s")


def no_overflow(page: Page) -> bool:
    wide: bool = page.evaluate(
        "[document.documentElement, document.querySelector('[data-testid=stMain]')]"
        ".every(e => e.scrollWidth <= e.clientWidth)"
    )
    return wide
