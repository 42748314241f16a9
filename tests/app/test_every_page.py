"""Every page in the system's Chromium: at a desk by day and night, on a dark phone: no error, nothing cut off.

The pictures are left in $FLASHSVD_SCREENSHOTS where that is set.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.pages import views
from tests.app.browsing import no_overflow

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser

SIZES = {
    "desk": {"viewport": {"width": 1280, "height": 720}, "color_scheme": "light"},
    "night": {"viewport": {"width": 1280, "height": 720}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}
# Choices of which a person sees no end, in a column that is too narrow for them.
CUT_OFF = """
[...document.querySelectorAll("[data-testid=stMain] [data-testid=stButtonGroup] button")].filter((button) => {
  const place = button.getBoundingClientRect();
  const column = button.closest("[data-testid=stColumn], [data-testid=stMainBlockContainer]").getBoundingClientRect();
  return place.left < column.left - 1 || place.right > column.right + 1;
}).map((button) => button.innerText)
"""


@pytest.mark.parametrize("size", ["desk", "phone", pytest.param("night", marks=pytest.mark.long)])
def test_pages_show_no_error_and_cut_nothing_off(
    size: str, browser: Browser, server: str, tmp_path: Path
) -> None:
    """One after another in one tab, as a person goes through them."""
    context = browser.new_context(**SIZES[size])  # type: ignore[arg-type]
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    folder = Path(os.environ.get("FLASHSVD_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page.goto(server)
    page.locator(".fs-sentence").wait_for(timeout=30_000)
    for view in views():
        if size == "phone":
            page.goto(f"{server}/{'' if view.name == 'overview' else view.name}")
        else:
            page.get_by_role("link", name=view.title, exact=True).click()
            page.wait_for_url(re.compile(rf"/{'' if view.name == 'overview' else view.name}(\?|$)"))
        page.locator("[data-testid=stMain] [data-testid=stHtml]:visible").first.wait_for(timeout=30_000)
        page.wait_for_function("!document.querySelector('[data-testid=stStatusWidget]')", timeout=30_000)
        # What is drawn last: the machine's chip, in a corner of every page.
        page.locator(".st-key-machine .fs-chip").wait_for(timeout=30_000, state="attached")
        page.screenshot(path=folder / f"{view.name}-{size}.png", full_page=True)
        assert not complaints, view
        assert page.locator("[data-testid=stException], .fs-notice.error").count() == 0, view
        assert no_overflow(page), view
        assert not page.evaluate(CUT_OFF), view
        assert (page.locator(".fs-dark").count() == 1) == (size != "desk"), view
    context.close()


def test_a_figure_saves_itself_as_a_picture_and_as_a_page_of_its_own(browser: Browser, server: str) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 720}, accept_downloads=True)
    page = context.new_page()
    page.goto(server)
    page.locator(".st-key-timeline .main-svg").first.wait_for(timeout=30_000)
    page.locator(".st-key-figure_timeline").hover()
    page.locator(".st-key-save_timeline button").first.click()
    found = {}
    for kind, button in {
        "png": "button[data-kind=png]",
        "svg": "button[data-kind=svg]",
        "html": ".st-key-html_timeline button",
    }.items():
        with page.expect_download(timeout=30_000) as coming:
            page.locator(button).click()
        assert coming.value.suggested_filename == f"memory-while-the-model-runs.{kind}"
        found[kind] = Path(coming.value.path()).read_bytes()
    assert found["png"].startswith(b"\x89PNG") and len(found["png"]) > 10_000
    assert found["svg"].startswith(b"<svg") and b"dense peak" in found["svg"]
    # It carries plotly itself.
    assert b"dense peak" in found["html"] and b"cdn.plot.ly" not in found["html"][:2000]
    context.close()


def test_a_talk_is_saved_from_pages_and_turned_by_keys(browser: Browser, server: str) -> None:
    from playwright.sync_api import expect

    context = browser.new_context(viewport={"width": 1600, "height": 900})
    page = context.new_page()
    page.goto(server)
    page.locator(".fs-sentence").wait_for(timeout=30_000)
    # The worker's coming draws the page again, and the open menu with it.
    expect(page.locator(".fs-chip")).not_to_contain_text("starting", timeout=60_000)
    for count, title in enumerate(("Overview", "Ranks"), start=1):
        page.get_by_role("link", name=title, exact=True).click()
        page.get_by_role("button", name="Copy link").click()
        page.get_by_role("button", name="Add this page to the talk").click()
        expect(page.get_by_text(f"{count} of 40 steps")).to_be_visible(timeout=15_000)
        page.keyboard.press("Escape")
    page.get_by_role("link", name="Present", exact=True).click()
    place = page.locator(".fs-slide-top span").nth(1)
    expect(place).to_have_text("1 / 2", timeout=15_000)
    page.get_by_role("button", name="Full screen").click()
    expect(page.locator("[data-testid=stSidebar]")).to_be_hidden(timeout=15_000)
    box = page.locator(".st-key-slide").bounding_box()
    assert box is not None and abs(box["width"] - 1600) < 2 and abs(box["height"] - 900) < 2
    for key, shown in {"ArrowRight": "2 / 2", "PageUp": "1 / 2", "End": "2 / 2", "Home": "1 / 2"}.items():
        page.keyboard.press(key)
        expect(place).to_have_text(shown, timeout=15_000)
    page.keyboard.press("Escape")
    expect(page.locator("[data-testid=stSidebar]")).to_be_visible(timeout=15_000)
    # The address alone brings the talk back.
    page.wait_for_url("**present_talk=**")
    page.goto(page.url)
    expect(page.locator(".fs-slide-top span").nth(1)).to_have_text("1 / 2", timeout=30_000)
    context.close()
