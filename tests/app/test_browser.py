"""The real app and the real worker in the system's Chromium."""

from __future__ import annotations

import os
import re
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
from urllib.parse import parse_qs, urlparse

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
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
FIRST_VIEW_SECONDS = 5.0
RUN_MILLISECONDS = 240_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install the system's chromium package")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for the tests that do not time its start."""
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
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
        log.close()


@pytest.fixture
def tab(browser: Browser, server: str) -> Iterator[Callable[[str], Page]]:
    """Opens pages as tabs of their own, and closes them."""
    contexts = []

    def opened(path: str = "") -> Page:
        context = browser.new_context(viewport={"width": 1280, "height": 720})
        contexts.append(context)
        page = context.new_page()
        page.goto(f"{server}/{path}")
        return page

    yield opened
    for context in contexts:
        context.close()


def _await_answer(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, "the server ended before it answered"
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail("the server did not answer within 30 s")


def plan_of(page: Page) -> str:
    return parse_qs(urlparse(page.url).query).get("plan", [""])[0]


def says(page: Page, selector: str, words: str) -> None:
    """Waits for the words: Streamlit draws the sidebar and the page's blocks one after another, in no fixed order."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_contain_text(words, timeout=15_000, use_inner_text=True)


def no_overflow(page: Page) -> bool:
    wide: bool = page.evaluate(
        "[document.documentElement, document.querySelector('[data-testid=stMain]')]"
        ".every(e => e.scrollWidth <= e.clientWidth)"
    )
    return wide


@pytest.mark.quiet
def test_first_full_view_comes_within_five_seconds(browser: Browser, tmp_path: Path) -> None:
    """The best of up to three cold servers and cold browser contexts: a busy neighbour is not the app's time."""
    seconds = []
    while len(seconds) < 3 and not (seconds and min(seconds) < FIRST_VIEW_SECONDS):
        with serving(tmp_path / str(len(seconds))) as url:
            context = browser.new_context(viewport={"width": 1280, "height": 720})
            page = context.new_page()
            started = time.monotonic()
            page.goto(url)
            page.locator(".fs-sentence").wait_for(timeout=30_000)
            # Visible ones: the page also holds a hidden chart.
            page.locator(".js-plotly-plot:visible").nth(1).wait_for(timeout=30_000)
            seconds.append(time.monotonic() - started)
            assert "REPLAY" in page.locator(".fs-sentence").inner_text()
            assert page.locator(".fs-card").count() == 4
            assert no_overflow(page)
            context.close()
    assert min(seconds) < FIRST_VIEW_SECONDS, seconds


def test_rank_slider_live_run_cancel_and_two_tabs(tab: Callable[..., Page]) -> None:
    page = tab("?batch=1&seq=64")
    page.locator(".fs-sentence").wait_for(timeout=30_000)
    replayed = page.locator(".fs-sentence").inner_text()
    page.get_by_role("link", name="Ranks").click()
    page.get_by_text("Which heads and layers can I cut?").wait_for()
    kept = page.locator(".fs-number .v").first
    kept.wait_for()
    before, numbers = plan_of(page), kept.inner_text()

    handle = page.locator(".st-key-rank_up div:has(> div > input[type=range])")
    box = handle.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] - 40, box["y"] + box["height"] / 2, steps=6)
    page.mouse.up()
    page.wait_for_url(re.compile(r"[?&]plan="))
    page.wait_for_function("old => document.querySelector('.fs-number .v').innerText !== old", arg=numbers)
    assert plan_of(page) != before and "up:" in plan_of(page)
    says(page, ".st-key-panel_plan", "Not run yet")
    assert no_overflow(page)

    page.get_by_role("button", name="Run live").click()
    page.locator("[data-testid=stProgress]").wait_for(timeout=15_000)

    # A second tab waits its turn, cancels, and still shows what it showed.
    other = tab()
    other.locator(".fs-sentence").wait_for(timeout=30_000)
    other.get_by_role("button", name="Run live").click()
    other.get_by_role("button", name="Cancel").click()
    other.get_by_text("Live run cancelled").wait_for(timeout=30_000)
    assert other.locator(".fs-sentence").inner_text() == replayed

    page.get_by_text("Measured", exact=False).wait_for(timeout=RUN_MILLISECONDS)
    says(page, ".st-key-panel_plan", "LIVE")
    page.get_by_role("link", name="Overview").click()
    page.locator(".fs-sentence .fs-LIVE").wait_for(timeout=15_000)
    assert page.locator(".fs-sentence").inner_text() != replayed
    assert plan_of(page)

    # The link alone brings the plan and the stored run back.
    page.reload()
    page.locator(".fs-sentence").wait_for(timeout=30_000)
    says(page, "[data-testid=stSidebar]", "own plan")
    assert "Shown:" not in page.locator("[data-testid=stMain]").inner_text()


def test_the_language_model_is_picked_in_the_sidebar_and_scored_by_perplexity(
    tab: Callable[..., Page],
) -> None:
    page = tab()
    page.locator(".fs-sentence").wait_for(timeout=30_000)
    page.locator("[data-testid=stSidebar] [data-testid=stSelectbox] input").first.click()
    page.get_by_role("option", name="stdlib-llama", exact=True).click()
    page.wait_for_url(re.compile(r"[?&]model=stdlib-llama"))
    # A small input: what is scored is the same whatever is timed.
    page.goto(re.sub(r"(batch|seq)=\d+", r"\1=16", page.url))
    page.get_by_role("button", name="Run live").click(timeout=30_000)
    page.locator(".fs-sentence .fs-LIVE").wait_for(timeout=RUN_MILLISECONDS)
    assert "perplexity rises from" in page.locator(".fs-sentence").inner_text()
    card = page.locator(".fs-card").nth(2).inner_text()
    assert "Perplexity, n = 32.8 k" in card and "lower is better" in card
    says(page, ".st-key-panel_curve", "perplexity, lower is better, log scale")
    assert no_overflow(page)


def test_a_broken_link_is_one_line(tab: Callable[..., Page]) -> None:
    page = tab("?plan=L99.q:%203&batch=many")
    page.locator(".fs-sentence").wait_for(timeout=30_000)
    page.locator(".fs-notice.error").nth(1).wait_for(timeout=15_000)
    lines = page.locator(".fs-notice.error").all_inner_texts()
    assert len(lines) == 2 and all("Traceback" not in line for line in lines)
