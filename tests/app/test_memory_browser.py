"""The Memory page in Chromium: what is clicked in the picture is shown, and the lane zooms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.app.browsing import no_overflow, says, settled

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def at(page: Page, across: float, up: float) -> tuple[float, float]:
    """A place in the picture, from its lower left corner, the lane included."""
    box = page.locator(".st-key-figure_memory_map .js-plotly-plot .main-svg").first.bounding_box()
    assert box is not None
    left, right, top, bottom = 46, 10, 20, 34
    return (
        box["x"] + left + across * (box["width"] - left - right),
        box["y"] + top + (1 - up) * (box["height"] - top - bottom),
    )


def opened(tab: Callable[[str], Page]) -> Page:
    page = tab("memory?p.memory_engine=dense")
    page.locator(".st-key-panel_memory_map input[type=range]").first.wait_for(
        state="attached", timeout=60_000
    )
    page.locator(".st-key-figure_memory_map .nsewdrag").first.wait_for(timeout=60_000)
    says(page, ".st-key-panel_memory_map", "each a band over its life")
    # The header knows the machine: the page is drawn once more then.
    page.locator(".st-key-machine").get_by_text("idle").wait_for(timeout=90_000)
    settled(page.locator(".st-key-figure_memory_map .js-plotly-plot .main-svg").first)
    return page


def test_bands_and_the_lane_answer_clicks(tab: Callable[[str], Page]) -> None:
    page = opened(tab)
    says(page, ".st-key-panel_memory_alive", "The largest of them")
    # The hidden states of a layer lie at the bottom from its start to its end.
    page.mouse.click(*at(page, 0.5, 0.2))
    says(page, ".st-key-panel_memory_alive", "This allocation")
    # The third of six layers.
    page.mouse.click(*at(page, 0.445, 0.04))
    page.wait_for_url("**p.memory_window=**")
    says(page, ".st-key-panel_memory_map", "14 allocations")
    assert no_overflow(page)
    page.get_by_role("button", name="Whole run").click()
    page.wait_for_url(lambda url: "memory_window" not in url)


def test_the_range_is_moved_by_keys(tab: Callable[[str], Page]) -> None:
    page = opened(tab)
    handle = page.locator(".st-key-panel_memory_map input[type=range]").first
    handle.focus()
    for step in (1, 2):
        page.keyboard.press("ArrowRight")
        page.wait_for_url(f"**p.memory_window={step}-*")
