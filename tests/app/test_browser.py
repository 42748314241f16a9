"""The real app and the real worker in the system's Chromium."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlparse

import pytest
import streamlit as st

from tests.app.browsing import no_overflow, says, serving, settled

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

FIRST_VIEW_SECONDS = 5.0
RUN_MILLISECONDS = 240_000


def plan_of(page: Page) -> str:
    return parse_qs(urlparse(page.url).query).get("plan", [""])[0]


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


def test_the_page_names_its_first_scripts_and_they_are_the_files(server: str) -> None:
    with urllib.request.urlopen(server, timeout=30) as page:
        named = re.findall(r"<\./([^>]+)>; rel=modulepreload", page.headers["link"])
    static = Path(st.__file__).parent / "static"
    for element in ("PlotlyChart", "Slider", "Selectbox", "NumberInput", "Html"):
        (name,) = [name for name in named if name.startswith(f"static/js/{element}.")]
        with urllib.request.urlopen(f"{server}/{name}", timeout=30) as script:
            assert "javascript" in script.headers["content-type"] and "link" not in script.headers
            assert script.read() == (static / name).read_bytes()
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{server}/static/js/..%2F..%2Findex.html%00.js", timeout=30)


def test_rank_slider_live_run_cancel_and_two_tabs(tab: Callable[..., Page], scored_folder: Path) -> None:
    """A small model of one's own, whose run takes seconds, in one tab; the bundled one in the other."""
    page = tab(f"?model={quote(str(scored_folder))}&batch=1&seq=16")
    page.get_by_text("No run of").wait_for(timeout=30_000)
    page.get_by_role("link", name="Ranks").click()
    page.get_by_text("What can I cut?").wait_for()
    kept = page.locator(".fs-number .v").first
    kept.wait_for()
    before, numbers = plan_of(page), kept.inner_text()

    handle = page.locator(".st-key-rank_up div:has(> div > input[type=range])")
    box = settled(handle)
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
    page.get_by_role("progressbar").wait_for(timeout=15_000)

    # A second tab may wait its turn, cancels, and still shows what it showed.
    other = tab("?batch=1&seq=64")
    other.locator(".fs-sentence").wait_for(timeout=30_000)
    replayed = other.locator(".fs-sentence").inner_text()
    other.get_by_role("button", name="Run live").click()
    other.get_by_role("button", name="Cancel").click()
    other.get_by_text("Live run cancelled").wait_for(timeout=30_000)
    assert other.locator(".fs-sentence").inner_text() == replayed

    page.get_by_text("Measured", exact=False).wait_for(timeout=RUN_MILLISECONDS)
    says(page, ".st-key-panel_plan", "LIVE")
    page.get_by_role("link", name="Overview").click()
    page.locator(".fs-sentence .fs-LIVE").wait_for(timeout=15_000)
    assert plan_of(page)
    # Until the scores are there, too, and the run is kept.
    says(page, ".fs-cards", "Accuracy, n =")
    page.locator(".st-key-run_live button:enabled").wait_for(timeout=RUN_MILLISECONDS)

    # The link alone brings the plan and the stored run back.
    page.reload()
    page.locator(".fs-sentence").wait_for(timeout=30_000)
    says(page, "[data-testid=stSidebar]", "own plan")
    assert "Shown:" not in page.locator("[data-testid=stMain]").inner_text()


@pytest.mark.long
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
